import numpy as np

from workbench.analysis.trust.priors import PRIORS, centre_map, motion_map, prior_maps, random_map


def test_motion_map_finds_what_moves_by_hand():
    frames = np.zeros((1, 4, 4, 4, 3), np.uint8)
    frames[0, 2:, :2, :2] = 100  # a patch lights up between frames 1 and 2
    found = motion_map(frames, (2, 2, 2))
    # Steps are 0, 100, 0. Frame 0 knows only the step out of it; frames 1 and 2 have (0 + 100) / 2; frame 3 has 0.
    expected = np.zeros((1, 2, 2, 2))
    expected[0, :, 0, 0] = 25
    np.testing.assert_allclose(found, expected)
    assert not motion_map(frames[:, :1], (1, 2, 2)).any()


def test_centre_map_is_symmetric_and_falls_from_the_middle():
    one = centre_map(np.zeros((2, 8, 32, 32, 3), np.uint8), (4, 5, 5))
    assert one.shape == (2, 4, 5, 5)
    np.testing.assert_allclose(one, one[:, :, ::-1, ::-1])
    assert one[0, 0, 2, 2] == 1.0 == one.max()
    assert one[0, 0, 0, 2] == np.float32(np.exp(-0.5 * (0.4 / 0.25) ** 2))


def test_random_map_of_a_clip_does_not_depend_on_the_others():
    frames = np.zeros((3, 8, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(random_map(frames, (2, 2, 2))[:1], random_map(frames[:1], (2, 2, 2)))
    assert (random_map(frames, (2, 2, 2)) != random_map(frames, (2, 2, 2), seed=1)).any()
    assert tuple(prior_maps(frames, (2, 2, 2))) == PRIORS
