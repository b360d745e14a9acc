"""TML against one model per task: the playground's three tasks, and a joint table of real clips with missing labels.

    python benchmarks/tml.py [--part playground|joint] [--seeds 0-5] [--epochs 20] [--rates 0.33,1,3] [--clips 600]
                             [--ladder FOLDER] [--egogestar FOLDER] [--fights FOLDER] [--runs DIR] [--results FILE]

Rates are tuned on val with the first seed, over one grid, for TML and for each task alone; then all are trained with
every seed and scored on test. TML is ``Setup(head="query")``; alone a task takes the better of both heads too, so that
it is not held back by ours. Epochs, batches and protocol are the same; alone, a task is trained on the clips that carry
its label. Runs are kept in ``--runs`` and read again when finished, an interrupted one goes on where it was, and the
sections of ``benchmarks/RESULTS.md`` are written anew after every seed.

The joint table: gestures of EgoGestAR (no safety label), fights of fight_surv (no gesture label), each clip replaced by
one copy with known damage, whose step is the quality label of both. The copies go to ``--ladder``, outside the
repository. The clips are not part of this project.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from repeated import common_options, numbers, publish, text_of

import workbench as wb
from workbench.analysis.multitask import multitask_report, trained
from workbench.data.cache import default_cache_dir
from workbench.data.splits import split_by_group
from workbench.data.synthetic.ladder import quality_ladder

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "clips"
BUDGET: dict[str, Any] = {"batch_size": 16, "crop_scale": 0.6}
COPY_PX = 96  # as the playground's: the model sees 64, and a blur of one pixel in 240 would be gone by then


def playground_table(args: argparse.Namespace) -> wb.ClipTable:
    return wb.playground(clips=args.clips, progress=False)


def joint_table(args: argparse.Namespace) -> wb.ClipTable | None:
    """Gestures and fights in damaged copies, split by session and by camera; None where the clips are not there."""
    if not args.egogestar.is_dir() or not args.fights.is_dir():
        return None
    gestures = wb.open_clips(args.egogestar, task="gesture", group_column="group", exclude=("unclassified",))
    kind = wb.Task("label", "binary", ("noFight", "fight"))
    fights = wb.open_clips(args.fights / "groups.csv", tasks=[kind], group_column="group", name="fight_surv")
    fights = wb.ClipTable(
        fights.frame.rename(columns={"label": "safety"}), [wb.Task("safety", "binary", kind.classes)],
        root=fights.root, info=fights.info, quarantine=fights.quarantine,
    )  # fmt: skip
    parts = []
    for table, task in ((gestures, "gesture"), (fights, "safety")):
        split = split_by_group(table, fractions=(0.65, 0.15, 0.20), seed=0, stratify=task)
        if args.limit:
            split = split[np.random.default_rng(0).permutation(len(split))[: args.limit]]
        parts.append(quality_ladder(split, args.ladder / table.info.name, short_side_px=COPY_PX, progress=False))
    return wb.concat(parts, name="joint")


def tuned(table: wb.ClipTable, tasks: tuple[str, ...], heads: tuple[str, ...], args: argparse.Namespace) -> wb.Setup:
    """Of one grid of rates (and heads), the setup with the best mean score on val in its last epoch, first seed."""
    base = wb.Setup(backbone=args.backbone, epochs=args.epochs, tasks=tasks, **BUDGET)
    lr, head_lr = base.rates
    tried = {}
    for head in heads:
        for factor in args.rates:
            setup = base.replace(head=head, lr=lr * factor, head_lr=head_lr * factor)
            run = trained(table, setup, tasks, args.seeds[0], runs_dir=args.runs, device=args.device)
            tried[setup] = float(run.history.val_score.iloc[-1])
            print(f"tuning {'+'.join(tasks)}: {head}, rates x {factor:g}: val {tried[setup]:.3f}", flush=True)
    return max(tried, key=lambda setup: -1.0 if np.isnan(tried[setup]) else tried[setup])


def chosen_lines(chosen: dict[str, wb.Setup]) -> list[str]:
    rows = [
        {"trained": name, "head": s.head, "lr": f"{s.lr:.1e}", "head_lr": f"{s.head_lr:.1e}"}
        for name, s in chosen.items()
    ]
    return text_of(pd.DataFrame(rows))


def report_lines(
    table: wb.ClipTable, report: Any, joint: wb.Setup, alone: dict[str, wb.Setup], args: argparse.Namespace
) -> list[str]:
    sizes = "/".join(str(len(table.split(s))) for s in ("train", "val", "test"))
    labels = ", ".join(f"{task.name} {int((~np.isnan(table.train.targets(task.name))).sum())}" for task in table.tasks)
    return [
        *text_of(report.formatted()), *text_of(report.formatted_totals()),
        *[line for line in report.caption.splitlines() if line], "",
        f"train/val/test clips {sizes}; train clips with a label: {labels}. {args.epochs} epochs, batches of "
        f"{BUDGET['batch_size']}, the last epoch is kept. Chosen on val with seed {args.seeds[0]} among rates times "
        f"{', '.join(f'{r:g}' for r in args.rates)}; alone also among both heads:", "",
        *chosen_lines({"TML": joint} | alone),
        "Training seconds are medians over seeds of trainings one after the other, other work on the machine included; "
        "inference is measured in turn, in batches of 8; memory is counted in float32, alone that of the largest; "
        "parameters alone are the sum.", "",
    ]  # fmt: skip


def run_part(table: wb.ClipTable, title: str, args: argparse.Namespace) -> None:
    """Tune, then train seed by seed, the section anew after each."""
    tasks = tuple(task.name for task in table.tasks)
    alone = {task: tuned(table, (task,), ("mean", "query"), args) for task in tasks}
    joint = tuned(table, tasks, ("query",), args)
    for count in range(1, len(args.seeds) + 1):
        began = time.monotonic()
        report = multitask_report(
            table, joint, singles=alone, seeds=args.seeds[:count], runs_dir=args.runs, device=args.device,
            progress=False,
        )  # fmt: skip
        print(f"{title}: seed {args.seeds[count - 1]}: {time.monotonic() - began:.0f} s", flush=True)
        publish(title, report_lines(table, report, joint, alone, args), args.results)


def main() -> None:
    parser = common_options(__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("playground", "joint"))
    parser.add_argument("--seeds", type=numbers, default=list(range(6)))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rates", type=lambda text: [float(f) for f in text.split(",")], default=[0.33, 1.0, 3.0])
    parser.add_argument("--clips", type=int, default=600, help="size of the playground")
    parser.add_argument("--limit", type=int, default=0, help="clips of each real set, for a trial; 0: all")
    parser.add_argument("--ladder", type=Path, default=default_cache_dir() / "quality-ladder")
    parser.add_argument("--egogestar", type=Path, default=CLIPS / "egogestar")
    parser.add_argument("--fights", type=Path, default=CLIPS / "fight_surv")
    args = parser.parse_args()
    titles = {"playground": "TML on the playground", "joint": "TML on a joint table of real clips"}
    for part, title in titles.items():
        if args.part not in (None, part):
            continue
        table = playground_table(args) if part == "playground" else joint_table(args)
        if table is None:
            missing = "Not measured: the folders of the real clips are not there; name them on the command line."
            publish(title, [missing, ""], args.results)
            continue
        run_part(table, title, args)


if __name__ == "__main__":
    main()
