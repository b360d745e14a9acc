import numpy as np
import pytest
import torch

from tests.analysis.toys import tube_sum
from workbench.analysis.trust.perturb import (
    ExplainedOutput,
    area,
    deletion_curve,
    fill_pixels,
    removed_tubes,
    tube_pixels,
    tube_ranks,
)


def test_deletion_curve_of_a_sum_over_tubes_loses_the_largest_parts_first():
    output, fill, exact = tube_sum()
    curve = deletion_curve(output, fill, exact, steps=18)
    parts = -np.sort(-exact.reshape(3, -1), axis=1)
    full = output.scores(output.pixel_values)
    np.testing.assert_allclose(curve[:, 0], full, atol=1e-6)
    np.testing.assert_allclose(curve[:, 1:], full[:, None] - parts.cumsum(1), atol=1e-5)


def test_insertion_is_deletion_played_backwards_with_the_order_reversed():
    output, fill, exact = tube_sum()
    inserted = deletion_curve(output, fill, exact, steps=9, insertion=True)
    deleted_least_first = deletion_curve(output, fill, -exact, steps=9)
    np.testing.assert_allclose(inserted, deleted_least_first[:, ::-1], atol=1e-6)


def test_deletion_area_is_least_for_the_exact_attributions():
    output, fill, exact = tube_sum(seed=4)
    best = area(deletion_curve(output, fill, exact, steps=18))
    for seed in range(5):
        other = np.random.default_rng(seed).normal(size=exact.shape)
        assert (best < area(deletion_curve(output, fill, other, steps=18))).all()


def test_area_of_a_straight_line_is_its_middle():
    np.testing.assert_allclose(area(np.array([[1.0, 0.75, 0.5, 0.25, 0.0], [2.0] * 5])), [0.5, 2.0])


def test_tube_pixels_repeat_each_tube_over_its_patch_and_frames():
    tubes = np.arange(18).reshape(1, 2, 3, 3)
    pixels = tube_pixels(tubes, torch.zeros(1, 4, 3, 6, 9))
    assert pixels.shape == (1, 4, 1, 6, 9)
    assert pixels[0, 3, 0, 5, 8] == 17 and pixels[0, 2, 0, 1, 3] == tubes[0, 1, 0, 1]
    with pytest.raises(ValueError, match="does not divide"):
        tube_pixels(tubes, torch.zeros(1, 5, 3, 6, 9))


def test_tube_ranks_count_from_the_most_important_and_share_ties_by_lot():
    ranks = tube_ranks(np.array([3.0, -1.0, 7.0, 0.0]).reshape(1, 1, 2, 2))
    assert ranks.ravel().tolist() == [1, 3, 0, 2]
    even = np.zeros((200, 1, 1, 4))
    firsts = np.bincount(tube_ranks(even).reshape(200, 4).argmin(1), minlength=4)
    assert firsts.min() > 25  # each place is first about 50 times, not always the earliest
    with pytest.raises(ValueError, match="not finite"):
        tube_ranks(np.full((1, 1, 1, 2), np.nan))


def test_removed_tubes_take_the_share_from_either_end():
    ranks = np.arange(10).reshape(1, 1, 2, 5)
    assert removed_tubes(ranks, 0.3).ravel().tolist() == [True] * 3 + [False] * 7
    assert removed_tubes(ranks, 0.3, least_first=True).ravel().tolist() == [False] * 7 + [True] * 3
    assert not removed_tubes(ranks, 0.0, least_first=True).any() and removed_tubes(ranks, 1.0).all()


def test_fill_pixels_freeze_repeats_the_central_frame_and_blur_keeps_the_mean():
    x = torch.rand(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    frozen = fill_pixels(x, "freeze")
    assert torch.equal(frozen, x[:, 4:5].repeat(1, 8, 1, 1, 1))
    blurred = fill_pixels(x, "blur")
    assert blurred.std() < 0.15 * x.std()
    torch.testing.assert_close(blurred.mean((1, 3, 4)), x.mean((1, 3, 4)), atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="blur, freeze"):
        fill_pixels(x, "black")


def test_scores_are_probabilities_but_for_a_regression():
    plain, _, _ = tube_sum()
    binary, _, _ = tube_sum(kind="binary")
    logits = plain.logits(plain.pixel_values)
    np.testing.assert_allclose(plain.scores(plain.pixel_values), logits)
    np.testing.assert_allclose(binary.scores(binary.pixel_values), 1 / (1 + np.exp(-logits)), atol=1e-6)
    rows = np.array([2, 0])
    np.testing.assert_allclose(plain.logits(plain.pixel_values[rows], rows), logits[rows], atol=1e-7)


def test_explained_output_wants_a_column_per_clip():
    output, _, _ = tube_sum()
    with pytest.raises(ValueError, match="one per clip"):
        ExplainedOutput(output.model, "sum", output.pixel_values, [0])
