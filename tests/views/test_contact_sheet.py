"""The page for a reviewer: it holds what needs eyes, loads nothing, plays nothing, runs nothing of the data's."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.screened import BrightRun, grey_video
from tests.data.test_judging import flicker
from tests.views.conftest import HOSTILE
from tests.views.test_report import Page
from workbench.analysis.maps import Maps
from workbench.analysis.screening import Screening, screen
from workbench.analysis.timeline import Timeline, screen_video
from workbench.data.clips import write_clip
from workbench.data.tables import Task
from workbench.views.contact_sheet import ContactSheet, clock
from workbench.views.screening_plots import agreement_plot, timeline_plot
from workbench.views.still import still

QUIET: dict[str, Any] = {"device": "cpu", "progress": False, "threshold": 0.6}
NASTY = "<script>alert(1)&'.mp4"
TASKS = (
    Task("action", "multiclass", ("dim", HOSTILE)),
    Task("safety", "binary", ("safe", "<b>bright</b>")),
    Task("quality", "regression"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sheet")
    grey_video(root / "one.mp4", [230.0] * 12)
    shutil.move(root / "one.mp4", root / NASTY)
    grey_video(root / "dark.mp4", [40.0] * 12)
    write_clip(root / "flash.mp4", flicker(1.5, 0, 1.5), fps=24, crf=12)
    (root / "<i>broken.mp4").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def clips(folder: Path) -> Screening:
    found = screen(BrightRun(tasks=TASKS), folder, explain=0, workers=1, **QUIET)
    frames = BrightRun().protocol.num_frames
    values = 0.1 + 0 * found.table.index.to_numpy()[:1, None, None, None].astype("float32").repeat(2, 1)
    video = flicker(1, 0, 0, size=32)[None, :frames]
    maps = Maps("rollout", "safety", ("x",), values, False, video, (NASTY,))
    table = found.table.assign(driving_seconds=[(0.1, 0.4) if i == NASTY else () for i in found.table["clip_id"]])
    return replace(found, table=table, maps=maps, frame_seconds={NASTY: table.index.to_numpy()[:1].repeat(4) * 0.1})


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Timeline:
    path = tmp_path_factory.mktemp("long") / "a <b>.mp4"
    grey_video(path, [50.0] * 40 + [220.0] * 20 + [50.0] * 60)
    return screen_video(BrightRun(tasks=TASKS), path, smoothing=3, **QUIET)


def html_of(result: Screening | Timeline, tmp_path: Path) -> str:
    path = ContactSheet(result).write(tmp_path / "deep" / "sheet.html")
    assert [p.name for p in path.parent.iterdir()] == ["sheet.html"]
    return path.read_text(encoding="utf-8")


def test_sheet_of_clips_shows_what_needs_eyes_and_names_what_is_lost(clips: Screening, tmp_path: Path) -> None:
    page = Page(html_of(clips, tmp_path))
    assert page.tags.count("article") == page.tags.count("video") == 2  # the bright one and the flashing one
    for text in (NASTY, "<i>broken.mp4", "rule only", "model only", "the file is empty", "dark.mp4", HOSTILE):
        assert text in page.words, text
    assert page.tags.count("img") == 2  # the frames that drove the one flag that was explained


@pytest.mark.parametrize("which", ["clips", "video"])
def test_sheet_plays_nothing_loads_nothing_and_runs_nothing(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    text = html_of(request.getfixturevalue(which), tmp_path)
    page = Page(text)
    assert "<video autoplay" not in text and " autoplay " not in text.split("</style>")[-1].split("<script>")[0]
    assert all(a.startswith(("#", "data:")) for a in page.addresses), [a[:40] for a in page.addresses]
    assert "<script>alert" not in text and HOSTILE not in text and "<b>bright" not in text and "<i>broken" not in text


def test_flashing_clips_wait_for_a_click_and_say_so(clips: Screening) -> None:
    text = str(ContactSheet(clips).freeze())
    assert text.count("Flashing clip: plays when you press play.") == 1
    assert "Nothing on this page plays by itself" in text


def test_sheet_of_a_video_has_a_poster_for_its_event_and_the_strip(video: Timeline, tmp_path: Path) -> None:
    page = Page(html_of(video, tmp_path))
    assert page.tags.count("article") == len(video.events) == 1
    assert page.tags.count("img") == 1 + len(video.table)
    # Half bright windows are at 0.57; of the means over three only the middle one reaches 0.6.
    assert "0:04.0 – 0:06.0" in page.words and "flag at 0.6 and above (as given" in page.words


def test_limit_counts_what_is_left_out(clips: Screening) -> None:
    text = str(ContactSheet(clips, limit=1).freeze())
    assert Page(text).tags.count("article") == 1 and "1 more are in the table." in text
    with pytest.raises(ValueError, match="limit=0"):
        ContactSheet(clips, limit=0)


def test_notebook_value_is_the_frozen_sheet(video: Timeline) -> None:
    sheet = ContactSheet(video)
    assert sheet._repr_html_() == sheet.freeze() and sheet.title == "Screening of a <b>.mp4"


def test_a_clear_clip_that_the_rule_could_not_judge_says_so(clips: Screening) -> None:
    note = [("a frame is missing" if p == "dark.mp4" else "") for p in clips.table["path"]]
    text = Page(str(ContactSheet(replace(clips, table=clips.table.assign(rule_note=note))).freeze())).words
    assert "Not judged by the flash rule" in text and "a frame is missing" in text
    assert "Not judged by the flash rule" not in Page(str(ContactSheet(clips).freeze())).words


def test_strip_of_a_video_that_broke_off_is_as_full_as_any(video: Timeline) -> None:
    """Posters were kept of every eleventh window of 500 that were meant to be; 100 were read."""
    rows = video.table[video.table["review"] == "clear"].iloc[[0] * 100].reset_index(drop=True)
    rows["start_seconds"], rows["end_seconds"] = rows.index * 1.0, rows.index + 2.0
    poster = next(iter(video.posters.values()))
    short = replace(video, table=rows, events=video.events.head(0), posters={w: poster for w in range(0, 100, 11)})
    assert Page(str(ContactSheet(short).freeze())).tags.count("img") == 10


def test_an_empty_screening_says_so(clips: Screening) -> None:
    nothing = replace(clips, table=clips.table[clips.table["review"] == "clear"], quarantine=clips.quarantine.head(0))
    text = str(ContactSheet(nothing).freeze())
    assert "Nothing was flagged." in text and "Not readable" not in text


def test_clock_rounds_into_the_next_minute() -> None:
    assert [clock(s) for s in (0, 59.96, 3599.99, 3661.5)] == ["0:00.0", "1:00.0", "1:00:00.0", "1:01:01.5"]


def test_agreement_plot_counts_model_against_rule(clips: Screening) -> None:
    fig = agreement_plot(clips)
    assert [list(row) for row in fig.data[0].text] == [["1", "0"], ["1", "1"]]  # bright; dark, and flashing
    silent = replace(clips, table=clips.table.assign(rule_unsafe=None))
    assert "was not asked" in agreement_plot(silent).layout.annotations[0].text


def test_timeline_plot_draws_probability_threshold_and_events(video: Timeline) -> None:
    fig = timeline_plot(video)
    named = {trace.name: trace for trace in fig.data}
    assert list(named["mean of 3 windows"].y) == pytest.approx(video.table["safety_probability"].tolist())
    assert list(named["each window"].y) == pytest.approx(video.table["safety_raw"].tolist())
    assert list(named["event: model only"].x)[:2] == [4.0, 6.0]
    assert {shape.y0 for shape in fig.layout.shapes} == {0.6, 3.0}
    assert "&lt;b&gt;bright" in fig.layout.yaxis.title.text
    assert "<svg" in still(fig) and "<b>bright" not in still(fig)
