"""The dashboards' state and logic, without a browser: what is offered, what is shown, what freezes."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import traitlets

from tests.views.conftest import HOSTILE, StandInRun, make_maps, make_run
from workbench.analysis.compare import compare
from workbench.analysis.errors import errors
from workbench.data.tables import ClipTable, Task
from workbench.views.attention_view import AttentionView
from workbench.views.comparison_view import ComparisonView
from workbench.views.error_view import ErrorView
from workbench.views.parts import FigureBox


def titles(html: str) -> list[str]:
    """Titles of the players in a gallery."""
    return re.findall(r"<figure[^>]*><div[^>]*>([^<]*)</div>", html)


def menu(view: Any, label: str) -> Any:
    """A control by its label, as a user finds it."""
    found = []

    def look(widget: Any) -> None:
        if getattr(widget, "description", None) == label:
            found.append(widget)
        for child in getattr(widget, "children", ()):
            look(child)

    look(view)
    assert len(found) == 1, label
    return found[0]


def test_figure_box_refills_its_widget_only_once_the_browser_has_answered() -> None:
    box = FigureBox()
    box.show(go.Figure(go.Scatter(x=[1], y=[2])))
    first = box.widget
    box.show(go.Figure(go.Scatter(x=[3], y=[4])))
    assert box.widget is not first  # the browser would have missed a change
    assert box.box.children == (box.widget,)
    second = box.widget
    second._js2py_layoutDelta = {"layout_edit_id": second._last_layout_edit_id, "layout_delta": {}}
    box.show(go.Figure(go.Scatter(x=[5, 6], y=[7, 8]), {"height": 123}))
    assert box.widget is second
    assert list(second.data[0].x) == [5, 6]
    assert second.layout.height == 123


def test_comparison_view_follows_its_task_menu(runs: dict[str, StandInRun]) -> None:
    view = ComparisonView(runs, chance={"action": 0.25})
    assert menu(view, "Task").options == ("all tasks", "action", "safety", "quality")
    scores = view._boxes["Score on the clips held out, with 95 % interval"]
    assert len(scores.widget.data) == 9
    menu(view, "Task").value = "safety"
    assert view.task == "safety"
    assert [t.x[0] for t in scores.widget.data] == view.table().value.tolist()
    assert set(view.table().task) == {"safety"}
    assert "auroc" in view._table.value
    assert "srcc" not in view._table.value


def test_comparison_view_of_a_comparison_alone_hides_the_curves(runs: dict[str, StandInRun]) -> None:
    comparison = compare(runs, resamples=50)
    view = ComparisonView(comparison)
    assert "Learning curves" not in view.figures()
    assert [s.layout.display for s in view._sections] == [None, None, "none"]
    assert len(ComparisonView(comparison, histories=runs).figures()["Learning curves"].data) == 6


def test_comparison_view_of_one_run_has_no_difference(runs: dict[str, StandInRun]) -> None:
    view = ComparisonView([runs["full"]])
    assert list(view.figures()) == ["Score on the clips held out, with 95 % interval", "Learning curves"]


def test_comparison_view_refuses_an_unknown_task(runs: dict[str, StandInRun]) -> None:
    view = ComparisonView(compare(runs, resamples=20))
    with pytest.raises(traitlets.TraitError, match="no task 'x'"):
        view.task = "x"


def test_comparison_view_freezes_without_scripts_or_links(runs: dict[str, StandInRun]) -> None:
    frozen = ComparisonView({HOSTILE: runs["full"], "b": runs["linear"]}).freeze()
    assert frozen.count("<svg ") == 7
    assert "<script" not in frozen
    assert "<img" not in frozen
    assert "&lt;img src=x onerror=alert(1)&gt;" in frozen
    assert frozen._repr_html_() == frozen
    assert len(frozen) < 500_000


def test_attention_view_offers_layers_and_heads_only_for_attention() -> None:
    view = AttentionView([make_maps(m) for m in ("rollout", "attention", "integrated_gradients")])
    assert menu(view, "Method").options == (
        "attention rollout · action", "attention weights · action", "integrated gradients · action",
    )  # fmt: skip
    assert menu(view, "Layer").disabled
    menu(view, "Method").value = "attention weights · action"
    assert not menu(view, "Layer").disabled
    assert [v for _, v in menu(view, "Layer").options] == ["mean", 0, 1]
    assert [v for _, v in menu(view, "Head").options] == ["mean", 0, 1, 2]


def test_attention_view_plays_the_layer_and_head_chosen() -> None:
    maps = make_maps("attention")
    view = AttentionView(maps)
    view.clip, view.layer, view.head, view.opacity, view.shared_scale = 1, 1, 2, 1.0, False
    heat = maps.upsampled(1, 1, 2)
    right = view.player().frames[:, :, 66:]
    assert (view.player().frames[:, :, :64] == maps.frames[1]).all()
    hottest = np.unravel_index(heat.argmax(), heat.shape)
    assert right[hottest].tolist() == [252, 255, 164]  # the end of inferno, at full opacity
    coldest = np.unravel_index(heat.argmin(), heat.shape)
    assert np.abs(right[coldest].astype(int) - maps.frames[1][coldest]).max() < 10
    assert view.player().title == "clip 1"
    np.testing.assert_allclose(view._curve.widget.data[0].y, heat.mean((1, 2)), rtol=1e-6)


def test_attention_view_resets_what_the_next_method_lacks() -> None:
    view = AttentionView([make_maps("attention", clips=3), make_maps("rollout", clips=2)])
    view.clip, view.layer, view.head = 2, 1, 0
    menu(view, "Method").value = "attention rollout · action"
    assert [view.clip, view.layer, view.head] == [0, "mean", "mean"]
    assert len(menu(view, "Clip").options) == 2
    for trait, odd in (("clip", 2), ("layer", 0), ("method", "x")):
        with pytest.raises(traitlets.TraitError):
            setattr(view, trait, odd)


@pytest.mark.parametrize("method", ["gradient_attention", "grad_cam"])
def test_attention_view_speaks_of_shares_only_where_maps_sum_to_one(method: str) -> None:
    maps = make_maps("rollout")
    view = AttentionView(dataclasses.replace(maps, method=method, values=maps.values / 100))
    shown = view._video.value + str(view.freeze())
    assert "even share" not in shown and f"brightest: {maps.values.max() / 100:.2g} (" in shown
    assert "for the output “left”" in shown and "Attention is not an explanation" not in shown
    assert "What moved the output" in shown and "Where it looked" not in shown
    assert "Where it looked" in str(AttentionView(maps).freeze())


def test_attention_view_caption_tells_method_target_baseline_error_and_caution() -> None:
    view = AttentionView([make_maps("integrated_gradients"), make_maps("rollout")])
    for word in (
        "integrated gradients",
        "task action",
        "“left”",
        "baseline blur",
        "completeness error 0.4 %",
        "red: for",
    ):
        assert word in view._video.value
    assert "another method or baseline gives another map" in view._video.value
    menu(view, "Method").value = "attention rollout · action"
    assert "Attention is not an explanation" in view._video.value
    assert "x an even share" in view._video.value


def test_attention_view_warns_of_a_map_that_did_not_converge() -> None:
    good = make_maps("integrated_gradients")
    fields = {k: getattr(good, k) for k in ("method", "task", "target", "values", "signed", "frames", "clip_ids")}
    error = np.array([0.2, 0.001, 0.001])
    bad = type(good)(**fields, baseline="blur", completeness_error=error, converged=False)
    view = AttentionView(bad)
    assert "NOT converged" in view._video.value
    view.clip = 1
    assert "NOT converged" not in view._video.value


def test_attention_view_numbers_maps_of_one_name_and_escapes() -> None:
    view = AttentionView([make_maps("rollout", ids=(HOSTILE, "b", "c")), make_maps("rollout", seed=1)])
    assert menu(view, "Method").options == ("attention rollout · action", "attention rollout · action (2)")
    for html in (view._video.value, view.freeze()):
        assert "<img" not in html
        assert "&lt;img" in html
    with pytest.raises(ValueError, match="no maps to show"):
        AttentionView([])


def test_attention_view_freezes_every_clip_playing() -> None:
    frozen = AttentionView(make_maps("rollout")).freeze()
    assert titles(frozen) == ["clip 0", "clip 1", "clip 2"]
    assert frozen.count("<video ") == 3
    assert frozen.count("<svg ") == 1
    assert len(frozen) < 500_000


def test_error_view_lists_exactly_the_clips_of_a_cell(runs: dict[str, StandInRun], clips: ClipTable) -> None:
    run = runs["linear"]
    view = ErrorView(run, root=clips.root, page_size=1)
    frame = run.predictions.query("task == 'action' and split == 'test'")
    counts = errors(run, task="action").confusion
    for truth in counts.index:
        for predicted in counts.columns:
            view.choose(truth, predicted)
            if counts.loc[truth, predicted] == 0:
                continue
            t, p = (run.tasks[0].classes.index(x) for x in (truth, predicted))
            expected = set(frame[(frame.target == t) & (frame.prediction == p)].clip_id)
            assert set(view.rows().clip_id) == expected
            assert len(view.rows()) == counts.loc[truth, predicted]


def test_error_view_menus_list_only_cells_that_hold_clips(runs: dict[str, StandInRun], clips: ClipTable) -> None:
    view = ErrorView(runs["full"], root=clips.root, page_size=1)
    counts = errors(runs["full"], task="action").confusion
    for truth in counts.index[counts.sum(axis=1) > 0]:
        menu(view, "Truth").value = truth
        offered = {v: label for label, v in menu(view, "Predicted").options}
        row = counts.loc[truth]
        assert list(offered) == ["any", *row.index[row > 0]]
        assert offered[truth] == f"{truth} ({row[truth]})"


def test_error_view_keeps_no_choice_that_the_new_truth_lacks(clips: ClipTable) -> None:
    task = Task("action", "multiclass", ("a", "b", "c"))
    run = make_run("r", 1.0, n=30, tasks=(task,))
    wrong = (run.predictions.target == 0) & (run.predictions.index < 15)
    run.predictions.loc[wrong, "prediction"] = 1.0  # only a is ever taken for b
    view = ErrorView(run, root=clips.root, page_size=1)
    view.truth, view.predicted = "a", "b"
    assert len(view.rows()) == wrong.sum()
    view.truth = "c"
    assert view.predicted == "any"
    assert len(view.rows()) == 0
    assert "No clips in this cell" in view._gallery.value


def test_error_view_pages_through_all_mistakes_most_confident_first(clips: ClipTable) -> None:
    run = make_run("scratch", 0.3, n=24)
    view = ErrorView(run, clips=clips, page_size=6)
    mistakes = errors(run, task="action").mistakes
    assert len(mistakes) > 6
    seen = []
    for _ in range(view.num_pages):
        seen += titles(view._gallery.value)
        menu(view, "Next page").click()
    assert seen == mistakes.clip_id.tolist()
    assert menu(view, "Next page").disabled
    assert view.page == view.num_pages - 1
    menu(view, "Previous page").click()
    assert view.page == view.num_pages - 2
    view.truth = "left"
    assert view.page == 0


def test_error_view_chooses_the_cell_that_was_clicked(runs: dict[str, StandInRun], clips: ClipTable) -> None:
    view = ErrorView(runs["linear"], root=clips.root)
    view._on_click(None, SimpleNamespace(xs=[1], ys=[1]), None)  # x the prediction, y the truth
    assert (view.truth, view.predicted) == ("right", "right")
    assert set(view.rows().truth) == {"right"}


def test_error_view_switches_to_regression_and_back(runs: dict[str, StandInRun], clips: ClipTable) -> None:
    view = ErrorView(runs["linear"], root=clips.root, task="quality", page_size=2)
    assert menu(view, "Truth").disabled
    assert titles(view._gallery.value) == errors(runs["linear"], task="quality").mistakes.clip_id.head(2).tolist()
    assert "residual: " in view._gallery.value
    menu(view, "Task").value = "safety"
    assert not menu(view, "Truth").disabled
    assert [v for _, v in menu(view, "Truth").options] == ["any", "safe", "flashing"]


def test_error_view_of_a_table_shows_its_mistakes_only(runs: dict[str, StandInRun], clips: ClipTable) -> None:
    table = errors(runs["linear"], task="action")
    view = ErrorView(table, root=clips.root, page_size=2)
    view.truth = "left"
    assert "left" not in [v for _, v in menu(view, "Predicted").options]
    assert len(view.rows()) == (table.mistakes.truth == "left").sum()


def test_error_view_uses_the_clip_table_and_survives_missing_files(
    runs: dict[str, StandInRun], clips: ClipTable, tmp_path: Path
) -> None:
    assert "<video" in ErrorView(runs["linear"], clips=clips, root=tmp_path)._gallery.value
    view = ErrorView(runs["linear"], root=tmp_path, page_size=2)
    assert "<video" not in view._gallery.value
    assert view._gallery.value.count("the file does not exist") == 2


def test_error_view_escapes_ids_and_classes(clips: ClipTable) -> None:
    run = make_run("r", 0.4, tasks=(Task("action", "multiclass", (HOSTILE, "b")),))
    run.predictions["clip_id"] = HOSTILE + run.predictions.clip_id
    view = ErrorView(run, root=clips.root, page_size=2)
    for html in (view._gallery.value, view.freeze()):
        assert "<img" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;" in html


def test_error_view_of_a_perfect_run_says_so(clips: ClipTable) -> None:
    view = ErrorView(make_run("r", 1.0), root=clips.root)
    assert "No clips in this cell" in view._gallery.value
    assert menu(view, "Next page").disabled
    view.choose("left", "left")
    assert len(view.rows()) == 15
