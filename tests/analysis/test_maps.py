"""What can be read off a map: shares of frames and masks, slices, and the baseline it was measured from."""

import numpy as np
import pytest

from workbench.analysis.explaining.baselines import baseline_frames, baseline_pixels
from workbench.analysis.maps import Maps


def maps_of(values, **options):
    values = np.asarray(values, np.float32)
    t, h, w = values.shape[-3:]
    frames = np.random.default_rng(0).integers(0, 256, (len(values), 2 * t, 4 * h, 4 * w, 3), np.uint8)
    ids = tuple(f"clip {i}" for i in range(len(values)))
    return Maps("attnlrp", "action", ("up",) * len(values), values, True, frames, ids, **options)


def test_mass_is_the_positive_part_that_sums_to_one():
    mass = maps_of([[[[3.0, -5.0]], [[1.0, 0.0]]]]).mass(0)
    np.testing.assert_allclose(mass, [[[0.75, 0]], [[0.25, 0]]])
    np.testing.assert_allclose(maps_of(-np.ones((1, 2, 1, 2))).mass(0), 0.25)  # nothing speaks for the target


def test_temporal_curve_gives_each_frame_its_share():
    curve = maps_of([[[[3.0, -5.0]], [[1.0, 0.0]]]]).temporal_curve(0)
    np.testing.assert_allclose(curve, [0.375, 0.375, 0.125, 0.125])


def test_share_in_a_mask_of_tokens_and_of_pixels():
    maps = maps_of([[[[3.0, -5.0]], [[1.0, 0.0]]]])
    tokens = np.array([[[False, True]], [[True, False]]])
    assert maps.share_in(0, tokens) == pytest.approx(0.25)
    pixels = np.zeros((4, 4, 8), bool)
    pixels[:2, :2, :4] = True  # the upper half of the first token
    assert maps.share_in(0, pixels) == pytest.approx(0.375)
    with pytest.raises(ValueError, match="expected tokens"):
        maps.share_in(0, np.zeros((3, 3, 3), bool))


def test_slice_xt_of_a_thing_that_moves_right_is_a_diagonal():
    values = np.zeros((1, 3, 2, 3))
    values[0, [0, 1, 2], 1, [0, 1, 2]] = 2
    maps = maps_of(values)
    np.testing.assert_array_equal(maps.slice_xt(0, row=1), 2 * np.eye(3))
    np.testing.assert_array_equal(maps.slice_xt(0, row=0), np.zeros((3, 3)))
    np.testing.assert_array_equal(maps.slice_xt(0), 2 * np.eye(3))
    with pytest.raises(ValueError, match="row=2"):
        maps.slice_xt(0, row=2)


@pytest.mark.parametrize("kind", ["blur", "mean", "black", "frozen"])
def test_baseline_frames_show_the_baseline_of_normalised_clips(kind):
    import torch

    frames = np.random.default_rng(1).integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    x = (torch.from_numpy(frames).permute(0, 1, 4, 2, 3) / 255 - mean) / std
    start = baseline_pixels(x, (-mean / std).flatten(), kind)
    expected = ((start * std + mean) * 255).permute(0, 1, 3, 4, 2)
    assert np.abs(baseline_frames(frames, kind) - expected.numpy()).max() < 0.51


def test_baseline_frames_of_maps_are_those_of_the_clip():
    maps = maps_of(np.zeros((2, 2, 2, 2)), baseline="frozen")
    np.testing.assert_array_equal(maps.baseline_frames(1), np.repeat(maps.frames[1, 2:3], 4, 0))
    with pytest.raises(ValueError, match="no baseline"):
        maps_of(np.zeros((1, 2, 2, 2))).baseline_frames(0)
    with pytest.raises(ValueError, match="not one of blur, mean, black, frozen"):
        baseline_frames(maps.frames, "white")


def test_repr_says_where_it_was_taken_and_of_how_many_noisy_copies():
    assert "attnlrp at pixels" in repr(maps_of(np.zeros((1, 2, 2, 2)), layer="pixels"))
    assert "of layer 3, mean of 8 noisy copies," in repr(maps_of(np.zeros((1, 2, 2, 2)), layer=3, noise_samples=8))
