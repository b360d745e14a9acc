"""What is each part of nano's recipe worth? Pretrains variants for one small budget and probes each frozen encoder.

    python benchmarks/pretraining.py --train [--steps 600] [--seeds 0] [--variants base ...] [--runs DIR]
        [--egogestar FOLDER]

Without ``--train`` only reads what is there and writes the section "Pretraining" of ``benchmarks/RESULTS.md``. One
variant after the other, each resumed where it was stopped; scores are kept beside each encoder and not made twice.

Probes: 5 nearest neighbours (cosine, nothing chosen) and a linear one (its penalty chosen on val), on the mean of the
tokens, five folds by group, three times. Accuracy for classes, Spearman correlation for quality. Intervals resample
whole groups of clips, paired between variants; they do not cover the luck of pretraining: for that, several --seeds.
EgoGestAR is not part of this project; without it that half is left out.
"""

import argparse
import hashlib
import json
import logging
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from results import write_section
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

import workbench as wb
from workbench.analysis.bootstrap import group_weights, percentile_interval
from workbench.data.cache import decode_table
from workbench.data.protocol import Protocol
from workbench.data.splits import k_fold_by_group
from workbench.data.tables import ClipTable
from workbench.models.backbones import Backbone, load_backbone
from workbench.training.metrics import main_metric, weighted_metrics
from workbench.training.pretrain import PretrainSetup, pretrain
from workbench.training.runs import environment

log = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent
FOLDS, REPEATS, NEIGHBOURS, RESAMPLES = 5, 3, 5, 2000
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)

BASE = "base"
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "no dense targets": {"dense": False},
    "dense targets only": {"clip_targets": False},
    "with masked": {"masked": 1.0},
    "masked only": {"dense": False, "clip_targets": False, "masked": 1.0},
    "natural textures": {"textures": "natural"},
    "flat textures": {"textures": "flat"},
    "white noise textures": {"textures": "white"},
    "no distractors": {"distractors": False},
    "still camera": {"camera_motion": False},
    "no curriculum": {"easy_steps": 0},
    "half the steps": {"steps": 0.5},
    "twice the steps": {"steps": 2.0},
}
"""What differs from the recipe; ``steps`` is a share of the budget."""
REFERENCES = ("untrained", "nano as shipped")
Made = dict[tuple[str, int], pd.DataFrame]
"""Predictions of the probes, by variant and seed of pretraining; see :func:`probe`."""


def recipe(name: str, steps: int, seed: int) -> PretrainSetup:
    """The variant at a budget of ``steps``: warm-up and curriculum keep their shares of the default recipe's."""
    changes = dict(VARIANTS[name])
    default, total = PretrainSetup(), max(2, round(steps * changes.pop("steps", 1.0)))
    base = replace(
        default, steps=total, seed=seed,
        warmup_steps=max(1, total * default.warmup_steps // default.steps),
        easy_steps=total * default.easy_steps // default.steps,
    )  # fmt: skip
    return replace(base, **changes)


def folder_of(runs: Path, name: str, steps: int, seed: int) -> Path:
    return runs / f"{re.sub('[^a-z]+', '-', name)}-{steps}-seed{seed}"


@dataclass(frozen=True)
class Dataset:
    """Decoded clips with groups, and the tasks that are probed."""

    name: str
    table: ClipTable
    clips: Any
    tasks: tuple[str, ...]


def datasets(args: argparse.Namespace, backbone: Backbone) -> Iterable[Dataset]:
    """Decoded once, for every encoder of nano's geometry."""
    how = Protocol(num_frames=backbone.num_frames, size_px=backbone.size_px, resize_px=backbone.resize_px).reading()
    sources: dict[str, tuple[ClipTable, tuple[str, ...]]] = {
        "playground": (wb.playground(clips=args.clips), ("action", "quality"))
    }
    if args.egogestar.is_dir():
        gestures = wb.open_clips(args.egogestar, task="gesture", group_column="group", exclude=("unclassified",))
        sources["egogestar"] = (gestures, ("gesture",))
    for name, (table, tasks) in sources.items():
        read = decode_table(table, **how, progress=False)
        yield Dataset(name, read.table, read.clips, tasks)


@torch.inference_mode()
def features(backbone: Backbone, clips: Any, batch_size: int = 32) -> np.ndarray:
    """The mean of the tokens, normed as the checkpoint does: float64 (n, D)."""
    parts = []
    for start in range(0, len(clips), batch_size):
        batch = torch.from_numpy(np.array(clips[start : start + batch_size])).to(backbone.device)
        parts.append(backbone.pool(backbone(backbone.prepare(batch)).tokens).double().cpu())
    return torch.cat(parts).numpy()


def nearest(kind: str, train: np.ndarray, target: np.ndarray, test: np.ndarray) -> np.ndarray:
    maker = KNeighborsRegressor if kind == "regression" else KNeighborsClassifier
    return maker(NEIGHBOURS, metric="cosine").fit(train, target).predict(test)


def linear(kind: str, penalty: float, train: np.ndarray, target: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Ridge or logistic regression; ``penalty`` is per clip, so that more clips are not penalised less."""
    if kind == "regression":
        return Ridge(penalty * len(train)).fit(train, target).predict(test)
    return LogisticRegression(C=1 / (penalty * len(train)), max_iter=500).fit(train, target).predict(test)


def score(kind: str, target: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The task's main metric under each weighting: (R,)."""
    names = [main_metric(kind)]
    return weighted_metrics(
        kind, names, target=target, prediction=prediction, probabilities=None, weights=weights
    )[0]  # fmt: skip


def probe(data: Dataset, values: np.ndarray, task: str) -> pd.DataFrame:
    """Out-of-fold predictions of both probes: one row per repeat, probe and clip (``row`` of the table)."""
    kind, target = data.table.task(task).kind, data.table.targets(task)
    rows = []
    for repeat in range(REPEATS):
        said = {"nearest": np.full(len(target), np.nan), "linear": np.full(len(target), np.nan)}
        for fold in k_fold_by_group(data.table, folds=FOLDS, seed=repeat, stratify=task):
            split = fold.frame.split.to_numpy()
            train, val, test = (split == part for part in ("train", "val", "test"))
            x = StandardScaler().fit(values[train]).transform(values)

            def on_val(p: float, x: np.ndarray = x, train: np.ndarray = train, val: np.ndarray = val) -> float:
                guess = linear(kind, p, x[train], target[train], x[val])
                return float(np.nan_to_num(score(kind, target[val], guess, np.ones((1, int(val.sum()))))[0], nan=-1.0))

            fit, best = train | val, max(PENALTIES, key=on_val)
            said["nearest"][test] = nearest(kind, x[fit], target[fit], x[test])
            said["linear"][test] = linear(kind, best, x[fit], target[fit], x[test])
        rows += [
            pd.DataFrame({"repeat": repeat, "probe": name, "row": np.arange(len(target)), "prediction": guess})
            for name, guess in said.items()
        ]
    return pd.concat(rows, ignore_index=True).assign(dataset=data.name, task=task)


def scored(folder: Path, backbone: Backbone, sets: Sequence[Dataset]) -> pd.DataFrame:
    """``folder/probes.parquet``, completed with the data sets that it lacks."""
    path = folder / "probes.parquet"
    done = pd.read_parquet(path) if path.exists() else pd.DataFrame({"dataset": []})
    for data in sets:
        # A playground of another size is another data set.
        if (done.dataset == data.name).any() and done[done.dataset == data.name].row.max() + 1 == len(data.table):
            continue
        values = features(backbone, data.clips)
        new = [probe(data, values, task) for task in data.tasks]
        done = pd.concat([done[done.dataset != data.name], *new], ignore_index=True)
        temporary = folder / f"probes.{os.getpid()}.tmp"
        done.to_parquet(temporary)
        os.replace(temporary, path)
    return done


def encoders(args: argparse.Namespace) -> Iterable[tuple[str, int, Path, Backbone | None]]:
    """Every variant and seed: name, seed, folder, and the encoder where it is finished (trained first if asked)."""
    for name in REFERENCES:
        backbone = load_backbone("nano", weights="random" if name == "untrained" else "pretrained")
        digest = hashlib.sha256(b"".join(w.numpy().tobytes() for w in backbone.state_dict().values())).hexdigest()
        (folder := args.runs / f"{name.replace(' ', '-')}-{digest[:8]}").mkdir(parents=True, exist_ok=True)
        yield name, 0, folder, backbone
    for seed in args.seeds:
        for name in args.variants:
            folder = folder_of(args.runs, name, args.steps, seed)
            if args.train and not (folder / "checkpoint" / "model.safetensors").exists():
                log.info("training %s", folder.name)
                pretrain(folder, recipe(name, args.steps, seed), device=args.device, checkpoint_every=25)
            finished = (folder / "checkpoint" / "model.safetensors").exists()
            yield name, seed, folder, load_backbone(folder / "checkpoint") if finished else None


def seconds_per_step(folder: Path) -> float:
    """Median over the pieces of 25 steps: other work on the machine is in it."""
    if not (folder / "log.jsonl").exists():
        return np.nan
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    took = [b["seconds"] - a["seconds"] for a, b in zip(lines, lines[1:], strict=False) if b["seconds"] > a["seconds"]]
    return float(np.median(took)) / 25 if took else np.nan


def guesses(made: Made, name: str, data: Dataset, task: str, which: str) -> list[np.ndarray]:
    """The variant's predictions (n,) on a task by the probe ``which``: one per pretraining seed and repeat."""
    found = []
    for (variant, _), table in made.items():
        if variant == name:
            mine = table[(table.dataset == data.name) & (table.task == task) & (table.probe == which)]
            found += [part.sort_values("row").prediction.to_numpy() for _, part in mine.groupby("repeat")]
    return found


def summary(made: Made, data: Dataset, task: str) -> pd.DataFrame:
    """One row per variant: both probes, and the linear one's difference to the base, with intervals over groups."""
    kind, target = data.table.task(task).kind, data.table.targets(task)
    groups = pd.factorize(data.table.frame.group)[0]
    names = list(dict.fromkeys(name for name, _ in made))
    # The same resamples for every variant, which is what pairs them.
    weights = np.concatenate([np.ones((1, len(groups))), *group_weights(groups, resamples=RESAMPLES, seed=0)])
    values = {
        (name, which): np.mean([score(kind, target, one, weights) for one in guesses(made, name, data, task, which)], 0)
        for name in names
        for which in ("nearest", "linear")
    }
    rows = []
    for name in names:
        row: dict[str, object] = {"variant": name, "seeds": sum(n == name for n, _ in made)}
        row |= {which: shown(values[name, which]) for which in ("nearest", "linear")}
        if BASE in names and name != BASE:
            row["linear - base"] = shown(values[name, "linear"] - values[BASE, "linear"], sign="+")
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def shown(values: np.ndarray, sign: str = "") -> str:
    """``value [low, high]`` from the value itself and its resamples."""
    found = percentile_interval(values[1:])
    return f"{values[0]:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def report(args: argparse.Namespace, made: Made, sets: Sequence[Dataset]) -> list[str]:
    command = f"benchmarks/pretraining.py --train --steps {args.steps} --seeds {' '.join(map(str, args.seeds))}"
    lines = [f"`{command}`: {args.steps} steps of 32 clips each unless the name says otherwise.", ""]
    for data in sets:
        for task in data.tasks:
            table, kind = summary(made, data, task), data.table.task(task).kind
            size = f"{len(data.table)} clips in {data.table.frame.group.nunique()} groups"
            lines += [f"### {data.name}, {task} ({main_metric(kind)}; {size})", ""]
            lines += ["```", table.to_string(index=False), "```", ""]
    lines += [
        f"Frozen encoders; {NEIGHBOURS} nearest neighbours (cosine) and a linear probe on the mean of the tokens, "
        f"{FOLDS} folds by group, {REPEATS} times. 95 % intervals resample groups, paired between variants; they do "
        "not cover the luck of pretraining (with one seed, small differences may be just that).",
        "",
        f"{date.today()}; {platform.machine()}, {platform.system()}; "
        + ", ".join(f"{name} {value}" for name, value in environment().items()),
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", action="store_true", help="train what is missing (hours on a CPU; resumable)")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--clips", type=int, default=600, help="size of the playground")
    parser.add_argument("--egogestar", type=Path, default=HERE.parents[1] / "shared" / "clips" / "egogestar")
    parser.add_argument("--runs", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, default=HERE / "RESULTS.md")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    sets = list(datasets(args, load_backbone("nano")))
    made: Made = {}
    for name, seed, folder, backbone in encoders(args):
        if backbone is None:
            continue
        made[name, seed] = scored(folder, backbone, sets)
        log.info("%s, seed %d: scored; %.2f s a step", name, seed, seconds_per_step(folder))
        if args.train and name not in REFERENCES:  # so that a run that is stopped has said what it found
            write_section("Pretraining", report(args, made, sets), args.results)
    if not any(name not in REFERENCES for name, _ in made):
        print(f"nothing has been trained in {args.runs} at --steps {args.steps}; use --train")
        return
    lines = report(args, made, sets)
    write_section("Pretraining", lines, args.results)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
