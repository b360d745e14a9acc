"""Corruptions: nothing at severity 0, worse with each step, the same for the same clip, and what their numbers say."""

import numpy as np
import pytest
from skimage.color import rgb2hsv

from workbench.data import corruptions
from workbench.data.clips import ClipDecodeError, read_views, write_clip
from workbench.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    TEMPORAL,
    clip_seed,
    corrupt,
    corrupted_views,
    shown_frames,
)
from workbench.data.protocol import Protocol
from workbench.data.synthetic.textures import texture


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    image = (texture(np.random.default_rng(1), 64).transpose(1, 2, 0) * 200).astype(np.uint8)
    return np.stack([np.roll(image, 2 * t, axis=1) for t in range(20)])[:, :56]


@pytest.fixture(scope="module")
def video(frames: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_clip(tmp_path_factory.mktemp("v") / "v.mp4", frames, 10.0, crf=10))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corrupt_is_the_identity_at_0_and_worse_with_each_step(kind: str, frames: np.ndarray):
    large = frames.repeat(3, 1).repeat(3, 2)  # a blur of a quarter of a pixel changes nothing
    assert corrupt(large, kind, 0, rng()) is large
    steps = []
    for seed in range(3 if kind in ("noise", *TEMPORAL) else 1):
        made = [corrupt(large, kind, s, rng(seed)) for s in range(6)]
        assert all(m.shape == large.shape and m.dtype == np.uint8 for m in made)
        steps.append([float(np.mean((m.astype(float) - large) ** 2)) for m in made])
    errors = np.mean(steps, axis=0)  # which frames are lost or stand is luck; on average a step is worse
    assert (np.diff(errors) > 0).all(), errors


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corrupt_depends_on_the_generator_alone(kind: str, frames: np.ndarray):
    first = corrupt(frames, kind, 3, rng(1))
    np.testing.assert_array_equal(first, corrupt(frames, kind, 3, rng(1)))
    others = [np.array_equal(first, corrupt(frames, kind, 3, rng(s))) for s in range(2, 6)]
    assert all(others) if kind not in ("noise", "frame_drops", "freeze") else not all(others)


def test_clip_seed_changes_with_clip_and_seed():
    assert clip_seed("a", 0) == clip_seed("a", 0)
    assert len({clip_seed(c, s) for c in ("a", "b") for s in (0, 1)}) == 4


@pytest.mark.parametrize("severity", [1, 5])
def test_noise_has_the_deviation_of_its_table(severity: int):
    grey = np.full((4, 64, 64, 3), 128, np.uint8)
    spread = corrupt(grey, "noise", severity, rng()).astype(float) / 255
    wanted = SEVERITIES["noise"][severity - 1]
    # What passes black or white is cut: the deviation of a normal cut at +-0.5, by a large draw of its own.
    cut = np.clip(np.random.default_rng(0).normal(0, wanted, 1_000_000), -0.5, 0.5).std()
    assert abs(spread.std() - cut) < 0.01


def test_brightness_raises_v_of_hsv_and_keeps_hue_and_saturation(frames: np.ndarray):
    before, after = rgb2hsv(frames[0]), rgb2hsv(corrupt(frames, "brightness", 2, rng())[0])
    np.testing.assert_allclose(after[..., 2], np.minimum(before[..., 2] + 0.2, 1), atol=1 / 255)
    bright = before[..., 2] > 0.3  # rounding to 8 bits moves hue and saturation of the dark ones
    np.testing.assert_allclose(after[bright][:, 1], before[bright][:, 1], atol=0.03)
    black = corrupt(np.zeros((1, 8, 8, 3), np.uint8), "brightness", 1, rng())
    assert (black == round(0.1 * 255)).all()


def test_blur_follows_the_size_of_the_frame():
    step = np.zeros((1, 448, 448, 3), np.uint8)
    step[:, :, 224:] = 255
    wide = corrupt(step, "blur", 2, rng())[0, 0, :, 0].astype(float)
    slope = np.abs(np.diff(wide)).max() / 255
    assert abs(slope - 1 / (4 * np.sqrt(2 * np.pi))) < 0.01  # 2 px of 224 are 4 px of 448: the Gaussian's peak


def test_scaling_leaves_blocks_of_one_colour():
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None] * 4, (1, 64, 64, 3)).copy()
    made = corrupt(ramp, "scaling", 5, rng())[0]  # a quarter of each side: blocks of four
    np.testing.assert_array_equal(made[:, ::4], made[:, 3::4])
    np.testing.assert_array_equal(made[0, ::4, 0], np.arange(16) * 16 + 6)  # mean of 0, 4, 8, 12 is 6


def test_freeze_and_drops_show_frames_of_the_clip_and_never_a_later_one():
    order = np.arange(40)
    for seed in range(20):
        for severity in range(1, 6):
            still = shown_frames(40, "freeze", severity, rng(seed))
            assert (still <= order).all() and (np.diff(still) >= 0).all()
            # The first of the frames that stand is shown at its own time.
            assert (still != order).sum() == round(SEVERITIES["freeze"][severity - 1] * 40) - 1
            drop = shown_frames(40, "frame_drops", severity, rng(seed))
            assert (drop <= order).all() and drop[0] == 0
            milder = shown_frames(40, "frame_drops", severity - 1, rng(seed))
            assert (drop <= milder).all()  # what a milder loss takes, a worse one takes too
    np.testing.assert_array_equal(shown_frames(7, "freeze", 0, rng()), np.arange(7))


def test_freeze_stands_for_some_of_the_clip_at_any_length():
    for total in (1, 2, 3):
        for severity in range(6):
            found = shown_frames(total, "freeze", severity, rng(severity))
            assert found.shape == (total,) and found.min() >= 0 and found.max() < total


@pytest.mark.parametrize("change", [
    {}, {"fit": "pad"}, {"resize_px": 40}, {"sampling": "dense", "sampling_rate": 2},
    {"num_clips": 2, "num_crops": 3, "level": "video"},
])  # fmt: skip
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corrupted_views_at_severity_0_are_the_clip_as_read(video: str, kind: str, change: dict[str, object]):
    reading = Protocol(num_frames=4, size_px=32, **change).reading()
    reading |= {"start_seconds": 0.3, "end_seconds": 1.7}
    made = corrupted_views(video, kind=kind, severities=[0, 5], seed=0, **reading)
    plain = read_views(video, **reading)
    np.testing.assert_array_equal(made[0], plain)
    assert made.shape == (2, *plain.shape) and not np.array_equal(made[1], plain)


@pytest.mark.parametrize("kind", ["freeze", "frame_drops", "compression"])
def test_corrupted_views_damage_the_whole_clip_and_then_sample(video: str, kind: str):
    whole = read_views(video, num_frames=20)[0][:, :, 4:60]  # a centre square of 56
    reading = Protocol(num_frames=5, size_px=56).reading()
    made = corrupted_views(video, kind=kind, severities=[4], seed=3, **reading)
    np.testing.assert_array_equal(made[0, 0], corrupt(whole, kind, 4, rng(3))[[2, 6, 10, 14, 18]])


def test_compression_takes_odd_sides(frames: np.ndarray):
    odd = frames[:6, :55, :53].mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)  # without the loss of chroma
    made = corrupt(odd, "compression", 1, rng())
    assert made.shape == odd.shape
    assert 0 < np.abs(made.astype(int) - odd).mean() < 6


def test_corrupted_views_name_a_clip_too_long(video: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corruptions, "_MAX_BYTES", 1000)
    reading = Protocol(num_frames=4, size_px=32).reading()
    with pytest.raises(ClipDecodeError, match="needs all 20 frames.*cut it shorter"):
        corrupted_views(video, kind="freeze", severities=[1], seed=0, **reading)
    assert corrupted_views(video, kind="blur", severities=[1], seed=0, **reading).shape == (1, 1, 4, 32, 32, 3)


def test_corrupt_names_what_is_wrong(frames: np.ndarray):
    with pytest.raises(ValueError, match="unknown corruption 'rain'.*compression"):
        corrupt(frames, "rain", 1, rng())
    with pytest.raises(ValueError, match="severity=6 must be"):
        corrupt(frames, "blur", 6, rng())


def test_every_kind_has_five_amounts_that_worsen():
    for kind, amounts in SEVERITIES.items():
        steps = np.diff(amounts)
        assert len(amounts) == 5
        assert (steps < 0).all() if kind == "scaling" else (steps > 0).all(), kind
