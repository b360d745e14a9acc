import numpy as np
import pytest

from workbench.data.synthetic.motions import CAMERA_MOTIONS, PLAYGROUND_ACTIONS, PRETRAIN_MOTIONS, camera, track

T = 32


def made(name: str, seed: int = 0, **options: float):
    return track(name, T, np.random.default_rng(seed), reach=0.4, **options)


def signed_area(points: np.ndarray) -> float:
    """Shoelace formula; positive is clockwise on a screen, where y points down."""
    x, y = points[:, 0], points[:, 1]
    return 0.5 * float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


@pytest.mark.parametrize(
    ("name", "axis", "sign"), [("move_left", 0, -1), ("move_right", 0, 1), ("move_up", 1, -1), ("move_down", 1, 1)]
)
def test_track_of_a_straight_move_runs_along_one_axis(name: str, axis: int, sign: int) -> None:
    center = made(name).center
    steps = np.diff(center, axis=0)
    # The first and last frames lie half a frame inside the clip, so T - 1 of T steps of 2 * reach are seen.
    assert np.allclose(steps[:, axis], sign * 2 * 0.4 / T)
    assert np.allclose(center[:, 1 - axis], 0)


@pytest.mark.parametrize("figure", ["circle", "square", "triangle"])
def test_track_of_a_closed_figure_turns_the_way_its_name_says(figure: str) -> None:
    for seed in range(5):
        assert signed_area(made(f"{figure}_cw", seed).center) > 0.05
        assert signed_area(made(f"{figure}_ccw", seed).center) < -0.05


def test_track_of_a_circle_keeps_its_distance() -> None:
    # A 64-gon of circumradius 0.4 comes no nearer than 0.4 * cos(pi / 64).
    radius = np.linalg.norm(made("circle_cw").center, axis=1)
    assert radius.max() <= 0.4 + 1e-9
    assert radius.min() >= 0.4 * np.cos(np.pi / 64) - 1e-9


def test_track_of_grow_and_shrink_is_symmetric_about_mid_clip() -> None:
    for name, sign in (("grow", 1), ("shrink", -1)):
        scale = made(name, scale=0.25).scale
        assert np.all(sign * np.diff(scale) > 0)
        assert np.allclose(scale * scale[::-1], 0.25**2)
        assert np.allclose(made(name).center, 0)


def test_track_of_spin_turns_clockwise_or_not() -> None:
    assert np.all(np.diff(made("spin_cw").angle) > 0)
    assert np.all(np.diff(made("spin_ccw").angle) < 0)


def test_track_of_bounce_touches_the_ground_three_times_and_shake_swings_five_half_waves() -> None:
    y = made("bounce").center[:, 1]
    # |sin| over one period: on the ground at both ends and in the middle, so two apexes.
    apexes = np.sum((y[1:-1] < y[:-2]) & (y[1:-1] <= y[2:]))
    assert apexes == 2
    x = made("shake").center[:, 0]
    assert np.sum(np.sign(x[1:]) != np.sign(x[:-1])) == 4


def test_track_rests_at_both_ends_when_asked() -> None:
    rng = np.random.default_rng(3)
    center = track("move_right", 100, rng, reach=0.4, rest=0.3).center
    moving = np.abs(np.diff(center[:, 0])) > 1e-9
    assert not moving[0] and not moving[-1]
    assert moving[40:60].all()
    assert center[0, 0] == pytest.approx(-0.4)
    assert center[-1, 0] == pytest.approx(0.4)


def test_track_is_the_same_for_the_same_seed() -> None:
    for name in PRETRAIN_MOTIONS:
        a, b = made(name, 7), made(name, 7)
        assert np.array_equal(a.center, b.center) and np.array_equal(a.scale, b.scale)


def test_track_refuses_an_unknown_motion() -> None:
    with pytest.raises(ValueError, match="unknown motion 'teleport'; known: move_left"):
        made("teleport")


def test_playground_actions_are_a_part_of_the_pretraining_motions() -> None:
    assert set(PLAYGROUND_ACTIONS) < set(PRETRAIN_MOTIONS)
    assert len(set(PRETRAIN_MOTIONS)) == len(PRETRAIN_MOTIONS)


def test_camera_pans_and_zooms_the_way_its_name_says() -> None:
    rng = np.random.default_rng(0)
    assert np.all(np.diff(camera("pan_right", T, rng).center[:, 0]) > 0)
    assert np.all(np.diff(camera("pan_up", T, rng).center[:, 1]) < 0)
    # Zooming in is seeing less of the world.
    assert np.all(np.diff(camera("zoom_in", T, rng).scale) < 0)
    still = camera("static", T, rng)
    assert not still.center.any() and not still.angle.any() and np.all(still.scale == 1)
    with pytest.raises(ValueError, match="unknown camera motion"):
        camera("dolly", T, rng)
    assert len(CAMERA_MOTIONS) == 8
