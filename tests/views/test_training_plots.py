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
from workbench.views.training_plots import (
    LiveCurves,
    conflict_curves,
    findings_html,
    layer_conflict_plot,
    rate_plot,
    training_curves,
)  # fmt: skip

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


TOGETHER = pd.DataFrame({
    "epoch": [1, 2], "loss_a": [2.0, 1.0], "loss_b": [0.7, 0.6], "loss_<img src=x>": [1.0, 0.9],
    "weight_a": [1.0, 1.2], "weight_b": [1.0, 0.8], "weight_<img src=x>": [1.0, 1.0], "norm_a": [0.5, 0.4],
    "norm_b": [0.1, 0.2], "norm_<img src=x>": [0.1, np.nan], "cosine_a_b": [-0.5, 0.25],
    "cosine_a_<img src=x>": [0.1, np.nan], "cosine_b_<img src=x>": [0.0, 0.3],
})  # fmt: skip


def test_conflict_curves_draw_each_number_in_its_panel() -> None:
    fig = conflict_curves(TOGETHER)
    drawn = {(trace.name, trace.yaxis): list(trace.y) for trace in fig.data}
    assert drawn["a", "y"] == [2.0, 1.0] and drawn["b", "y2"] == [1.0, 0.8] and drawn["a", "y3"] == [0.5, 0.4]
    assert drawn["a and b", "y4"] == [-0.5, 0.25] and drawn["a and &lt;img src=x&gt;", "y4"] == [0.1, None]
    assert len(drawn) == 12
    shown = [trace.name for trace in fig.data if trace.showlegend]
    assert len(shown) == len(set(shown)) == 6  # tasks and pairs, each once
    assert "<img" not in fig.to_json().replace("\\u003c", "<")
    assert ">a and b<" in still(fig)


def test_conflict_curves_leave_out_what_was_not_measured() -> None:
    unmeasured = TOGETHER.assign(**{c: np.nan for c in TOGETHER if c.startswith(("norm_", "cosine_"))})
    for history in (unmeasured, TOGETHER[[c for c in TOGETHER if not c.startswith(("norm_", "cosine_"))]]):
        fig = conflict_curves(history)
        assert {trace.yaxis for trace in fig.data} == {"y", "y2"} and len(fig.data) == 6
        assert [note.text for note in fig.layout.annotations] == ["training loss", "weight"]
    assert conflict_curves(HISTORY).layout.annotations[-1].text == "one task only: nothing to compare"
    assert conflict_curves(pd.DataFrame()).layout.annotations[-1].text == "no epoch yet"


def test_layer_conflict_plot_draws_batches_and_their_mean_in_the_networks_order() -> None:
    rows = [(b, layer, "a", "b", c, 1.0, 1.0) for b in (0, 1) for layer, c in (("embedding", b / 2), ("block 0", -b))]
    columns = ["batch", "layer", "task", "other", "cosine", "norm_task", "norm_other"]
    fig = layer_conflict_plot(pd.DataFrame(rows, columns=columns))
    dots, mean = fig.data
    assert list(dots.x) == [0, 1, 0, 1] and list(dots.y) == [0, 0, 0.5, -1]
    assert list(mean.y) == [0.25, -0.5] and list(fig.layout.xaxis.ticktext) == ["embedding", "block 0"]
