"""Training curves carry the history's numbers and the doctor's findings; the finder's curve its suggestion."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.views.conftest import HOSTILE, StandInRun
from workbench.training.checking.findings import Finding
from workbench.training.checking.rate_finder import curve_of
from workbench.training.setup import Setup
from workbench.views import training_plots
from workbench.views.still import still
from workbench.views.training_plots import LiveCurves, findings_html, rate_plot, training_curves

HISTORY = pd.DataFrame({
    "epoch": [1, 2, 3], "step": [5, 10, 15], "lr": [1e-3] * 3, "train_loss": [2.0, 1.5, 1.2],
    "val_loss": [2.1, np.nan, 1.9], "val_action": [0.2, 0.3, 0.5], "val_safety": [0.5, 0.6, 0.7],
    "val_score": [0.35, 0.45, 0.6], "seconds": [1.0, 2.0, 3.0],
})  # fmt: skip
FOUND = [
    Finding("rate-out-of-range", "warning", "too high", "lower it", "lr"),
    Finding("not-learning", "warning", HOSTILE, "look", "action", epoch=3, step=15),
    Finding("aside", "note", "by the way", "nothing", epoch=2, step=10),
]


def test_training_curves_draw_the_history_and_mark_the_findings() -> None:
    fig = training_curves(HISTORY, findings=FOUND)
    lines = {trace.name: trace for trace in fig.data if trace.mode == "lines+markers"}
    assert list(lines) == ["train loss", "val loss", "action", "safety"]
    assert list(lines["val loss"].y) == [2.1, None, 1.9]
    assert lines["action"].yaxis == "y2" and list(lines["action"].y) == [0.2, 0.3, 0.5]
    marks = {trace.name: (list(trace.x), list(trace.y)) for trace in fig.data if trace.mode == "markers"}
    assert marks == {"rate-out-of-range": ([1], [2.0]), "not-learning": ([3], [1.2])}
    assert "<img" not in fig.to_json().replace("\\u003c", "<")
    drawn = still(fig)
    assert all(f">{name}<" in drawn for name in ("train loss", "action", "safety", "not-learning"))  # both panels'
    assert list(fig.layout.xaxis.ticktext) == ["1", "2", "3"]


def test_training_curves_take_a_runs_own_findings(runs: dict[str, StandInRun]) -> None:
    run: Any = next(iter(runs.values()))
    assert not [t for t in training_curves(run).data if t.mode == "markers"]
    run.findings = FOUND
    assert [t.name for t in training_curves(run).data if t.mode == "markers"] == ["rate-out-of-range", "not-learning"]
    assert training_curves(pd.DataFrame()).layout.annotations[-1].text == "no epoch yet"


def test_findings_html_is_escaped_and_says_when_there_is_nothing() -> None:
    text = findings_html(FOUND)
    assert "<img" not in text and "&lt;img" in text
    assert text.count("<li>") == 3 and "before training" in text and "epoch 3" in text
    assert "found nothing" in findings_html([])


@pytest.mark.parametrize(("strategy", "name"), [("full", "lr"), ("linear", "head_lr")])
def test_rate_plot_marks_the_suggestion_on_the_rate_that_was_swept(strategy: str, name: str) -> None:
    factors = np.geomspace(1e-3, 1e3, 61)
    base = Setup(strategy=strategy, head_lr=1e-2).replace(lr=0.0 if strategy == "linear" else 1e-2)
    losses = 1 + np.log10(factors) ** 2
    losses[-1] = 1e6
    curve = curve_of(base, factors, losses)
    fig = rate_plot(curve)
    assert fig.layout.xaxis.title.text == name
    assert fig.layout.shapes[0].x0 == pytest.approx(-3)
    np.testing.assert_allclose(fig.data[0].x, np.log10(1e-2 * factors))
    assert list(fig.layout.xaxis.ticktext) == ["1e-5", "1e-4", "1e-3", "1e-2", "1e-1", "1e0", "1e1"]
    assert fig.layout.yaxis.range[1] < 30  # the explosion does not flatten the rest
    assert "svg" in still(fig)
    flat = rate_plot(curve_of(base, factors, np.ones(61)))
    assert not flat.layout.shapes and "no rate lowered" in flat.layout.title.text


def test_live_curves_draw_once_and_then_update(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    drawn: list[str] = []

    class Handle:
        def update(self, what: str) -> None:
            drawn.append("update" + what[:4])

    def display(what: str, *, display_id: bool) -> Handle:
        drawn.append("display" + what[:4])
        return Handle()

    live = LiveCurves()
    live(HISTORY[:1])
    assert live.figure.data[0].y == (2.0,) and capsys.readouterr().out == ""
    monkeypatch.setattr(training_plots, "get_ipython", lambda: object())
    monkeypatch.setattr(training_plots, "display", display)
    live(HISTORY[:2])
    live(HISTORY)
    assert drawn == ["display<div", "update<div"] and live.figure.data[0].y == (2.0, 1.5, 1.2)
