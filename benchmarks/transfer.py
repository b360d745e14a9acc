"""Does transferring ``nano`` beat training from scratch? On the playground, and on real gestures where there are any.

    python benchmarks/transfer.py [--egogestar FOLDER] [--runs DIR] [--device auto] [--only playground|egogestar]

Writes the section "Transfer" of ``benchmarks/RESULTS.md``. Runs are kept in ``--runs`` and read again when finished.
EgoGestAR is not part of this project; without it that half is left out and the file says so.
"""

import argparse
import platform
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from results import write_section

import workbench as wb
from workbench.data.splits import split_by_group
from workbench.training.runs import environment

HERE = Path(__file__).resolve().parent
EGO_SPLITS = (0, 1, 2)
EGO: dict[str, Any] = {"epochs": 30, "batch_size": 16, "crop_scale": 0.6}


def playground_part(args: argparse.Namespace) -> list[str]:
    """Scratch, linear, attentive and full at one budget, and full on a single repeated frame."""
    clips = wb.playground()
    setups = {name: wb.Setup(strategy=name, epochs=6) for name in ("scratch", "linear", "attentive", "full")}
    setups["full, single frame"] = wb.Setup(strategy="full", epochs=6, sampling="single")
    runs = wb.sweep(clips, setups, runs_dir=args.runs, device=args.device)
    single = runs.pop("full, single frame")
    comparison = wb.compare(runs, reference="scratch")
    one = wb.evaluate(single, task="action").query("metric == 'accuracy'").iloc[0]
    table = comparison.formatted().drop(columns="note", errors="ignore")
    sizes = ", ".join(f"{len(clips.split(split))} {split}" for split in ("train", "val", "test"))
    return [
        f"### Playground ({sizes} clips; 6 epochs, seed 0)",
        "",
        "```",
        table.to_string(index=False),
        "```",
        "",
        f"Full fine-tuning shown one frame, repeated: *action* {one.value:.2f} [{one.low:.2f}, {one.high:.2f}] "
        f"(n = {one.n}; chance {1 / 12:.2f}).",
        "",
        comparison.caption,
    ]


def egogestar_part(args: argparse.Namespace) -> list[str]:
    """Ten gestures, recording sessions held out, three splits; accuracy from nano and from scratch."""
    if not args.egogestar.is_dir():
        return ["### EgoGestAR", "", f"Not measured: no folder {args.egogestar.name!r} given with --egogestar."]
    everything = wb.open_clips(args.egogestar, task="gesture", group_column="group", exclude=("unclassified",))
    rows: list[dict[str, object]] = []
    predictions: dict[str, list[pd.DataFrame]] = {"scratch": [], "full": []}
    for seed in EGO_SPLITS:
        clips = split_by_group(everything, fractions=(0.69, 0.11, 0.20), seed=seed, stratify="gesture")
        for strategy, parts in predictions.items():
            run = wb.fine_tune(wb.Setup(strategy=strategy, **EGO), clips, runs_dir=args.runs, device=args.device)
            test = run.predictions.query("split == 'test'")
            parts.append(test)
            accuracy = float((test.target == test.prediction).mean())
            counts = {"train": len(clips.train), "n": len(test)}
            rows.append({"split": seed, "strategy": strategy, "accuracy": accuracy} | counts)
    table = pd.DataFrame(rows).pivot(index=["split", "train", "n"], columns="strategy", values="accuracy").round(3)
    title = "### EgoGestAR (10 gestures, recording sessions held out, 3 splits, seed 0)"
    lines = [title, "", "```", table.to_string(), "```", ""]
    for strategy, parts in predictions.items():
        mean, low, high = session_interval(parts)
        lines.append(f"- {strategy}: mean accuracy {mean:.3f}, 95 % interval [{low:.3f}, {high:.3f}] over sessions")
    floor = "Floors: chance 0.10; 5-nearest-neighbours on a motion path 0.66 (measured elsewhere, not here)."
    return [*lines, "", f"Setup: {EGO}; the last epoch is kept, nothing is chosen on test. {floor}"]


def session_interval(parts: list[pd.DataFrame], resamples: int = 2000) -> tuple[float, float, float]:
    """Mean over splits of the test accuracy, and its percentile interval when sessions are drawn anew in each split."""
    rng = np.random.default_rng(0)
    draws = np.zeros(resamples)
    for part in parts:
        right = part.assign(right=part.target == part.prediction).groupby("group").right.agg(["sum", "count"])
        picks = rng.integers(len(right), size=(resamples, len(right)))
        draws += right["sum"].to_numpy()[picks].sum(1) / right["count"].to_numpy()[picks].sum(1) / len(parts)
    mean = float(np.mean([(p.target == p.prediction).mean() for p in parts]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return mean, float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--egogestar", type=Path, default=HERE.parents[1] / "shared" / "clips" / "egogestar")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", choices=("playground", "egogestar"))
    args = parser.parse_args()
    lines: list[str] = []
    if args.only != "egogestar":
        lines += [*playground_part(args), ""]
    if args.only != "playground":
        lines += [*egogestar_part(args), ""]
    versions = ", ".join(f"{name} {value}" for name, value in environment().items())
    lines.append(f"{date.today()}; {platform.machine()}, {platform.system()}; {versions}")
    write_section("Transfer", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
