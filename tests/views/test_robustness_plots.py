"""Robustness figures: what is drawn is what the report says, on screen and as a still picture."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from workbench.analysis.robustness import Robustness
from workbench.analysis.stress.temporal import PROBES, TemporalProbes
from workbench.data.protocol import Protocol
from workbench.views.robustness_plots import robustness_curves, robustness_map, temporal_plot
from workbench.views.still import still

PROTOCOL = Protocol(num_frames=4, size_px=32)


@pytest.fixture(scope="module")
def report() -> Robustness:
    rows, value = [], 0.9
    for run in ("<b>a", "b"):
        for kind, severity in [("clean", 0), *[(k, s) for k in ("blur", "frame_drops") for s in (1, 3, 5)]]:
            value -= 0.01
            sure = kind == "blur"
            rows.append({
                "run": run, "task": "action", "metric": "accuracy", "corruption": kind, "severity": severity,
                "value": value, "low": value - 0.1, "high": value + 0.1, "change": value - 0.89,
                "change_low": value - 1.1, "change_high": -0.001 if sure else 0.1, "n": 20, "groups": 10,
            })  # fmt: skip
    totals = pd.DataFrame([
        {"run": r, "task": "action", "metric": "accuracy", "chance": 0.25, "mce": np.nan} for r in ("<b>a", "b")
    ])  # fmt: skip
    return Robustness(pd.DataFrame(rows), totals, {"<b>a": PROTOCOL, "b": PROTOCOL}, "b", {}, {})


def test_robustness_curves_draw_each_run_from_its_clean_score(report: Robustness):
    fig = robustness_curves(report)
    assert len(fig.data) == 4 and [t.showlegend for t in fig.data] == [True, True, False, False]
    for trace, (run, kind) in zip(fig.data, [(r, k) for k in ("blur", "frame_drops") for r in ("<b>a", "b")],
                                  strict=True):  # fmt: skip
        curve = report.curve(run, "action", kind)
        assert list(trace.x) == [0, 1, 3, 5]
        np.testing.assert_allclose(list(trace.y), curve.value)
        np.testing.assert_allclose(np.array(trace.y) - trace.error_y.arrayminus, curve.low)
    assert fig.data[0].name == "&lt;b&gt;a"
    assert [a.text for a in fig.layout.annotations] == ["blur", "frame drops"]
    assert {shape.y0 for shape in fig.layout.shapes} == {0.25}


def test_robustness_map_brackets_what_may_be_nothing(report: Robustness):
    fig = robustness_map(report, "b")
    (cells,) = fig.data
    rows = report.table[(report.table.run == "b") & (report.table.severity > 0)]
    np.testing.assert_allclose(np.array(cells.z, float).ravel(), rows.change)
    assert [t.startswith("(") for t in np.ravel(cells.text)] == [False] * 3 + [True] * 3
    assert list(fig.layout.yaxis.ticktext) == ["blur", "frame drops"]
    assert list(fig.layout.xaxis.ticktext) == ["1", "3", "5"]


def test_what_was_not_measured_is_refused(report: Robustness):
    with pytest.raises(ValueError, match="task 'x' was not measured"):
        robustness_curves(report, "x")
    with pytest.raises(ValueError, match="corruption 'noise' was not measured"):
        robustness_curves(report, corruptions=["noise"])
    with pytest.raises(ValueError, match="run 'c' was not measured"):
        robustness_map(report, "c")


def test_temporal_plot_has_a_panel_per_task():
    names = ["as it is", *PROBES]
    table = pd.DataFrame([
        {"task": t, "metric": "accuracy", "probe": p, "value": 0.1 * i, "low": 0.1 * i - 0.05, "high": 0.1 * i + 0.05}
        for t in ("action", "light") for i, p in enumerate(names)
    ])  # fmt: skip
    motion = pd.DataFrame({"task": ["action", "light"], "chance": [0.1, 0.5]})
    fig = temporal_plot(TemporalProbes("run", table, motion, PROTOCOL))
    assert [list(t.y) for t in fig.data] == [pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])] * 2
    assert list(fig.data[0].text) == names and [s.y0 for s in fig.layout.shapes] == [0.1, 0.5]
    assert "single" in still(fig, label="x")


def test_figures_have_a_still_form_with_their_words(report: Robustness):
    for fig, words in ((robustness_curves(report), "frame drops"), (robustness_map(report), "severity")):
        assert words in still(fig, label="x")


def test_a_report_without_a_defined_score_says_so(report: Robustness):
    empty = SimpleNamespace(table=report.table.assign(change=np.nan), summary=report.summary)
    assert robustness_map(empty, "b").layout.annotations[0].text == "no score is defined"
