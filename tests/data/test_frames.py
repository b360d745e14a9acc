"""Sampling policies against index tables made by hand, and views against PIL's own operations."""

import re

import numpy as np
import pytest
from PIL import Image

from workbench.data import frames as frames_module
from workbench.data.frames import Sampling, ShortClipError, resize_frame, uniform_indices, views_of


def at(fps: float, n: int) -> np.ndarray:
    return np.arange(n) / fps


@pytest.mark.parametrize(
    ("options", "n", "expected"),
    [
        ({"num_frames": 4}, 20, [[2, 7, 12, 17]]),
        ({"num_frames": 4, "num_clips": 2}, 20, [[1, 6, 11, 16], [3, 8, 13, 18]]),
        ({"num_frames": 6}, 3, [[0, 0, 1, 1, 2, 2]]),
        ({"num_frames": 4, "sampling": "single"}, 20, [[12, 12, 12, 12]]),
        ({"num_frames": 4, "sampling": "dense"}, 20, [[8, 9, 10, 11]]),
        ({"num_frames": 4, "sampling": "dense", "sampling_rate": 2}, 20, [[6, 8, 10, 12]]),
        (
            {"num_frames": 4, "sampling": "dense", "sampling_rate": 2, "num_clips": 3},
            20,
            [[0, 2, 4, 6], [6, 8, 10, 12], [13, 15, 17, 19]],
        ),
        ({"num_frames": 4, "sampling": "dense", "sampling_rate": 2}, 7, [[0, 2, 4, 6]]),
        ({"num_frames": 4, "sampling": "dense", "sampling_rate": 2}, 6, [[0, 2, 4, 5]]),
        ({"num_frames": 4, "sampling": "dense", "sampling_rate": 2, "short": "wrap"}, 6, [[0, 2, 4, 0]]),
        ({"num_frames": 4, "sampling": "dense", "sampling_rate": 2, "short": "wrap"}, 5, [[0, 2, 4, 1]]),
        ({"num_frames": 3, "sampling": "dense", "sampling_rate": 2, "num_clips": 2}, 1, [[0, 0, 0], [0, 0, 0]]),
        ({"num_frames": 4, "sampling": "fps", "fps": 5}, 20, [[6, 8, 10, 12]]),
        ({"num_frames": 4, "sampling": "fps", "fps": 5, "num_clips": 2}, 20, [[0, 2, 4, 6], [13, 15, 17, 19]]),
        ({"num_frames": 4, "sampling": "fps", "fps": 5}, 5, [[0, 2, 4, 4]]),
        ({"num_frames": 4, "sampling": "fps", "fps": 5, "short": "wrap"}, 5, [[0, 2, 4, 1]]),
        ({"num_frames": 4, "sampling": "fps", "fps": 20}, 20, [[8, 9, 9, 10]]),  # faster than the video: repeats
        ({"num_frames": 2, "sampling": "fps", "fps": 5}, 1, [[0, 0]]),
    ],
)
def test_indices_are_those_worked_by_hand(options: dict, n: int, expected: list[list[int]]) -> None:
    found = Sampling(**options).indices(at(10, n))
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_docstring_table_is_what_the_code_does() -> None:
    rows = re.findall(r"^\| (``.*?) \| ([\d ,and]+) \|", frames_module.__doc__ or "", re.MULTILINE)
    assert len(rows) == 6
    for said, numbers in rows:
        policy, *more = [part.strip().strip("`") for part in said.split(",")]
        options = {key: float(value) if key == "fps" else int(value) for key, value in (m.split("=") for m in more)}
        windows = [[int(i) for i in part.split()] for part in re.split(",|and", numbers)]
        assert Sampling(num_frames=4, sampling=policy, **options).indices(at(10, 20)).tolist() == windows


def test_indices_fps_follows_the_timestamps_of_a_variable_rate() -> None:
    # Shown: frame 0 for 1 s, then 10 frames of 0.1 s. Every 0.5 s from 0: t = 0, 0.5 (still frame 0), 1.0, 1.5.
    times = np.concatenate([[0.0], 1 + np.arange(10) / 10])
    assert Sampling(num_frames=4, sampling="fps", fps=2, num_clips=2).indices(times).tolist()[0] == [0, 0, 1, 6]
    # Where they start does not matter.
    shifted = Sampling(num_frames=4, sampling="fps", fps=2, num_clips=2).indices(times + 7)
    assert shifted.tolist()[0] == [0, 0, 1, 6]


@pytest.mark.parametrize("rate", [24, 25, 30, 60, 30000 / 1001, 240])
def test_indices_fps_survive_times_rounded_to_milliseconds(rate: float) -> None:
    exact = at(rate, 200)
    options = {"num_frames": 8, "sampling": "fps", "fps": rate / 3, "num_clips": 2}
    wanted = Sampling(**options).indices(exact)
    assert wanted[0].tolist() == list(range(0, 24, 3))
    assert (Sampling(**options).indices(exact.round(3)) == wanted).all()


@pytest.mark.parametrize("options", [{}, {"sampling": "dense", "sampling_rate": 3}, {"sampling": "fps", "fps": 4.0}])
def test_indices_random_start_covers_the_clip_and_repeats_with_its_seed(options: dict) -> None:
    times = at(12, 50)
    draws = [Sampling(num_frames=5, start="random", seed=s, **options).indices(times)[0] for s in range(300)]
    assert (Sampling(num_frames=5, start="random", seed=3, **options).indices(times)[0] == draws[3]).all()
    assert len({tuple(d) for d in draws}) > 25
    assert min(d.min() for d in draws) == 0
    assert max(d.max() for d in draws) == 49
    if options:  # a window keeps its step wherever it starts
        assert {tuple(np.diff(d)) for d in draws} == {(3, 3, 3, 3)}


def test_indices_uniform_windows_interleave_into_one_finer_sampling() -> None:
    windows = Sampling(num_frames=4, num_clips=3).indices(at(30, 97))
    assert windows.T.reshape(-1).tolist() == uniform_indices(97, 12).tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("short", ["repeat_last", "wrap"])
@pytest.mark.parametrize("start", ["centre", "random"])
@pytest.mark.parametrize(
    "options",
    [{}, {"sampling": "dense", "sampling_rate": 4}, {"sampling": "fps", "fps": 3.0}, {"sampling": "single"}],
)
def test_indices_always_lie_in_the_clip(n: int, short: str, start: str, options: dict) -> None:
    for seed in range(20):
        found = Sampling(num_frames=9, short=short, start=start, seed=seed, **options).indices(at(30, n))
        assert found.shape == (1, 9)
        assert ((found >= 0) & (found < n)).all()


@pytest.mark.parametrize(
    ("options", "enough"),
    [({}, 4), ({"sampling": "dense", "sampling_rate": 3}, 10), ({"sampling": "fps", "fps": 5.0}, 7)],
)
def test_indices_refuse_a_short_clip_only_when_told(options: dict, enough: int) -> None:
    sampling = Sampling(num_frames=4, short="error", **options)
    assert len(np.unique(sampling.indices(at(10, enough)))) == 4
    with pytest.raises(ShortClipError, match="short='repeat_last'"):
        sampling.indices(at(10, enough - 1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampling": "middle"}, "sampling='middle'"),
        ({"short": "loop"}, "short='loop'"),
        ({"start": "left"}, "start='left'"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"sampling": "fps"}, "fps=None"),
        ({"fps": 5.0}, "give fps with sampling='fps'"),
        ({"sampling": "fps", "fps": float("nan")}, "fps=nan"),
        ({"sampling_rate": 2}, "sampling_rate=2"),
        ({"sampling": "single", "num_clips": 2}, "num_clips=2"),
    ],
)
def test_sampling_refuses_what_it_cannot_mean(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Sampling(**{"num_frames": 4, **options})


def pattern(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (37, 111)])
def test_views_of_three_crops_are_the_ends_and_the_middle(height: int, width: int) -> None:
    frame = pattern(height, width)
    side = min(height, width)
    views = views_of(frame, side, num_crops=3)
    assert len(views) == 3
    first = frame[:side, :side]
    last = frame[height - side :, width - side :]
    assert (views[0] == first).all()
    assert (views[2] == last).all()
    assert (views[1] == resize_frame(frame, side)).all()


def test_views_of_resize_px_cuts_the_centre_of_the_scaled_frame() -> None:
    frame = pattern(80, 120)
    (view,) = views_of(frame, 20, resize_px=40)  # scaled to 40x60, then the centre 20: source box 40x40 at the middle
    box = Image.fromarray(frame).crop((40, 20, 80, 60)).resize((20, 20), Image.Resampling.BILINEAR)
    # Pixels of the rim see their neighbours outside the box when it is only a window, not a picture of its own.
    assert np.abs(view[2:-2, 2:-2].astype(int) - np.asarray(box)[2:-2, 2:-2]).max() <= 1


def test_views_of_keep_the_aspect_ratio_unless_stretched() -> None:
    frame = np.zeros((60, 120, 3), np.uint8)
    frame[20:40, 50:70] = 255  # a square

    def sides(view: np.ndarray) -> tuple[int, int]:
        lit = view[..., 0] > 127
        return int(lit.any(1).sum()), int(lit.any(0).sum())

    assert sides(views_of(frame, 60, "crop")[0]) == (20, 20)
    assert sides(views_of(frame, 60, "pad")[0]) == (10, 10)
    assert sides(views_of(frame, 60, "stretch")[0]) == (20, 10)


@pytest.mark.parametrize(
    "options",
    [
        {"fit": "squash"}, {"num_crops": 2}, {"size_px": 0}, {"fit": "pad", "num_crops": 3},
        {"fit": "stretch", "resize_px": 64}, {"resize_px": 16},
    ],
)  # fmt: skip
def test_views_of_refuse_what_does_not_go_together(options: dict) -> None:
    with pytest.raises(ValueError, match="size_px|fit|num_crops|resize_px"):
        views_of(pattern(40, 40), **{"size_px": 32, **options})
