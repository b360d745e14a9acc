"""The plots carry the numbers they were given."""

import math
from typing import Any

import matplotlib.figure
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from matplotlib.collections import LineCollection

from tests.views.conftest import HOSTILE, StandInRun
from workbench.analysis.compare import compare
from workbench.views.still import _decade, still
from workbench.views.transfer_plots import cost_plot, forecast_plot, label_curves

LEVELS = pd.DataFrame(
    {
        "strategy": ["scratch", "scratch", "full", "full"], "per_class": [5.0, math.nan, 5.0, math.nan],
        "clips": [60, 240, 60, 240], "value": [0.1, 0.2, 0.5, 0.8], "low": [0.0, math.nan, 0.4, math.nan],
        "high": [0.2, math.nan, 0.7, math.nan],
    }
)  # fmt: skip


def texts(fig: go.Figure) -> str:
    return fig.to_json()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[matplotlib.figure.Figure]:
    """The figures that a test saves, as they are saved."""
    figures: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def keep(self: matplotlib.figure.Figure, *args: Any, **options: Any) -> None:
        figures.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return figures


def test_cost_plot_draws_each_run_once_per_cost_with_its_interval(runs: dict[str, StandInRun]) -> None:
    comparison = compare(runs, resamples=50)
    memory = {name: 10.0 * (i + 1) for i, name in enumerate(runs)}
    fig = cost_plot(comparison, "action", memory_mib=memory, chance=0.25)
    rows = comparison.table.query("task == 'action'").set_index("run")
    for cost, axis in (("trainable_parameters", "x"), ("train_seconds", "x2")):
        drawn = {t.legendgroup: t for t in fig.data if (t.xaxis or "x") == axis}
        for name in runs:
            if rows.loc[name, cost] > 0:
                assert (drawn[name].x[0], drawn[name].y[0]) == (rows.loc[name, cost], rows.loc[name, "value"])
                top = drawn[name].y[0] + drawn[name].error_y.array[0]
                assert top == pytest.approx(rows.loc[name, "high"])
    assert [t.x[0] for t in fig.data if t.xaxis == "x3"] == list(memory.values())
    assert {shape.y0 for shape in fig.layout.shapes} == {0.25}
    with pytest.raises(ValueError, match="no task 'x'"):
        cost_plot(comparison, "x")


def test_label_curves_puts_all_labels_at_their_number_per_class() -> None:
    fig = label_curves(LEVELS, metric="accuracy", chance=0.08)
    full = next(t for t in fig.data if t.name == "full")
    np.testing.assert_allclose(full.x, [5, 20], rtol=0.03)  # 12 classes: 240 clips are 20 each
    assert list(full.y) == [0.5, 0.8]
    np.testing.assert_allclose(full.error_y.array, [0.2, 0.0], atol=1e-12)  # no interval, no bar
    assert list(fig.layout.xaxis.ticktext) == ["5", "all"]
    assert label_curves(LEVELS.head(0)).layout.annotations[0].text == "no trainings"


def test_forecast_plot_has_a_panel_per_score_that_is_known() -> None:
    table = pd.DataFrame(
        {"backbone": ["a", "b"], "task": "t", "logme": [0.1, 0.2], "h_score": math.nan, "trained": [0.3, 0.6]}
    )
    fig = forecast_plot(table)
    assert [(t.x[0], t.y[0]) for t in fig.data] == [(0.1, 0.3), (0.2, 0.6)]
    assert fig.layout.xaxis.title.text == "logme"


def test_plots_escape_hostile_names() -> None:
    levels = LEVELS.assign(strategy=HOSTILE)
    table = pd.DataFrame({"backbone": [HOSTILE], "task": "t", "logme": [0.1], "trained": [0.3]})
    for fig in (label_curves(levels), forecast_plot(table)):
        assert "<script" not in texts(fig) and "<img" not in texts(fig)


def test_still_keeps_intervals_log_axes_and_the_line_of_chance(drawn: list[matplotlib.figure.Figure]) -> None:
    still(label_curves(LEVELS, metric="accuracy", chance=0.08))
    (ax,) = drawn[0].axes
    assert ax.get_xscale() == "log"
    assert [0.08, 0.08] in [list(line.get_ydata()) for line in ax.lines]
    lines = [c for c in ax.collections if isinstance(c, LineCollection)]
    bars = np.concatenate([np.array(c.get_segments())[:, :, 1] for c in lines])  # (bars, 2): low, high
    assert [0.4, 0.7] in np.round(bars, 9).tolist()


def test_still_shares_the_scale_of_panels_that_do(drawn: list[matplotlib.figure.Figure]) -> None:
    table = pd.DataFrame({"backbone": ["a", "b"], "logme": [0.1, 0.2], "knn": [0.5, 0.6], "trained": [0.2, 0.9]})
    still(forecast_plot(table))
    first, second = drawn[0].axes
    assert first.get_ylim() == second.get_ylim()
    assert [t.label1.get_visible() for t in (first.yaxis.majorTicks[0], second.yaxis.majorTicks[0])] == [True, False]


def test_still_writes_decades_in_plain_text(runs: dict[str, StandInRun]) -> None:
    svg = still(cost_plot(compare(runs, resamples=50), "action"))
    assert "mathdefault" not in svg
    assert [_decade(v) for v in (0.01, 1, 100, 1e4, 1e6)] == ["0.01", "1", "100", "10 k", "1 M"]
