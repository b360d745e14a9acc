"""Calibration: equal to torchmetrics, by hand, and a temperature that is known because it was put in."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from tests.analysis.mistaken import FLASH, KIND, SCORE, made, softmax
from workbench.analysis.mistakes.calibration import bin_of, calibration, ece, fit_temperature, tempered
from workbench.analysis.predictions import Predictions


def sharp_run(n: int = 600, sharpness: float = 2.0, seed: int = 0) -> Predictions:
    """Half val, half test; labels are drawn from softmax(logits), and the run says softmax(sharpness * logits)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 6)) * 1.5
    target = np.array([rng.choice(6, p=p) for p in softmax(logits)])
    said = softmax(logits * sharpness)
    split = ["val" if i % 2 else "test" for i in range(n)]
    return made(KIND, target, said.argmax(1), said, groups=np.arange(n) // 3, split=split)


@pytest.mark.parametrize("bins", [5, 15])
def test_ece_equals_torchmetrics_on_several_classes(bins: int) -> None:
    rng = np.random.default_rng(1)
    probabilities, target = softmax(rng.normal(size=(500, 6)) * 2), rng.integers(0, 6, 500)
    found = calibration(made(KIND, target, probabilities.argmax(1), probabilities), bins=bins, resamples=10)
    theirs = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(target), num_classes=6, n_bins=bins, norm="l1"
    )
    assert found.ece == pytest.approx(float(theirs), abs=1e-6)


def test_ece_equals_torchmetrics_on_a_binary_task() -> None:
    rng = np.random.default_rng(2)
    positive, target = rng.random(400), rng.integers(0, 2, 400)
    run = made(FLASH, target, positive >= 0.5, np.column_stack([1 - positive, positive]))
    theirs = binary_calibration_error(torch.from_numpy(positive), torch.from_numpy(target), n_bins=15, norm="l1")
    assert calibration(run, resamples=10).ece == pytest.approx(float(theirs), abs=1e-6)


def test_calibration_bins_by_hand() -> None:
    positive = np.array([0.1, 0.15, 0.5, 0.9, 1.0, 0.95])
    run = made(FLASH, [0, 1, 1, 1, 1, 0], positive >= 0.5, np.column_stack([1 - positive, positive]))
    found = calibration(run, bins=2, resamples=50)
    assert found.bins.clips.tolist() == [2, 4]  # an edge belongs to the bin above, 1.0 to the last
    assert found.bins.rate.tolist() == [0.5, 0.75]
    assert found.bins.gap.tolist() == pytest.approx([0.125 - 0.5, 0.8375 - 0.75])
    assert found.ece == pytest.approx((2 * 0.375 + 4 * 0.0875) / 6)
    assert found.clips(0) == ["c00000", "c00001"]
    with pytest.raises(IndexError, match="there are 2"):
        found.clips(2)


def test_bin_of_covers_every_probability() -> None:
    assert bin_of(np.array([0.0, 0.25, 0.2499, 1.0]), 4).tolist() == [0, 1, 0, 3]


def test_ece_is_zero_where_the_rate_is_the_confidence() -> None:
    assert ece(np.full(4, 0.75), np.array([1.0, 1, 1, 0]), 10) == pytest.approx(0.0)


def test_temperature_undoes_the_sharpness_put_in() -> None:
    run = sharp_run(n=4000, sharpness=2.5)
    found = calibration(run, resamples=20)
    assert found.temperature == pytest.approx(2.5, rel=0.08)
    assert found.scaled_ece < found.ece / 3
    assert found.scaled_nll < found.nll
    assert "2000 clips of val" in found.caption and "too sure" in found.caption


def test_fit_temperature_finds_the_root_of_the_gradient() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(300, 4)) * 3
    probabilities = softmax(logits)
    target = np.array([rng.choice(4, p=p) for p in softmax(logits / 3)])

    def slope(temperature: float) -> float:  # d NLL / d (1 / T), by hand: E_p[logit] - logit of the truth
        p = softmax(logits / temperature)
        return float(((p * logits).sum(1) - logits[np.arange(300), target]).mean())

    assert fit_temperature(probabilities, target) == pytest.approx(brentq(slope, 0.1, 49.0), rel=1e-3)


def test_tempered_keeps_the_order_and_is_the_identity_at_one() -> None:
    p = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(tempered(p, 1.0), p, atol=1e-11)
    assert (tempered(p, 4.0).argsort(1)[0] == p.argsort(1)[0]).all()
    assert tempered(p, 4.0)[0].max() < 0.5


def test_calibration_interval_widens_when_clips_come_in_groups() -> None:
    rng = np.random.default_rng(4)
    group = np.arange(400) // 20
    right = rng.random(20)[group] < 0.5  # whole groups right or wrong
    p = np.full((400, 6), 0.06) + 0.64 * np.eye(6)[0]
    target = np.where(right, 0, 1)
    alone = calibration(made(KIND, target, np.zeros(400), p), resamples=400)
    together = calibration(made(KIND, target, np.zeros(400), p, groups=group), resamples=400)
    assert together.interval.high - together.interval.low > 2 * (alone.interval.high - alone.interval.low)
    assert together.groups == 20


def test_calibration_of_true_probabilities_lies_within_chance() -> None:
    found = calibration(sharp_run(n=2000, sharpness=1.0), resamples=20)
    assert found.ece < found.expected[1] * 1.2
    too_sure = calibration(sharp_run(n=2000, sharpness=3.0), resamples=20)
    assert too_sure.ece > too_sure.expected[1] * 2


def test_calibration_without_val_has_no_temperature() -> None:
    p = softmax(np.random.default_rng(0).normal(size=(30, 6)))
    found = calibration(made(KIND, np.arange(30) % 6, p.argmax(1), p), resamples=10)
    assert np.isnan(found.temperature) and np.isnan(found.scaled_ece)
    assert "no predictions on val" in found.caption


def test_calibration_refuses_what_it_cannot_answer() -> None:
    with pytest.raises(ValueError, match="is a regression"):
        calibration(made(SCORE, [0.1, 0.2], [0.1, 0.3]))
    with pytest.raises(ValueError, match="has no probabilities"):
        calibration(made(KIND, [0, 1], [0, 1]))
    with pytest.raises(ValueError, match="flatters"):
        calibration(sharp_run(30), split="val")
    with pytest.raises(ValueError, match="bins=1"):
        calibration(sharp_run(30), bins=1)


def test_calibration_of_one_clip_and_of_one_class_has_no_false_interval() -> None:
    p = np.array([[0.7, 0.1, 0.1, 0.05, 0.03, 0.02]])
    one = calibration(made(KIND, [0], [0], p), resamples=10)
    assert one.ece == pytest.approx(0.3) and np.isnan(one.interval.low)
    same = calibration(made(KIND, [0] * 12, [0] * 12, np.repeat(p, 12, 0)), resamples=10)
    assert same.bins.clips.sum() == 12 and same.bins.rate.dropna().tolist() == [1.0]
