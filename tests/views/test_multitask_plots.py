"""Plots of shared models carry the report's numbers, stay escaped, and the trade-off view follows its weights."""

import re
from typing import Any

import ipywidgets
import numpy as np
import pytest
import traitlets

from tests.analysis.balance_runs import STATIC, runs
from tests.views.conftest import HOSTILE
from workbench.analysis.balance_front import Front, front_of
from workbench.analysis.multitask import affinity_of, report_of
from workbench.views.multitask_plots import affinity_plot, delta_plot, front_plot
from workbench.views.still import still
from workbench.views.tradeoff_view import TradeoffView


@pytest.fixture(scope="module")
def front() -> Front:
    return front_of(STATIC | {"dwa:2": runs(0.45, 0.4)}, ["a", "b"], resamples=100)


@pytest.fixture(scope="module")
def report() -> Any:
    return report_of(
        {HOSTILE: runs(0.7, 0.3), "other": runs(0.5, 0.6)}, {t: runs(0.5, 0.5) for t in "ab"}, resamples=100
    )


def test_delta_plot_draws_differences_relative_changes_and_delta_m(report: Any) -> None:
    fig = delta_plot(report)
    left, right = fig.data[0], fig.data[1]
    rows = report.table[report.table.setup == HOSTILE]
    assert list(left.x) == pytest.approx([0.2, -0.2])
    assert list(left.error_x.arrayminus) == pytest.approx(list(rows.difference - rows.low))
    assert list(left.error_x.array) == pytest.approx(list(rows.high - rows.difference))
    assert min(left.error_x.array) > 0.02
    assert list(right.x) == pytest.approx([40, -40, 0])
    assert [str(t).strip() for t in fig.layout.yaxis.ticktext] == ["a (accuracy)", "b (accuracy)", "delta-m"]
    assert "<img" not in fig.to_json().replace("\\u003c", "<")
    assert "delta-m" in still(fig) and "<img" not in still(fig)


def test_delta_plot_leaves_out_what_has_no_relative_change(report: Any) -> None:
    table = report.table.assign(relative=np.nan, relative_low=np.nan, relative_high=np.nan)
    fig = delta_plot(type(report)(**{**vars(report), "table": table}))
    assert list(fig.data[1].x[:2]) == [None, None]


def test_affinity_plot_writes_each_cell_and_stresses_what_is_sure() -> None:
    parts = {("a",): runs(0.5, 0.5), ("b",): runs(0.5, 0.5), ("a", "b"): runs(0.7, 0.5)}
    figure = affinity_plot(affinity_of(parts, ["a", "b"], resamples=200))
    axes = figure.axes[0]
    texts = {t.get_text().split("\n")[0]: t for t in axes.texts}
    assert set(texts) == {"+0.200", "+0.000"}
    assert texts["+0.200"].get_fontweight() == "bold" and texts["+0.000"].get_fontweight() == "normal"
    assert texts["+0.200"].get_position() == (1, 0)  # task a by row, its partner by column
    shade = axes.images[0]
    assert shade.norm.vmin == pytest.approx(-0.2) and shade.norm.vmax == pytest.approx(0.2)
    assert figure._repr_png_()[:4] == b"\x89PNG"


def test_front_plot_joins_the_fixed_weights_that_none_beats(front: Front) -> None:
    fig = front_plot(front, "a", "b", shown="dwa:2")
    line = fig.data[0]
    assert (list(line.x), list(line.y)) == (pytest.approx([0.5, 0.7]), pytest.approx([0.5, 0.3]))
    points = {(t.marker.symbol, round(t.x[0], 2)) for t in fig.data[1:]}
    assert points == {("circle", 0.5), ("circle", 0.7), ("circle", 0.2), ("diamond", 0.45), ("square", 0.45)}
    turned = front_plot(front, "b", "a").data[0]
    assert list(turned.x) == pytest.approx([0.3, 0.5])
    assert "front of fixed weights" in still(fig)
    with pytest.raises(ValueError, match="no task 'c' in this sweep"):
        front_plot(front, "c", "a")


def test_tradeoff_view_shows_the_trained_point_nearest_to_the_weights(front: Front) -> None:
    view = TradeoffView(front)
    assert view.shown == "sum" and view.table().value.tolist() == pytest.approx([0.5, 0.5])
    view._sliders["a"].value = 4.0  # dragged
    assert view.weights == {"a": 4.0, "b": 1.0} and view.shown == "static:a=4"
    assert view.table().value.tolist() == pytest.approx([0.7, 0.3])
    assert view.table().plain_sum.tolist() == pytest.approx([0.5, 0.5])
    assert "nearest trained are a 4, b 1 (static:a=4); on the front" in view._words.value
    marked = [t for t in view.figure().data if t.marker.symbol == "square"]
    assert [t.x[0] for t in marked] == pytest.approx([0.7])
    view.weights = {"a": 1.0, "b": 8.0}  # from code: the sliders follow
    assert view._sliders["b"].value == 8.0 and view.shown == "static:b=4"
    assert "behind sum" in view._words.value


def test_tradeoff_view_swaps_axes_and_refuses_what_it_does_not_know(front: Front) -> None:
    view = TradeoffView(front)
    view._menus["x"].value = "b"
    assert view.x == "b" and view.figure().layout.xaxis.title.text == "b: accuracy"
    with pytest.raises(traitlets.TraitError, match="no task 'c'"):
        view.y = "c"
    with pytest.raises(traitlets.TraitError, match="must give each of"):
        view.weights = {"a": 1.0}
    with pytest.raises(traitlets.TraitError, match="read-only"):
        view.shown = "sum"


def test_tradeoff_view_freezes_without_scripts(front: Front) -> None:
    view = TradeoffView(front)
    view.weights = {"a": 4.0, "b": 1.0}
    text = view.freeze()
    assert "<svg" in text and "static:a=4" in text and "0.700" in text and "plain sum" in text
    assert not re.search(r"<script|https?://(?!www\.w3\.org|arxiv)", text)
    assert isinstance(view, ipywidgets.VBox)
