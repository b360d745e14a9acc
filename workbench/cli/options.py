"""Options that several verbs share, and what they open."""

import argparse
from pathlib import Path
from typing import Any

# Spelled out here because building the parser must not load torch; a test holds it to the strategies' own list.
STRATEGIES = "scratch, linear, attentive, bitfit, lora:8, adapter:64, partial:2, llrd:0.75, full"


def add_source(parser: argparse.ArgumentParser) -> None:
    """How to open clips; see ``workbench.open_clips``."""
    parser.add_argument(
        "source",
        help="playground, a folder with one sub-folder per class, a CSV or Parquet file, tar shards, a public "
        "data set, the folder of a saved table",
    )
    parser.add_argument(
        "--layout",
        help="how the source is laid out, where that is not recognised: folder, table, shards, ucf101, hmdb51, "
        "kinetics, ssv2 or konvid1k",
    )
    parser.add_argument("--fold", type=int, help="which official split of ucf101 or hmdb51 (default: 1)")
    parser.add_argument("--unlabelled", action="store_true", help="every file is a clip without a label")
    parser.add_argument("--task", help="name of the task (folder) or of the one task to use")
    parser.add_argument("--label-column", action="append", help="label column of a CSV; may be given several times")
    parser.add_argument("--path-column", help="column of a CSV with the files (default: path)")
    parser.add_argument("--group-column", help="column that names what must stay on one side of a split")
    parser.add_argument("--split-column", help="column of a CSV with train, val and test (default: split, if there)")
    parser.add_argument("--start-column", help="column with the start in seconds (default: start_seconds, if there)")
    parser.add_argument("--end-column", help="column with the end in seconds (default: end_seconds, if there)")
    parser.add_argument("--groups", help="CSV with path and group columns (default: groups.csv in the folder)")
    parser.add_argument("--exclude", action="append", default=[], help="class to leave out; may be given several times")
    parser.add_argument("--root", help="folder that the paths of a CSV are relative to (default: its own)")
    parser.add_argument("--split-seed", type=int, help="seed of the split, where the source brings none (default: 0)")
    parser.add_argument("--horizontal-flip", action="store_true", help="mirroring a clip keeps its labels true")
    parser.add_argument("--time-reversal", action="store_true", help="playing a clip backwards keeps its labels true")
    parser.add_argument("--allow-outside-root", action="store_true", help="let paths in a CSV leave its folder")
    parser.add_argument("--allow-leak", action="store_true", help="open splits that put one group on both sides")


def open_source(args: argparse.Namespace) -> Any:
    from workbench.data.layouts import open_clips

    names = (
        "layout", "fold", "unlabelled", "task", "label_column", "path_column", "group_column", "split_column",
        "start_column", "end_column", "groups", "exclude", "root", "horizontal_flip", "time_reversal",
        "allow_outside_root", "allow_leak",
    )  # fmt: skip
    given = {"seed": args.split_seed, **{name: getattr(args, name) for name in names}}
    # By identity: 0 is a number that was given, and equals False.
    asked = {name: v for name, v in given.items() if v is not None and v is not False and v != []}
    return open_clips(args.source, **asked)


def add_setup(parser: argparse.ArgumentParser) -> None:
    """Fields of ``workbench.Setup``; what is not given keeps its default."""
    for name, kind, text in (
        ("backbone", str, "nano, a local folder or a hub id"), ("epochs", int, "passes over the train clips"),
        ("num-frames", int, "frames per clip, if not the checkpoint's"), ("size-px", int, "their size, likewise"),
        ("batch-size", int, "clips per batch"), ("lr", float, "peak rate of the backbone"),
        ("head-lr", float, "peak rate of the heads"), ("weight-decay", float, "on matrices"),
        ("optimizer", str, "adamw, adam or sgd (sgd needs --lr and --head-lr)"), ("momentum", float, "of sgd"),
        ("schedule", str, "of the rate: cosine, one_cycle, plateau or constant"),
        ("warmup", float, "share of all steps in which the rate rises"),
        ("ema", float, "decay of a moving average of the weights, which is then kept; 0: none"),
        ("clip-norm", float, "gradients longer than this are cut to it"),
        ("loss", str, "ce; for rare classes focal:2 or logit_adjusted:1"),
        ("class-weights", str, "balanced: a label counts the more, the rarer its class"),
        ("drop-path", float, "probability that the last block is skipped for a clip, earlier ones less"),
        ("feature-views", int, "linear and attentive: stored views per train clip; 0: encode at each step"),
        ("patience", int, "stop after so many epochs without a better val score; 0: never"),
        ("crop-scale", float, "smallest random crop, as a share of the frame's area"), ("seed", int, "of the training"),
        ("sampling", str, "frames of a clip that are seen: uniform, dense, fps or single"),
        ("sampling-rate", int, "dense: step between kept frames, in frames"), ("fps", float, "fps: frames per second"),
        ("short", str, "a clip shorter than its window: repeat_last, wrap or error (it is quarantined)"),
        ("test-clips", int, "windows along time when val and test are scored"),
        ("test-crops", int, "squares per window then: 1 or 3"), ("fit", str, "to a square by crop, pad or stretch"),
        ("rand-augment", int, "random operations per clip; 0: none"), ("magnitude", float, "their strength, 0 to 10"),
        ("erasing", float, "probability that a clip loses a box"), ("mixup", float, "alpha of MixUp; 0: never"),
        ("cutmix", float, "alpha of CutMix; 0: never"), ("decoder", str, "auto, decord, pyav or torchcodec"),
        ("precision", str, "auto, fp32 or bf16"), ("accumulation", int, "batches per optimiser step"),
        ("label-smoothing", float, "0 to 0.99"),
        ("head", str, "mean, or query: a decoder with a learned query per task (default: the strategy's own)"),
        ("decoder-layers", int, "blocks of the query decoder"),
        ("balance", str, "of several tasks: sum, static:safety=2, uncertainty, dwa, upgrad@tokens, ..."),
        ("task-sampling", str, "proportional, or balanced: as many labelled clips of each task"),
        ("measure-conflict", int, "steps between comparisons of the tasks' gradients; 0: never"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument("--mix-regression", action="store_true", default=None, help="mix regression targets too")
    parser.add_argument(
        "--no-task-attention", dest="task_attention", action="store_false", default=None,
        help="the tasks' queries do not see each other",
    )  # fmt: skip
    parser.add_argument("--no-augment", action="store_true", help="train on the clips as they are")
    parser.add_argument("--runs", default="runs", help="folder for run folders (default: runs)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")


def add_screening(parser: argparse.ArgumentParser) -> None:
    """What ``workbench.screen`` and, with ``--timeline``, ``workbench.screen_video`` take."""
    parser.add_argument("run", help="run folder; the run needs a binary task")
    parser.add_argument("source", nargs="+", help="a folder of clips, or video files")
    parser.add_argument("--timeline", action="store_true", help="each file is one long video: slide a window over it")
    parser.add_argument("--safety", help="the binary task to flag by, where the run has several")
    parser.add_argument("--threshold", type=float, help="probability from which a clip is flagged (default: from val)")
    parser.add_argument(
        "--max-rate", type=float, default=0.05, help="negatives of val that may be flagged (default: %(default)s)"
    )
    parser.add_argument("--no-rule", action="store_true", help="leave out the flash rule, and half of the decoding")
    parser.add_argument("--explain", type=int, default=8, help="flagged clips to explain (default: %(default)s)")
    parser.add_argument("--window", type=float, default=2.0, help="--timeline: seconds per window; a training clip's")
    parser.add_argument("--overlap", type=float, default=0.5, help="--timeline: share of a window that the next has")
    parser.add_argument("--smoothing", type=int, default=1, help="--timeline: windows averaged, odd (default: none)")
    parser.add_argument("--csv", help="write the whole table there")
    parser.add_argument("--html", help="write a contact sheet there: one page that loads nothing")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")


def setup_fields(args: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import fields

    from workbench.training.setup import Setup

    given = {
        f.name: getattr(args, f.name, None) for f in fields(Setup) if f.name not in ("strategy", "tasks", "augment")
    }
    return {name: value for name, value in given.items() if value is not None} | (
        {"augment": False} if args.no_augment else {}
    )


def open_whatever(args: argparse.Namespace) -> Any:
    """Clips with labels, or else any folder or file of videos without."""
    labels = (args.layout, args.task, args.label_column, args.groups, args.group_column, args.exclude)
    source = Path(args.source)
    listed = source.is_file() and source.suffix.lower() in (".csv", ".tsv", ".txt", ".parquet")
    try:
        return open_source(args)
    except ValueError as error:
        if args.unlabelled or listed or any(labels) or not source.exists():
            raise
        print(f"examined without labels: {error}")
        args.unlabelled = True
        return open_source(args)
