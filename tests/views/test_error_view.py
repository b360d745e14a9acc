"""The error view beyond the confusion matrix: every way to choose clips, the open clip, marks, thumbnails."""

# ruff: noqa: F811 (fixtures come by their names)
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import traitlets

from tests.training.conftest import tiny_checkpoint, tiny_table  # noqa: F401  (fixtures)
from tests.views.conftest import HOSTILE, TASKS, StandInRun, make_run, moving_square
from tests.views.test_dashboards import menu, titles
from workbench.analysis.errors import errors
from workbench.analysis.mistakes.calibration import calibration
from workbench.analysis.mistakes.embedding import embedding
from workbench.analysis.mistakes.label_errors import label_errors
from workbench.analysis.mistakes.marks import Marks
from workbench.analysis.mistakes.slices import slices
from workbench.data.clips import write_clip
from workbench.data.tables import ClipTable, Task
from workbench.training.finetune import fine_tune
from workbench.training.setup import Setup
from workbench.views import error_thumbnails
from workbench.views.error_thumbnails import Thumbnails
from workbench.views.error_view import ErrorView


@pytest.fixture(scope="module")
def many(clips: ClipTable) -> ClipTable:
    """Sixty clips of the twelve files, in twelve groups, with facts to search by."""
    parts = [clips.frame.assign(clip_id=[f"clip {12 * k + i}" for i in range(12)]) for k in range(5)]
    frame = pd.concat(parts, ignore_index=True)
    frame["light"], frame["camera"] = np.linspace(0, 1, 60), ["a", "b", "c"] * 20
    return ClipTable(frame, clips.tasks, root=clips.root)


@pytest.fixture(scope="module")
def run() -> StandInRun:
    return make_run("linear", 0.6)


@pytest.fixture(scope="module")
def features(many: ClipTable) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(many), 8)).astype(np.float32)


def shown(view: ErrorView) -> list[str]:
    """Ids of all clips chosen, through the pages of the gallery."""
    ids: list[str] = []
    for page in range(view.num_pages):
        view.page = page
        ids += titles(view._gallery.value)
    view.page = 0
    return ids


def test_error_view_offers_the_looks_that_it_has_what_for(run: StandInRun, many: ClipTable) -> None:
    assert list(dict(menu(ErrorView(errors(run)), "Look by").options).values()) == ["confusion"]
    view = ErrorView(run, clips=many)
    assert list(dict(menu(view, "Look by").options).values()) == ["confusion", "calibration", "slices", "labels"]
    view.task = "quality"
    assert list(dict(menu(view, "Look by").options).values()) == ["confusion", "slices"]
    with pytest.raises(traitlets.TraitError, match="'calibration' is not offered"):
        view.look = "calibration"
    bare = make_run("bare", 0.6)
    bare.predictions = bare.predictions.drop(columns="probabilities")
    assert list(dict(menu(ErrorView(bare), "Look by").options).values()) == ["confusion"]


def test_error_view_shows_exactly_the_clips_of_the_bin_clicked(run: StandInRun, many: ClipTable) -> None:
    view, expected = ErrorView(run, clips=many, page_size=20), calibration(run, task="action", resamples=10)
    view.look = "calibration"
    assert sorted(shown(view)) == sorted(run.predictions.query("task == 'action'").clip_id)
    trace = view._plot.widget.data[1]
    for place, row in enumerate(trace.customdata):
        view.looks["calibration"].on_click(trace, SimpleNamespace(point_inds=[place]), None)  # type: ignore[attr-defined]
        assert view.bin == row and menu(view, "Bin").value == row
        assert sorted(shown(view)) == sorted(expected.clips(int(row)))


def test_error_view_shows_exactly_the_clips_of_the_slice_clicked(run: StandInRun, many: ClipTable) -> None:
    found = slices(run, many, task="action", properties=pd.DataFrame(), resamples=50)
    view = ErrorView(run, clips=many, page_size=20, slices=found)
    view.look = "slices"
    trace = next(t for t in view._plot.widget.data if len(t.x))
    view.looks["slices"].on_click(trace, SimpleNamespace(point_inds=[0]), None)  # type: ignore[attr-defined]
    assert sorted(shown(view)) == sorted(found.clips(view.slice))
    assert dict((v, k) for k, v in menu(view, "Slice").options)[view.slice].startswith(
        found.table.slice[view.slice][:30]
    )


def test_error_view_shows_exactly_the_clips_of_a_lasso(
    run: StandInRun, many: ClipTable, features: np.ndarray
) -> None:  # fmt: skip
    view = ErrorView(run, clips=many, page_size=20, embedding=embedding(run, many, features=features))
    view.look = "map"
    assert shown(view) == errors(run).mistakes.clip_id.tolist()
    widget: Any = view._plot.widget
    table = view.looks["map"].found.table  # type: ignore[attr-defined]
    left, low = table.x.median(), table.y.median()

    def drawn(*selections: dict[str, Any]) -> None:
        """What the browser sends: the outlines, with more than is asked for."""
        more = {"xref": "x", "yref": "y", "opacity": object()}
        view.looks["map"].on_relayout({"new": {"relayout_data": {"selections": [s | more for s in selections]}}})  # type: ignore[attr-defined]

    assert widget.has_trait("_js2py_relayout")  # plotly's own name, which the view listens to
    drawn({"type": "rect", "x0": 1e3, "x1": left, "y0": low, "y1": 1e3})  # dragged from right to left
    corner = table[(table.x > left) & (table.y > low)]
    assert view.points == "selected" and set(shown(view)) == set(corner.clip_id) and 0 < len(corner) < len(table)
    drawn({"type": "path", "path": f"M-1e3,-1e3L{left},-1000.5L{left},1e3L-1e3,1e3Z"})
    assert set(shown(view)) <= set(view.selected) == set(table[table.x < left].clip_id)
    drawn()
    assert shown(view) == []
    for other in (None, {}, {"relayout_data": {"xaxis.range[0]": 1.0}}):
        view.select([table.clip_id[0]])
        view.looks["map"].on_relayout({"new": other})  # type: ignore[attr-defined]
        assert shown(view) == [table.clip_id[0]]


def test_error_view_shows_what_lies_around_the_open_clip(
    run: StandInRun, many: ClipTable, features: np.ndarray
) -> None:
    found = embedding(run, many, features=features)
    view = ErrorView(run, clips=many, page_size=30, embedding=found)
    view.look = "map"
    view.go(3)
    opened = view.current
    view.points = "around"
    at = found.table.set_index("clip_id")[["x", "y"]]
    away = ((at - at.loc[opened]) ** 2).sum(axis=1).sort_values(kind="stable")
    assert view.rows().clip_id.tolist() == away.index[:25].tolist() and view.current == opened


def test_error_view_lists_suspect_labels_worst_first(run: StandInRun, many: ClipTable) -> None:
    view = ErrorView(run, clips=many, page_size=10)
    view.look = "labels"
    assert shown(view) == label_errors(run, task="action").table.clip_id.tolist()
    assert "flagged" in view.looks["labels"].chosen()


def test_error_view_walks_clip_by_clip_over_the_pages(run: StandInRun, many: ClipTable) -> None:
    view = ErrorView(run, clips=many, page_size=4)
    ids = view.rows().clip_id.tolist()
    walked = [view.current]
    while not menu(view, "Next clip").disabled:
        menu(view, "Next clip").click()
        walked.append(view.current)
        assert view.page == view.position // 4 and view.current in titles(view._gallery.value)
        assert view.current in view.detail._picture.value
    assert walked == ids
    menu(view, "Previous clip").click()
    assert view.current == ids[-2]
    menu(view, "Clip number").value = 6
    assert (view.current, view.page) == (ids[5], 1)
    view._gallery._buttons[0].click()
    assert view.current == ids[4]
    view.turn(-1)
    assert view.current == ids[0]


def test_error_view_tells_the_open_clips_probabilities(run: StandInRun, many: ClipTable) -> None:
    view = ErrorView(run, clips=many)
    line = run.predictions.query("task == 'action' and clip_id == @view.current").iloc[0]
    chances = view.chances(view.current)
    assert chances is not None and chances.tolist() == pytest.approx(line.probabilities)
    assert chances.idxmax() in view.detail._said.value
    assert view.chances("nobody") is None


def test_marks_are_on_disk_at_once_and_shared_by_two_views(run: StandInRun, many: ClipTable, tmp_path: Path) -> None:
    path = tmp_path / "marks.csv"
    view = ErrorView(run, clips=many, marks=path, page_size=4)
    opened = view.current
    menu(view, "Note").value = "too dark"
    menu(view, "Right label").value = "down"
    menu(view, "Label error").click()
    found = Marks(path).get(opened, "action")
    assert found is not None and (found.mark, found.label, found.note) == ("label error", "down", "too dark")
    assert "marked: label error" in view._gallery.value and menu(view, "Label error").button_style == "primary"
    menu(view, "Note").value = "far too dark"
    assert Marks(path).frame.note.tolist() == ["far too dark"]
    other = ErrorView(run, clips=many, marks=Marks(path), page_size=4)
    assert menu(other, "Note").value == "far too dark" and "marked: label error" in other._gallery.value
    other.step(1)
    assert menu(other, "Note").value == ""
    menu(other, "Model error").click()
    assert Marks(path).frame.clip_id.tolist() == [opened, other.current]
    menu(view, "Clear mark").click()
    assert Marks(path).frame.clip_id.tolist() == [other.current]
    assert Marks(path).get(other.current, "action").label == ""  # type: ignore[union-attr]


def test_marking_without_a_file_is_off_and_says_how(run: StandInRun, many: ClipTable) -> None:
    view = ErrorView(run, clips=many)
    assert all(menu(view, name).disabled for name in ("Label error", "Ambiguous", "Model error", "Note"))
    assert "marks.csv" in view.detail._state.value
    with pytest.raises(ValueError, match="nothing to mark"):
        view.mark("ambiguous")


def test_every_look_freezes_within_its_share_of_a_page(
    run: StandInRun, many: ClipTable, features: np.ndarray
) -> None:  # fmt: skip
    view = ErrorView(run, clips=many, embedding=embedding(run, many, features=features))
    for look in ("confusion", "calibration", "slices", "map", "labels"):
        view.look = look
        frozen = view.freeze()
        assert frozen.count("<svg ") == 1 and "<script" not in frozen and len(frozen) < 700_000
        assert titles(frozen) == view.rows().clip_id.head(8).tolist()


def test_hostile_names_are_text_everywhere(many: ClipTable, tmp_path: Path) -> None:
    hostile = make_run("r", 0.4, tasks=(Task("action", "multiclass", (HOSTILE, "b")),))
    hostile.predictions["clip_id"] = HOSTILE + hostile.predictions.clip_id
    view = ErrorView(hostile, root=many.root, page_size=2, marks=tmp_path / "m.csv")
    menu(view, "Note").value = HOSTILE
    menu(view, "Label error").click()
    for look in ("confusion", "calibration", "labels"):
        view.look = look
        for text in (view._gallery.value, view.freeze(), view.detail._picture.value, view.detail._said.value,
                     view.detail._state.value, view._caption.value):  # fmt: skip
            assert "<img" not in text


def test_error_view_of_odd_runs_is_sensible(many: ClipTable) -> None:
    classes = tuple(f"class {i}" for i in range(200))
    wide = make_run("wide", 0.3, n=60, tasks=(Task("action", "multiclass", classes),))
    view = ErrorView(wide, root=many.root, page_size=2)
    view.look = "calibration"
    assert view._plot.widget.data and len(view.rows()) == 60
    one = make_run("one", 1.0, n=5, tasks=(TASKS[0],))
    one.predictions["target"] = one.predictions["prediction"] = 0.0
    lone = ErrorView(one, root=many.root)
    assert lone.current == "" and "No clip is open" in lone.detail._picture.value
    lone.look = "labels"
    assert len(lone.rows()) == 5 and menu(lone, "Next clip").disabled is False
    gaps = make_run("gaps", 0.5, n=20, tasks=(TASKS[0],))
    gaps.predictions.loc[::2, "target"] = np.nan
    assert ErrorView(gaps, root=many.root).table.n == 10
    with pytest.raises(ValueError, match="page_size=0"):
        ErrorView(one, page_size=0)


def test_a_page_of_24_clips_is_under_3_mb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(24):  # noise is the worst there is to encode
        noise = rng.integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)
        write_clip(tmp_path / f"c{i}.mp4", np.where(i % 2, noise, np.resize(moving_square(i % 4), noise.shape)), 8.0)
    view = ErrorView(make_run("r", 0.1, n=60, files=24), root=tmp_path, page_size=24, thumbnails=tmp_path / "t")
    assert view._gallery.value.count("<video") == 24
    assert len(view._gallery.value) < 3_000_000


def test_gallery_behind_shows_a_place_first_and_the_clip_when_it_is_encoded(
    run: StandInRun, many: ClipTable, tmp_path: Path
) -> None:
    view = ErrorView(run, clips=many, page_size=4, thumbnails=tmp_path, behind=True)
    view._gallery.join()
    assert view._gallery.value.count("<video") == 4 and titles(view._gallery.value) == view.rows().clip_id[:4].tolist()
    assert len(list(tmp_path.glob("*.mp4"))) >= 4  # the next page is made ahead
    waits = error_thumbnails.waiting(HOSTILE, "x")
    assert "<img" not in waits and titles(waits) != []
    view.close()


def test_thumbnails_are_encoded_once(clips: ClipTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Thumbnails(tmp_path)
    assert store.get(clips[[0]], title="a", caption="b") is None
    made = store.make(clips[[0]], title="a", caption="b")
    monkeypatch.setattr(error_thumbnails, "ClipPlayer", None)  # nothing may be decoded any more
    again = Thumbnails(tmp_path).make(clips[[0]], title="other", caption="c")
    assert again.mp4 == made.mp4 and again.flashes == made.flashes and 'poster="data:image/jpeg' in again.html()
    assert "other" in again.html() and re.search(r"aspect-ratio:64/64", again.html())


def test_thumbnails_notice_a_changed_file_and_another_span(clips: ClipTable, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, moving_square(0), 8.0)
    store = Thumbnails(tmp_path / "t")
    store.make(path, title="", caption="")
    part = clips[[0]]
    part.frame["path"], part.frame["start_seconds"], part.frame["end_seconds"] = "clip.mp4", 0.0, 1.0
    assert store.get(ClipTable(part.frame, part.tasks, root=tmp_path), title="", caption="") is None
    write_clip(path, moving_square(2), 8.0)
    os.utime(path, (1, 1))
    assert store.get(path, title="", caption="") is None


def test_thumbnails_remember_what_cannot_be_shown_and_mend_what_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    store = Thumbnails(tmp_path / "t")
    assert "cannot be shown" in store.make(tmp_path / "bad.mp4", title="x", caption="").html()
    found = store.get(tmp_path / "bad.mp4", title="x", caption="")
    assert found is not None and found.error and "<video" not in found.html()
    next((tmp_path / "t").glob("*.json")).write_text("{")
    assert store.get(tmp_path / "bad.mp4", title="x", caption="") is None
    assert store.make(tmp_path / "bad.mp4", title="x", caption="").error


def test_thumbnails_prune_what_was_used_longest_ago(clips: ClipTable, tmp_path: Path) -> None:
    store = Thumbnails(tmp_path)
    for i in range(4):
        store.make(clips[[i]], title="", caption="")
        os.utime(store._places(clips[[i]])[1], (i, i))
    sizes = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert store.prune(sizes) == 0
    assert store.prune(sizes - 1) == 1
    assert store.get(clips[[0]], title="", caption="") is None
    assert store.get(clips[[3]], title="", caption="") is not None


def test_error_view_of_a_real_run_answers_why_and_by_what(
    tiny_table: ClipTable, tiny_checkpoint: str, tmp_path: Path
) -> None:
    setup = Setup(backbone=tiny_checkpoint, strategy="linear", tasks=("direction",), epochs=1, batch_size=8)
    real = fine_tune(setup, tiny_table, runs_dir=tmp_path / "runs", device="cpu", progress=False)
    view = ErrorView(real, clips=tiny_table, page_size=2)
    view.look = "calibration"  # all clips, whether any is wrong or not
    menu(view, "Nearest training clips").click()
    near = re.findall(r">(clip\d\d)</div>", view.detail.answer.children[0].value)
    assert len(near) == 4 and set(near) <= set(tiny_table.train.frame.clip_id)
    menu(view, "Why? (attribution)").click()
    (attention,) = view.detail.answer.children
    assert attention.maps and view.current in str(attention.freeze())
    view.step(1)
    assert view.detail.answer.children == ()
    view.look = "map"
    assert set(view.looks["map"].found.table.clip_id) == set(tiny_table.test.frame.clip_id)  # type: ignore[attr-defined]
