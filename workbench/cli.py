"""The verbs from a shell: ``workbench --help``."""

import argparse
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench import __version__

# Spelled out here because building the parser must not load torch; a test holds it to the strategies' own list.
_STRATEGIES = "scratch, linear, attentive, bitfit, lora:8, adapter:64, partial:2, llrd:0.75, full"


def _add_source(parser: argparse.ArgumentParser) -> None:
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


def _open(args: argparse.Namespace) -> Any:
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


def _add_setup(parser: argparse.ArgumentParser) -> None:
    """Fields of ``workbench.Setup``; what is not given keeps its default."""
    for name, kind, text in (
        ("backbone", str, "nano, a local folder or a hub id"), ("epochs", int, "passes over the train clips"),
        ("num-frames", int, "frames per clip, if not the checkpoint's"), ("size-px", int, "their size, likewise"),
        ("batch-size", int, "clips per batch"), ("lr", float, "peak rate of the backbone"),
        ("head-lr", float, "peak rate of the heads"), ("weight-decay", float, "on matrices"),
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
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument("--mix-regression", action="store_true", default=None, help="mix regression targets too")
    parser.add_argument("--no-augment", action="store_true", help="train on the clips as they are")
    parser.add_argument("--runs", default="runs", help="folder for run folders (default: runs)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")


def _setup_fields(args: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import fields

    from workbench.training.setup import Setup

    given = {
        f.name: getattr(args, f.name, None) for f in fields(Setup) if f.name not in ("strategy", "tasks", "augment")
    }
    return {name: value for name, value in given.items() if value is not None} | (
        {"augment": False} if args.no_augment else {}
    )


def _train(args: argparse.Namespace) -> int:
    from workbench.analysis.evaluate import evaluate
    from workbench.training.finetune import fine_tune
    from workbench.training.setup import Setup

    table = _open(args)
    print(table)
    setup = Setup(strategy=args.strategy, **_setup_fields(args))
    run = fine_tune(setup, table, runs_dir=args.runs, device=args.device, workers=args.workers)
    print(run)
    split = "test" if run.record["data"]["clips"]["test"] else "val"
    print(evaluate(run, split=split).drop(columns="protocol").to_string(index=False))
    _say_quarantine(run)
    print(f"run folder: {run.folder}")
    return 0


def _say_quarantine(run: Any) -> None:
    for row in run.record["data"]["quarantine"]:
        print(f"quarantined {row['path']}: {row['reason']}")


def _sweep(args: argparse.Namespace) -> int:
    from workbench.analysis.compare import compare
    from workbench.training.sweep import sweep

    table = _open(args)
    print(table)
    runs = sweep(
        table,
        args.strategies.split(","),
        runs_dir=args.runs,
        device=args.device,
        workers=args.workers,
        **_setup_fields(args),
    )
    print(compare(runs))
    _say_quarantine(next(iter(runs.values())))
    for run in runs.values():
        print(f"run folder: {run.folder}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from workbench.analysis.compare import compare
    from workbench.training.runs import load_run

    runs = [load_run(folder) for folder in args.run]
    names = [run.name for run in runs]
    named = {r.name if names.count(r.name) == 1 else r.folder.name: r for r in runs}
    print(compare(named, split=args.split, reference=args.reference))
    return 0


def _predict(args: argparse.Namespace) -> int:
    from workbench.training.predict import predict
    from workbench.training.runs import load_run

    table = predict(load_run(args.run), args.file, device=args.device, workers=args.workers)
    if args.csv:
        Path(args.csv).parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(args.csv, index=False)
        print(f"wrote {args.csv}")
    else:
        print(table.to_string(index=False))
    return 1 if (table.reason != "").any() else 0


def _data(args: argparse.Namespace) -> int:
    table = _open(args)
    print(table)
    for task in table.tasks:
        counts = table.frame.groupby(table.frame.split.astype(object).fillna("in no split"))[task.name]
        print(f"\n{task.name}:")
        print(
            (
                counts.describe() if task.kind == "regression" else counts.value_counts().unstack(0, fill_value=0)
            ).to_string()
        )
        if missing := int(table.frame[task.name].isna().sum()):
            print(f"{missing} clip(s) have no {task.name}")
    for row in table.quarantine.head(20).to_dict("records"):
        print(f"quarantined {row['path']}: {row['reason']}")
    if len(table.quarantine) > 20:
        print(f"... and {len(table.quarantine) - 20} more")
    if args.save:
        print(f"\nsaved to {table.save(args.save)}")
    if args.shards:
        from workbench.data.sources.shards import write_shards

        print(f"\n{write_shards(table, args.shards, clips_per_shard=args.clips_per_shard)}\nin {args.shards}")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from workbench.data.doctor import examine, other_files

    args.allow_leak = True  # to be reported, not refused
    table = _open_whatever(args)
    also = other_files(table, args.source) if not args.exclude else []
    options = {"workers": args.workers, "time_limit_seconds": args.time_limit, "memory_gib": args.memory}
    report = examine(table, also=also, **options)
    print(report)
    if args.json:
        print(f"verdicts: {report.write_json(args.json)}")
    if args.html:
        from workbench.views.doctor_page import write_doctor_page

        print(f"report: {write_doctor_page(report, args.html)}")
    return 1 if report.counts()["quarantined"] or len(table.quarantine) else 0


def _open_whatever(args: argparse.Namespace) -> Any:
    """Clips with labels, or else any folder or file of videos without."""
    labels = (args.layout, args.task, args.label_column, args.groups, args.group_column, args.exclude)
    source = Path(args.source)
    listed = source.is_file() and source.suffix.lower() in (".csv", ".tsv", ".txt", ".parquet")
    try:
        return _open(args)
    except ValueError as error:
        if args.unlabelled or listed or any(labels) or not source.exists():
            raise
        print(f"examined without labels: {error}")
        args.unlabelled = True
        return _open(args)


def _pretrain(args: argparse.Namespace) -> int:
    from workbench.training.pretrain import PretrainSetup, pretrain

    changes = {name: getattr(args, name) for name in ("steps", "batch_size", "seed") if getattr(args, name) is not None}
    print(pretrain(args.folder, PretrainSetup(**changes), device=args.device))
    return 0


def _export(args: argparse.Namespace) -> int:
    from workbench.training.export import export
    from workbench.training.runs import load_run

    print(export(load_run(args.run), args.folder, encoder=args.encoder))
    return 0


def _demo(args: argparse.Namespace) -> int:
    from workbench.demo import demo

    options = {"clips": args.clips, "epochs": args.epochs, "device": args.device, "workers": args.workers}
    demo(report=args.report, runs_dir=args.runs, **options)
    return 0


def _lab(args: argparse.Namespace) -> int:
    return subprocess.call([sys.executable, "-m", "jupyter", "lab", args.folder])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench", description="Which way of transferring a pretrained video transformer to your clips works?"
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        # A shortened option could mean another one: --split is not --split-seed.
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(act=run)
        return sub

    sub = verb("demo", _demo, "the whole way once on generated clips, ending in an HTML report")
    sub.add_argument("--report", default="reports/quickstart.html")
    sub.add_argument("--runs", default="runs")
    sub.add_argument("--clips", type=int, default=600, help="size of the playground (a multiple of 4)")
    sub.add_argument("--epochs", type=int, default=6)
    sub.add_argument("--device", default="auto")
    sub.add_argument("--workers", type=int, default=2)
    sub = verb("lab", _lab, "open the notebooks in JupyterLab")
    sub.add_argument("folder", nargs="?", default="notebooks")
    sub = verb("data", _data, "open clips, say what is there, save the table")
    _add_source(sub)
    sub.add_argument("--save", help="folder to save the table in")
    sub.add_argument("--shards", help="folder to copy the clips to, as tar shards that open like any other source")
    sub.add_argument("--clips-per-shard", type=int, default=1000, help="default: %(default)s")
    sub = verb(
        "doctor", _doctor,
        "decode every file in child processes; exit code 0: all can be used, 1: a clip is quarantined, 2: an error",
    )  # fmt: skip
    _add_source(sub)
    sub.add_argument("--json", help="write one object per file (path, verdict, reason)")
    sub.add_argument("--workers", type=int, default=2, help="processes that decode")
    sub.add_argument("--html", help="write the report as one HTML page")
    sub.add_argument("--time-limit", type=float, default=60.0, help="seconds per file")
    sub.add_argument("--memory", type=float, default=8.0, help="GiB of address space per file (POSIX)")
    sub = verb("train", _train, "fine-tune one setup; an interrupted run goes on, a finished one is read")
    _add_source(sub)
    sub.add_argument("--strategy", default="full", help=f"{_STRATEGIES} (default: %(default)s)")
    _add_setup(sub)
    sub = verb("sweep", _sweep, "fine-tune several strategies on the same clips and compare them")
    _add_source(sub)
    sub.add_argument(
        "--strategies", default="scratch,linear,full", help=f"with commas: {_STRATEGIES} (default: %(default)s)"
    )
    _add_setup(sub)
    sub = verb("compare", _compare, "compare finished runs, with intervals")
    sub.add_argument("run", nargs="+", help="run folders")
    sub.add_argument("--split", default="test")
    sub.add_argument("--reference", help="name of the run that the others are compared with (default: the first)")
    sub = verb("predict", _predict, "what a run says of video files; exit code 1 when one cannot be read")
    sub.add_argument("run", help="run folder")
    sub.add_argument("file", nargs="+", help="video files")
    sub.add_argument("--csv", help="write the table there instead of printing it")
    sub.add_argument("--device", default="auto")
    sub.add_argument("--workers", type=int, default=2)
    sub = verb("export", _export, "write a run as a plain Hugging Face checkpoint")
    sub.add_argument("run", help="run folder")
    sub.add_argument("folder", help="new folder for config.json, model.safetensors and preprocessor_config.json")
    sub.add_argument("--encoder", action="store_true", help="the backbone alone, to transfer from; of any run")
    sub = verb("pretrain", _pretrain, "pretrain the embedded checkpoint on procedural video (resumable)")
    sub.add_argument("folder", help="working folder; its checkpoint/ is the result")
    sub.add_argument("--steps", type=int)
    sub.add_argument("--batch-size", type=int)
    sub.add_argument("--seed", type=int)
    sub.add_argument("--device", default="auto")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; an error of the user's making is one line on stderr and exit code 2."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "matplotlib", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return int(args.act(args))
    except (ValueError, OSError, FloatingPointError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
