"""The comparison plots draw the numbers of their tables, and what they leave out they say."""

import numpy as np
import pandas as pd
import pytest

from tests.views.conftest import HOSTILE, StandInRun
from workbench.analysis.compare import compare
from workbench.analysis.comparing.curves import curves_of
from workbench.analysis.comparing.front import pareto
from workbench.views.compare_plots import MOST_CLASSES, _scaled, agreement_plot, class_plot, pareto_plot, setup_plot
from workbench.views.still import still

ROWS = pd.DataFrame(
    {
        "run": ["a", "b", "c", "d"], "metric": "accuracy", "value": [0.5, 0.7, 0.6, np.nan],
        "low": [0.4, 0.6, np.nan, np.nan], "high": [0.6, 0.8, np.nan, np.nan],
        "trainable_parameters": [1e3, 1e6, 2e6, 5.0], "train_seconds": [1.0, 2.0, 3.0, 4.0],
        "peak_memory_mib": np.nan,
    }
)  # fmt: skip


def test_pareto_plot_steps_along_the_front_and_leaves_out_what_is_unknown() -> None:
    fig = pareto_plot(ROWS, pareto(ROWS), "trainable_parameters")
    line, *dots = fig.data
    assert list(line.x) == [1e3, 1e6, 1e6] and list(line.y) == [0.5, 0.5, 0.7]
    assert [(t.meta, t.marker.size) for t in dots] == [("a", 12), ("b", 12), ("c", 8)]
    assert dots[0].error_y.array[0] == pytest.approx(0.1) and dots[2].error_y.array[0] == 0
    assert fig.layout.xaxis.type == "log"
    assert pareto_plot(ROWS, pareto(ROWS, cost="train_seconds"), "train_seconds").layout.xaxis.type != "log"
    nothing = pareto_plot(ROWS, pareto(ROWS, cost="peak_memory_mib"), "peak_memory_mib")
    assert "no run recorded" in nothing.layout.annotations[0].text


def test_scaled_puts_numbers_by_size_and_words_by_order() -> None:
    heights, ticks = _scaled([1.0, 3.0, 2.0])
    assert heights == [0.0, 1.0, 0.5] and ticks == [(0.0, "1"), (0.5, "2"), (1.0, "3")]
    assert _scaled([1.0, 100.0, 10.0])[0] == pytest.approx([0, 1, 0.5])  # logarithmic
    assert _scaled(["x", "y", "x", "z"])[0] == [0.0, 0.5, 0.0, 1.0]
    assert _scaled([2.0, 2.0])[0] == [0.5, 0.5] and _scaled([np.nan, np.nan])[1] == []
    heights, ticks = _scaled([1.0, np.nan, 1.01, 5.0])
    assert np.isnan(heights[1]) and [text for _, text in ticks] == ["1", "5"]  # 1.01 would lie on 1


def test_setup_plot_has_an_axis_per_difference_and_cost_and_ends_in_the_metric() -> None:
    names = ["a", "b", "c", "d"]
    odd = pd.DataFrame([["1", "2", "3", "4"], list("0123")], index=["setup.lr", "setup.seed"], columns=names)
    fig = setup_plot(odd, ROWS)
    titles = [note.text for note in fig.layout.annotations if note.y > 1]
    assert titles == ["lr", "parameters", "seconds", "accuracy"]  # the seed is no axis, nor unknown memory
    line = next(t for t in fig.data if t.meta == "b")
    assert line.y[0] == pytest.approx(1 / 3) and line.y[3] == 1.0
    assert next(t for t in fig.data if t.meta == "d").y[3] is None
    assert "one run alone" in setup_plot(odd[["a"]], ROWS.head(1)).layout.annotations[0].text


def test_agreement_plot_thins_its_text_and_escapes() -> None:
    names = [f"{HOSTILE}{i}" for i in range(20)]
    fig = agreement_plot(pd.DataFrame(np.full((20, 20), np.nan), index=names, columns=names), "kappa")
    assert fig.data[0].z[0][0] is None and fig.data[0].text[0][0] == ""
    assert "<img" not in fig.to_json().replace("\\u003c", "<")
    small = agreement_plot(pd.DataFrame([[1, 0.25], [0.25, 1]], index=["a", "b"], columns=["a", "b"]), "share")
    assert [list(row) for row in small.data[0].text] == [["1.00", "0.25"], ["0.25", "1.00"]]


def test_class_plot_keeps_the_largest_differences_of_many_classes() -> None:
    size = np.linspace(-1, 1, 200)
    table = pd.DataFrame({"class": [f"c{i}" for i in range(200)], "difference": size, "n": 5, "groups": 3})
    table["low"] = table["high"] = np.nan
    fig = class_plot(table, "first", "second")
    dots = [t for t in fig.data if t.customdata is not None]
    shown = dict(sorted((t.y[i], (name, t.x[i])) for t in dots for i, name in enumerate(t.customdata)))
    shown = dict(shown.values())
    assert len(shown) == MOST_CLASSES and min(abs(v) for v in shown.values()) >= np.sort(np.abs(size))[-MOST_CLASSES]
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    assert "first minus second" in fig.layout.xaxis.title.text
    assert "no class has labelled clips" in class_plot(table.head(0), "a", "b").layout.annotations[0].text


def test_curves_take_the_epochs_that_seeds_reached(runs: dict[str, StandInRun]) -> None:
    short = StandInRun("short", runs["full"].predictions, runs["full"].history.head(3))
    curves = curves_of({"a": runs["full"], "b": short}, {"full": {0: "a", 1: "b"}, "gone": {0: "x"}}, "action")
    assert curves.setup.unique().tolist() == ["full"] and curves.seeds.tolist() == [2] * 3 + [1] * 5
    assert curves.score.tolist() == runs["full"].history.val_action.tolist()
    assert curves_of({}, {}, None).empty


def test_every_comparison_plot_has_a_still(runs: dict[str, StandInRun]) -> None:
    found = compare(runs, resamples=50)
    rows = found.table[found.table.task == "action"]
    figures = (
        pareto_plot(rows, pareto(rows), "train_seconds"), setup_plot(found.differences(), rows),
        agreement_plot(found.agreement("action"), "share"), class_plot(found.per_class("full", "linear"), "f", "l"),
    )  # fmt: skip
    for fig in figures:
        text = still(fig)
        assert "<svg" in text and "full" in text or "left" in text
