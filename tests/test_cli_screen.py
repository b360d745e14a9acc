"""``workbench screen`` from a shell."""

from pathlib import Path

import pandas as pd
import pytest

from tests.analysis.screened import BrightRun, grey_video
from workbench.cli import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("workbench.training.runs.load_run", lambda folder: BrightRun())
    root = tmp_path / "clips"
    root.mkdir()
    grey_video(root / "light.mp4", [230.0] * 30)
    grey_video(root / "dark.mp4", [40.0] * 30)
    return root


def test_screen_writes_table_and_sheet(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = ["--max-rate", "0.15", "--explain", "0", "--device", "cpu", "--workers", "1"]
    assert main(["screen", "run", str(folder), *given, "--csv", str(out / "s.csv"), "--html", str(out / "s.html")]) == 0
    assert "1 model only" in capsys.readouterr().out
    assert pd.read_csv(out / "s.csv")["path"].tolist() == ["light.mp4", "dark.mp4"]
    assert "light.mp4" in (out / "s.html").read_text()
    (folder / "bad.mp4").write_text("hello")
    assert main(["screen", "run", str(folder), *given]) == 1
    assert "not readable: bad.mp4: a text file" in capsys.readouterr().out


def test_screen_timeline_writes_a_table_for_each_video(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(folder / "light.mp4"), str(folder / "dark.mp4")]
    given = ["--timeline", "--threshold", "0.6", "--window", "1", "--smoothing", "1", "--device", "cpu"]
    assert main(["screen", "run", *files, *given, "--csv", str(tmp_path / "t.csv")]) == 0
    assert "nothing is flagged" in capsys.readouterr().out
    tables = {name: pd.read_csv(tmp_path / f"t-{name}.csv") for name in ("light", "dark")}
    assert tables["light"]["flagged"].all() and not tables["dark"]["flagged"].any()
    assert len(tables["dark"]) == 5


def test_screen_timeline_goes_on_after_a_file_that_is_no_video(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And two videos of one name do not overwrite each other's table."""
    (folder / "bad.mp4").write_text("hello")
    (tmp_path / "other").mkdir()
    grey_video(tmp_path / "other" / "light.mp4", [20.0] * 30)
    files = [str(folder / "bad.mp4"), str(folder / "light.mp4"), str(tmp_path / "other" / "light.mp4")]
    given = ["--timeline", "--threshold", "0.6", "--window", "1", "--device", "cpu"]
    assert main(["screen", "run", *files, *given, "--csv", str(tmp_path / "t.csv")]) == 1
    assert "not readable" in capsys.readouterr().out
    tables = [pd.read_csv(tmp_path / f"t-{n}-light.csv") for n in (2, 3)]
    assert [table["flagged"].all() for table in tables] == [True, False]


def test_screen_says_what_is_wrong_in_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["screen", "run", str(folder), "--max-rate", "0.001"]) == 2
    assert "no threshold from the val clips" in capsys.readouterr().err
