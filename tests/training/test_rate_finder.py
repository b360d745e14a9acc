"""The learning-rate finder: its rule on curves drawn by hand, and a sweep that leaves everything as it was."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from workbench.data.tables import ClipTable
from workbench.training.checking.rate_finder import RateCurve, curve_of, find_lr, smooth
from workbench.training.finetune import fine_tune
from workbench.training.runs import build_model
from workbench.training.setup import Setup

FACTORS = np.geomspace(1e-3, 1e3, 61)  # ten to a decade
BASE = Setup(strategy="full", lr=2e-4, head_lr=1e-3)


def valley(lowest: float) -> np.ndarray:
    """A parabola over log10(factor) with its minimum at ``lowest``."""
    return np.asarray(1 + 0.2 * (np.log10(FACTORS) - math.log10(lowest)) ** 2)


def test_curve_of_suggests_a_tenth_of_the_rate_at_the_minimum() -> None:
    curve = curve_of(BASE, FACTORS, valley(1.0))
    assert curve.factor == pytest.approx(0.1)
    assert curve.suggestion == pytest.approx({"lr": 2e-5, "head_lr": 1e-4})
    assert (curve.setup.lr, curve.setup.head_lr) == (2e-5, 1e-4)
    assert "lowest at lr=2.0e-04; a tenth of that is lr=2.0e-05" in repr(curve)
    np.testing.assert_allclose(curve.frame.lr, 2e-4 * FACTORS)
    np.testing.assert_allclose(curve.frame.head_lr, 1e-3 * FACTORS)


def test_curve_of_is_not_misled_by_one_lucky_batch() -> None:
    losses = valley(1.0)
    losses[12] = 0.9
    assert curve_of(BASE, FACTORS, losses).factor == pytest.approx(0.1)


def test_curve_of_ends_where_the_loss_is_not_finite() -> None:
    losses = valley(100.0)
    losses[40:] = np.nan  # factor 10
    curve = curve_of(BASE, FACTORS, losses)
    assert curve.factor == pytest.approx(FACTORS[39] / 10)
    assert curve.frame.smoothed.isna().sum() == 21
    assert curve_of(BASE, FACTORS, np.full(61, np.nan)).suggestion is None


def test_curve_of_says_where_nothing_helped_or_the_sweep_was_too_short() -> None:
    flat = curve_of(BASE, FACTORS, np.linspace(1.0, 0.99, 61))
    assert flat.suggestion is None
    with pytest.raises(ValueError, match="no rate to suggest: no rate lowered the loss"):
        _ = flat.setup
    assert "sweep higher" in curve_of(BASE, FACTORS, np.linspace(2, 1, 61)).note


def test_smooth_is_a_centred_mean_with_gaussian_weights() -> None:
    spike = np.zeros(61)
    spike[30] = 1.0
    found = smooth(FACTORS, spike)
    weights = [math.exp(-0.5 * ((i - 30) / 10 * 6) ** 2) for i in range(61)]
    assert found[30] == pytest.approx(weights[30] / sum(weights))
    np.testing.assert_allclose(found[20:30], found[40:30:-1])
    np.testing.assert_allclose(smooth(FACTORS, np.full(61, 3.0)), 3.0)


def sweep(checkpoint: str, table: ClipTable, **options: Any) -> RateCurve:
    given: dict[str, Any] = {"strategy": "full", "tasks": ("bright",), "batch_size": 8, "precision": "fp32"}
    setup = Setup(backbone=checkpoint, **(given | options))
    return find_lr(setup, table, steps=40, device="cpu", workers=1, progress=False)


def test_find_lr_leaves_weights_and_random_state_alone(tiny_checkpoint: str, tiny_table: ClipTable) -> None:
    setup = Setup(backbone=tiny_checkpoint, strategy="full")
    mine = build_model(setup, tiny_table.tasks)
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    torch.manual_seed(5)
    np.random.seed(5)
    expected = (torch.get_rng_state(), np.random.get_state()[1].copy())  # type: ignore[index]
    first = sweep(tiny_checkpoint, tiny_table)
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert (np.random.get_state()[1] == expected[1]).all()  # type: ignore[index]
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
    again = build_model(setup, tiny_table.tasks).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in again.items())
    assert sweep(tiny_checkpoint, tiny_table).frame.equals(first.frame)


def test_find_lr_sees_the_loss_fall(tiny_checkpoint: str, tiny_table: ClipTable) -> None:
    curve = sweep(tiny_checkpoint, tiny_table, augment=False)
    losses, frame = curve.frame.smoothed.to_numpy(), curve.frame
    assert losses[0] == pytest.approx(math.log(2), abs=0.1)  # the first rates change nothing
    assert np.nanmin(losses) < 0.8 * losses[0]
    assert curve.suggestion is not None and curve.suggestion["lr"] > 1e-5
    np.testing.assert_allclose(frame.factor, np.geomspace(1e-3, 1e3, 40)[: len(frame)])


def test_find_lr_sees_the_loss_explode(tiny_checkpoint: str, tiny_table: ClipTable) -> None:
    frame = sweep(tiny_checkpoint, tiny_table, augment=False, tasks=("speed",)).frame  # a value can be overshot
    worst = int(frame.loss.argmax())
    assert frame.loss[worst] > 3 * frame.loss[0] and frame.factor[worst] > 10


def test_find_lr_takes_the_steps_of_the_setups_balance(tiny_checkpoint: str, tiny_table: ClipTable) -> None:
    tasks: dict[str, Any] = {"tasks": ("direction", "bright"), "augment": False}
    plain, alone, joined = (
        sweep(tiny_checkpoint, tiny_table, balance=balance, **tasks).frame.loss.to_numpy()[:30]
        for balance in ("sum", "static:bright=0", "pcgrad")
    )
    assert plain[0] == alone[0] == joined[0]  # the number is the plain sum, whatever the step
    assert not np.allclose(plain, alone, rtol=1e-3) and not np.allclose(plain, joined, rtol=1e-5)


def test_find_lr_sweeps_the_head_alone_where_the_backbone_is_frozen(
    tiny_checkpoint: str, tiny_table: ClipTable
) -> None:
    curve = sweep(tiny_checkpoint, tiny_table, strategy="linear", augment=False, accumulation=2, mixup=0.2)
    assert set(curve.frame.lr) == {0.0}
    stored = sweep(tiny_checkpoint, tiny_table, strategy="linear")  # on features, which are not mixed
    assert len(stored.frame) == 40 and np.isfinite(stored.frame.loss).all()
    assert curve.frame.head_lr.iloc[0] == pytest.approx(5e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_find_lr_trains_on_the_features_that_a_run_of_the_setup_does(
    tiny_checkpoint: str, tiny_table: ClipTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    sweep(tiny_checkpoint, tiny_table, strategy="linear", precision=precision)
    setup = Setup(backbone=tiny_checkpoint, strategy="linear", tasks=("bright",), epochs=1, precision=precision)
    run = fine_tune(setup, tiny_table, runs_dir=tmp_path / "runs", device="cpu", workers=1, progress=False)
    assert run.record["features"]["views"] == 5 and run.record["timings"]["encode_seconds"] == 0


def test_find_lr_refuses_a_sweep_that_is_none(tiny_checkpoint: str, tiny_table: ClipTable) -> None:
    for wrong in ({"steps": 5}, {"low": 1.0, "high": 1.0}, {"low": 0.0}):
        with pytest.raises(ValueError, match="needs at least 10 steps and 0 < low < high"):
            find_lr(Setup(backbone=tiny_checkpoint), tiny_table, **wrong)


def test_curve_of_suggests_nothing_below_what_was_swept() -> None:
    noise = np.ones(61)
    noise[:8] = 0.5  # lowest where the rates are too low to do anything
    curve = curve_of(BASE, FACTORS, noise[::1])
    lowest = curve_of(BASE, FACTORS, 1 - 0.5 * np.exp(-0.5 * ((np.arange(61) - 5) / 2) ** 2))  # half a decade in
    assert lowest.factor is None and "less than was tried" in lowest.note
    assert curve.factor is None


def test_find_lr_refuses_rates_of_zero(tiny_checkpoint: str, tiny_table: ClipTable) -> None:
    with pytest.raises(ValueError, match="lr and head_lr are both 0"):
        find_lr(Setup(backbone=tiny_checkpoint, lr=0.0, head_lr=0.0), tiny_table, progress=False)
