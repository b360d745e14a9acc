"""Few labels: from ``nano`` against random weights at 5, 20 and 100 training clips per class, in paired seeds.

    python benchmarks/few_labels.py [--part playground|gestures] [--seeds 0-5] [--levels 5,20,100,all] [--steps 300]
                                    [--strategy full] [--egogestar FOLDER] [--runs DIR] [--results FILE]

A seed fixes which clips keep their label (5 of them in 20, in 100), the training and, for the gestures, which sessions
are held out; both ways get the same. Each training takes about ``--steps`` optimiser steps, but at least six epochs.
Runs are kept in ``--runs`` and read again when finished, an interrupted one goes on where it was, and its section of
``benchmarks/RESULTS.md`` is written anew after every seed.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from repeated import common_options, numbers, publish, text_of

import workbench as wb
from workbench.analysis.label_study import label_study, over_levels
from workbench.analysis.repeats import Spread
from workbench.data.splits import split_by_group

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "clips"
BATCH = 16
LEAST_EPOCHS = 6
PLAYGROUND_CLIPS = 1800  # two thirds train: 100 of each of the twelve actions
WATCHED = 24  # val clips looked at after each epoch; nothing is chosen by them


@dataclass(frozen=True)
class Source:
    title: str
    task: str
    levels: tuple[str, ...]
    chance: float
    shared: str
    """What the seeds have in common, which the interval takes for independent."""


PARTS = {
    "playground": Source(
        "Playground: accuracy of *action*, its own test split",
        "action",
        ("5", "20", "100"),
        1 / 12,
        "All seeds are tested on the same clips: the interval covers the labels drawn and the training, not the clips.",
    ),
    "gestures": Source(
        "EgoGestAR: accuracy, sessions held out",
        "gesture",
        ("5", "10", "all"),
        1 / 10,
        "Seeds share sessions, in train and in test, so the interval over them is somewhat too narrow.",
    ),
}


def table_of(part: str, seed: int, args: argparse.Namespace) -> wb.ClipTable:
    """The table of one seed, all labels there, few val clips."""
    if part == "playground":
        table = wb.playground(clips=args.clips, progress=False).with_tasks(["action"])
    else:
        table = wb.open_clips(args.egogestar, task="gesture", group_column="group", exclude=("unclassified",))
        table = split_by_group(table, fractions=(0.69, 0.11, 0.20), seed=seed, stratify="gesture")
    places = np.flatnonzero((table.frame.split == "val").to_numpy())
    dropped = np.random.default_rng(0).permutation(places)[WATCHED:]
    return table[~np.isin(np.arange(len(table)), dropped)]


def train_seed(part: str, seed: int, args: argparse.Namespace) -> pd.DataFrame:
    """One row per level and way, paired."""
    began = time.monotonic()
    study = label_study(
        table_of(part, seed, args), {"scratch": "scratch", "transfer": args.strategy},
        [None if level == "all" else int(level) for level in args.levels or PARTS[part].levels],
        task=PARTS[part].task, seeds=[seed], steps=args.steps, least_epochs=LEAST_EPOCHS, runs_dir=args.runs,
        device=args.device, progress=False, backbone=args.backbone, batch_size=BATCH, crop_scale=0.6,
    )  # fmt: skip
    print(f"{part} seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    return study


def part_lines(part: str, study: pd.DataFrame, args: argparse.Namespace) -> list[str]:
    """Per level the two means and the paired difference, with Student's t interval over the seeds."""
    lines = []
    for (level, way), row in over_levels(study, reference="scratch").set_index(["per_class", "strategy"]).iterrows():
        if way == "scratch":
            continue
        some = study[study.per_class.isna() if math.isnan(level) else study.per_class == level]
        seen = {name: some[some.strategy == name].value for name in ("scratch", way)}
        lines.append(
            {
                "per class": "all" if math.isnan(level) else f"{level:.0f}", "train clips": f"{row.clips:.0f}",
                "epochs": f"{some.epochs.median():.0f}", "seeds": f"{row.seeds:.0f}",
                "scratch": f"{seen['scratch'].mean():.3f} (sd {seen['scratch'].std():.3f})",
                f"{args.strategy} from {Path(args.backbone).name}": f"{row.value:.3f} (sd {seen[way].std():.3f})",
                "paired difference": str(Spread(row.difference, row.difference_low, row.difference_high, len(some))),
                "above zero": "" if math.isnan(row.difference_low) else "yes" if row.difference_low > 0 else "no",
            }
        )  # fmt: skip
    return [
        f"### {PARTS[part].title}", "",
        *text_of(pd.DataFrame(lines)),
        f"Mean over seeds; of the paired difference with Student's t 95 % interval; chance "
        f"{PARTS[part].chance:.2f}. A seed fixes the labelled "
        "clips, the training and, for the gestures, the sessions held out; both ways get the same. Batches of "
        f"{BATCH}, about {args.steps} steps but at least {LEAST_EPOCHS} epochs; the last epoch is kept, nothing is "
        f"chosen on test. {PARTS[part].shared}", "",
    ]  # fmt: skip


def main() -> None:
    parser = common_options(__doc__.splitlines()[0])
    parser.add_argument("--part", choices=tuple(PARTS))
    parser.add_argument("--egogestar", type=Path, default=CLIPS / "egogestar")
    parser.add_argument("--clips", type=int, default=PLAYGROUND_CLIPS, help="size of the playground")
    parser.add_argument("--seeds", type=numbers, default=list(range(6)))
    parser.add_argument("--levels", type=lambda text: text.split(","))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--strategy", default="full")
    args = parser.parse_args()
    for part in PARTS if args.part is None else (args.part,):
        title = f"Few labels on {part}"
        if part == "gestures" and not args.egogestar.is_dir():
            missing = f"Not measured: there is no folder {args.egogestar.name!r}; name it on the command line."
            publish(title, [missing, ""], args.results)
            continue
        studies: list[pd.DataFrame] = []
        for seed in args.seeds:
            studies.append(train_seed(part, seed, args))
            publish(title, part_lines(part, pd.concat(studies, ignore_index=True), args), args.results)


if __name__ == "__main__":
    main()
