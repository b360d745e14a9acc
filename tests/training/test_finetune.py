"""The loop and the run folder, on a tiny backbone and real files."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from tests.training.killed import starter
from workbench.analysis.compare import compare
from workbench.analysis.errors import errors
from workbench.analysis.evaluate import evaluate
from workbench.data.tables import ClipTable, Task
from workbench.data.tasks import label_sets
from workbench.models.tml import QueryHead
from workbench.training.finetune import fine_tune, make_accelerator, setup_label
from workbench.training.loop import epoch_row, rate
from workbench.training.predict import predict, predict_table
from workbench.training.runs import Run, build_model, load_run
from workbench.training.setup import Setup
from workbench.training.sweep import sweep

QUIET: dict[str, Any] = {"device": "cpu", "workers": 1, "progress": False}


def setup_for(checkpoint: str, **changes: object) -> Setup:
    options: dict = {"backbone": checkpoint, "epochs": 2, "batch_size": 6, "precision": "fp32"}
    return Setup(**(options | changes))


@pytest.fixture(scope="module")
def full_run(tiny_checkpoint, tiny_table, tmp_path_factory) -> Run:
    setup = setup_for(tiny_checkpoint, strategy="full")
    return fine_tune(setup, tiny_table, runs_dir=tmp_path_factory.mktemp("runs"), **QUIET)


def test_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    assert [rate(s, 100, 0.1) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert rate(10, 100, 0.1) == pytest.approx(1.0)
    assert rate(55, 100, 0.1) == pytest.approx(0.5)
    assert rate(100, 100, 0.1) == pytest.approx(0.0)


def test_epoch_row_lines_up_under_its_head() -> None:
    first = {"epoch": 1, "step": 3, "lr": 0.1, "train_loss": 2.5, "val_score": 0.25, "seconds": 1.5}
    head, row = epoch_row([first]).splitlines()
    assert head.split() == ["epoch", "train_loss", "val_score", "seconds"]
    assert row.split() == ["1", "2.5", "0.25", "1.5"] and len(head) == len(row)
    assert epoch_row([first, first | {"epoch": 2}]).split()[0] == "2"
    resumed = epoch_row([first, first | {"epoch": 2}], "run-x").splitlines()
    assert resumed[:2] == ["run-x", head] and resumed[2].split()[0] == "2"


def test_fine_tune_writes_a_whole_run_folder(full_run: Run, tiny_table) -> None:
    files = {p.name for p in full_run.folder.iterdir()}
    assert files == {"run.json", "history.parquet", "predictions.parquet", "weights.safetensors"}
    record = json.loads((full_run.folder / "run.json").read_text())
    assert record["data"]["clips"] == {"train": 16, "val": 8, "test": 8}
    assert record["data"]["fingerprint"] == tiny_table.fingerprint()
    assert full_run.protocol.num_frames == 8 and full_run.protocol.size_px == 32
    assert list(full_run.history.epoch) == [1, 2]
    weights = load_file(full_run.folder / "weights.safetensors")
    assert record["parameters"]["trainable"] == sum(w.numel() for w in weights.values())


def test_fine_tune_predicts_every_val_and_test_clip_for_every_task(full_run: Run, tiny_table) -> None:
    predictions = full_run.predictions
    assert set(predictions.groupby("task").size()) == {16}
    speed = predictions[predictions.task == "speed"].set_index("clip_id").target
    expected = tiny_table.frame.set_index("clip_id").speed.loc[speed.index]
    pd.testing.assert_series_equal(speed, expected, check_names=False)
    direction = predictions[predictions.task == "direction"]
    assert np.allclose([sum(p) for p in direction.probabilities], 1)
    # Standard units are undone: predictions lie about the training mean, not about zero.
    values = predictions[predictions.task == "speed"].prediction
    assert abs(values.mean() - tiny_table.train.frame.speed.mean()) < 1.0


def test_load_run_gives_the_same_model_back(full_run: Run, tiny_table) -> None:
    again = load_run(full_run.folder)
    said = predict_table(again, tiny_table, split="test", device="cpu").reset_index(drop=True)
    stored = again.predictions.query("split == 'test'").reset_index(drop=True)
    assert list(said.clip_id) == list(stored.clip_id)
    assert np.allclose(said.prediction, stored.prediction, atol=1e-5)


def test_fine_tune_reads_a_finished_run_instead_of_training_again(full_run: Run, tiny_table) -> None:
    before = (full_run.folder / "weights.safetensors").stat().st_mtime_ns
    again = fine_tune(full_run.setup, tiny_table, runs_dir=full_run.folder.parent, **QUIET)
    assert again.folder == full_run.folder
    assert (again.folder / "weights.safetensors").stat().st_mtime_ns == before


def test_fine_tune_is_the_same_for_the_same_seed_and_not_for_another(full_run: Run, tiny_table, runs_dir: Path) -> None:
    stored = load_file(full_run.folder / "weights.safetensors")
    torch.manual_seed(999)  # the caller's random state must not matter
    torch.randn(5)
    again = fine_tune(full_run.setup, tiny_table, runs_dir=runs_dir, **QUIET)
    weights = load_file(again.folder / "weights.safetensors")
    assert all(torch.equal(weights[name], stored[name]) for name in stored)
    other = fine_tune(full_run.setup.replace(seed=1), tiny_table, runs_dir=runs_dir, **QUIET)
    changed = load_file(other.folder / "weights.safetensors")
    assert any(not torch.equal(changed[name], stored[name]) for name in stored)


def test_fine_tune_shuffles_anew_in_every_epoch_and_misses_no_clip(
    tiny_checkpoint, tiny_table, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.training import loop

    seen: list[float] = []
    original = loop.task_losses

    def spied(tasks, outputs, targets, *args, **options):
        if outputs["speed"].requires_grad:  # training, not validation
            seen.extend(targets[:, 0].tolist())
        return original(tasks, outputs, targets, *args, **options)

    monkeypatch.setattr(loop, "task_losses", spied)
    # The label is the clip's own number, so that it tells which clip came when.
    numbered = tiny_table._with(tiny_table.frame.assign(speed=np.arange(32.0)))
    fine_tune(setup_for(tiny_checkpoint, tasks=("speed",)), numbered, runs_dir=runs_dir, **QUIET)
    first, second = seen[:16], seen[16:32]
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second and first != sorted(first)


def test_fine_tune_leaves_the_callers_random_state_alone(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fine_tune(setup_for(tiny_checkpoint, strategy="linear", epochs=1), tiny_table, runs_dir=runs_dir, **QUIET)
    assert torch.equal(torch.get_rng_state(), state)


def test_fine_tune_of_a_frozen_backbone_stores_only_heads(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    run = fine_tune(setup_for(tiny_checkpoint, strategy="linear"), tiny_table, runs_dir=runs_dir, **QUIET)
    assert all(name.startswith("head.") for name in load_file(run.folder / "weights.safetensors"))
    fresh = build_model(run.setup, run.tasks)
    trained = run.model()
    for (name, a), (_, b) in zip(fresh.named_parameters(), trained.named_parameters(), strict=True):
        assert torch.equal(a, b) == name.startswith("backbone."), name


def test_run_refuses_a_frozen_backbone_that_has_changed(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    run = fine_tune(setup_for(tiny_checkpoint, strategy="linear", epochs=1), tiny_table, runs_dir=runs_dir, **QUIET)
    record = json.loads((run.folder / "run.json").read_text())
    record["backbone_fingerprint"] = "0" * 16
    (run.folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="with fingerprint 0000000000000000, but that backbone is now"):
        load_run(run.folder).model()


def test_fine_tune_learns_the_direction_of_sixteen_clips(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    setup = setup_for(
        tiny_checkpoint, strategy="full", tasks=("direction",), epochs=60, augment=False, lr=2e-3, head_lr=2e-3
    )
    run = fine_tune(setup, tiny_table, runs_dir=runs_dir, **QUIET)
    # Two balanced classes start at ln 2.
    assert run.history.train_loss.iloc[0] > 0.5
    assert run.history.train_loss.iloc[-1] < 0.1


def test_fine_tune_keeps_the_last_epoch_unless_it_may_stop_early(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    # A rate this high makes the val score jump about, so that best and last epoch differ.
    wild = setup_for(tiny_checkpoint, strategy="full", epochs=8, lr=1e-2, head_lr=1e-2)
    last = fine_tune(wild, tiny_table, runs_dir=runs_dir, **QUIET)
    best = fine_tune(wild.replace(patience=8), tiny_table, runs_dir=runs_dir, **QUIET)
    assert last.record["kept_epoch"] == 8 == len(last.history)
    scores = best.history.val_score
    assert list(scores) == list(last.history.val_score)
    assert best.record["kept_epoch"] == best.record["best_epoch"] < 8, "choose another rate: the last epoch was best"
    assert scores[best.record["kept_epoch"] - 1] == scores.max()
    shown = best.predictions.query("split == 'val' and task == 'direction' and target == target")
    right = (shown.target == shown.prediction).mean()
    assert right == pytest.approx(best.history.val_direction[best.record["kept_epoch"] - 1])


def test_fine_tune_stops_when_the_val_score_no_longer_rises(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    setup = setup_for(tiny_checkpoint, strategy="full", epochs=30, patience=2, lr=1e-2, head_lr=1e-2)
    run = fine_tune(setup, tiny_table, runs_dir=runs_dir, **QUIET)
    assert len(run.history) < 30
    assert len(run.history) - run.record["best_epoch"] == 2


def test_fine_tune_follows_the_schedule(full_run: Run) -> None:
    # Sixteen clips in batches of six: three steps an epoch, six in all; the last of each epoch is number 2 and 5.
    peak = max(Setup(strategy="full").rates)
    assert list(full_run.history.lr) == pytest.approx([peak * rate(2, 6, 0.1), peak * rate(5, 6, 0.1)])


def test_fine_tune_spells_out_the_defaults_it_used(full_run: Run) -> None:
    assert (full_run.setup.lr, full_run.setup.head_lr) == Setup(strategy="full").rates
    assert full_run.setup.tasks == ("direction", "bright", "speed")


def test_fine_tune_watch_sees_every_epoch(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    lengths: list[int] = []
    setup = setup_for(tiny_checkpoint, strategy="linear", epochs=3)
    fine_tune(setup, tiny_table, runs_dir=runs_dir, watch=lambda h: lengths.append(len(h)), **QUIET)
    assert lengths == [1, 2, 3]


def test_fine_tune_accumulates_to_the_gradient_of_the_large_batch(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    # 16 clips: one batch of 16, or two of 8 in one step. Same mean loss over equal halves, so the same weights.
    one = setup_for(tiny_checkpoint, tasks=("bright",), batch_size=16, augment=False)
    two = one.replace(batch_size=8, accumulation=2)
    a, b = (
        load_file(fine_tune(s, tiny_table, runs_dir=runs_dir, **QUIET).folder / "weights.safetensors")
        for s in (one, two)
    )
    for name in a:
        # AdamW divides by the gradient's size, so rounding differences grow to a small part of a step of 3e-4.
        assert torch.allclose(a[name], b[name], atol=5e-5), name


def test_fine_tune_names_a_split_that_is_missing(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    no_val = tiny_table[(tiny_table.frame.split != "val").to_numpy()]
    with pytest.raises(ValueError, match="has no val clips to watch the training by"):
        fine_tune(setup_for(tiny_checkpoint), no_val, runs_dir=runs_dir, **QUIET)
    with pytest.raises(ValueError, match="has no train clips to train on"):
        fine_tune(setup_for(tiny_checkpoint), tiny_table.test, runs_dir=runs_dir, **QUIET)


def test_fine_tune_counts_what_it_could_not_decode(tiny_checkpoint, tiny_table, runs_dir: Path, tmp_path) -> None:
    import shutil

    from workbench.data.tables import ClipTable

    root = tmp_path / "clips"
    shutil.copytree(tiny_table.root, root)
    (root / "02.mp4").write_bytes(b"")
    (root / "30.mp4").write_text("this is no video")
    table = ClipTable(tiny_table.frame, tiny_table.tasks, root=root, info=tiny_table.info)
    run = fine_tune(setup_for(tiny_checkpoint, strategy="linear", epochs=1), table, runs_dir=runs_dir, **QUIET)
    assert run.record["data"]["quarantined"] == 2 and "test clips (2 quarantined)," in repr(run)
    assert {q["path"] for q in run.record["data"]["quarantine"]} == {"02.mp4", "30.mp4"}
    assert run.record["data"]["clips"] == {"train": 15, "val": 8, "test": 7}


def test_predict_answers_file_by_file_and_says_why_not(full_run: Run, tiny_table, tmp_path: Path) -> None:
    bad = tmp_path / "notes.mp4"
    bad.write_text("not a video")
    files = [tiny_table.files()[24], bad, tiny_table.files()[26]]
    table = predict(full_run, files, device="cpu", workers=1)
    assert list(table.path) == [str(f) for f in files]
    assert list(table.reason != "") == [False, True, False]
    assert table.direction.isna().tolist() == [False, True, False]
    stored = full_run.predictions.query("clip_id == 'clip24' and task == 'direction'").iloc[0]
    assert table.direction[0] == ("left", "right")[int(stored.prediction)]
    assert table.direction_probability[0] == pytest.approx(max(stored.probabilities), abs=1e-5)
    with pytest.raises(FileNotFoundError, match="no such file: .*absent.mp4"):
        predict(full_run, tmp_path / "absent.mp4")


def test_predict_table_numbers_labels_as_the_run_does(full_run: Run, tiny_table) -> None:
    from workbench.data.tables import Task
    from workbench.training.predict import predict_table

    def scored(task: Task, **columns: object) -> pd.DataFrame:
        test = tiny_table.test.head(4)
        table = test._with(test.frame.assign(**columns), tasks=[task])
        return predict_table(full_run, table, device="cpu", workers=1).query("task == 'direction'")

    usual = scored(Task("direction", "multiclass", ("left", "right")))
    turned = scored(Task("direction", "multiclass", ("right", "left")))
    assert usual.target.tolist() == turned.target.tolist() == tiny_table.test.head(4).targets("direction").tolist()
    with pytest.raises(ValueError, match=r"unknown label\(s\) \['up'\]; it knows \('left', 'right'\)"):
        scored(Task("direction", "multiclass", ("left", "right", "up")), direction=["left", "right", "up", "up"])
    with pytest.raises(ValueError, match="multiclass .* in the run but regression"):
        scored(Task("direction", "regression"), direction=1.0)


def test_fine_tune_warns_of_labels_that_only_some_splits_have(
    tiny_checkpoint, tiny_table, runs_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frame = tiny_table.frame.assign(direction=tiny_table.frame.direction.where(tiny_table.frame.split != "val"))
    frame.loc[frame.split == "train", "direction"] = "left"
    table = tiny_table._with(frame).with_tasks(["direction"])
    fine_tune(setup_for(tiny_checkpoint, strategy="linear", epochs=1, tasks=()), table, runs_dir=runs_dir, **QUIET)
    assert caplog.text.count("of the 8 val clips has a label of 'direction'") == 1  # the doctor says it, nobody else
    assert "no train clip of right of task 'direction'" in caplog.text


def test_predict_reads_through_shards_as_from_files(full_run: Run, tiny_table, tmp_path: Path) -> None:
    from workbench.data.sources.shards import write_shards

    shards = write_shards(tiny_table.test.head(2), tmp_path / "shards", progress=False)
    files = [tiny_table.root / path for path in shards.frame.source_path]
    inside = predict(full_run, shards.files(), device="cpu", workers=1)
    pd.testing.assert_frame_equal(
        inside.drop(columns="path"), predict(full_run, files, device="cpu", workers=1).drop(columns="path")
    )
    with pytest.raises(FileNotFoundError, match="no such file: .*9.mp4"):
        predict(full_run, shards.files()[0].parent / "9.mp4")
    with pytest.raises(FileNotFoundError, match="a folder; name the files in it"):
        predict(full_run, tmp_path)


def test_predict_of_only_unreadable_files_has_only_reasons(full_run: Run, tmp_path: Path) -> None:
    bad = tmp_path / "zero.mp4"
    bad.write_bytes(b"")
    table = predict(full_run, bad, device="cpu", workers=1)
    assert len(table) == 1 and table.reason[0] and pd.isna(table.direction[0])


def test_make_accelerator_names_the_way_to_another_gpu() -> None:
    with pytest.raises(ValueError, match="set CUDA_VISIBLE_DEVICES=1"):
        make_accelerator(Setup(), torch.device("cuda:1"))


def test_sweep_calls_a_run_what_it_was_called(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    options: dict[str, Any] = {"runs_dir": runs_dir, "backbone": tiny_checkpoint, "epochs": 1}
    runs = sweep(tiny_table, ["lora", "partial:1"], **options, **QUIET)
    assert list(runs) == ["lora", "partial:1"]
    assert runs["lora"].setup.strategy == "lora:8"
    plain = sweep(tiny_table, ["linear"], **options, **QUIET)["linear"]
    # The same backbone, whatever lies beside its weights.
    assert runs["lora"].record["backbone_fingerprint"] == plain.record["backbone_fingerprint"]


def test_fine_tune_at_another_geometry_than_the_checkpoints(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    setup = setup_for(tiny_checkpoint, strategy="linear", num_frames=4, size_px=48, epochs=1)
    run = fine_tune(setup, tiny_table, runs_dir=runs_dir, **QUIET)
    assert (run.protocol.num_frames, run.protocol.size_px) == (4, 48)
    model = load_run(run.folder).model()
    assert model.backbone.grid == (1, 6, 6)
    said = predict_table(run, tiny_table, split="test", device="cpu").reset_index(drop=True)
    stored = run.predictions.query("split == 'test'").reset_index(drop=True)
    assert np.allclose(said.prediction, stored.prediction, atol=1e-5)


def test_sweep_names_runs_and_refuses_twins(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    runs = sweep(tiny_table, ["linear", "full"], runs_dir=runs_dir, backbone=tiny_checkpoint, epochs=1, **QUIET)
    assert list(runs) == ["linear", "full"] and [r.name for r in runs.values()] == ["linear", "full"]
    with pytest.raises(ValueError, match="two setups are called 'linear'"):
        sweep(tiny_table, ["linear", "linear"], runs_dir=runs_dir, backbone=tiny_checkpoint, epochs=1, **QUIET)


def test_load_run_says_what_a_folder_is_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run folder"):
        load_run(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="has no run.json: it is no run"):
        load_run(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(FileNotFoundError, match="it has not finished; start the same fine_tune again"):
        load_run(tmp_path)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_fine_tune_killed_and_started_again_ends_with_the_same_weights(
    full_run: Run, tiny_table, runs_dir: Path, tmp_path: Path, accumulation: int
) -> None:
    setup = full_run.setup.replace(accumulation=accumulation)
    reference = fine_tune(setup, tiny_table, runs_dir=tmp_path / "unbroken", **QUIET)
    start = starter(setup, tiny_table, runs_dir, tmp_path)
    # Three batches an epoch: once in the middle of the first epoch (with accumulation between two optimiser steps),
    # once in the middle of the second.
    assert start(4 - accumulation) == -signal.SIGKILL
    assert not list(runs_dir.glob("*/run.json"))
    assert start(4) == -signal.SIGKILL
    assert start(10**9) == 0
    (folder,) = [p.parent for p in runs_dir.glob("*/run.json")]
    weights = load_file(folder / "weights.safetensors")
    unbroken = load_file(reference.folder / "weights.safetensors")
    assert weights.keys() == unbroken.keys()
    assert all(torch.equal(weights[name], unbroken[name]) for name in weights)
    a, b = load_run(folder).history, reference.history
    pd.testing.assert_frame_equal(a.drop(columns="seconds"), b.drop(columns="seconds"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fine_tune_on_cuda_gives_a_run_that_predicts_alike_on_the_cpu(
    tiny_checkpoint, tiny_table, runs_dir: Path, precision: str
) -> None:
    setup = setup_for(tiny_checkpoint, precision=precision)
    run = fine_tune(setup, tiny_table, runs_dir=runs_dir, device="cuda", workers=1, progress=False)
    assert run.record["device"]["kind"] == "cuda" and run.record["device"]["peak_memory_bytes"] > 0
    said = predict_table(run, tiny_table, split="test", device="cpu").reset_index(drop=True)
    stored = run.predictions.query("split == 'test' and task == 'speed'").reset_index(drop=True)
    # TF32 is off for float32 products; what is left is the order of sums.
    assert np.allclose(said[said.task == "speed"].prediction, stored.prediction, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({}, "full"), ({"optimizer": "sgd", "lr": 0.1, "head_lr": 0.1}, "full-sgd"),
        ({"schedule": "one_cycle"}, "full-one_cycle"), ({"ema": 0.99}, "full-ema0.99"),
        ({"drop_path": 0.1}, "full-drop_path0.1"), ({"loss": "focal"}, "full-focal:2"),
        ({"class_weights": "balanced"}, "full-balanced"), ({"class_weights": {"a": {"b": 2.0}}}, "full-weighted"),
        ({"label_smoothing": 0.1}, "full-label_smoothing0.1"), ({"mixup": 0.8, "seed": 2}, "full-mixup0.8-seed2"),
        ({"strategy": "linear", "feature_views": 0}, "linear-views0"),
        ({"strategy": "linear", "feature_views": 5}, "linear"),  # the default, spelled out
    ],
)  # fmt: skip
def test_setup_label_names_what_is_not_usual(change: dict[str, Any], label: str) -> None:
    assert setup_label(Setup(**change)) == label


def test_sweep_tells_setups_apart_and_gives_stored_views_to_frozen_ones(
    tiny_checkpoint, tiny_table, runs_dir: Path
) -> None:
    setups = ["linear", Setup(lr=1e-3), Setup(lr=1e-4), Setup(loss="focal")]
    common: dict[str, Any] = {"backbone": tiny_checkpoint, "epochs": 1, "tasks": ("bright",), "feature_views": 1}
    runs = sweep(tiny_table, setups, runs_dir=runs_dir, **common, **QUIET)
    assert list(runs) == ["linear-views1", "full-lr0.001", "full-lr0.0001", "full-focal:2"]
    assert [run.setup.feature_views for run in runs.values()] == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="is one setup; give a list"):
        sweep(tiny_table, "linear", runs_dir=runs_dir)


def test_fine_tune_of_a_multilabel_task_is_scored_and_compared(tiny_checkpoint, tiny_table, runs_dir: Path) -> None:
    frame = tiny_table.frame
    left, bright = (frame.direction == "left").astype(float), frame.bright.astype(float)
    bright[[2, 25]] = np.nan
    tags = label_sets(pd.DataFrame({"left": left, "bright": bright}), ["left", "bright"])
    tasks = (*tiny_table.tasks[:1], Task("tags", "multilabel", ("left", "bright")))
    table = ClipTable(
        frame.drop(columns=["bright", "speed"]).assign(tags=tags), tasks, root=tiny_table.root, info=tiny_table.info
    )
    options: dict[str, Any] = {"runs_dir": runs_dir, **QUIET}
    run = fine_tune(setup_for(tiny_checkpoint, strategy="linear", class_weights="balanced"), table, **options)
    assert run.findings == [] and run.history.val_tags.between(0, 1).all()
    rows = run.predictions.query("split == 'test' and task == 'tags'").sort_values("clip_id")
    truth, said = np.array(rows.targets.tolist(), float), np.array(rows.probabilities.tolist())
    known = ~np.isnan(truth)
    assert known.sum() == 15
    by_class = [average_precision_score(truth[known[:, k], k], said[known[:, k], k]) for k in (0, 1)]
    table_of = evaluate(run, task="tags", resamples=50).set_index("metric")
    assert table_of.value["mean_average_precision"] == pytest.approx(np.mean(by_class))
    assert (table_of.n == 8).all()
    other = fine_tune(setup_for(tiny_checkpoint, strategy="scratch"), table, **options)
    compared = compare([run, other], resamples=50).table.set_index(["task", "run"])
    assert compared.value["tags", "linear-balanced"] == pytest.approx(np.mean(by_class))
    with pytest.raises(ValueError, match="task 'tags' is multilabel: a clip has no one true class"):
        errors(run, task="tags")


def test_fine_tune_says_what_has_no_effect(
    tiny_checkpoint, tiny_table, runs_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"runs_dir": runs_dir, **QUIET}
    fine_tune(setup_for(tiny_checkpoint, strategy="linear", lr=0.1, epochs=1), tiny_table, **options)
    assert "lr=0.1 does nothing: strategy linear freezes the backbone; head_lr (0.005)" in caplog.text
    caplog.clear()
    asked = {"tasks": ("speed",), "loss": "focal", "label_smoothing": 0.1, "epochs": 1, "strategy": "linear"}
    fine_tune(setup_for(tiny_checkpoint, **asked), tiny_table, **options)
    assert "loss='focal:2' does nothing: no task is multiclass or binary" in caplog.text
    assert "label_smoothing=0.1 does nothing" in caplog.text
    caplog.clear()
    fine_tune(setup_for(tiny_checkpoint, epochs=1, strategy="linear", label_smoothing=0.1), tiny_table, **options)
    assert "does nothing" not in caplog.text


def test_fine_tune_of_a_decoder_with_a_balance_writes_what_it_did_and_reads_back(
    tiny_checkpoint, tiny_table, runs_dir: Path
) -> None:
    setup = setup_for(
        tiny_checkpoint, head="query", decoder_layers=2, task_attention=False, balance="upgrad", measure_conflict=1
    )
    run = fine_tune(setup, tiny_table, runs_dir=runs_dir, **QUIET)
    assert run.name == "full-query-decoder2-apart-upgrad@tokens"
    assert run.setup.balance == "upgrad@tokens" and run.setup.head == "query"
    model = run.model()
    assert isinstance(model.head, QueryHead)
    assert [block.self_attention for block in model.head.blocks] == [None, None]
    columns = [name for name in run.history if name.startswith(("loss_", "weight_", "norm_", "cosine_"))]
    assert len(columns) == 3 * 3 + 3 and run.history[columns].notna().all(axis=None)
    said = predict_table(run, tiny_table, split="test", device="cpu")
    stored = run.predictions.query("split == 'test'")
    assert np.array_equal(said.prediction, stored.prediction)


def test_fine_tune_refuses_a_balance_that_cannot_be_before_it_decodes(
    tiny_checkpoint, tiny_table, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.training import balance_spec, finetune

    monkeypatch.setattr(finetune, "feed", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="weighs the task 'safety'; there are"):
        fine_tune(setup_for(tiny_checkpoint, balance="static:safety=2"), tiny_table, runs_dir=runs_dir, **QUIET)
    for options in ({"balance": "mgda"}, {"measure_conflict": 5}):
        with pytest.raises(ValueError, match="compile_model=True fuses; leave one of them"):
            fine_tune(setup_for(tiny_checkpoint, **options), tiny_table, runs_dir=runs_dir, compile_model=True, **QUIET)
    monkeypatch.setattr(balance_spec, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"balance='nash' needs cvxpy and ecos"):
        fine_tune(setup_for(tiny_checkpoint, balance="nash"), tiny_table, runs_dir=runs_dir, **QUIET)


def test_fine_tune_says_what_has_no_effect_on_one_task_or_a_head_without_a_decoder(
    tiny_checkpoint, tiny_table, caplog: pytest.LogCaptureFixture
) -> None:
    from workbench.training.finetune import _say_idle

    setup = setup_for(tiny_checkpoint, balance="dwa", task_sampling="balanced", decoder_layers=2)
    _say_idle(setup.replace(head="query"), tiny_table)
    assert not caplog.records
    _say_idle(setup, tiny_table.with_tasks("bright"))
    assert "balance='dwa:2' has nothing to compare: 'bright' is the only task" in caplog.text
    assert "task_sampling='balanced' has nothing to compare" in caplog.text
    assert "decoder_layers=2 does nothing: head='mean' has no decoder" in caplog.text
