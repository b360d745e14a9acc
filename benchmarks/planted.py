"""Do the maps find evidence that was planted? ``python benchmarks/planted.py`` replaces its section of RESULTS.md.

Tiny models of four families, trained from random weights on planted clips in seconds, on the CPU: one task; two tasks
in different places; and a background that gives the label away, in runs whose accuracy does not show it.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from repeated import numbers, publish, text_of
from results import RESULTS
from sklearn.metrics import roc_auc_score

from workbench.analysis.bootstrap import bootstrap, percentile_interval
from workbench.analysis.explain import evaluating, explain
from workbench.analysis.faithfulness import clip_maps, explained_output
from workbench.analysis.trust.lab import CONFIGS, PlantedRun, planted_accuracy, train_planted
from workbench.analysis.trust.masks import MASK_METRICS, mass_in_mask
from workbench.analysis.trust.perturb import fill_pixels, tube_pixels
from workbench.analysis.trust.priors import prior_maps
from workbench.data.synthetic.planted import PlantedClips, planted_clips, token_cover

METHODS = ("attnlrp", "integrated_gradients", "grad_cam", "rollout")
TWO = ("stripes", "spots")
FAINT = 0.35  # contrast of the evidence beside the shortcut
TRAIN, HELD_OUT = 768, 256


def maps_of(run: PlantedRun, clips: PlantedClips, method: str, task: str) -> np.ndarray:
    """Maps (B, T', H', W') of what speaks for the true class."""
    classes = run.tml.task(task).classes
    target = [classes[i] for i in clips.labels[task]]
    return clip_maps(explain(run, clips.frames, method=method, task=task, target=target, device="cpu", progress=False))


def mean_of(cells: Sequence[np.ndarray], metric: str) -> str:
    """Mean over seeds and clips, its interval over clips, and the seeds' range; ``cells``: per seed (B,)."""
    per_clip = np.mean(cells, 0)
    drawn = bootstrap(
        lambda w: (per_clip @ (w / w.sum(1, keepdims=True)).T)[None], np.arange(len(per_clip)), resamples=2000, seed=0
    )
    interval, seeds = percentile_interval(drawn[0]), [float(cell.mean()) for cell in cells]
    return f"{per_clip.mean():.2f} [{interval.low:.2f}, {interval.high:.2f}] ({min(seeds):.2f}-{max(seeds):.2f})"


def evidence(families: Sequence[str], seeds: Sequence[int], clips: int, methods: Sequence[str]) -> list[str]:
    held_out, rows, trained = planted_clips(HELD_OUT, seed=1000), [], []
    probe = held_out[:clips]
    for family in families:
        found: dict[str, dict[str, list[np.ndarray]]] = {}
        for seed in seeds:
            start = time.perf_counter()
            run = train_planted(family, planted_clips(TRAIN, seed=seed), held_out, seed=seed, head="query")
            trained.append((family, run.accuracy["stripes"], run.steps, time.perf_counter() - start))
            grid = run.tml.backbone.grid
            mask = probe.token_mask("stripes", grid)
            maps = {name: maps_of(run, probe, name, "stripes") for name in methods}
            for name, values in (maps | prior_maps(probe.frames, grid, seed=seed)).items():
                for metric, measure in MASK_METRICS.items():
                    found.setdefault(name, {}).setdefault(metric, []).append(measure(values, mask))
        for name, by_metric in found.items():
            rows.append({"family": family, "method": name} | {m: mean_of(v, m) for m, v in by_metric.items()})
    models = pd.DataFrame(trained, columns=["family", "accuracy", "steps", "seconds"]).groupby("family", sort=False)
    summary = models.agg({"accuracy": "min", "steps": "max", "seconds": "median"}).round(3).reset_index()
    return ["### One task", "", *text_of(pd.DataFrame(rows)),
            "Models (worst accuracy, most steps, median seconds):", "", *text_of(summary)]  # fmt: skip


def two_tasks(families: Sequence[str], seeds: Sequence[int], clips: int) -> list[str]:
    held_out, rows = planted_clips(HELD_OUT, seed=1001, cues=TWO), []
    probe = held_out[:clips]
    for family in families:
        own: dict[str, list[np.ndarray]] = {task: [] for task in TWO}
        other: dict[str, list[np.ndarray]] = {task: [] for task in TWO}
        least = 1.0
        for seed in seeds:
            run = train_planted(family, planted_clips(TRAIN, seed=seed, cues=TWO), held_out, seed=seed, head="query")
            least = min(least, *run.accuracy.values())
            for task, rival in (TWO, TWO[::-1]):
                values, grid = maps_of(run, probe, "attnlrp", task), run.tml.backbone.grid
                own[task].append(mass_in_mask(values, probe.token_mask(task, grid)))
                other[task].append(mass_in_mask(values, probe.token_mask(rival, grid)))
        for task in TWO:
            rows.append({"family": family, "task": task, "mass in its own evidence": mean_of(own[task], "mass"),
                         "in the other's": mean_of(other[task], "mass"), "worst accuracy": f"{least:.3f}"})  # fmt: skip
    return ["### Two tasks, one in each half of the frame (AttnLRP)", "", *text_of(pd.DataFrame(rows))]


def kept_without_evidence(run: PlantedRun, clips: PlantedClips) -> float:
    """The true class's probability with the evidence blurred away, mean over clips."""
    task = run.tasks[0]
    target = [task.classes[i] for i in clips.labels[task.name]]
    with evaluating(run.tml):
        output = explained_output(run.tml, task, clips.frames, target, "cpu")
        x = output.pixel_values
        gone = tube_pixels(clips.token_mask(task.name, run.tml.backbone.grid), x)
        return float(output.scores(fill_pixels(x, "blur").where(gone, x)).mean())


def shortcut(families: Sequence[str], seeds: Sequence[int], clips: int) -> list[str]:
    tests = {kind: planted_clips(HELD_OUT, seed=1002, shortcut=kind, contrast=FAINT) for kind in ("label", "chance")}
    probe, rows = tests["label"][:clips], []
    for family in families:
        for seed in seeds:
            for kind, test in tests.items():
                train = planted_clips(TRAIN, seed=seed, shortcut=kind, contrast=FAINT)
                run = train_planted(family, train, test, seed=seed, head="query")
                values, grid = maps_of(run, probe, "attnlrp", "stripes"), run.tml.backbone.grid
                corner = token_cover(np.broadcast_to(probe.shortcut, probe.masks["stripes"].shape), grid) > 0.5
                rows.append({
                    "family": family, "trained on": kind, "accuracy": run.accuracy["stripes"],
                    "accuracy, cue at chance": planted_accuracy(run.tml, tests["chance"])["stripes"],
                    "mass outside the evidence": 1 - mass_in_mask(values, probe.token_mask("stripes", grid)).mean(),
                    "mass in the corner": mass_in_mask(values, corner).mean(),
                    "probability without evidence": kept_without_evidence(run, probe),
                })  # fmt: skip
    table = pd.DataFrame(rows)
    flags = [c for c in table.columns if c.startswith(("mass", "prob"))] + ["accuracy"]
    auroc = [
        {"family": family} | {f: f"{roc_auc_score(part['trained on'] == 'label', part[f]):.3f}" for f in flags}
        for family, part in [*table.groupby("family", sort=False), ("all", table)]
    ]
    means = table.groupby(["family", "trained on"], sort=False).mean().round(3).reset_index()
    return ["### A tinted corner that goes with the label (`label`) or with nothing (`chance`)", "", *text_of(means),
            "AUROC of telling the runs apart by each number:", "", *text_of(pd.DataFrame(auroc))]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", default=",".join(CONFIGS))
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--clips", type=int, default=32, help="held-out clips that are explained")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--parts", default="evidence,tasks,shortcut")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file whose section is replaced")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    families, seeds = options.families.split(","), numbers(options.seeds)
    lines = [
        f"`benchmarks/planted.py`: tiny models (width 48, two blocks, one query per task) from random weights, seeds "
        f"{options.seeds}, {options.clips} held-out clips of 8 frames at 32 px; the evidence fills 1/8 of each.",
        "Mean over seeds [95 % interval over clips] (range over seeds). Targets are the true classes; integrated "
        "gradients start from the blurred clip. The distractor flickers, so the motion prior points to it by design.",
        "",
    ]
    parts = options.parts.split(",")
    if "evidence" in parts:
        lines += evidence(families, seeds, options.clips, options.methods.split(","))
    if "tasks" in parts:
        lines += two_tasks(families, seeds, options.clips)
    if "shortcut" in parts:
        lines += shortcut(families, seeds, options.clips)
    publish("Planted evidence", lines, options.results)


if __name__ == "__main__":
    main()
