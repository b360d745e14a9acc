"""What each verb does; it returns the exit code."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from workbench.cli.options import open_source, open_whatever, setup_fields


def train(args: argparse.Namespace) -> int:
    from workbench.training.launch import reporting
    from workbench.training.stopping import stop_on_sigterm

    with stop_on_sigterm() as should_stop, reporting(args.job) as started:
        return _train(args, started=started, should_stop=should_stop)


def _train(args: argparse.Namespace, **hooks: Any) -> int:
    from workbench.analysis.evaluate import evaluate
    from workbench.training.finetune import fine_tune
    from workbench.training.recipes import recipe
    from workbench.training.setup import Setup

    table = open_source(args)
    print(table)
    fields = setup_fields(args)
    if args.setup:
        if args.recipe:
            raise ValueError(f"--setup {args.setup} and --recipe {args.recipe} are both whole setups; leave one")
        fields |= {"strategy": args.strategy} if args.strategy else {}
        setup = Setup.from_json(json.loads(Path(args.setup).read_text(encoding="utf-8"))).replace(**fields)
    elif args.recipe:
        fields |= {"strategy": args.strategy} if args.strategy else {}
        setup = recipe(args.recipe, table, **fields)
        print(f"recipe {args.recipe}: {_changed(setup)}")
    else:
        setup = Setup(strategy=args.strategy or "full", **fields)
    options = {"runs_dir": args.runs, "device": args.device, "workers": args.workers, "trackers": args.tracker}
    run = fine_tune(setup, table, **options, **hooks)
    print(run)
    split = "test" if run.record["data"]["clips"]["test"] else "val"
    print(evaluate(run, split=split).drop(columns="protocol").to_string(index=False))
    _say_quarantine(run)
    print(f"run folder: {run.folder}")
    return 0


def _changed(setup: Any) -> str:
    """The fields that are not a plain Setup's, in a line."""
    from workbench.training.setup import Setup

    usual = Setup(strategy=setup.strategy).to_json()
    own = {name: value for name, value in setup.to_json().items() if value != usual[name]}
    return ", ".join([setup.strategy, *(f"{name}={value}" for name, value in own.items())])


def _say_quarantine(run: Any) -> None:
    for row in run.record["data"]["quarantine"]:
        print(f"quarantined {row['path']}: {row['reason']}")


def sweep(args: argparse.Namespace) -> int:
    from workbench.analysis.compare import compare
    from workbench.training.recipes import recipe
    from workbench.training.sweep import sweep

    table = open_source(args)
    print(table)
    setups: Any = [name for part in args.strategies.split(",") if (name := part.strip())]
    fields = setup_fields(args)
    if args.recipes:
        setups = {name: recipe(name, table, **fields) for name in setups}
        fields = {}
        for name, setup in setups.items():
            print(f"recipe of {name}: {_changed(setup)}")
    runs = sweep(table, setups, runs_dir=args.runs, device=args.device, workers=args.workers, **fields)
    print(compare(runs))
    _say_quarantine(next(iter(runs.values())))
    for run in runs.values():
        print(f"run folder: {run.folder}")
    return 0


def compare(args: argparse.Namespace) -> int:
    from workbench.analysis.compare import compare
    from workbench.training.runs import load_run

    runs = [load_run(folder) for given in args.run for folder in _run_folders(Path(given))]
    names = [run.name for run in runs]
    named = {r.name if names.count(r.name) == 1 else r.folder.name: r for r in runs}
    found = compare(named, split=args.split, reference=args.reference)
    print(found)
    if args.pairs:
        print(f"\n{found.pairs()}")
    if args.seeds:
        print(f"\n{found.over_seeds()}")
    if args.differences:
        odd = found.differences()
        print(f"\n{odd.to_string() if len(odd) else 'nothing recorded differs'}")
    if args.csv:
        Path(args.csv).parent.mkdir(parents=True, exist_ok=True)
        found.table.to_csv(args.csv, index=False)
        print(f"table: {args.csv}")
    if args.html:
        from workbench.views.comparison_page import write_comparison_page

        print(f"page: {write_comparison_page(found, args.html)}")
    return 0


def _run_folders(given: Path) -> list[Path]:
    """A run folder itself, or the finished runs inside a folder of runs, by name."""
    inside = [] if (given / "run.json").exists() else sorted(path.parent for path in given.glob("*/run.json"))
    return inside or [given]


def predict(args: argparse.Namespace) -> int:
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


def screen(args: argparse.Namespace) -> int:
    from workbench.analysis.screening import screen
    from workbench.training.runs import load_run

    run = load_run(args.run)
    given = {"safety": args.safety, "threshold": args.threshold, "max_rate": args.max_rate, "flash": not args.no_rule}
    if args.timeline:
        return max([_screen_video(run, number, given, args) for number in range(len(args.source))])
    source = args.source[0] if len(args.source) == 1 else args.source
    found = screen(run, source, explain=args.explain, device=args.device, workers=args.workers, **given)
    print(found)
    eyes = found.table[found.table.review != "clear"].drop(columns=["clip_id", "driving_seconds"])
    print(eyes.to_string(index=False) if len(eyes) else "nothing is flagged")
    for row in found.quarantine.to_dict("records"):
        print(f"not readable: {row['path']}: {row['reason']}")
    _write_screening(found, args.csv, args.html)
    return 1 if len(found.quarantine) else 0


def _screen_video(run: Any, number: int, given: dict[str, Any], args: argparse.Namespace) -> int:
    """The ``number``-th source; one that cannot be read does not keep the others from it."""
    from workbench.analysis.timeline import screen_video
    from workbench.data.clips import ClipDecodeError

    path, windows = args.source[number], {"window_seconds": args.window, "overlap": args.overlap}
    try:
        found = screen_video(run, path, device=args.device, smoothing=args.smoothing, **windows, **given)
    except ClipDecodeError as error:
        print(f"not readable: {error}")
        return 1
    print(found)
    events = found.events.drop(columns="peak_window")
    print(events.to_string(index=False) if len(events) else "nothing is flagged")
    stems = [Path(source).stem for source in args.source]
    own = stems[number] if stems.count(stems[number]) == 1 else f"{number + 1}-{stems[number]}"

    def place(name: str | None) -> str | None:
        """Each video's own, where there are several: report.html becomes report-street.html."""
        return str(Path(name).with_stem(f"{Path(name).stem}-{own}")) if name and len(stems) > 1 else name

    _write_screening(found, place(args.csv), place(args.html))
    return 1 if found.error else 0


def _write_screening(found: Any, csv: str | None, html: str | None) -> None:
    if csv:
        Path(csv).parent.mkdir(parents=True, exist_ok=True)
        print(f"table: {found.to_csv(csv)}")
    if html:
        from workbench.views.contact_sheet import ContactSheet

        print(f"contact sheet: {ContactSheet(found).write(html)}")


def data(args: argparse.Namespace) -> int:
    table = open_source(args)
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


def doctor(args: argparse.Namespace) -> int:
    from workbench.data.doctor import examine, other_files

    args.allow_leak = True  # to be reported, not refused
    table = open_whatever(args)
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


def app(args: argparse.Namespace) -> int:
    from workbench.views.app import serve

    return serve(args.runs, clips=args.clips, port=args.port, browser=not args.no_browser)


def pretrain(args: argparse.Namespace) -> int:
    from workbench.training.pretrain import PretrainSetup, pretrain

    changes = {name: getattr(args, name) for name in ("steps", "batch_size", "seed") if getattr(args, name) is not None}
    print(pretrain(args.folder, PretrainSetup(**changes), device=args.device))
    return 0


def export(args: argparse.Namespace) -> int:
    from workbench.training.export import export
    from workbench.training.runs import load_run

    print(export(load_run(args.run), args.folder, encoder=args.encoder))
    return 0


def demo(args: argparse.Namespace) -> int:
    from workbench.demo import demo

    options = {"clips": args.clips, "epochs": args.epochs, "device": args.device, "workers": args.workers}
    demo(report=args.report, runs_dir=args.runs, **options)
    return 0


def lab(args: argparse.Namespace) -> int:
    return subprocess.call([sys.executable, "-m", "jupyter", "lab", args.folder])
