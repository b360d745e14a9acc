"""The comparison dashboard without a browser: every look, every click, the clips of two runs, and odd inputs."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import traitlets

from tests.views.conftest import HOSTILE, PROTOCOL, TASKS, StandInRun, make_maps, make_run
from tests.views.test_dashboards import menu, titles
from workbench.analysis.compare import compare
from workbench.analysis.comparing.front import pareto
from workbench.analysis.predictions import Predictions
from workbench.data.tables import ClipTable, Task
from workbench.training.setup import Setup
from workbench.views import comparison_view
from workbench.views.comparison_view import AGREEMENT, CLASSES, CURVES, FRONT, SETUPS, ComparisonView
from workbench.views.plots import learning_curves
from workbench.views.still import still


def click(
    view: ComparisonView, title: str, place: int = 0, *, meta: str = "", x: float = 0, y: float = 0, trace: Any = None
) -> None:
    """A click on a point of a plot, as the browser would report it: ``meta`` names whose point it is."""
    traces = [t for t in view._boxes[title].widget.data if not meta or t.meta == meta]
    trace = traces[0] if trace is None else trace
    points = SimpleNamespace(point_inds=[place], xs=[x], ys=[y])
    for call in trace._click_callbacks:
        call(trace, points, None)
    assert trace._click_callbacks


@pytest.fixture
def view(runs: dict[str, StandInRun], clips: ClipTable) -> ComparisonView:
    return ComparisonView(compare(runs, resamples=100), histories=runs, clips=clips, page_size=3)


def test_looks_show_their_own_plots_only(view: ComparisonView) -> None:
    def seen() -> list[str]:
        return [title for title, panel in view._panels.items() if panel.layout.display is None]

    assert menu(view, "Look at").options == (
        ("Scores", "scores"), ("Cost", "cost"), ("Setups", "setups"), ("Pairs", "agreement"), ("Classes", "classes"),
    )  # fmt: skip
    for look, expected in (("cost", FRONT), ("setups", SETUPS), ("agreement", AGREEMENT), ("classes", CLASSES)):
        menu(view, "Look at").value = look
        assert view.look == look and seen() == [expected]
    assert menu(view, "Cost").layout.display == "none"
    view.look = "cost"
    assert menu(view, "Cost").layout.display is None


def test_cost_look_marks_the_front_and_follows_the_cost(view: ComparisonView) -> None:
    view.look, view.task = "cost", "action"
    table = view.table()
    front = pareto(table, "value", "trainable_parameters")
    dots = {t.meta: t for t in view._boxes[FRONT].widget.data if t.meta}
    assert {name for name, t in dots.items() if t.marker.size == 12} == set(table.run[front])
    assert dots["full"].x[0] == table.set_index("run").trainable_parameters["full"]
    menu(view, "Cost").value = "train_seconds"
    assert {t.meta: t for t in view._boxes[FRONT].widget.data if t.meta}["full"].x[0] == 34.0
    menu(view, "Cost").value = "peak_memory_mib"
    assert "no run recorded" in view._boxes[FRONT].widget.layout.annotations[0].text


def test_runs_not_chosen_leave_every_plot(view: ComparisonView) -> None:
    menu(view, "Runs").value = ("scratch", "full")
    assert view.chosen == ["scratch", "full"] and set(view.table().run) == {"scratch", "full"}
    for title, figure in view.figures().items():
        named = {t.meta for t in figure.data if t.meta}
        assert "linear" not in named, title
    assert list(view.figures([AGREEMENT])[AGREEMENT].layout.xaxis.ticktext) == ["scratch", "full"]
    assert [v for _, v in menu(view, "Run A").options] == ["scratch", "full"]
    menu(view, "Runs").value = ()
    assert view.chosen == ["scratch", "full"]
    with pytest.raises(traitlets.TraitError, match="must name some of the runs"):
        view.chosen = ["x"]


def test_metric_menu_rescores_the_task(view: ComparisonView, runs: dict[str, StandInRun]) -> None:
    assert menu(view, "Metric").options == ("main metric",)
    view.task = "action"
    assert menu(view, "Metric").options == ("main metric", "macro_f1")
    menu(view, "Metric").value = "macro_f1"
    expected = compare(runs, tasks=["action"], metrics={"action": "macro_f1"}, resamples=100).table
    pd.testing.assert_frame_equal(view.table(), expected)
    view.task = "safety"
    assert view.metric == "main metric" and set(view.table().metric) == {"auroc"}


def test_clips_of_two_runs_are_exactly_those_one_got_right(view: ComparisonView, runs: dict[str, StandInRun]) -> None:
    view.task = "action"
    duel = view.duel
    assert (duel.first, duel.second, duel.outcome) == ("full", "scratch", "first")
    right = {}
    for name, run in runs.items():
        rows = run.predictions.query("task == 'action'")
        right[name] = set(rows.clip_id[rows.target == rows.prediction])
    assert set(duel.rows().clip_id) == right["full"] - right["scratch"]
    assert f"A right, B wrong ({len(right['full'] - right['scratch'])})" == menu(view, "Clips").options[0][0]
    menu(view, "Run A").value = "linear"
    menu(view, "Clips").value = "second"
    assert set(duel.rows().clip_id) == right["scratch"] - right["linear"]
    menu(view, "Clips").value = "neither"
    assert set(duel.rows().clip_id) == set(rows.clip_id) - right["scratch"] - right["linear"]
    truth = menu(view, "Truth").options[1][1]
    menu(view, "Truth").value = truth
    assert set(duel.rows().truth) == {truth}


def test_clips_turn_pages_and_play(view: ComparisonView) -> None:
    duel = view.duel
    seen = titles(duel._gallery.value)
    assert len(seen) == 3 and duel._gallery.value.count("<video") + duel._gallery.value.count("cannot be shown") == 3
    menu(view, "Next clips").click()
    assert duel.page == 1 and titles(duel._gallery.value) == duel.rows().clip_id[3:6].tolist()
    for _ in range(50):
        menu(view, "Next clips").click()
    assert duel.page == duel.num_pages - 1 and menu(view, "Next clips").disabled
    line = duel.rows().iloc[duel.page * 3]
    assert f"truth: {line.truth}" in duel._gallery.value and f"A: {line['first']}" in duel._gallery.value


def test_a_run_is_never_set_against_itself(view: ComparisonView) -> None:
    duel = view.duel
    menu(view, "Run A").value = duel.second
    assert (duel.first, duel.second) == ("scratch", "full")
    menu(view, "Run B").value = "scratch"
    assert (duel.first, duel.second) == ("full", "scratch")
    duel.choose("scratch")
    assert (duel.first, duel.second) == ("scratch", "full")


def test_a_click_on_any_point_takes_its_run(view: ComparisonView) -> None:
    view.task = "action"
    for look, title in (("scores", CURVES), ("scores", comparison_view.SCORES), ("cost", FRONT), ("setups", SETUPS)):
        view.look = look
        for name in ("linear", "full"):
            click(view, title, meta=name)
            assert view.duel.first == name and view.duel.second != name
    view.look = "agreement"
    click(view, AGREEMENT, x=2, y=1)
    assert (view.duel.first, view.duel.second) == ("full", "linear")
    view.look = "classes"
    names = [name for t in view._boxes[CLASSES].widget.data for name in t.customdata or ()]
    mine = [t for t in view._boxes[CLASSES].widget.data if t.customdata is not None and "up" in t.customdata]
    assert sorted(names) == sorted(TASKS[0].classes)
    click(view, CLASSES, list(mine[0].customdata).index("up"), trace=mine[0])
    assert view.duel.truth == "up" and set(view.duel.rows().truth) <= {"up"}


def test_class_plot_follows_the_two_runs(view: ComparisonView) -> None:
    view.task, view.look = "action", "classes"
    for first, second in (("full", "scratch"), ("linear", "full")):
        view.duel.choose(first, second)
        table = view.comparison.per_class(first, second, "action").set_index("class").difference
        traces = [t for t in view._boxes[CLASSES].widget.data if t.meta]
        drawn = {name: x for t in traces for name, x in zip(t.customdata, t.x, strict=True)}
        assert drawn == pytest.approx(table.to_dict())


def test_agreement_measure_fits_the_task(view: ComparisonView) -> None:
    view.task, view.look = "action", "agreement"
    menu(view, "Measure").value = "kappa"
    z = np.array(view._boxes[AGREEMENT].widget.data[0].z, float)
    assert z == pytest.approx(view.comparison.agreement("action", "kappa").to_numpy())
    view.task = "quality"
    assert menu(view, "Measure").options == ("srcc",) and view.measure == "srcc"
    assert "p (Holm)" in view._table.value
    assert menu(view, "Clips").options[0][0].startswith("A nearer")


def test_attention_needs_clips_and_weights(view: ComparisonView, runs: dict[str, StandInRun]) -> None:
    button = menu(view, "Show attention of A and B")
    assert button.disabled and "needs runs with weights" in view.duel._words.value
    bare = ComparisonView(compare(runs, resamples=20))
    assert "give clips=" in bare.duel._words.value


def test_attention_shows_both_runs_beside_each_other(clips: ClipTable, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, Any, str]] = []

    def explain(run: Any, table: ClipTable, *, task: str, **_: Any) -> Any:
        asked.append((run.name, table.frame.clip_id.tolist(), task))
        return make_maps("rollout", clips=1, ids=tuple(table.frame.clip_id))

    monkeypatch.setattr("workbench.analysis.explain.explain", explain)
    made = {name: make_run(name, skill, seed=i, n=12) for i, (name, skill) in enumerate([("a", 0.2), ("b", 0.9)])}
    for run in made.values():
        run.model = lambda device="cpu": None  # type: ignore[attr-defined]
    view = ComparisonView(compare(made, resamples=20), clips=clips)
    clip = view.duel.clip
    menu(view, "Show attention of A and B").click()
    assert asked == [("b", [clip], "action"), ("a", [clip], "action")]
    assert [type(w).__name__ for w in view.duel._maps.children] == ["SideBySideView"]
    monkeypatch.setattr("workbench.analysis.explain.explain", lambda *a, **k: (_ for _ in ()).throw(ValueError("no")))
    menu(view, "Show attention of A and B").click()
    assert "No maps: no" in view.duel._words.value and not view.duel._maps.children


def test_a_further_run_joins_and_one_of_another_protocol_is_refused_in_words(
    view: ComparisonView, runs: dict[str, StandInRun]
) -> None:
    view.task = "action"
    view.add(make_run("lora", 0.7, seed=9))
    assert view.comparison.reference == "scratch" and view.chosen == [*runs, "lora"]
    assert "lora has joined" in view._status.value and view.task == "action"
    view.add(make_run("lora", 0.7, seed=10))
    assert view.chosen[-1] == "lora (2)" and CURVES in view.figures()
    other = make_run("odd", 0.5)
    other.protocol = replace(PROTOCOL, num_frames=8)
    view.add(other)
    assert "odd cannot join" in view._status.value and "num_frames" in view._status.value
    assert "odd" not in view.chosen


def test_launch_panel_is_offered_with_clips_and_a_folder(
    runs: dict[str, StandInRun], clips: ClipTable, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    pytest.importorskip("workbench.views.launch_panel")
    view = ComparisonView(compare(runs, resamples=20), clips=clips, runs_dir=tmp_path)
    assert ("Train another", "launch") in menu(view, "Look at").options
    assert view._launch.layout.display == "none"
    view.look = "launch"
    assert view._launch.layout.display is None


def test_seeds_of_a_setup_are_one_line_in_a_band() -> None:
    made = {f"full-seed{s}": make_run("full", 0.8, seed=s) for s in range(3)} | {"linear": make_run("linear", 0.4)}
    view = ComparisonView(compare(made, resamples=20), histories=made)
    figure = view.figures([CURVES])[CURVES]
    lines = [t for t in figure.data if t.fill is None]
    bands = [t for t in figure.data if t.fill == "toself"]
    assert [t.name for t in lines] == ["full", "full", "linear", "linear"] and len(bands) == 2
    scores = np.stack([made[f"full-seed{s}"].history.val_score for s in range(3)])
    assert np.allclose(lines[1].y, scores.mean(0))
    assert np.allclose(bands[1].y, [*scores.max(0), *scores.min(0)[::-1]])
    assert still(figure).startswith("<div")
    assert len(learning_curves(made).data) == 8  # without setups a line per run


def odd_runs(kind: str) -> dict[str, Any]:
    """Runs that a dashboard may meet and must survive."""
    if kind == "200 classes":
        task = Task("action", "multiclass", tuple(f"class {i}" for i in range(200)))
        return {n: make_run(n, s, seed=i, n=400, tasks=(task,)) for i, (n, s) in enumerate([("a", 0.5), ("b", 0.6)])}
    made = {n: make_run(n, s, seed=i) for i, (n, s) in enumerate([("a", 0.5), ("b", 0.6)])}
    for run in made.values():
        frame = run.predictions
        if kind == "no labels":
            frame["target"] = np.nan
        if kind == "one class":
            frame.loc[frame.task != "quality", "target"] = 0.0
        if kind == "some labels":
            frame.loc[frame.index % 3 == 0, "target"] = np.nan
    return made


@pytest.mark.parametrize("kind", ["no labels", "one class", "some labels", "200 classes"])
def test_odd_inputs_give_a_view_of_every_look(kind: str) -> None:
    view = ComparisonView(compare(odd_runs(kind), resamples=20))
    for task in ("all tasks", *view.tasks):
        view.task = task
        for look in ("scores", "cost", "setups", "agreement", "classes"):
            view.look = look
            for figure in view.figures(comparison_view.LOOKS[look][1]).values():
                assert still(figure).startswith("<div")
    assert "NaN" not in view._boxes[CLASSES].widget.to_json() if kind == "200 classes" else True


def test_one_run_alone_hides_what_needs_two(runs: dict[str, StandInRun]) -> None:
    view = ComparisonView([runs["full"]])
    assert view.duel.layout.display == "none"
    for look in ("cost", "setups", "agreement", "classes"):
        view.look = look
        assert view.figures(comparison_view.LOOKS[look][1]) == {}
    assert "<svg" in view.freeze()


def test_multilabel_task_is_compared_without_clips_won() -> None:
    task = Task("objects", "multilabel", ("cat", "dog", "bird"))
    rng = np.random.default_rng(0)
    n = 24
    targets = rng.integers(0, 2, (n, 3)).astype(float)
    runs = {}
    for name in "ab":
        frame = pd.DataFrame({"clip_id": [f"c{i}" for i in range(n)], "split": "test", "task": "objects"})
        frame["targets"], frame["target"] = targets.tolist(), targets.sum(1)
        frame["prediction"], frame["probabilities"] = 1.0, rng.random((n, 3)).tolist()
        runs[name] = Predictions(name, (task,), frame, PROTOCOL)
    view = ComparisonView(compare(runs, resamples=20))
    assert AGREEMENT not in view.figures() and "plainly right or wrong" in view.duel._gallery.value
    view.look = "agreement"
    assert "Difference: first minus second" in view._table.value
    assert view.freeze().count("<svg ") == 4  # scores, differences, cost, setups


def test_hostile_names_are_text_in_every_look(clips: ClipTable) -> None:
    task = Task("action", "multiclass", (HOSTILE, "b"))
    made = {HOSTILE: make_run("x", 0.4, tasks=(task,)), "b": make_run("y", 0.8, seed=1, tasks=(task,))}
    for run in made.values():
        run.predictions["clip_id"] = HOSTILE + run.predictions.clip_id
    view = ComparisonView(made, clips=clips)
    shown = view.freeze() + view.duel._gallery.value + view.duel._head.value
    assert "<img" not in shown and "&lt;img src=x onerror=alert(1)&gt;" in shown
    for figure in view.figures().values():
        assert "<img" not in re.sub(
            r'"meta":"[^"]*"|"customdata":\[[^]]*\]', "", figure.to_json().replace("\\u003c", "<")
        )


def test_a_launched_setup_sees_what_the_reference_saw(runs: dict[str, StandInRun], clips: ClipTable) -> None:
    reference = Setup(strategy="linear", lr=0.0, head_lr=0.1, epochs=3, num_frames=8, sampling="single", decoder="pyav")
    made = {name: make_run(name, 0.5, seed=i) for i, name in enumerate("ab")}
    made["a"].setup = reference  # type: ignore[attr-defined]
    base = ComparisonView(compare(made, resamples=20))._like_reference()
    assert (base.num_frames, base.sampling, base.decoder) == (8, "single", "pyav")
    assert base == Setup(num_frames=8, sampling="single", decoder="pyav")  # and nothing else of it
    assert ComparisonView(compare(runs, resamples=20))._like_reference() is None
