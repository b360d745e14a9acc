"""The verbs from a shell, on files a user might have: good ones, and every kind of bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from workbench.cli import main
from workbench.data.clips import write_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of ten clips each, one folder per class."""
    root, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (root / name).mkdir()
        for i in range(10):
            frames = np.clip(rng.normal(level, 20, (16, 64, 64, 3)), 0, 255).astype(np.uint8)
            write_clip(root / name / f"{name}{i}.mp4", frames, fps=8, crf=20)
    return root


def train(folder: Path, runs: Path, *more: str) -> int:
    return main(
        ["train", str(folder), "--task", "tone", "--strategy", "linear", "--epochs", "2", "--device", "cpu"]
        + ["--workers", "1", "--runs", str(runs), *more]
    )


def test_train_then_predict_then_compare(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, tmp_path / "runs") == 0
    said = capsys.readouterr().out
    assert "accuracy" in said and "run folder:" in said
    run = said.split("run folder:")[1].strip()
    video = folder / "light" / "light3.mp4"
    assert (
        main(["predict", run, str(video), "--device", "cpu", "--workers", "1", "--csv", str(tmp_path / "p.csv")]) == 0
    )
    header = (tmp_path / "p.csv").read_text().splitlines()[0]
    assert header == "path,tone,tone_probability,reason"
    assert train(folder, tmp_path / "runs", "--seed", "1") == 0
    other = capsys.readouterr().out.split("run folder:")[1].strip()
    assert main(["compare", run, other]) == 0
    said = capsys.readouterr().out
    assert "linear-seed1" in said and "Protocol: clip-level" in said


def test_doctor_writes_a_verdict_per_file(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "dark" / "empty.mp4").write_bytes(b"")
    (copy / "dark" / "text.mp4").write_text("hello")
    report = tmp_path / "report.json"
    assert main(["doctor", str(copy), "--json", str(report), "--workers", "1"]) == 1
    verdicts = {Path(row["path"]).name: row for row in json.loads(report.read_text())}
    assert len(verdicts) == 22
    assert {name for name, row in verdicts.items() if row["verdict"] == "quarantined"} == {"empty.mp4", "text.mp4"}
    assert all(verdicts[name]["reason"] for name in ("empty.mp4", "text.mp4"))


def test_train_counts_and_names_undecodable_files(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "light" / "text.mp4").write_text("hello")
    assert train(copy, tmp_path / "runs") == 0
    assert "quarantined light/text.mp4: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "no/such/folder"], "no/such/folder"),
        (["train", "playground", "--strategy", "magic"], "strategy='magic' is not known; use one of scratch"),
        (["predict", "no/run", "x.mp4"], "no run folder 'no/run'"),
        (["compare", "no/run"], "no run folder 'no/run'"),
    ],
)
def test_main_ends_with_one_line_and_code_2_for_a_users_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path
) -> None:
    # The strategy is checked before anything is built, so no playground is needed for it.
    monkeypatch.setattr("workbench.cli._open", _open_unless_playground)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error


def _open_unless_playground(args):
    from workbench.data.layouts import open_clips

    return None if args.source == "playground" else open_clips(args.source)


def test_main_names_an_empty_class_and_a_missing_column(tmp_path: Path, folder: Path, capsys) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "grey").mkdir()
    assert main(["data", str(copy)]) == 2
    assert "grey" in capsys.readouterr().err
    table = tmp_path / "clips.csv"
    table.write_text("file,tone\na.mp4,dark\n")
    assert main(["data", str(table), "--label-column", "tone"]) == 2
    said = capsys.readouterr().err
    assert "path" in said and "file" in said


def test_main_predict_says_why_a_file_has_no_prediction(folder: Path, tmp_path: Path, capsys) -> None:
    train(folder, tmp_path / "runs")
    run = capsys.readouterr().out.split("run folder:")[1].strip()
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    assert main(["predict", run, str(bad), "--device", "cpu", "--workers", "1", "--csv", str(tmp_path / "p.csv")]) == 1
    assert (tmp_path / "p.csv").read_text().splitlines()[1].startswith(f"{bad},,,")


def test_workbench_as_a_module_lists_its_verbs() -> None:
    done = subprocess.run([sys.executable, "-m", "workbench", "--help"], capture_output=True, text=True, check=True)
    verbs = ("demo", "lab", "data", "doctor", "train", "sweep", "compare", "predict", "pretrain")
    assert all(f"    {verb} " in done.stdout for verb in verbs)
