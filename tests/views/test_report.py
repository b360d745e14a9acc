"""The report holds what it was given, loads nothing, and runs nothing that came with the data."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from tests.views.conftest import HOSTILE, StandInRun, make_maps, make_run, moving_square
from workbench.analysis.compare import compare
from workbench.analysis.errors import errors
from workbench.data.clips import write_clip
from workbench.data.tables import ClipTable, DatasetInfo, Task
from workbench.views.report import _spread, quickstart_report


class Page(HTMLParser):
    """Tags, text and every address a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(v) for k, v in attrs if k in ("src", "href", "poster", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, clips: ClipTable, runs: dict[str, StandInRun]) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_clip(folder / "unseen.mp4", moving_square(2), 8.0)
    new = pd.DataFrame({"path": [str(folder / "unseen.mp4")], "action": "up", "action_probability": 0.9, "reason": ""})
    path = quickstart_report(
        folder / "deep" / "report.html",
        clips=clips, comparison=compare(runs, resamples=50), runs=runs, predictions=new, timings={"train": 61.25},
        maps=[make_maps("rollout", clips=2), make_maps("integrated_gradients", clips=2)], chance={"action": 0.25},
        errors=errors(runs["linear"], task="action"), next_steps=["make lab"], interactive=False,
    )  # fmt: skip
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]  # no part left behind
    return path.read_text(encoding="utf-8")


def test_report_has_every_section_and_links_to_it(full: str) -> None:
    page = Page(full)
    headings = re.findall(r"<h2>([^<]+)</h2>", full)
    assert headings == [
        "The clips", "Which setup works", "What the model looked at", "Where it fails", "On files it never saw",
        "How these numbers were made", "What to open next",
    ]  # fmt: skip
    anchors = [a[1:] for a in page.addresses if a.startswith("#") and f'id="{a[1:]}"' in full]
    assert len(anchors) >= len(headings)


def test_report_loads_nothing(full: str) -> None:
    page = Page(full)
    assert [a for a in page.addresses if not a.startswith(("#", "data:"))] == []
    assert page.tags.count("video") == 8 + 2 + 4 + 1
    assert "url(" not in re.sub(r"url\(#[^)]+\)", "", full)
    assert "@import" not in full
    assert len(full) < 2_000_000


def test_report_tells_the_numbers_it_was_given(full: str, runs: dict[str, StandInRun]) -> None:
    words = Page(full).words
    table = compare(runs, resamples=50).table
    best = table[(table.run == "full") & (table.task == "action")].iloc[0]
    assert f"{best.value:.2f} [{best.low:.2f}, {best.high:.2f}]" in words
    for word in ("61.2 s", "60 clips in 12 groups", "clip-level, 1x1", "unseen.mp4", "make lab", "0.0008", "torch 2",
                 "unseen.mp4action: up (probability 0.900)"):  # fmt: skip
        assert word in words
    surest = errors(runs["linear"], task="action").mistakes.iloc[0]
    assert f"{surest.clip_id}truth: {surest.truth}\npredicted: {surest.predicted}" in words.replace("\n\n", "\n")
    assert "completeness error 0.4 %" in words


def test_report_leaves_out_what_it_was_not_given(tmp_path: Path) -> None:
    text = quickstart_report(tmp_path / "r.html", interactive=False).read_text()
    assert re.findall(r"<h2>([^<]+)</h2>", text) == ["How these numbers were made"]


def test_report_inlines_plotly_once(tmp_path: Path, runs: dict[str, StandInRun]) -> None:
    path = quickstart_report(tmp_path / "r.html", comparison=compare(runs, resamples=20), runs=runs)
    text = path.read_text()
    assert text.count("plotly.js v") == 1
    assert text.count("Plotly.newPlot(") - text.split("</script>", 1)[0].count("Plotly.newPlot(") == 3
    assert path.stat().st_size < 6_000_000
    assert not re.search(r'<script[^>]+src="http', text)


def hostile_table(clips: ClipTable) -> ClipTable:
    frame = clips.frame.assign(clip_id=[f"{HOSTILE}{i}" for i in range(len(clips))], action=HOSTILE)
    tasks = (Task("action", "multiclass", (HOSTILE, "b")),)
    return ClipTable(frame, tasks, root=clips.root, info=DatasetInfo(name=HOSTILE, licence=HOSTILE))


@pytest.mark.parametrize("interactive", [True, False])
def test_report_shows_hostile_names_as_text(tmp_path: Path, clips: ClipTable, interactive: bool) -> None:
    table = hostile_table(clips)
    run = make_run(HOSTILE, 0.5, tasks=table.tasks)
    run.predictions["clip_id"] = HOSTILE + run.predictions.clip_id
    maps = dataclasses.replace(make_maps("integrated_gradients", clips=1, ids=(HOSTILE,)), target=(HOSTILE,))
    new = pd.DataFrame({"path": [str(tmp_path / f"{HOSTILE}.mp4".replace("/", ""))], HOSTILE: [HOSTILE]})
    text = quickstart_report(
        tmp_path / "r.html", title=HOSTILE, question=HOSTILE, clips=table, runs=[run], maps=maps, predictions=new,
        comparison=compare({HOSTILE: run, "b": run}, resamples=20), errors=errors(run), clips_root=clips.root,
        timings={HOSTILE: 1.0}, chance={"action": 0.5}, next_steps=[HOSTILE], interactive=interactive,
    ).read_text()  # fmt: skip
    page = Page(text)
    assert "img" not in page.tags
    assert page.words.count(HOSTILE) > 15


def test_spread_takes_classes_in_turn(clips: ClipTable) -> None:
    shown = _spread(clips, 5).frame.action.tolist()
    assert sorted(shown[:4]) == ["down", "left", "right", "up"] and shown[4] in shown[:4]
    order = clips[[0, 4, 8, 1]]  # three clips of the first class, then one of the second
    assert sorted(_spread(order, 2).frame.action) == ["left", "right"]
    assert list(_spread(clips, 5).frame.clip_id) == list(_spread(clips, 5).frame.clip_id)
