"""The training doctor says nothing of a healthy run, and names each fault that is planted."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from workbench.data.cache import DecodedClips
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task
from workbench.models.tml import TML
from workbench.training import loop
from workbench.training.checking.checks import (
    check_clips,
    check_heads,
    check_learning,
    check_overfitting,
    check_rates,
    check_val,
)
from workbench.training.checking.checkup import Checkup, stamps
from workbench.training.checking.evidence import Evidence, Seen
from workbench.training.checking.findings import Finding, findings_frame
from workbench.training.feed import Feed
from workbench.training.finetune import fine_tune, make_accelerator
from workbench.training.losses import standardisation
from workbench.training.runs import build_model, load_run
from workbench.training.setup import Setup

SHADE = Task("shade", "multiclass", ("dark", "grey", "light"))
RED = Task("red", "binary")
TASKS = (SHADE, RED)
Change = Callable[[TML], None]


def decoded(n: int, seed: int, *, shuffled: bool = False) -> DecodedClips:
    """Clips of 8 frames at 32 px: noise in one of three shades, moving, reddish in every second clip."""
    rng = np.random.default_rng(seed)
    shade, red = np.arange(n) % 3, np.arange(n) // 3 % 2
    clips = rng.integers(0, 60, (n, 8, 32, 32, 3)) + 70 * shade[:, None, None, None, None]
    clips[..., 0] += 50 * red[:, None, None, None]
    if shuffled:
        shade, red = rng.permutation(shade), rng.permutation(red)
    frame = pd.DataFrame({
        "clip_id": [f"{seed}-{i}" for i in range(n)], "path": "a.mp4", "start_seconds": np.nan, "end_seconds": np.nan,
        "split": "train", "group": [f"g{seed}-{i}" for i in range(n)],
        "shade": np.array(SHADE.classes)[shade], "red": red.astype(float),
    })  # fmt: skip
    stored: Any = clips.clip(0, 255).astype(np.uint8)
    return DecodedClips(stored, ClipTable(frame, TASKS, root=Path(".")), "pyav")


def train(
    checkpoint: str, folder: Path, *, change: Change | None = None, shuffled: str = "",
    watch: Callable[[TML, pd.DataFrame], None] | None = None, **options: Any,
) -> list[Finding]:  # fmt: skip
    """30 clips in batches of 6, so 5 steps an epoch; ``change`` plants a fault in the model before it trains, and
    ``shuffled`` names the splits whose labels are."""
    torch.manual_seed(0)
    setup = Setup(**({
        "backbone": checkpoint, "strategy": "full", "epochs": 12, "batch_size": 6, "precision": "fp32", "augment": False
    } | options))  # fmt: skip
    train, val = decoded(30, 0, shuffled="train" in shuffled), decoded(12, 1, shuffled="val" in shuffled)
    model = build_model(setup, TASKS)
    if change:
        change(model)
    state, _ = loop.train(
        model, Feed(train, val, val, None, Protocol(num_frames=8, size_px=32)), setup,
        make_accelerator(setup, torch.device("cpu")), folder, standardisation(train.table, TASKS), flip=False,
        progress=False, watch=(lambda history: watch(model, history)) if watch else None,
    )  # fmt: skip
    return [Finding.from_json(record) for record in state.findings]


def codes(findings: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.code, finding.about) for finding in findings}


@pytest.mark.parametrize(
    "strategy", ["scratch", "linear", "attentive", "bitfit", "lora:4", "adapter:8", "partial:1", "llrd:0.75", "full"]
)
def test_a_healthy_run_has_no_findings(strategy: str, tiny_checkpoint: str, tmp_path: Path) -> None:
    scores: list[float] = []
    found = train(tiny_checkpoint, tmp_path, strategy=strategy, watch=lambda _, h: scores.append(h.val_score.iloc[-1]))
    assert found == []
    assert scores[-1] > 0.7  # and it did learn


@pytest.mark.parametrize(
    "options",
    [
        {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}, {"loss": "focal:2"}, {"accumulation": 2, "epochs": 20},
        {"loss": "logit_adjusted:1", "class_weights": "balanced"}, {"augment": True, "drop_path": 0.2, "ema": 0.9},
        {"optimizer": "sgd", "lr": 0.02, "head_lr": 0.02},
    ],
    ids=lambda options: "-".join(options),
)  # fmt: skip
def test_a_healthy_run_with_other_options_has_no_findings(
    options: dict[str, Any], tiny_checkpoint: str, tmp_path: Path
) -> None:
    assert train(tiny_checkpoint, tmp_path, **options) == []


def test_a_rate_too_low_is_named_at_once_and_so_is_what_comes_of_it(tiny_checkpoint: str, tmp_path: Path) -> None:
    found = train(tiny_checkpoint, tmp_path, strategy="linear", head_lr=1e-7)
    # Of the other task, what the untrained head happens to say is not quite nothing.
    assert codes(found) == {("rate-out-of-range", "head_lr"), ("not-learning", "shade")}
    rate, stuck = found
    assert rate.epoch == 0 and "head_lr=1e-07 for 'linear', whose default is 0.005" in rate.message
    assert stuck.epoch == 10 and stuck.step == 50 and "that of guessing 1.099 (ln 3)" in stuck.message
    assert "rate is out of range" in stuck.fix


def test_shuffled_labels_are_not_learned_by_a_small_head(tiny_checkpoint: str, tmp_path: Path) -> None:
    def blunt(model: TML) -> None:
        """Features without any relation to the clip but its shade, so that nothing can be learned by heart."""
        forward = model.backbone.forward

        def shade_only(pixel_values: Tensor) -> Any:
            tokens = forward(pixel_values)
            tokens.tokens.data[:] = pixel_values.mean(dim=(1, 2, 3, 4))[:, None, None]
            return tokens

        model.backbone.forward = shade_only  # type: ignore[method-assign]
        model.backbone.norm = nn.Identity()

    found = train(tiny_checkpoint, tmp_path, change=blunt, shuffled="train", strategy="linear", feature_views=0)
    assert ("not-learning", "shade") in codes(found)
    assert "Are the labels right" in next(f.fix for f in found if f.about == "shade")


def test_dead_features_give_constant_answers(tiny_checkpoint: str, tmp_path: Path) -> None:
    def kill(model: TML) -> None:
        nn.init.zeros_(model.backbone.norm.weight)
        nn.init.ones_(model.backbone.norm.bias)

    found = train(tiny_checkpoint, tmp_path, change=kill, strategy="linear")
    assert codes(found) == {("constant", "shade"), ("constant", "red")}
    assert "every clip gets the same answer" in found[0].message


def test_a_head_that_is_frozen_or_cut_off_or_has_no_rate(tiny_checkpoint: str, tmp_path: Path) -> None:
    def freeze(model: TML) -> None:
        model.head.linears[1].requires_grad_(False)

    def cut(model: TML) -> None:
        model.head.linears[0].register_forward_hook(lambda _m, _i, output: output.detach() + 0 * _i[0].sum())

    found = train(tiny_checkpoint, tmp_path / "frozen", change=freeze, epochs=2)
    assert codes(found) == {("head-not-training", "red")} and "is frozen" in found[0].message
    found = train(tiny_checkpoint, tmp_path / "cut", change=cut, epochs=2)
    assert codes(found) == {("head-not-training", "shade")} and "gets no gradient" in found[0].message
    found = train(tiny_checkpoint, tmp_path / "rate", head_lr=0.0, epochs=1)
    assert codes(found) == {
        ("rate-out-of-range", "head_lr"), ("head-not-training", "shade"), ("head-not-training", "red"),
    }  # fmt: skip
    assert "has not moved in 5 steps" in found[1].message


def test_a_task_that_the_setup_leaves_out_is_no_finding(tiny_checkpoint: str, tmp_path: Path) -> None:
    found = train(tiny_checkpoint, tmp_path, balance="static:red=0", epochs=3)
    assert not [f for f in found if f.about == "red"]


def test_a_head_that_reads_zeros_gets_a_gradient_of_zero(tiny_checkpoint: str, tmp_path: Path) -> None:
    def kill(model: TML) -> None:
        nn.init.zeros_(model.backbone.norm.weight)
        nn.init.zeros_(model.backbone.norm.bias)

    found = train(tiny_checkpoint, tmp_path, change=kill, strategy="linear", epochs=1)
    assert codes(found) == {("head-not-training", "shade"), ("head-not-training", "red")}
    assert "a gradient of exactly zero" in found[0].message and "all zero?" in found[0].fix


def test_a_weight_that_should_train_but_is_not_reached(tiny_checkpoint: str, tmp_path: Path) -> None:
    def add(model: TML) -> None:
        model.backbone.register_parameter("spare", nn.Parameter(torch.ones(2, 2)))

    def cut(model: TML) -> None:
        model.backbone.blocks[0].register_forward_hook(
            lambda _m, _i, output: output.detach() if isinstance(output, Tensor) else (output[0].detach(), *output[1:])
        )

    found = train(tiny_checkpoint, tmp_path / "add", change=add, epochs=2)
    assert codes(found) == {("no-gradient", "")} and "first backbone.spare" in found[0].message
    found = train(tiny_checkpoint, tmp_path / "cut", change=cut, epochs=2)
    assert codes(found) == {("no-gradient", "")} and "embed" in found[0].message


def test_a_frozen_weight_that_moves_by_one_bit(tiny_checkpoint: str, tmp_path: Path) -> None:
    def nudge(model: TML, history: pd.DataFrame) -> None:
        if len(history) == 2:
            weight = next(p for n, p in model.named_parameters() if not p.requires_grad and p.ndim == 2)
            weight.data.view(-1)[7:8] = torch.nextafter(weight.data.view(-1)[7:8], torch.tensor([9.0]))

    found = train(tiny_checkpoint, tmp_path, strategy="lora:2", epochs=4, watch=nudge)
    assert codes(found) == {("frozen-moved", "")} and found[0].epoch == 4 and found[0].severity == "error"
    assert "1 weight(s) that 'lora:2' keeps frozen have changed, first backbone." in found[0].message


def test_what_is_learned_does_not_hold_on_val(tiny_checkpoint: str, tmp_path: Path) -> None:
    found = train(tiny_checkpoint, tmp_path, shuffled="val", epochs=8, lr=1e-3, head_lr=5e-3)
    assert codes(found) == {("overfitting", "")} and found[0].epoch > 3


def history(val_loss: list[float], score: list[float], train_loss: list[float]) -> list[dict[str, float]]:
    rows = zip(val_loss, score, train_loss, strict=True)
    return [{"epoch": i + 1, "val_loss": v, "val_score": s, "train_loss": t} for i, (v, s, t) in enumerate(rows)]


def test_check_overfitting_needs_a_worse_loss_and_no_better_score() -> None:
    worse, trained = [1.0, 0.8, 0.9, 1.0, 1.2], [1.0, 0.7, 0.5, 0.4, 0.3]
    flat, better = [0.5, 0.6, 0.6, 0.55, 0.5], [0.5, 0.6, 0.61, 0.62, 0.64]
    found = list(check_overfitting(history(worse, flat, trained)))
    assert len(found) == 1 and "since epoch 2 the val loss rose from 0.800 to 1.200" in found[0].message
    assert not list(check_overfitting(history(worse, better, trained)))  # only more sure of itself
    assert not list(check_overfitting(history([1.0, 0.8, 0.9, 0.9, 0.95], flat, trained)))
    assert not list(check_overfitting(history(worse, flat, [1.0, 0.7, 0.7, 0.7, 0.7])))
    assert not list(check_overfitting(history(worse[:4], flat[:4], trained[:4])))  # not for three epochs
    assert not list(check_overfitting(history([math.nan] * 5, [math.nan] * 5, trained)))


def test_check_rates_knows_each_strategy_and_leaves_sgd_alone() -> None:
    assert not list(check_rates(Setup(strategy="linear", head_lr=0.1)))
    assert [f.about for f in check_rates(Setup(strategy="full", lr=0.02))] == ["lr"]
    assert [f.about for f in check_rates(Setup(strategy="full", lr=1e-7, head_lr=1e-7))] == ["lr", "head_lr"]
    assert not list(check_rates(Setup(strategy="full", optimizer="sgd", lr=0.1, head_lr=0.1)))


def test_check_learning_of_a_loss_above_guessing() -> None:
    seen = Evidence(clips=30, loss=2.0, guess=math.log(3), share=0.3, sigmas=9, spread=0.4)
    how: dict[str, Any] = {"stuck": False, "steps": 60, "rate_warned": False}
    assert [f.code for f in check_learning(SHADE, seen, setup=Setup(), **how)] == ["worse-than-guess"]
    assert not list(check_learning(SHADE, seen, setup=Setup(loss="logit_adjusted:1"), **how))
    rare = Evidence(clips=30, loss=0.2, guess=0.198, share=0.0, sigmas=0, spread=0.2)
    found = list(check_learning(RED, rare, setup=Setup(strategy="scratch"), **how | {"stuck": True}))
    assert "0.198 (the entropy of its 2 classes)" in found[0].message and "random weights" in found[0].fix


def test_check_heads_says_nothing_of_a_task_without_labels() -> None:
    norms = {"head.linears.0.weight": 1.0, "head.linears.1.weight": 0.0}
    assert not list(check_heads(TASKS, [SHADE], norms, set(), 9))
    assert [f.about for f in check_heads(TASKS, TASKS, norms, set(), 9)] == ["red"]


def test_check_clips_names_what_the_backbone_takes() -> None:
    how: dict[str, Any] = {"num_frames": 8, "size_px": 16, "source": "nano", "sampling": "uniform"}
    good = torch.randint(0, 255, (4, 8, 16, 16, 3), dtype=torch.uint8)
    assert not list(check_clips(good, **how))
    found = list(check_clips(good[:, :6], **how))
    assert "6 x 16 x 16 (frames, height, width), but nano takes 8 x 16 x 16" in found[0].message
    assert "num_frames=8, size_px=16" in found[0].fix
    assert [f.severity for f in check_clips(torch.full_like(good, 7), **how)] == ["error"]
    still = good[:, :1].expand(-1, 8, -1, -1, -1)
    assert "4 of the first 4 clips all 8 frames are the same" in next(check_clips(still, **how)).message
    assert not list(check_clips(still, **how | {"sampling": "single"}))
    assert not list(check_clips(torch.cat([good, good, still]), **how))


def test_val_without_labels_is_said_before_training(tiny_checkpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup(backbone=tiny_checkpoint)
    targets = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    with caplog.at_level(logging.WARNING):
        checkup = Checkup(
            build_model(setup, TASKS), TASKS, setup, targets, val_targets=torch.tensor([[math.nan, 1.0]] * 3)
        )
    assert codes(checkup.findings) == {("val-unlabelled", "shade"), ("val-unlabelled", "red")}
    assert "none of the 3 val clips has a label of 'shade'" in caplog.text
    assert "all 3 val labels of 'red' are the same" in checkup.findings[1].message
    with pytest.raises(ValueError, match=r"train_targets of shape \(2, 1\) do not fit 2 task"):
        Checkup(checkup.model, TASKS, setup, targets[:, :1])


def test_stamps_see_a_bit_in_every_kind_of_number() -> None:
    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    weights = {f"{n} {k}": nn.Parameter(torch.linspace(-1, 1, n).to(k)) for k in kinds for n in (48, 49)}
    before = stamps(weights)
    assert stamps(weights) == before
    for name, weight in weights.items():
        weight.data[3] = torch.nextafter(weight.data[3].float(), torch.tensor(9.0)) if name.endswith("32") else 0.5
    assert all(stamps(weights)[name] != before[name] for name in weights)


def test_the_doctor_changes_nothing_of_the_run(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[dict[str, Tensor]] = []
    keep = lambda model, _: ends.append({n: p.detach().clone() for n, p in model.named_parameters()})  # noqa: E731
    train(tiny_checkpoint, tmp_path / "with", epochs=2, watch=keep)
    for name in ("at_start", "after_backward", "after_epoch"):
        monkeypatch.setattr(Checkup, name, lambda *_: [])
    train(tiny_checkpoint, tmp_path / "without", epochs=2, watch=keep)
    assert all(torch.equal(ends[1][name], ends[3][name]) for name in ends[1])


def test_a_resumed_run_has_the_findings_and_evidence_of_an_unbroken_one(
    tiny_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Checkup] = []
    original, count = Checkup.after_backward, 0

    class Spied(Checkup):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            made.append(self)

    def stop_at_step_53(self: Checkup, *args: Any) -> None:
        nonlocal count
        count += 1
        if count == 53:
            raise KeyboardInterrupt
        original(self, *args)

    monkeypatch.setattr(loop, "Checkup", Spied)
    options: dict[str, Any] = {"strategy": "linear", "head_lr": 1e-7, "mixup": 0.5}
    whole = train(tiny_checkpoint, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_CHECKPOINT_SECONDS", -1.0)  # after every step
        patch.setattr(Spied, "after_backward", stop_at_step_53)
        with pytest.raises(KeyboardInterrupt):
            train(tiny_checkpoint, tmp_path / "parts", **options)
    caplog.clear()
    parts = train(tiny_checkpoint, tmp_path / "parts", **options)
    assert len(whole) == 2 and parts == whole
    assert made[2].evidence == made[0].evidence and len(made[0].evidence) == 12
    assert caplog.text.count("not-learning") == 0  # said before the interruption, at epoch 10


def test_findings_are_kept_in_the_run_folder(tiny_checkpoint: str, tiny_table: ClipTable, tmp_path: Path) -> None:
    setup = Setup(backbone=tiny_checkpoint, strategy="full", epochs=1, batch_size=6, precision="fp32", lr=0.5)
    run = fine_tune(setup, tiny_table, runs_dir=tmp_path, device="cpu", workers=1, progress=False)
    again = load_run(run.folder)
    assert codes(again.findings) == {("rate-out-of-range", "lr")}
    assert "the training doctor found rate-out-of-range (see .findings)" in repr(again)
    assert findings_frame(again.findings).iloc[0].to_dict() == again.findings[0].to_json()


def test_findings_frame_has_the_grave_ones_first() -> None:
    found = [Finding("b", "note", "m", "f", epoch=1), Finding("a", "error", "m", "f", epoch=3)]
    assert list(findings_frame(found).code) == ["a", "b"]
    assert list(findings_frame([]).columns) == list(findings_frame(found).columns)
    with pytest.raises(ValueError, match="severity='bad' is not one of error, warning, note"):
        Finding("a", "bad", "m", "f")
    assert str(found[1]) == "error (epoch 3): m. f"


def test_check_val_looks_at_every_class_of_a_multilabel_task() -> None:
    tags, red = Task("tags", "multilabel", ("x", "y", "z")), Task("red", "binary")
    val = torch.tensor([[1.0, 0.0, math.nan, 1.0], [0.0, 0.0, math.nan, 1.0]], dtype=torch.float64)
    (found,) = check_val((tags, red), val)  # what is in the last column is red's
    assert found.about == "red" and "all 2 val labels" in found.message
    (unlabelled,) = check_val((tags,), torch.full((2, 3), math.nan))
    assert unlabelled.about == "tags" and "none of the 2 val clips" in unlabelled.message


def test_seen_reads_a_task_behind_a_multilabel_one_from_its_own_column() -> None:
    tags, red = Task("tags", "multilabel", ("x", "y", "z")), Task("red", "binary")
    alone, behind = Seen((red,)), Seen((tags, red))
    logits, labels = torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    alone.add({"red": logits}, labels[:, None], None)
    behind.add({"tags": torch.zeros(4, 3), "red": logits}, torch.cat([torch.ones(4, 3), labels[:, None]], 1), None)
    assert behind.evidence(0) is None and behind.evidence(1) == alone.evidence(0)
