"""The doctor's page says what the report holds, escapes what came with the data, and needs nothing from outside."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.views.conftest import HOSTILE
from workbench.data.doctor import DoctorReport
from workbench.data.tables import ClipTable, Task
from workbench.views.doctor_page import _SHOWN, write_doctor_page


def make_report(name: str = "clips", files: int = 5) -> DoctorReport:
    verdicts = (["ok", "warning", "quarantined"] * files)[:files]
    paths = [f"{name}/{i}.mp4" for i in range(files)]
    frame = pd.DataFrame(
        {
            "clip_id": paths, "path": paths, "start_seconds": np.nan, "end_seconds": np.nan, "split": "train",
            "group": paths, "y": [name if i % 2 else "b" for i in range(files)],
        }
    )  # fmt: skip
    facts = {
        "num_frames": 30, "width": 320, "height": 240, "fps": 25.0, "seconds": 1.2, "brightness": 99.0,
        "file_bytes": 12345, "has_audio": False, "codec": "h264",
    }  # fmt: skip
    reasons = ["" if v == "ok" else f"{v}: {name}" for v in verdicts]
    report = pd.DataFrame({"path": paths, "verdict": verdicts, "reason": reasons, "clip_id": paths, **facts})
    row = ["y", "resolution", "AUROC", 0.5, 0.72, 0.005, 0.66, 0.59, 0.74, "held out"]
    quiet = ["y", "audio", "AUROC", 0.5, 0.55, 0.4, 0.5, 0.4, 0.6, ""]
    columns = ["task", "fact", "metric", "chance", "in_sample", "p_shuffled", "held_out", "low", "high", "alarm"]
    copies = [[paths[0], paths[1], "near", 0.98, "train/test", "y"]]
    return DoctorReport(
        table=ClipTable(frame, [Task("y", "binary", ("b", name))]).renamed(name),
        files=report,
        warnings=[f"a warning about {name}"],
        notes=["a note"],
        duplicates=pd.DataFrame(copies, columns=["first", "second", "kind", "agreement", "splits", "labels_differ"]),
        leaks=pd.DataFrame([[name, "train/test", 2]], columns=["group", "splits", "clips"]),
        classes=pd.DataFrame([["y", name, 3, 0, 0]], columns=["task", "class", "train", "val", "test"]),
        shortcuts=pd.DataFrame([row, quiet], columns=columns),
    )


class Elements(HTMLParser):
    """Tags with their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_write_doctor_page_says_what_the_report_holds(tmp_path: Path) -> None:
    path = write_doctor_page(make_report(), tmp_path / "deep" / "r.html")
    text = " ".join(Elements(path.read_text(encoding="utf-8")).text)
    for said in (
        "2 ok", "2 warning", "1 quarantined", "quarantined: clips", "warning: clips", "a warning about clips", "a note",
        "0.66", "0.59 to 0.74", "in sample", "train/test", "near", "h264 4", "Files to mend", "12,345",
    ):  # fmt: skip
        assert said.lower() in text.lower(), said
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]


def test_write_doctor_page_escapes_and_loads_nothing(tmp_path: Path) -> None:
    hostile = f"{HOSTILE}<script>alert(1)</script>"
    html = write_doctor_page(make_report(hostile), tmp_path / "r.html").read_text(encoding="utf-8")
    found = Elements(html)
    assert [tag for tag, _ in found.tags].count("script") == 1  # the page's own, for clips
    assert not any(tag in ("img", "iframe", "video", "link") and "rel" not in a for tag, a in found.tags)
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    loads = [
        v
        for _, a in found.tags
        for k, v in a.items()
        if k in ("src", "href") and not (v or "").startswith(("#", "data:,"))
    ]
    assert loads == [] and not re.search(r"url\((?!#)", html)


def test_write_doctor_page_leaves_out_what_is_empty_and_cuts_long_tables(tmp_path: Path) -> None:
    report = make_report(files=3 * _SHOWN + 30)
    html = write_doctor_page(report, tmp_path / "r.html").read_text(encoding="utf-8")
    assert f"and {10} more" in html
    empty: dict[str, Any] = {k: getattr(report, k).iloc[:0] for k in ("duplicates", "leaks", "classes", "shortcuts")}
    clean = DoctorReport(
        table=report.table, files=report.files[report.files.verdict == "ok"], warnings=[], notes=[], **empty
    )
    text = write_doctor_page(clean, tmp_path / "c.html").read_text(encoding="utf-8")
    for heading in ("Files to mend", "Files to look at", "What could inflate", "What gives the label", "Worth knowing"):
        assert heading not in text
    assert "Nothing about the table as a whole needs attention" in text


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (420, "dark")])
def test_doctor_page_fits_a_screen_without_scripts(tmp_path: Path, chromium: str, width: int, scheme: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    report = make_report("a/rather/long/folder/name_without_any_place_to_break_it_and_more_of_the_same_kind" + HOSTILE)
    path = write_doctor_page(report, tmp_path / "r.html")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, java_script_enabled=False
        ).new_page()
        asked: list[str] = []
        page.on("request", lambda r: asked.append(r.url))
        page.goto(path.as_uri())
        wide = [page.locator(s).first.bounding_box()["width"] for s in ("main", "h1", ".wb-bar", ".wb-files table")]
        assert max(wide) <= width and asked == [path.as_uri()]
        assert page.locator("svg.wb-dot").count() == 2 and page.get_by_role("heading", name="In short").is_visible()
        browser.close()
