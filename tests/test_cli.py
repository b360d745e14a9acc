"""The verbs from a shell, on files a user might have: good ones, and every kind of bad input."""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from workbench.cli import main
from workbench.cli.options import add_setup
from workbench.data.clips import write_clip
from workbench.training.runs import load_run
from workbench.training.setup import Setup


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
    monkeypatch.setattr("workbench.cli.actions.open_source", _open_unless_playground)
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


def test_data_takes_the_columns_of_a_list_by_name(folder: Path, tmp_path: Path, capsys) -> None:
    names = sorted(p.relative_to(folder).as_posix() for p in folder.glob("*/*.mp4"))
    lines = [f"{n},{n.split('/')[0]},{('train', 'dev', 'test')[i % 3]},0,0.5" for i, n in enumerate(names)]
    (tmp_path / "list.csv").write_text("\n".join(["path,tone,part,from,to", *lines]))
    options = ["--root", str(folder), "--label-column", "tone", "--split-column", "part", "--start-column", "from"]
    assert main(["data", str(tmp_path / "list.csv"), *options, "--end-column", "to"]) == 0
    assert "20 clips (train 7, val 7, test 6)" in capsys.readouterr().out
    assert main(["data", str(folder), "--fold", "0"]) == 2  # 0 was given, though it equals False
    assert "fold=0 is for ucf101" in capsys.readouterr().err
    assert main(["data", str(tmp_path / "list.csv"), *options, "--end-column", "until"]) == 2
    assert "'until'" in capsys.readouterr().err


def test_every_option_says_what_it_is_for_and_none_is_guessed(capsys) -> None:
    import re

    for verb in ("data", "doctor", "train", "sweep", "predict"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        options = capsys.readouterr().out.split("options:")[1]
        bare = [o for o in ("--device", "--workers") if verb == "predict"]
        for line, after in zip(options.splitlines(), [*options.splitlines()[1:], ""], strict=True):
            said = re.fullmatch(r"  (--[\w-]+)(?: \S+)?(  +\S.*)?", line)
            assert not said or said[1] in bare or said[2] or after.startswith("      "), line
    with pytest.raises(SystemExit):
        main(["data", "x", "--split", "3"])  # not --split-seed
    assert "unrecognized arguments: --split" in capsys.readouterr().err


def test_data_counts_clips_without_a_label_or_a_split(folder: Path, capsys, tmp_path: Path) -> None:
    from workbench.data.layouts import open_clips

    frame = open_clips(folder).frame.assign(split=["train"] * 5 + [None] * 15)
    frame.loc[[1, 9], "label"] = None
    table = open_clips(folder)._with(frame)
    assert main(["data", str(table.save(tmp_path / "saved"))]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dark", "4", "4"] in lines and ["light", "10", "0"] in lines
    assert ["2", "clip(s)", "have", "no", "label"] in lines


def test_train_has_an_option_for_every_field_of_a_setup() -> None:
    parser = argparse.ArgumentParser()
    add_setup(parser)
    options = {action.dest for action in parser._actions}
    left_out = {"strategy", "tasks", "betas", "augment"}  # --strategy and --task are the verb's; --no-augment
    assert {f.name for f in fields(Setup)} - options == left_out


def test_train_by_a_recipe_and_sweep_by_each_strategys_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--epochs", "1", "--device", "cpu", "--workers", "1", "--runs", str(tmp_path)]
    assert main(["train", str(folder), "--recipe", "linear", "--ema", "0.5", "--loss", "focal", *options]) == 0
    said = capsys.readouterr().out
    assert "recipe linear: linear, epochs=1, " in said and "ema=0.5, loss=focal:2" in said
    run = load_run(said.split("run folder:")[1].strip())
    assert (run.setup.weight_decay, run.setup.epochs, run.setup.loss) == (0.0, 1, "focal:2")
    assert main(["sweep", str(folder), "--strategies", "linear, attentive", "--recipes", *options]) == 0
    folders = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("run folder")]
    assert [load_run(path).setup.warmup for path in folders] == [pytest.approx(10 / 90), 0.0]
    assert main(["train", str(folder), "--recipe", "nope", *options]) == 2
    assert "error: recipe 'nope' is not known" in capsys.readouterr().err


def test_compare_reads_a_folder_of_runs_and_writes_table_and_page(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in ("0", "1"):
        assert train(folder, tmp_path / "runs", "--seed", seed) == 0
    capsys.readouterr()
    table, page = tmp_path / "out" / "runs.csv", tmp_path / "out" / "runs.html"
    asked = ["--pairs", "--seeds", "--differences", "--csv", str(table), "--html", str(page)]
    assert main(["compare", str(tmp_path / "runs"), *asked]) == 0
    said = capsys.readouterr().out
    assert "Difference: first minus second" in said and "Mean over seeds" in said and "setup.seed" in said
    lines = table.read_text().splitlines()
    assert lines[0].startswith("run,task,metric,value,low,high") and len(lines) == 3
    text = page.read_text()
    assert text.count("<svg ") == 7 and "http" not in text.replace("http://www.w3.org", "")
    assert main(["compare", str(tmp_path)]) == 2  # neither a run nor a folder of runs
    assert "has no run.json" in capsys.readouterr().err
