"""Which positions in time, and how a frame becomes squares. No files, no decoder.

A policy takes the times of the ``n`` frames that a clip shows and says which of them are seen. Worked on a clip of
n = 20 frames at 10 frames a second, num_frames = 4:

| policy | frames | where they come from |
|---|---|---|
| ``uniform`` | 2 7 12 17 | the middle of four equal stretches: the whole clip, whatever its length |
| ``uniform``, num_clips=2 | 1 6 11 16 and 3 8 13 18 | the same stretches, at 1/4 and at 3/4 |
| ``dense``, sampling_rate=2 | 6 8 10 12 | every second frame; the window of 7 frames lies in the middle |
| ``dense``, sampling_rate=2, num_clips=3 | 0 2 4 6, 6 8 10 12, 13 15 17 19 | the first window, the middle, the last |
| ``fps``, fps=5 | 6 8 10 12 | what is on the screen every 0.2 s; by timestamps, so right for a variable rate |
| ``single`` | 12 12 12 12 | the middle one of ``uniform``: what can be had without motion |

A clip shorter than a ``dense`` or ``fps`` window: ``repeat_last`` stays on the last frame, ``wrap`` begins again,
``error`` raises. ``uniform`` needs no frame that is not there: it shows some twice (3 frames as 6: 0 0 1 1 2 2), and
only ``error`` refuses that.
"""

import math
from dataclasses import dataclass

import numpy as np

FITS = ("crop", "pad", "stretch")
POLICIES = ("uniform", "dense", "fps", "single")
SHORT = ("repeat_last", "wrap", "error")
STARTS = ("centre", "random")


class ShortClipError(ValueError):
    """A clip has fewer frames than its sampling needs, and ``short="error"``: ``reason``, and ``path`` where known."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason, path)  # both arguments, so that the error survives a process boundary
        self.reason, self.path = reason, path

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


def uniform_indices(total_frames: int, num_frames: int) -> np.ndarray:
    """Centres of ``num_frames`` equal stretches of ``total_frames``: ``floor((i + 0.5) * total / num)``, int64 (T,).

    >>> uniform_indices(100, 4).tolist()
    [12, 37, 62, 87]
    >>> uniform_indices(3, 6).tolist()  # a clip shorter than asked: frames repeat
    [0, 0, 1, 1, 2, 2]
    """
    if total_frames < 1 or num_frames < 1:
        raise ValueError(f"total_frames={total_frames} and num_frames={num_frames} must both be at least 1")
    # (2i + 1) * total // (2 * num) is the floor in whole numbers, free of rounding.
    return (2 * np.arange(num_frames, dtype=np.int64) + 1) * total_frames // (2 * num_frames)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a clip are seen. Checked when made; the module's docstring works each policy by hand."""

    num_frames: int
    """Frames per window, T."""
    sampling: str = "uniform"
    sampling_rate: int = 1
    """``dense``: step between kept frames, in frames."""
    fps: float | None = None
    """``fps``: kept frames per second."""
    num_clips: int = 1
    """Windows along time."""
    short: str = "repeat_last"
    start: str = "centre"
    """``random``: windows start anywhere they fit (``dense``, ``fps``), or each frame lies anywhere in its stretch
    (``uniform``), drawn from ``seed``."""
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"sampling": POLICIES, "short": SHORT, "start": STARTS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("num_frames", "sampling_rate", "num_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if (self.sampling == "fps") != (self.fps is not None):
            raise ValueError(
                f"fps={self.fps} with sampling={self.sampling!r}: give fps with sampling='fps', and only then"
            )
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps={self.fps} must be a finite number above 0")
        if self.sampling_rate != 1 and self.sampling != "dense":
            raise ValueError(f"sampling_rate={self.sampling_rate} is for sampling='dense', not {self.sampling!r}")
        if self.sampling == "single" and self.num_clips > 1:
            raise ValueError(f"num_clips={self.num_clips} with sampling='single': a single frame has one window")

    def indices(self, times: np.ndarray) -> np.ndarray:
        """Positions int64 (num_clips, num_frames) in ``times``, the ascending seconds (n,) of a clip's frames.

        >>> times = np.arange(20) / 10
        >>> Sampling(num_frames=4, sampling="dense", sampling_rate=2, num_clips=3).indices(times).tolist()
        [[0, 2, 4, 6], [6, 8, 10, 12], [13, 15, 17, 19]]
        >>> Sampling(num_frames=4, sampling="fps", fps=5).indices(times).tolist()
        [[6, 8, 10, 12]]

        Raises ValueError on an empty clip and :class:`ShortClipError` on a short one under ``short="error"``.
        """
        times = np.asarray(times, float)
        if times.ndim != 1 or not len(times):
            raise ValueError(f"times of shape {times.shape} must be (n,) with n >= 1")
        rng = np.random.default_rng(self.seed)
        if self.sampling == "dense":
            return self._dense(len(times), rng)
        if self.sampling == "fps":
            return self._fps(times - times[0], rng)
        return self._uniform(len(times), rng)

    def _uniform(self, n: int, rng: np.random.Generator) -> np.ndarray:
        T, V = self.num_frames, self.num_clips
        if n < T and self.sampling == "uniform":
            self._refuse_short(f"{n} frame(s)", f"{T}")
        if self.sampling == "single":
            return np.full((1, T), uniform_indices(n, T)[T // 2])
        stretch = np.arange(T, dtype=np.int64)
        if self.start == "random":
            return np.minimum(((stretch + rng.random((V, T))) * n / T).astype(np.int64), n - 1)
        window = np.arange(V, dtype=np.int64)[:, None]
        return (2 * V * stretch + 2 * window + 1) * n // (2 * V * T)

    def _dense(self, n: int, rng: np.random.Generator) -> np.ndarray:
        steps = self.sampling_rate * np.arange(self.num_frames, dtype=np.int64)
        room = n - int(steps[-1]) - 1
        if room < 0:
            self._refuse_short(f"{n} frame(s)", f"a window of {int(steps[-1]) + 1}")
        if self.start == "random":
            starts = np.sort(rng.integers(0, max(room, 0) + 1, self.num_clips))
        else:
            starts = np.floor(_spread(self.num_clips) * max(room, 0)).astype(np.int64)
        wanted = starts[:, None] + steps
        return wanted % n if self.short == "wrap" else np.minimum(wanted, n - 1)

    def _fps(self, times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        assert self.fps is not None
        step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / self.fps
        # Matroska rounds times to whole milliseconds: a frame that starts this little later is the one meant.
        slack = min(6e-4, step / 4)
        grid = np.arange(self.num_frames) / self.fps
        room = times[-1] - grid[-1]
        if room + step <= slack:  # the last frame stays on the screen for about one step
            self._refuse_short(f"{times[-1] + step:.3g} s", f"a window of {grid[-1]:.3g} s")
        room = max(room, 0.0)
        if self.start == "random":  # the last frame is on the screen for one more step
            starts = np.sort(rng.random(self.num_clips)) * (room + step) * (1 - 1e-9)
        else:
            starts = _spread(self.num_clips) * room
        wanted = starts[:, None] + grid
        if self.short == "wrap":
            wanted = wanted % (times[-1] + step)
        return np.maximum(np.searchsorted(times, wanted + slack, side="right") - 1, 0)

    def _refuse_short(self, have: str, need: str) -> None:
        if self.short == "error":
            raise ShortClipError(
                f"the clip has {have}, its sampling needs {need}; short='repeat_last' or 'wrap' fills up"
            )


def _spread(num_clips: int) -> np.ndarray:
    """Where windows start, as shares of the room there is: the middle for one, else from first to last."""
    return np.array([0.5]) if num_clips == 1 else np.linspace(0, 1, num_clips)


def resize_frame(frame: np.ndarray, size_px: int, fit: str = "crop") -> np.ndarray:
    """One uint8 frame (H, W, 3) as a square (size_px, size_px, 3); PIL's bilinear filter, widened when it shrinks."""
    return views_of(frame, size_px, fit)[0]


def views_of(
    frame: np.ndarray, size_px: int, fit: str = "crop", num_crops: int = 1, resize_px: int | None = None
) -> list[np.ndarray]:
    """Squares (size_px, size_px, 3) of one uint8 frame (H, W, 3), by PIL's bilinear filter, widened when it shrinks.

    ``crop`` scales the short side to ``resize_px`` (None: ``size_px``) and cuts: the centre, or with ``num_crops=3``
    the two ends of the long side and its centre. ``pad`` adds black bars, ``stretch`` changes the aspect ratio.
    """
    from PIL import Image

    height, width = frame.shape[:2]
    check_views(size_px, fit, num_crops, resize_px)
    if height == width == size_px and resize_px in (None, size_px):
        return [frame] * num_crops
    image, bilinear = Image.fromarray(np.ascontiguousarray(frame)), Image.Resampling.BILINEAR
    if fit == "stretch":
        return [np.asarray(image.resize((size_px, size_px), bilinear))]
    if fit == "crop":
        side = min(height, width) * size_px / (resize_px or size_px)
        places = [0.5] if num_crops == 1 else [0.0, 0.5, 1.0]
        views = []
        for place in places:
            across, down = (place, 0.5) if width >= height else (0.5, place)
            left, top = across * (width - side), down * (height - side)
            box = (left, top, left + side, top + side)
            views.append(np.asarray(image.resize((size_px, size_px), bilinear, box=box)))
        return views
    scale = size_px / max(height, width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    square = np.zeros((size_px, size_px, 3), np.uint8)
    top, left = (size_px - new_height) // 2, (size_px - new_width) // 2
    square[top : top + new_height, left : left + new_width] = np.asarray(
        image.resize((new_width, new_height), bilinear)
    )
    return [square]


def check_views(size_px: int | None, fit: str, num_crops: int, resize_px: int | None) -> None:
    """Raise ValueError on sizes and crops that do not go together."""
    if fit not in FITS:
        raise ValueError(f"fit={fit!r} is not one of {', '.join(FITS)}")
    if num_crops not in (1, 3):
        raise ValueError(f"num_crops={num_crops} must be 1 (the centre) or 3 (along the long side)")
    if size_px is not None and size_px < 1:
        raise ValueError(f"size_px={size_px} must be at least 1")
    if size_px is None and (num_crops > 1 or resize_px is not None):
        raise ValueError(f"num_crops={num_crops} and resize_px={resize_px} need size_px, the size of the squares")
    if fit != "crop" and (num_crops > 1 or resize_px not in (None, size_px)):
        raise ValueError(f"num_crops={num_crops} and resize_px={resize_px} need fit='crop', not {fit!r}")
    if resize_px is not None and size_px is not None and resize_px < size_px:
        raise ValueError(f"resize_px={resize_px} (short side) must be at least size_px={size_px} (the crop)")
