"""Dashboards at size: first paint, and from a click to the updated view, on the server's side.

    python benchmarks/dashboards.py [--runs 20] [--clips 20000] [--classes 20] [--repeats 9] [--results FILE]

Predictions are made by numpy: ``--runs`` runs of ``--clips`` predictions each, one task. Measured is the time until the
kernel has made all messages for the browser: pandas operations, plotly figures, HTML. Not measured: the network, the
browser, and encoding clips, which happens in a thread behind. The plots are told that a browser has them, as they are
from the first answer on; before that a changed plot is made anew. A section of ``benchmarks/RESULTS.md``.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import plotly
from results import RESULTS, write_section

from workbench.analysis.predictions import Predictions
from workbench.data.clips import write_clip
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task
from workbench.views.comparison_view import ComparisonView
from workbench.views.error_view import ErrorView

FILES = 12


def make_runs(count: int, clips: int, classes: int) -> tuple[dict[str, Predictions], ClipTable, Path]:
    """Runs of growing skill on the same clips, their table, and the folder of its few files."""
    rng, folder = np.random.default_rng(0), Path(tempfile.mkdtemp(prefix="dashboards-"))
    for i in range(FILES):
        write_clip(folder / f"c{i}.mp4", rng.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8), 8.0)
    task = Task("action", "multiclass", tuple(f"class {i}" for i in range(classes)))
    target = rng.integers(0, classes, clips)
    ids = [f"clip {i}" for i in range(clips)]
    shared = {
        "clip_id": ids, "path": [f"c{i % FILES}.mp4" for i in range(clips)], "split": "test",
        "group": [f"g{i // 4}" for i in range(clips)],
    }  # fmt: skip
    runs = {}
    for r in range(count):
        logits = rng.normal(size=(clips, classes))
        logits[np.arange(clips), target] += 1 + 2 * r / count
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        frame = pd.DataFrame(
            {**shared, "task": "action", "target": target.astype(float), "prediction": chances.argmax(1).astype(float),
             "probabilities": list(chances)}
        )  # fmt: skip
        runs[f"run {r}"] = Predictions(f"run {r}", (task,), frame, Protocol(num_frames=16, size_px=64))
    facts = pd.DataFrame(shared).assign(
        start_seconds=np.nan, end_seconds=np.nan, action=np.array(task.classes, object)[target],
        camera=rng.choice(["a", "b", "c"], clips), light=rng.normal(size=clips),
    )  # fmt: skip
    return runs, ClipTable(facts, (task,), root=folder), folder


Times = list[tuple[float, float]]
"""Of each turn: milliseconds on the clock, and of this thread on a processor (other work on the machine hardly moves
it)."""


def timed(act: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    began, worked = time.perf_counter(), time.thread_time()
    act(*arguments)
    return 1000 * (time.perf_counter() - began), 1000 * (time.thread_time() - worked)


def row_of(what: str, work: str, times: Times) -> dict[str, Any]:
    clock = [wall for wall, _ in times]
    return {
        "what": what, "median ms": np.median(clock), "CPU ms": np.median([cpu for _, cpu in times]),
        "least": min(clock), "most": max(clock), "turns": len(times), "operations": work,
    }  # fmt: skip


def chosen(widget: Any, trait: str, values: Iterable[Any]) -> Times:
    """Give a trait each of these values in turn."""
    return [timed(setattr, widget, trait, value) for value in values]


def error_view(run: Predictions, clips: ClipTable, folder: Path, repeats: int) -> list[dict[str, Any]]:
    """First paint, and every way to choose clips."""

    def make() -> ErrorView:
        return ErrorView(run, clips=clips, page_size=24, thumbnails=folder / "thumbnails", behind=True)

    view = make()
    view._gallery.join()
    rows = [row_of("ErrorView: first paint", "sort_values, confusion_matrix, Figure", [timed(make) for _ in range(3)])]
    for look in ("calibration", "slices", "labels"):
        rows.append(row_of(f"ErrorView: {look}, first look", "the analysis verb", chosen(view, "look", [look])))
    view.look = "confusion"
    view._plot.live = True
    turn = "iloc of 48 rows"
    rows.append(row_of("ErrorView: next page", turn, [timed(view.turn, 1) for _ in range(repeats)]))
    rows.append(row_of("ErrorView: next clip", "iloc of a row", [timed(view.step, 1) for _ in range(repeats)]))
    names, rng = view.classes(), np.random.default_rng(1)
    cells = [(names[a], names[b]) for a, b in rng.integers(0, len(names), (repeats, 2))]
    masks = f"boolean masks on truth and predicted, {turn}"
    rows.append(row_of("ErrorView: confusion cell", masks, [timed(view.choose, *cell) for cell in cells]))
    for look, trait, places in (("calibration", "bin", range(1, 14)), ("slices", "slice", range(13))):
        view.look, view._plot.live = look, True
        known = [value for _, value in view.looks[look].controls[0].options if value in places]
        work = "isin on clip_id, marker sizes"
        rows.append(row_of(f"ErrorView: {trait}", work, chosen(view, trait, known[:repeats])))
    view.close()
    return rows


def comparison_view(runs: dict[str, Predictions], repeats: int) -> list[dict[str, Any]]:
    """First paint (with all paired tests), and the controls that redraw."""
    views: list[ComparisonView] = []
    made = timed(lambda: views.append(ComparisonView(runs)))
    rows = [row_of("ComparisonView: made, all paired tests", "compare", [made])]
    for menu in _menus(views[0]):
        options = [value for _, value in menu._options_full]
        for box in _boxes(views[0]):
            box.live = True
        if len(options) > 1:
            times = chosen(menu, "value", [options[(i + 1) % len(options)] for i in range(repeats)])
            rows.append(row_of(f"ComparisonView: menu {menu.description!r}", "views/comparison_view.py", times))
    return rows


def _menus(widget: Any) -> list[Any]:
    own = [widget] if isinstance(widget, ipywidgets.Dropdown) else []
    return own + [m for child in getattr(widget, "children", ()) for m in _menus(child)]


def _boxes(view: Any) -> list[Any]:
    found: list[Any] = []
    for value in vars(view).values():
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        found += [one for one in inside if hasattr(one, "live") and hasattr(one, "widget")]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("runs", 20), ("clips", 20000), ("classes", 20), ("repeats", 9)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--part", choices=("errors", "comparison", "both"), default="both")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    runs, clips, folder = make_runs(args.runs, args.clips, args.classes)
    rows = [] if args.part == "comparison" else error_view(runs["run 0"], clips, folder, args.repeats)
    if args.part != "errors":
        rows += comparison_view(runs, args.repeats)
    table = pd.DataFrame(rows).to_string(index=False, float_format=lambda v: f"{v:.0f}")
    print(table)
    if args.results == Path(os.devnull):
        return
    lines = [
        f"`benchmarks/dashboards.py`: {args.runs} runs x {args.clips:,} predictions of {args.classes} classes; "
        "milliseconds in the kernel from a click until all messages for the browser are made. Clips are encoded in a "
        "thread behind and not counted; the plots count as live, as they are once a browser has answered.", "", "```",
        table, "```", "",
        f"{date.today()}; {platform.machine()}, {platform.system()}; python {platform.python_version()}, pandas "
        f"{pd.__version__}, plotly {plotly.__version__}, ipywidgets {ipywidgets.__version__}",
    ]  # fmt: skip
    write_section("Dashboards", lines, args.results)


if __name__ == "__main__":
    main()
