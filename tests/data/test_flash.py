"""The flash rule against sequences made by hand: how many flashes they hold is known before the code runs."""

import numpy as np
import pytest

from workbench.data.synthetic.flash import FlashReport, flash_report

SIZE = 48  # pixels; one cell per pixel, so areas are exact
FULL = SIZE * SIZE


def srgb(luminance: float) -> int:
    """The grey level whose relative luminance is nearest: the inverse of the sRGB curve, written independently."""
    encoded = 12.92 * luminance if luminance <= 0.0031308 else 1.055 * luminance ** (1 / 2.4) - 0.055
    return round(255 * encoded)


def square_wave(
    flashes: int,
    *,
    fps: int = 24,
    seconds: float = 1.0,
    dark: tuple[int, int, int] = (0, 0, 0),
    bright: tuple[int, int, int] = (200, 200, 200),
    area: float = 1.0,
) -> np.ndarray:
    """Dark frames with ``flashes`` evenly spaced bright spells, lasting as long as the gaps, on the first pixels."""
    frames = np.full((round(fps * seconds), FULL, 3), dark, np.uint8)
    time = (np.arange(len(frames)) + 0.5) / len(frames)
    lit = np.floor(time * (2 * flashes + 1)).astype(int) % 2 == 1
    frames[lit, : round(area * FULL)] = bright
    return frames.reshape(-1, SIZE, SIZE, 3)


def greys(levels: list[float]) -> np.ndarray:
    """One full frame of each relative luminance."""
    values = np.array([srgb(level) for level in levels], np.uint8)
    return np.broadcast_to(values[:, None, None, None], (len(values), SIZE, SIZE, 3)).copy()


@pytest.mark.parametrize("flashes", [0, 1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("fps", [24, 25, 30, 60])
def test_flash_report_counts_the_flashes_of_a_square_wave_at_any_frame_rate(flashes, fps):
    report = flash_report(square_wave(flashes, fps=fps), fps)
    assert report == FlashReport(flashes, 0, flashes > 3, 2 * flashes, 0)


def test_flash_report_steady_three_per_second_is_safe_and_four_is_not():
    half = {3: 4, 4: 3}  # frames at 24 per second
    for rate, frames in half.items():
        wave = greys([0.0, 0.6])[(np.arange(96) // frames) % 2]
        assert flash_report(wave, 24).general_flashes == rate
        assert flash_report(wave, 24).unsafe == (rate > 3)


def test_flash_report_takes_a_seventh_transition_within_a_second_as_too_many():
    levels = [0.0, 0.0, 0.0, 0.6, 0.6, 0.6] * 4  # 8 states of 3 frames: 7 transitions, ends bright
    report = flash_report(greys(levels), 24)
    assert (report.general_transitions, report.general_flashes, report.unsafe) == (7, 3, True)


@pytest.mark.parametrize(
    ("low", "contrast", "counted"), [(0.2, 0.09, 0), (0.2, 0.11, 4), (0.6, 0.09, 0), (0.6, 0.11, 4)]
)
def test_flash_report_needs_a_tenth_of_the_maximum_luminance(low, contrast, counted):
    frames = square_wave(4, dark=(srgb(low),) * 3, bright=(srgb(low + contrast),) * 3)
    assert flash_report(frames, 24).general_flashes == counted


@pytest.mark.parametrize(("dark", "counted"), [(0.78, 4), (0.82, 0)])
def test_flash_report_ignores_flashes_whose_darker_state_is_bright(dark, counted):
    frames = square_wave(4, dark=(srgb(dark),) * 3, bright=(srgb(dark + 0.15),) * 3)
    assert flash_report(frames, 24).general_flashes == counted


@pytest.mark.parametrize(("area", "counted"), [(0.24, 0), (0.25, 0), (0.26, 4), (1.0, 4)])
def test_flash_report_needs_more_than_a_quarter_of_the_screen(area, counted):
    frames = square_wave(4, area=area)
    assert flash_report(frames, 24).general_flashes == counted
    # In two bands at the top and the bottom: the combined area counts.
    assert flash_report(np.roll(frames, SIZE // 8, axis=1), 24).general_flashes == counted


def test_flash_report_area_fraction_moves_the_limit():
    frames = square_wave(4, area=0.24)
    assert flash_report(frames, 24, area_fraction=0.2).unsafe
    assert not flash_report(square_wave(4, area=0.4), 24, area_fraction=0.45).unsafe


@pytest.mark.parametrize("size", [(96, 96), (100, 130), (224, 224), (13, 7), (270, 480)])
def test_flash_report_area_holds_at_other_sizes(size):
    height, width = size
    for part, counted in ((0.15, 0), (0.4, 4)):
        frames = np.zeros((24, height, width, 3), np.uint8)
        lit = square_wave(4)[:, 0, 0, 0] > 0
        frames[lit, : round(part * height)] = 200
        assert flash_report(frames, 24).general_flashes == counted


def test_flash_report_counts_halves_that_flash_in_turn():
    frames = square_wave(4)
    frames[:, :, SIZE // 2 :] = 200 - frames[:, :, SIZE // 2 :]
    assert np.ptp(frames.mean((1, 2, 3))) == 0  # the mean of the frame never changes
    assert flash_report(frames, 24).general_flashes == 4


def test_flash_report_saturated_red_of_equal_luminance_is_a_red_flash_only():
    grey = (srgb(0.2126),) * 3  # the luminance of sRGB red
    report = flash_report(square_wave(4, dark=grey, bright=(255, 0, 0)), 24)
    assert report == FlashReport(0, 4, True, 0, 8)
    assert flash_report(square_wave(3, dark=grey, bright=(255, 0, 0)), 24) == FlashReport(0, 3, False, 0, 6)


@pytest.mark.parametrize(
    ("color", "red"),
    [
        ((255, 0, 0), 4),
        ((255, 60, 60), 4),  # linear 1 : 0.045 : 0.045, R share 0.92, 0.21 from grey
        ((255, 130, 130), 0),  # R share 0.66
        ((0, 255, 0), 0),
        ((0, 0, 255), 0),
        ((84, 0, 0), 4),  # linear R 0.089, 0.063 is the older definition's limit against black
        ((70, 0, 0), 0),  # linear R 0.061
    ],
)
def test_flash_report_red_needs_saturation_and_distance_from_black(color, red):
    assert flash_report(square_wave(4, bright=color), 24).red_flashes == red


def test_flash_report_red_against_blue_is_red_but_two_reds_or_a_pink_are_not():
    assert flash_report(square_wave(4, dark=(0, 255, 0), bright=(255, 0, 180)), 24).red_flashes == 0  # R share 0.69
    assert flash_report(square_wave(4, dark=(0, 255, 0), bright=(255, 0, 120)), 24).red_flashes == 4  # R share 0.84
    assert flash_report(square_wave(4, dark=(0, 0, 255), bright=(255, 0, 0)), 24).red_flashes == 4
    assert flash_report(square_wave(4, dark=(255, 0, 0), bright=(200, 0, 0)), 24).red_flashes == 0
    assert flash_report(square_wave(4, dark=(128, 128, 128), bright=(60, 60, 220)), 24).red_flashes == 0


@pytest.mark.parametrize("ramp", [1, 2, 3, 5])
def test_flash_report_takes_a_ramp_over_several_frames_as_one_transition(ramp):
    period = 60 // 4  # 4 Hz at 60 frames per second
    up, flat = np.linspace(0, 0.4, ramp + 1)[1:], period - 2 * ramp
    wave = np.tile(np.concatenate([np.zeros(flat // 2), up, np.full(flat - flat // 2, 0.4), up[::-1] - up[0]]), 4)
    assert len(wave) == 60
    assert np.diff(wave).max() == pytest.approx(0.4 / ramp)
    assert flash_report(greys(list(wave)), 60) == FlashReport(4, 0, True, 8, 0)


def test_flash_report_finds_ramps_whose_single_steps_are_below_the_limit():
    wave = np.abs((np.arange(60) % 12) - 6) / 6 * 0.3  # triangle of 5 Hz, 0.05 a frame
    assert flash_report(greys(list(wave)), 60).general_flashes == 5


def test_flash_report_small_ripple_does_not_split_a_transition():
    rng = np.random.default_rng(0)
    wave = 0.3 + 0.25 * np.sin(2 * np.pi * np.arange(60) / 20) + rng.uniform(-0.03, 0.03, 60)  # 3 Hz
    assert flash_report(greys(list(wave)), 60).general_flashes == 3


def test_flash_report_looks_at_one_second_at_a_time():
    # Nine spells of 2/9 s: any second holds at most five of the eight changes.
    assert flash_report(square_wave(4, seconds=2), 24) == FlashReport(2, 0, False, 5, 0)
    bunched = np.concatenate([square_wave(0, seconds=1), square_wave(4), square_wave(0, seconds=2)])
    assert flash_report(bunched, 24).general_flashes == 4
    assert flash_report(square_wave(4, seconds=0.5), 24).general_flashes == 4  # shorter than a second: all of it


def test_flash_report_flashing_areas_at_different_times_are_not_added_up():
    lit = square_wave(4)[:, 0, 0, 0] > 0
    left, right = lit.copy(), lit.copy()
    left[12:], right[:12] = False, False  # two flashes each
    for width, alone in ((SIZE // 5, 0), (SIZE // 2, 2), (SIZE // 2 + 2, 2)):  # the last pair overlaps on 8 %
        frames = np.zeros((24, SIZE, SIZE, 3), np.uint8)
        frames[left, :, :width] = 200
        frames[right, :, -width:] = 200
        assert flash_report(frames, 24).general_flashes == alone
    together = np.zeros((24, SIZE, SIZE, 3), np.uint8)
    together[lit, :, : SIZE // 5] = 200
    together[lit, :, -SIZE // 5 :] = 200
    assert flash_report(together, 24).general_flashes == 4


def test_flash_report_one_frame_flicker_at_high_rates_is_counted():
    frames = greys([0.0, 0.5])[np.arange(60) % 2]
    assert flash_report(frames, 60).general_transitions == 59
    assert flash_report(frames, 30).general_transitions == 30
    assert flash_report(frames, 8).general_transitions == 8
    assert flash_report(frames, 2).general_transitions == 2
    assert flash_report(frames, 59.94).general_transitions == 59


def textured(seed: int = 0) -> np.ndarray:
    """Soft blobs from black to white, (160, 160, 3), strong enough to pass 0.1 almost anywhere."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(160), np.fft.fftfreq(160)))
    field = np.fft.ifft2(np.exp(-((frequency * 14) ** 2)) * np.fft.fft2(rng.normal(size=(160, 160)))).real
    grey = np.clip((field - field.mean()) / field.std() * 60 + 128, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def test_flash_report_static_texture_and_single_frames_are_safe():
    still = np.broadcast_to(textured()[:96, :96], (48, 96, 96, 3)).copy()
    assert flash_report(still, 24) == FlashReport(0, 0, False, 0, 0)
    assert flash_report(still[:1], 24) == FlashReport(0, 0, False, 0, 0)


@pytest.mark.parametrize("speed_px", [1, 2, 4, 6])
@pytest.mark.parametrize("fps", [24, 60])
def test_flash_report_moving_texture_is_safe_though_its_pixels_flash(speed_px, fps):
    image = textured()
    frames = np.stack([np.roll(image, (t * speed_px, t * speed_px // 2), (0, 1))[:96, :96] for t in range(2 * fps)])
    by_pixel = (np.abs(np.diff((frames[..., 0] / 255) ** 2.2, axis=0)) > 0.1).sum(0)
    assert speed_px == 1 or np.median(by_pixel) > 3  # a rule on single pixels would find flashes
    assert flash_report(frames, fps).general_flashes == 0


def test_flash_report_moving_objects_are_safe():
    frames = np.zeros((48, 96, 96, 3), np.uint8)
    for t in range(48):
        y, x = np.abs((np.array([5, 7]) * t) % 112 - 56)
        frames[t, y : y + 40, x : x + 40] = (255, 0, 0) if t < 24 else (255, 255, 255)
    report = flash_report(frames, 24)
    assert not report.unsafe
    assert report.general_flashes <= 1


def test_flash_report_noise_finer_than_a_patch_is_safe():
    noise = np.random.default_rng(0).integers(0, 256, (48, 96, 96, 3), dtype=np.uint8)
    assert flash_report(noise, 24) == FlashReport(0, 0, False, 0, 0)


def test_flash_report_finds_a_flash_over_a_moving_texture():
    image, lit = textured(), square_wave(5)[:, 0, 0, 0] > 0
    frames = np.stack([np.roll(image, 2 * t, axis=1)[:96, :96] // 2 for t in range(24)])
    assert not flash_report(frames, 24).unsafe
    frames[lit] += 100
    assert flash_report(frames, 24).general_flashes == 5


@pytest.mark.parametrize("seed", range(6))
def test_flash_report_is_the_same_reversed_flipped_and_for_late_starts(seed):
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.uniform(0, 1, (14, 3, 4, 3)), rng.integers(1, 6, 14), axis=0)  # twelve patches, uneven times
    levels[..., 1:] *= rng.random((1, 3, 4, 1))  # some of them reddish
    frames = np.repeat(np.repeat((levels * 255).astype(np.uint8), 16, axis=1), 12, axis=2)
    report = flash_report(frames, 30, area_fraction=0.1)
    assert report.general_flashes >= 2
    for other in (frames[::-1], frames[:, ::-1], frames[:, :, ::-1], frames.transpose(0, 2, 1, 3)):
        assert flash_report(other, 30, area_fraction=0.1) == report
    held = np.concatenate([frames[:1].repeat(7, axis=0), frames, frames[-1:].repeat(20, axis=0)])
    assert flash_report(held, 30, area_fraction=0.1) == report


def test_flash_report_does_not_change_its_input():
    frames = square_wave(4)
    frames.setflags(write=False)
    assert flash_report(frames, 24).unsafe


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), 24, "float32"),
        ([[0]], 24, "list"),
        (np.zeros((4, 8, 8), np.uint8), 24, r"\(4, 8, 8\)"),
        (np.zeros((4, 3, 8, 8), np.uint8), 24, r"\(4, 3, 8, 8\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), 24, "at least one"),
        (np.zeros((4, 8, 8, 3), np.uint8), 0, "fps=0"),
        (np.zeros((4, 8, 8, 3), np.uint8), float("nan"), "fps=nan"),
        (np.zeros((4, 8, 8, 3), np.uint8), float("inf"), "fps=inf"),
    ],
)
def test_flash_report_names_what_is_wrong_with_its_input(frames, fps, message):
    with pytest.raises(ValueError, match=message):
        flash_report(frames, fps)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_flash_report_refuses_an_area_outside_zero_to_one(fraction):
    with pytest.raises(ValueError, match="area_fraction"):
        flash_report(np.zeros((4, 8, 8, 3), np.uint8), 24, area_fraction=fraction)
