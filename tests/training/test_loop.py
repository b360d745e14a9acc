"""What the loop does to clips before the model sees them, on clips in memory."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from workbench.data.augment import Augment
from workbench.data.cache import DecodedClips
from workbench.data.mix import Mix
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task
from workbench.training import loop, optim
from workbench.training.feed import Feed
from workbench.training.finetune import make_accelerator
from workbench.training.losses import standardisation
from workbench.training.optim import Ema
from workbench.training.runs import build_model
from workbench.training.setup import Setup

SIDE = Task("side", "multiclass", ("left", "right"))
BRIGHT = Task("bright", "binary")
SPEED = Task("speed", "regression")
EVERYTHING: dict[str, Any] = {
    "rand_augment": 2, "magnitude": 9.0, "erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1,
}  # fmt: skip


def decoded(n: int, size_px: int, num_frames: int, tasks: tuple[Task, ...]) -> DecodedClips:
    rng = np.random.default_rng(n)
    frame = pd.DataFrame({
        "clip_id": [f"{n}-{i}" for i in range(n)], "path": "a.mp4", "start_seconds": np.nan, "end_seconds": np.nan,
        "split": "train", "group": [f"g{n}-{i}" for i in range(n)], "side": ["left", "right"] * (n // 2),
        "bright": [0.0, np.nan] * (n // 2), "speed": np.arange(float(n)),
    })  # fmt: skip
    clips: Any = rng.integers(0, 256, (n, num_frames, size_px, size_px, 3), dtype=np.uint8)
    return DecodedClips(clips, ClipTable(frame, tasks, root=Path(".")), "pyav")


def train(
    checkpoint: str, folder: Path, *, tasks: tuple[Task, ...] = (SIDE, BRIGHT), reverse: bool = False, **options: Any
) -> tuple[loop.Progress, dict[str, Tensor]]:
    """Ten training clips of 24 frames at 36 px, two val clips; batches of 4, 4 and 2."""
    setup = Setup(**({"backbone": checkpoint, "epochs": 2, "batch_size": 4, "precision": "fp32"} | options))
    data = Feed(
        train=decoded(10, 36, 24, tasks), val=decoded(2, 32, 8, tasks), val_views=decoded(2, 32, 8, tasks), test=None,
        protocol=Protocol(num_frames=8, size_px=32),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        return loop.train(
            build_model(setup, tasks), data, setup, make_accelerator(setup, torch.device("cpu")), folder,
            standardisation(data.train.table, tasks), flip=True, reverse=reverse, progress=False, watch=None,
        )  # fmt: skip


def spied(monkeypatch: pytest.MonkeyPatch, seen: Callable[..., None]) -> None:
    """``seen(outputs, pairing)`` at every loss."""
    original = loop.task_losses

    def spy(tasks: Any, outputs: Any, targets: Any, *args: Any, **named: Any) -> dict[str, Tensor]:
        seen(outputs, named.get("pairing"))
        return original(tasks, outputs, targets, *args, **named)

    monkeypatch.setattr(loop, "task_losses", spy)


def test_train_mixes_training_batches_and_never_val(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairings: list[tuple[bool, Any]] = []
    spied(monkeypatch, lambda outputs, pairing: pairings.append((outputs["side"].requires_grad, pairing)))
    train(tiny_checkpoint, tmp_path, mixup=0.8)
    trained = [pairing for training, pairing in pairings if training]
    assert [len(pairing.partner) for pairing in trained] == [4, 4, 2] * 2
    assert len({pairing.weight for pairing in trained}) == 6  # another weight for every batch
    assert [pairing for training, pairing in pairings if not training] == [None, None]


def test_train_augments_training_batches_and_never_val(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Augment, int]] = []
    original = Augment.__call__

    def spy(self: Augment, clips: Tensor, generator: torch.Generator) -> Tensor:
        calls.append((self, len(clips)))
        assert generator.device.type == "cpu"
        return original(self, clips, generator)

    monkeypatch.setattr(Augment, "__call__", spy)
    train(tiny_checkpoint, tmp_path, rand_augment=2, magnitude=5.0, erasing=0.25, reverse=True)
    assert [n for _, n in calls] == [4, 4, 2] * 2
    used = calls[0][0]
    assert (used.rand_augment, used.magnitude, used.erasing, used.flip, used.reverse) == (2, 5.0, 0.25, True, True)


def interrupted(monkeypatch: pytest.MonkeyPatch, checkpoint: str, folder: Path, **options: Any) -> None:
    """Training that stops at the fifth batch, with a checkpoint after every step."""
    count = 0

    def stop_at_the_fifth(outputs: dict[str, Tensor], pairing: Any) -> None:
        nonlocal count
        count += outputs["side"].requires_grad
        if count == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_CHECKPOINT_SECONDS", -1.0)
        spied(patch, stop_at_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            train(checkpoint, folder, **options)


def test_train_with_everything_on_resumes_to_the_bit(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_state, whole = train(tiny_checkpoint, tmp_path / "whole", **EVERYTHING)
    interrupted(monkeypatch, tiny_checkpoint, tmp_path / "parts", **EVERYTHING)
    parts_state, parts = train(tiny_checkpoint, tmp_path / "parts", **EVERYTHING)
    assert whole_state.step == parts_state.step == 6
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    plain = train(tiny_checkpoint, tmp_path / "plain")[1]
    assert any(not torch.equal(plain[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "lr": 0.05, "head_lr": 0.05, "schedule": "one_cycle"},
        {"optimizer": "adam", "schedule": "plateau", "ema": 0.9},
        {"schedule": "constant", "drop_path": 0.5, "loss": "focal", "class_weights": "balanced"},
        {"strategy": "lora:2", "ema": 0.5, "loss": "logit_adjusted", "accumulation": 2},
        {"head": "query", "measure_conflict": 2},
        {"head": "query", "balance": "uncertainty"},
        {"balance": "random", "task_sampling": "balanced"},
        {"head": "query", "balance": "gradnorm", "accumulation": 2},
        {"head": "query", "balance": "pcgrad@tokens", "mixup": 0.8},
        {"strategy": "attentive", "feature_views": 0, "balance": "mgda@weights"},
    ],
)
def test_train_resumes_to_the_bit_with_every_optimiser_and_schedule(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(optim, "PLATEAU_PATIENCE", -1)  # a plateau after every epoch: its factor has to be remembered
    whole_state, whole = train(tiny_checkpoint, tmp_path / "whole", **options)
    interrupted(monkeypatch, tiny_checkpoint, tmp_path / "parts", **options)
    parts_state, parts = train(tiny_checkpoint, tmp_path / "parts", **options)
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    histories = [pd.DataFrame(state.history).drop(columns="seconds") for state in (whole_state, parts_state)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


SGD: dict[str, Any] = {
    "optimizer": "sgd", "lr": 0.1, "head_lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant",
    "warmup": 0.0, "clip_norm": 1e6,
}  # fmt: skip


def test_train_with_a_balance_of_epochs_resumes_between_them(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer: dict[str, Any] = {"balance": "dwa:0.5", "epochs": 4, "head": "query", "lr": 1e-2, "head_lr": 1e-2}
    whole = train(tiny_checkpoint, tmp_path / "whole", **longer)[0]
    original = loop.Joint.end_epoch
    ends: list[int] = []

    def third(self: Any) -> Any:
        ends.append(1)
        if len(ends) == 3:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Joint, "end_epoch", third)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_checkpoint, tmp_path / "parts", **longer)
    parts = train(tiny_checkpoint, tmp_path / "parts", **longer)[0]
    histories = [pd.DataFrame(state.history).drop(columns="seconds") for state in (whole, parts)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert whole.history[1]["weight_side"] == 1 != whole.history[2]["weight_side"]  # two epochs make a pace


def test_train_with_a_task_of_weight_zero_is_training_without_it(tiny_checkpoint: str, tmp_path: Path) -> None:
    alone = train(tiny_checkpoint, tmp_path / "alone", tasks=(SIDE,), **SGD)[1]
    both = train(tiny_checkpoint, tmp_path / "both", balance="static:bright=0", **SGD)[1]
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, rtol=1e-5, atol=1e-7)
    doubled = train(tiny_checkpoint, tmp_path / "two", tasks=(SIDE,), balance="static:side=2", **SGD)[1]
    faster = train(tiny_checkpoint, tmp_path / "fast", tasks=(SIDE,), **(SGD | {"lr": 0.2, "head_lr": 0.2}))[1]
    for name, value in faster.items():
        torch.testing.assert_close(doubled[name], value, rtol=1e-4, atol=1e-6)


def test_train_learns_the_uncertainties_but_keeps_them_out_of_the_weights(tiny_checkpoint: str, tmp_path: Path) -> None:
    state, kept = train(tiny_checkpoint, tmp_path, balance="uncertainty", head_lr=0.01)
    last = state.history[-1]
    assert last["weight_side"] != 1 != last["weight_bright"]
    assert not [name for name in kept if "variances" in name]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("balance", ["upgrad@tokens", "upgrad@weights", "sum"])
def test_train_notes_losses_weights_and_conflict_of_each_epoch(
    tiny_checkpoint: str, tmp_path: Path, balance: str, precision: str
) -> None:
    state, _ = train(tiny_checkpoint, tmp_path, balance=balance, measure_conflict=1, precision=precision, head="query")
    for line in state.history:
        names = {f"{what}_{task}" for what in ("loss", "weight", "norm") for task in ("side", "bright")}
        assert names | {"cosine_side_bright"} == {n for n in line if n.startswith(("loss_", "weight_", "norm", "cos"))}
        assert -1 <= line["cosine_side_bright"] <= 1 and line["norm_side"] > 0
    assert "loss_side" not in loop.epoch_row(state.history) and "val_side" in loop.epoch_row(state.history[:1])


def test_train_of_one_task_notes_nothing_more(tiny_checkpoint: str, tmp_path: Path) -> None:
    state, _ = train(tiny_checkpoint, tmp_path, tasks=(SIDE,))
    assert list(state.history[0]) == [
        "epoch", "step", "lr", "train_loss", "val_loss", "val_side", "val_score", "seconds"
    ]  # fmt: skip


def test_train_goes_on_from_a_checkpoint_of_before_there_was_a_balance(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny_checkpoint, tmp_path / "whole")[1]
    interrupted(monkeypatch, tiny_checkpoint, tmp_path / "parts")
    path = tmp_path / "parts" / "checkpoint" / "state.pt"
    content = torch.load(path, weights_only=True)
    del content["joint"]
    torch.save(content, path)
    parts = train(tiny_checkpoint, tmp_path / "parts")[1]
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_train_shows_each_task_as_often_when_sampling_is_balanced(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[dict[str, int]] = []
    original = loop.labelled_clips

    def spy(*args: Any) -> dict[str, int]:
        counts.append(original(*args))
        return counts[-1]

    monkeypatch.setattr(loop, "labelled_clips", spy)
    for sampling, wanted in (("proportional", (10, 5)), ("balanced", (10, 9.5))):  # half of the clips have no "bright"
        counts.clear()
        train(tiny_checkpoint, tmp_path / sampling, task_sampling=sampling)
        means = tuple(sum(batch[task] for batch in counts) / 2 for task in ("side", "bright"))
        assert means == pytest.approx(wanted, abs=0.6)


def test_train_takes_the_mean_of_the_batches_of_a_step_also_where_an_epoch_ends_in_one(
    tiny_checkpoint: str, tmp_path: Path
) -> None:
    # An epoch has three batches: they make one step, whether three are asked for or more.
    (state, three), (_, eight) = (train(tiny_checkpoint, tmp_path / str(n), accumulation=n, **SGD) for n in (3, 8))
    assert state.step == 2
    for name, value in three.items():
        torch.testing.assert_close(eight[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("accumulation", "shares"), [(1, [1, 1, 1]), (2, [2, 2, 1]), (8, [3, 3, 3])])
def test_train_divides_by_the_batches_that_go_into_a_step(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int, shares: list[int]
) -> None:
    given: list[int] = []
    original = loop.Joint.backward

    def spy(self: Any, losses: Any, labelled: Any, seen: Any, step: int, accumulation: int) -> Any:
        given.append(accumulation)
        return original(self, losses, labelled, seen, step, accumulation)

    monkeypatch.setattr(loop.Joint, "backward", spy)
    train(tiny_checkpoint, tmp_path, epochs=1, accumulation=accumulation)
    assert given == shares


def test_patience_is_for_a_score_that_does_not_rise() -> None:
    setup, state = Setup(patience=2, epochs=9), loop.Progress()
    kept = []
    for score in (0.4, 0.5, 0.5, 0.5):
        kept.append(loop._is_kept(state, score, setup))
        state.epoch += 1
    assert kept == [True, True, False, False] and state.best_epoch == 2 and loop._stale(state, setup)


def test_train_keeps_and_scores_the_average_of_the_weights(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_state, plain = train(tiny_checkpoint, tmp_path / "plain")
    steps: list[dict[str, Tensor]] = []
    original = Ema.update

    def seen(self: Ema) -> None:
        steps.append({name: value.detach().clone() for name, value in self._weights.items()})
        original(self)

    monkeypatch.setattr(Ema, "update", seen)
    state, kept = train(tiny_checkpoint, tmp_path / "ema", ema=0.6)
    assert len(steps) == 6
    # Training itself is as without; what is kept is the average over its steps, by hand from the initial weights on.
    assert all(torch.equal(steps[-1][name], plain[name]) for name in plain)
    first = {n: p for n, p in build_model(Setup(backbone=tiny_checkpoint), (SIDE, BRIGHT)).named_parameters()}
    for name, value in kept.items():
        expected = first[name].detach()
        for t, weights in enumerate(steps, start=1):
            decay = min(0.6, (1 + t) / (10 + t))
            expected = decay * expected + (1 - decay) * weights[name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    assert state.history[-1]["val_loss"] != plain_state.history[-1]["val_loss"]


@pytest.mark.parametrize(("patience", "schedule"), [(0, "cosine"), (1, "cosine"), (0, "plateau")])
def test_train_copes_with_a_val_split_without_labels(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, schedule: str
) -> None:
    original = loop.targets_of
    monkeypatch.setattr(loop, "targets_of", lambda table: original(table) * (math.nan if len(table) == 2 else 1))
    state, kept = train(tiny_checkpoint, tmp_path, patience=patience, schedule=schedule)
    for line in state.history:
        assert all(math.isnan(line[name]) for name in ("val_loss", "val_score", "val_side", "val_bright"))
        assert math.isfinite(line["train_loss"])
    # Nothing to select by: all epochs, the last one kept, no best.
    assert (len(state.history), state.kept_epoch, state.best_epoch) == (2, 2, 0) and kept
    assert math.isnan(state.best_score)


def test_val_scores_leaves_out_what_val_cannot_tell(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = (SIDE, BRIGHT, SPEED)  # val: left and right; bright 0 and missing; speed 0 and 1
    model = build_model(Setup(backbone=tiny_checkpoint), tasks)
    val = decoded(2, 32, 8, tasks)
    outputs = {"side": torch.tensor([[5.0, 0], [5, 0]]), "bright": torch.tensor([1.0, 1]), "speed": torch.ones(2)}
    monkeypatch.setattr(loop, "outputs_on", lambda model, clips: outputs)
    scores = loop.val_scores(model, val, {"speed": (0.5, 0.5)}, Setup())
    assert scores["val_side"] == 0.5
    assert math.isnan(scores["val_bright"])  # AUROC of one class: no model could have one
    assert math.isnan(scores["val_speed"])  # a correlation, and this model says the same of both: that counts as 0
    assert scores["val_score"] == 0.25


@pytest.mark.parametrize("strategy", ["full", "attentive"])
def test_train_skips_blocks_only_of_a_backbone_that_trains(
    tiny_checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    strategy: str,
) -> None:
    given: list[float] = []
    original = loop.drop_path

    def spy(backbone: Any, rate: float) -> Any:
        given.append(rate)
        return original(backbone, rate)

    monkeypatch.setattr(loop, "drop_path", spy)
    with caplog.at_level(logging.WARNING):
        train(tiny_checkpoint, tmp_path, strategy=strategy, drop_path=0.3)
    assert given == [0.3 if strategy == "full" else 0.0]
    assert ("drop_path=0.3 does nothing: strategy attentive" in caplog.text) == (strategy == "attentive")


def test_train_stops_before_a_step_that_would_spoil_the_weights(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    original = loop.task_losses
    monkeypatch.setattr(
        loop,
        "task_losses",
        lambda *a, **k: {t: v * (math.nan if len(steps) == 2 else 1) for t, v in original(*a, **k).items()},
    )
    monkeypatch.setattr(loop.Schedule, "apply", lambda self, optimizer, step: steps.append(step))
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1, batch 2; lower lr"):
        train(tiny_checkpoint, tmp_path)
    assert steps == [0, 1]


def test_train_seeds_dropout_for_every_batch_anew(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    spied(monkeypatch, lambda outputs, _: seeds.append(torch.initial_seed() if outputs["side"].requires_grad else 0))
    train(tiny_checkpoint, tmp_path)
    assert seeds == [loop._mixed(0, 0, b) for b in range(3)] + [0] + [loop._mixed(0, 1, b) for b in range(3)] + [0]


def test_train_interpolates_values_only_where_asked(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []
    spied(monkeypatch, lambda outputs, pairing: seen.append(pairing))
    with caplog.at_level(logging.WARNING):
        train(tiny_checkpoint, tmp_path / "off", tasks=(SIDE, SPEED), mixup=0.8)
    assert seen == [None] * 8 and "speed is regression; set mix_regression=True" in caplog.text
    seen.clear()
    train(tiny_checkpoint, tmp_path / "on", tasks=(SIDE, SPEED), mixup=0.8, mix_regression=True)
    assert sum(pairing is not None for pairing in seen) == 6


def test_mix_of_a_setup() -> None:
    assert loop.mix_of(Setup(), (SIDE,)) is None
    assert loop.mix_of(Setup(cutmix=1.0), (SIDE, BRIGHT)) == Mix(cutmix=1.0)
    assert loop.mix_of(Setup(mixup=0.2, cutmix=1.0, mix_regression=True), (SPEED,)) == Mix(mixup=0.2, cutmix=1.0)
