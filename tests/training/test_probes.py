"""Many probes at once: each is the run it would have been, and the choice among them never sees test."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from workbench.analysis.compare import compare
from workbench.data.tables import ClipTable
from workbench.training.probing import encoding
from workbench.training.probing.probes import Probes, probes
from workbench.training.setup import Setup

GRID: dict[str, Any] = {"lrs": (5e-3, 1e-3), "weight_decays": (0.01, 0.4), "seeds": (0, 3)}
QUIET: dict[str, Any] = {"device": "cpu", "workers": 1, "progress": False}
BASE = Setup(precision="fp32")


@pytest.fixture(scope="module")
def found(tiny_checkpoint: str, tiny_table: ClipTable) -> Probes:
    return probes(tiny_table, backbone=tiny_checkpoint, epochs=3, batch_size=6, setup=BASE, **GRID, **QUIET)


def test_probes_have_a_row_per_combination_and_one_choice_per_task_head_and_seed(found: Probes) -> None:
    table = found.table
    assert len(table) == 3 * 2 * 2 * 2 * 2
    assert not table.duplicated(["task", "head", "seed", "lr", "weight_decay"]).any()
    assert len(found.best) == 3 * 2 * 2 and not found.best.duplicated(["task", "head", "seed"]).any()
    assert dict(zip(table.task, table.metric, strict=True)) == {
        "direction": "accuracy", "bright": "auroc", "speed": "srcc",
    }  # fmt: skip
    for _, part in table.groupby(["task", "head", "seed"]):
        (best,) = part[part.chosen].index
        ranked = part.sort_values(["val", "val_loss"], ascending=[False, True])
        assert part.val[best] == ranked.val.iloc[0] and part.val_loss[best] == ranked.val_loss.iloc[0]
    # Seeds draw other heads and orders, so they do not all agree.
    assert table.groupby("seed").val_loss.mean().nunique() == 2


@pytest.mark.parametrize(("task", "head", "seed"), [
    ("direction", "linear", 3), ("speed", "linear", 0), ("bright", "attentive", 3), ("direction", "attentive", 0),
])  # fmt: skip
def test_probe_is_the_run_of_its_own_setup(found: Probes, runs_dir: Path, task: str, head: str, seed: int) -> None:
    run = found.run(task, head, seed, runs_dir=runs_dir, **QUIET)
    assert run.record["timings"]["encode_seconds"] == 0
    mine = found.runs(seed)[head].predictions.query("task == @task").reset_index(drop=True)
    theirs = run.predictions.reset_index(drop=True)
    pd.testing.assert_frame_equal(mine[["clip_id", "split", "target"]], theirs[["clip_id", "split", "target"]])
    # The same numbers in another order of sums: Adam divides by a gradient's size, which makes of them what it may.
    assert np.allclose(mine.prediction, theirs.prediction, atol=1e-3)
    for a, b in zip(mine.probabilities, theirs.probabilities, strict=True):
        assert np.allclose(np.asarray(a, float), np.asarray(b, float), atol=1e-3)
    row = found.best.query("task == @task and head == @head and seed == @seed").iloc[0]
    assert row.val_loss == pytest.approx(run.history.val_loss.iloc[-1], abs=1e-3)
    assert row.val == pytest.approx(run.history[f"val_{task}"].iloc[-1], abs=1e-6)
    stored = load_file(run.folder / "weights.safetensors")
    state = found.state(task, head, seed)
    assert {f"head.{name}" for name in state} == set(stored)
    key = "linears.0.weight"
    assert torch.allclose(state[key], stored[f"head.{key}"], atol=1e-3)


def test_probes_trained_together_equal_those_trained_alone(
    found: Probes, tiny_checkpoint: str, tiny_table: ClipTable
) -> None:
    options: dict[str, Any] = {"backbone": tiny_checkpoint, "epochs": 3, "batch_size": 6, "setup": BASE, **QUIET}
    keys = ["task", "head", "seed", "lr", "weight_decay"]
    whole = found.table.set_index(keys).sort_index()
    one = probes(
        tiny_table, tasks=("bright",), heads=("attentive",), seeds=(3,), lrs=(1e-3,), weight_decays=(0.4,), **options
    ).table.set_index(keys)
    together = whole.loc[one.index]
    assert np.allclose(one.val_loss, together.val_loss, atol=1e-5)
    assert np.allclose(one[["val", "test"]], together[["val", "test"]])
    in_parts = probes(tiny_table, memory_gb=1e-9, **GRID, **options).table.set_index(keys).sort_index()
    assert np.allclose(in_parts.val_loss, whole.val_loss, atol=1e-4)
    assert np.allclose(in_parts[["val", "test"]], whole[["val", "test"]])


def test_probes_choose_by_val_alone(found: Probes, tiny_checkpoint: str, tiny_table: ClipTable) -> None:
    frame, test = tiny_table.frame.copy(), tiny_table.frame.split == "test"
    frame.loc[test, "direction"] = ["right" if name == "left" else "left" for name in frame.direction[test]]
    turned = tiny_table._with(frame).with_tasks(["direction"])
    again = probes(
        turned, backbone=tiny_checkpoint, epochs=3, batch_size=6, setup=BASE, heads=("linear",), **GRID, **QUIET
    )
    columns = ["task", "head", "seed", "lr", "weight_decay", "val"]
    before = found.best.query("task == 'direction' and head == 'linear'").reset_index(drop=True)
    pd.testing.assert_frame_equal(again.best[columns], before[columns])
    assert np.allclose(again.best.test, 1 - before.test)  # while what is reported turned over


def test_probes_encode_each_view_once_for_all(
    tiny_checkpoint: str, tiny_table: ClipTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    sizes, batch = [], encoding.Encoder._batch

    def counted(self: Any, clips: torch.Tensor) -> np.ndarray:
        sizes.append(len(clips))
        return batch(self, clips)

    monkeypatch.setattr(encoding.Encoder, "_batch", counted)
    options: dict[str, Any] = {"backbone": tiny_checkpoint, "epochs": 1, "heads": ("linear",), **GRID, **QUIET}
    first = probes(tiny_table, setup=BASE.replace(strategy="linear", feature_views=3), **options)
    assert sum(sizes) == 16 * 3 + 8 + 8 and first.seconds["linear"]["encode_seconds"] > 0
    sizes.clear()
    again = probes(tiny_table, setup=BASE.replace(strategy="linear", feature_views=3), **options)
    assert not sizes and again.seconds["linear"]["encode_seconds"] == 0
    pd.testing.assert_frame_equal(again.table, first.table)


def test_probes_of_several_test_views_score_their_mean(
    tiny_checkpoint: str, tiny_table: ClipTable, runs_dir: Path
) -> None:
    setup = BASE.replace(sampling="dense", test_clips=2, test_crops=3)
    some = probes(
        tiny_table, backbone=tiny_checkpoint, epochs=2, batch_size=6, setup=setup, heads=("linear",),
        tasks=("bright", "speed"), lrs=(5e-3,), weight_decays=(0.1,), **QUIET,
    )  # fmt: skip
    assert some.protocol.level == "video"
    for task in ("bright", "speed"):
        run = some.run(task, "linear", runs_dir=runs_dir, **QUIET)
        mine = some.runs()["linear"].predictions.query("task == @task")
        assert np.allclose(mine.prediction.to_numpy(), run.predictions.prediction.to_numpy(), atol=1e-3)


def test_probes_runs_are_what_compare_reads(found: Probes, runs_dir: Path) -> None:
    table = compare(found.runs()).table
    for row in table.itertuples():
        best = found.best.query("task == @row.task and head == @row.run and seed == 0").iloc[0]
        assert row.value == pytest.approx(best.test) and row.metric == best.metric
    with pytest.raises(ValueError, match=r"seed=9 is not among \[0, 3\]"):
        found.runs(9)


def test_summary_is_the_mean_over_seeds_with_students_interval(found: Probes) -> None:
    for row in found.summary().itertuples():
        scores = found.best.query("task == @row.task and head == @row.head").test
        assert row.test == pytest.approx(scores.mean()) and row.seeds == 2
        if scores.std() > 0:
            low, high = stats.t.interval(0.95, 1, loc=scores.mean(), scale=stats.sem(scores))
            assert (row.low, row.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(("options", "message"), [
    ({"heads": ("full",)}, r"heads \['full'\] are no probes"),
    ({"seeds": (1, 1)}, r"seeds=\[1, 1\]: give at least one, none twice"),
    ({"setup": Setup(mixup=0.5)}, "batched probes do not do mixup=0.5, feature_views=0"),
    ({"setup": Setup(strategy="linear", feature_views=0)}, "batched probes do not do feature_views=0"),
    ({"setup": Setup(loss="focal")}, "batched probes do not do loss='focal:2'"),
    ({"setup": Setup(schedule="plateau")}, "do not do schedule='plateau'"),
])  # fmt: skip
def test_probes_refuse_what_they_do_not_do(tiny_table: ClipTable, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probes(tiny_table, **options)


def test_probes_need_labels_to_choose_by(tiny_table: ClipTable) -> None:
    frame = tiny_table.frame.assign(speed=tiny_table.frame.speed.where(tiny_table.frame.split != "val"))
    with pytest.raises(ValueError, match="no val clip has a label for task 'speed'; name others with tasks="):
        probes(tiny_table._with(frame))


def test_probe_that_diverged_is_not_chosen_before_one_with_the_same_score(
    tiny_checkpoint: str, tiny_table: ClipTable
) -> None:
    tied = 0
    found = probes(
        tiny_table, backbone=tiny_checkpoint, heads=("linear",), lrs=(10.0, 1e-12), weight_decays=(10.0,),
        tasks=["direction"], seeds=range(6), epochs=5, batch_size=2, setup=BASE, **QUIET,
    )  # fmt: skip
    for _, part in found.table.groupby("seed"):
        diverged, sane = part.iloc[0], part.iloc[1]
        assert np.isnan(diverged.val_loss) and np.isfinite(sane.val_loss)
        if diverged.val == sane.val:
            tied += 1
            assert sane.chosen
    assert tied


def test_probes_take_one_of_each_and_show_what_was_chosen(tiny_checkpoint: str, tiny_table: ClipTable) -> None:
    one = probes(
        tiny_table, backbone=tiny_checkpoint, heads="linear", tasks="bright", lrs=1e-3, weight_decays=0.01, seeds=1,
        epochs=1, setup=BASE, **QUIET,
    )  # fmt: skip
    assert len(one.table) == 1 and one.table.seed[0] == 1
    said = repr(one)
    assert said.startswith("1 probes on 'squares'; chosen on val") and "Protocol(" not in said
    assert str(one.best.test[0])[:4] in said or "1" in said
