"""The plots carry the numbers they were given, whole names, and nothing a page could execute."""

import io
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

from tests.views.conftest import HOSTILE, TASKS, StandInRun, make_run
from workbench.analysis.compare import compare
from workbench.analysis.errors import errors
from workbench.data.tables import Task
from workbench.views.plots import (
    comparison_plot,
    confusion_plot,
    difference_plot,
    filmstrip,
    heat_curve,
    learning_curves,
    named_runs,
    residual_plot,
)
from workbench.views.still import still
from workbench.views.style import OKABE_ITO, line_styles


def dots(fig: go.Figure) -> list[go.Scatter]:
    return [t for t in fig.data if t.mode == "markers"]


def test_comparison_plot_draws_value_and_interval_of_each_run(runs: dict[str, StandInRun]) -> None:
    comparison = compare(runs, resamples=100)
    fig = comparison_plot(comparison, "action", chance={"action": 0.25})
    rows = comparison.table[comparison.table.task == "action"]
    assert [t.x[0] for t in dots(fig)] == rows.value.tolist()
    ends = [(t.x[0] - t.error_x.arrayminus[0], t.x[0] + t.error_x.array[0]) for t in dots(fig)]
    np.testing.assert_allclose(ends, rows[["low", "high"]].to_numpy())
    assert fig.layout.shapes[0].x0 == 0.25
    low, high = fig.layout.xaxis.range
    assert low < 0.25
    assert high > rows.high.max()  # nothing on the edge


def test_comparison_plot_has_a_panel_per_task(runs: dict[str, StandInRun]) -> None:
    fig = comparison_plot(compare(runs, resamples=50))
    assert [a.text for a in fig.layout.annotations] == [
        "action: accuracy, n = 60", "safety: auroc, n = 60", "quality: srcc, n = 60",
    ]  # fmt: skip
    assert len(fig.data) == 9


def test_comparison_plot_names_the_tasks_it_has(runs: dict[str, StandInRun]) -> None:
    with pytest.raises(ValueError, match="no task 'x' in this comparison; it has"):
        comparison_plot(compare(runs, resamples=50), "x")


def test_difference_plot_leaves_out_the_reference(runs: dict[str, StandInRun]) -> None:
    comparison = compare(runs, resamples=50)
    fig = difference_plot(comparison, "action")
    assert [t.name for t in dots(fig)] == ["linear", "full"]
    expected = comparison.table.query("task == 'action' and run != 'scratch'").difference
    assert [t.x[0] for t in dots(fig)] == expected.tolist()
    assert dots(fig)[0].marker.color == OKABE_ITO[1]  # the colour it has in the other plots


def test_learning_curves_show_the_history_in_one_colour_per_run(runs: dict[str, StandInRun]) -> None:
    fig = learning_curves(runs, task="action")
    for name, style in line_styles(runs).items():
        loss, score = [t for t in fig.data if t.name == name]
        assert list(loss.y) == runs[name].history.train_loss.tolist()
        assert list(score.y) == runs[name].history.val_action.tolist()
        assert {loss.line.color, score.line.color} == {style.colour}
        assert int(np.argmax(score.marker.size)) == 5  # epoch 6, the best one of the record


@pytest.mark.parametrize("count", [1, 20])
def test_plots_of_few_and_many_runs_with_long_names(count: int) -> None:
    names = [f"a long name of a setup, backbone nano, strategy lora:{i}, learning rate 0.0008" for i in range(count)]
    many = {n: make_run(n, 0.5, seed=i, n=24) for i, n in enumerate(names)}
    fig = comparison_plot(compare(many, resamples=20))
    assert len(fig.data) == 3 * count
    assert fig.layout.height > 30 * 3 * count
    assert fig.layout.yaxis.automargin
    styles = line_styles(names).values()
    assert len({(s.colour, s.dash) for s in styles}) == count
    assert still(learning_curves(many)).count("<text") >= count


def test_confusion_plot_shows_counts_and_leaves_empty_cells_blank() -> None:
    classes = ["a", HOSTILE]
    counts = pd.DataFrame([[3, 1], [0, 4]], index=classes, columns=classes)
    fig = confusion_plot(SimpleNamespace(confusion=counts))
    assert [list(r) for r in fig.data[0].text] == [["3", "1"], ["", "4"]]
    assert [list(row) for row in fig.data[0].z] == [[0.75, 0.25], [None, 1.0]]  # None: a widget's JSON has no NaN
    assert "<img" not in fig.to_json().replace("\\u003c", "<")


def test_confusion_plot_of_200_classes_thins_its_labels() -> None:
    names = [f"class {i}" for i in range(200)]
    fig = confusion_plot(SimpleNamespace(confusion=pd.DataFrame(np.eye(200), index=names, columns=names)))
    assert len(fig.layout.xaxis.tickvals) <= 40
    assert fig.layout.height <= 760
    assert "class 199" in fig.data[0].hovertext[199][199]


def test_residual_plot_draws_every_clip(runs: dict[str, StandInRun]) -> None:
    table = errors(runs["full"], task="quality")
    points = dots(residual_plot(table))[0]
    assert list(points.x) == table.mistakes.truth.tolist()
    assert list(points.y) == table.mistakes.predicted.tolist()


def test_heat_curve_is_the_mean_size_of_the_heat_per_frame() -> None:
    heat = np.zeros((3, 2, 2), np.float32)
    heat[1] = -2
    heat[2, 0, 0] = 4
    assert list(heat_curve({"x": heat}).data[0].y) == [0, 2, 1]


def test_named_runs_refuses_two_of_one_name(runs: dict[str, StandInRun]) -> None:
    assert list(named_runs(list(runs.values()))) == list(runs)
    with pytest.raises(ValueError, match="share a name"):
        named_runs([runs["full"], runs["full"]])


def test_filmstrip_picks_the_middle_of_each_stretch() -> None:
    frames = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None, None, None], (16, 8, 8, 3))
    figure = filmstrip(frames, np.ones((16, 8, 8), np.float32), columns=4)
    top = [int(ax.images[0].get_array()[0, 0, 0]) for ax in figure.axes[:4]]  # type: ignore[index]
    assert top == [2, 6, 10, 14]
    assert len(figure.axes) == 8


def test_still_carries_every_word_and_no_fixed_ink(runs: dict[str, StandInRun]) -> None:
    hostile = {HOSTILE: runs["full"], "a $x$ b": runs["linear"]}
    svg = still(comparison_plot(compare(hostile, resamples=20), "action", chance={"action": 0.25}), label='a "b"')
    assert "<img" not in svg
    assert "&lt;img src=x one" in svg  # the start of the shortened name
    assert "a $x$ b" in svg
    assert 'aria-label="a &quot;b&quot;"' in svg
    assert "#010203" not in svg
    assert "currentColor" in svg
    assert "<script" not in svg
    assert "http" not in svg.replace("http://www.w3.org/", "")


def test_still_places_dots_by_value() -> None:
    table = pd.DataFrame({"run": ["a", "b", "c"], "task": "t", "metric": "m", "value": [0.0, 0.5, 1.0]})
    table["low"], table["high"] = table.value - 0.1, table.value + 0.1
    svg = still(comparison_plot(SimpleNamespace(table=table)))
    places = sorted(float(x) for x in re.findall(r'<use xlink:href="#[^"]+" x="([\d.]+)"[^>]*fill: #', svg))
    marks = [-0.1, 0, 0.1, 0.4, 0.5, 0.6, 0.9, 1, 1.1]  # each dot between the caps of its interval
    slope, offset = np.polyfit(marks, places, 1)
    np.testing.assert_allclose(places, slope * np.array(marks) + offset, atol=0.5)
    assert slope > 100


def test_still_refuses_a_trace_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match="not 'bar'"):
        still(go.Figure(go.Bar(x=[1], y=[2])))


def test_plots_of_nothing_say_so() -> None:
    empty = pd.DataFrame(columns=["run", "task", "metric", "value", "low", "high"])
    assert "nothing to compare" in still(comparison_plot(SimpleNamespace(table=empty)))
    assert "no runs" in still(learning_curves({}))


def test_a_binary_task_without_names_still_has_a_confusion_plot() -> None:
    run = make_run("r", 0.7, tasks=(Task("safe", "binary"), TASKS[0]))
    assert list(confusion_plot(errors(run, task="safe")).layout.xaxis.ticktext) == ["0", "1"]


def test_filmstrip_shows_itself_in_a_notebook_without_pyplot() -> None:
    frames = np.zeros((8, 16, 16, 3), np.uint8)
    frames[4:] = 255
    image = plt_image(filmstrip(frames, columns=2)._repr_png_())
    # Two frames side by side: the left one black, the right one white.
    middle = image[image.shape[0] // 2 + 5]
    assert middle[len(middle) // 4] == pytest.approx(0, abs=0.05)
    assert middle[3 * len(middle) // 4] == pytest.approx(1, abs=0.05)


def plt_image(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), float) / 255
