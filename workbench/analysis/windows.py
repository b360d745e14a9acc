"""Windows of a long video: which frames each needs, and only those in memory that one to come still needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.data.frames import Sampling
from workbench.data.judging import steady
from workbench.data.protocol import Protocol
from workbench.data.streaming import Piece
from workbench.data.synthetic.flash import flash_report

STRIP = 48
"""Posters kept of windows that nothing flags, evenly over the video."""


def windows_of(duration_seconds: float, window_seconds: float, stride_seconds: float) -> np.ndarray:
    """Start and end of each window, float64 (w, 2), ascending; the last one ends with the video.

    >>> windows_of(5.0, 2.0, 2.0).tolist()
    [[0.0, 2.0], [2.0, 4.0], [3.0, 5.0]]
    """
    room = duration_seconds - window_seconds
    starts = np.arange(max(0, int(np.floor(room / stride_seconds + 1e-6))) + 1) * stride_seconds
    if room - starts[-1] > 1e-6:
        starts = np.append(starts, room)
    return np.stack([starts, np.minimum(starts + window_seconds, duration_seconds)], axis=1)


@dataclass(frozen=True)
class Plan:
    """Which frames each of w windows needs; known before the first one is decoded."""

    spans: np.ndarray
    """float64 (w, 2): start and end in seconds."""
    indices: np.ndarray
    """int64 (w, T): positions of the frames that the model sees."""
    judged: np.ndarray
    """int64 (w, 2): positions of the first frame that the flash rule looks at, and of the one after the last."""

    @property
    def wanted(self) -> np.ndarray:
        return np.unique(self.indices)

    @property
    def poster(self) -> np.ndarray:
        """int64 (w,): the position of each window's poster."""
        return self.indices[:, self.indices.shape[1] // 2]

    @property
    def until(self) -> np.ndarray:
        """int64 (w,): how many frames must have been read for a window to be whole."""
        return np.maximum(self.indices.max(1) + 1, self.judged[:, 1])


def plan_windows(
    protocol: Protocol, times: np.ndarray, fps: float, window_seconds: float, stride_seconds: float, *, flash: bool
) -> Plan:
    """The plan of a video whose frames are shown at ``times`` (n,), by the protocol's sampling within each window.

    The rule looks at a window and as much before it that any one second of the video ends in a window that judges it
    whole. A window within which no frame begins sees the one that is on the screen.
    """
    policy = Sampling(
        num_frames=protocol.num_frames, sampling=protocol.sampling, sampling_rate=protocol.sampling_rate,
        fps=protocol.fps, short=protocol.short,
    )  # fmt: skip
    spans = windows_of(float(times[-1]) + 1 / fps, window_seconds, stride_seconds)
    low, high = (np.searchsorted(times, edge - 1e-6) for edge in spans.T)
    low = np.where(high <= low, np.maximum(high - 1, 0), low)
    high = np.maximum(high, low + 1)
    indices = np.stack([a + policy.indices(times[a:b])[0] for a, b in zip(low, high, strict=True)])
    back = np.searchsorted(times, spans[:, 1] - stride_seconds - 1.0 - 1e-6)
    return Plan(spans, indices, np.stack([np.minimum(low, back) if flash else high, high], axis=1))


Score = Callable[[np.ndarray], list[dict[str, Any]]]
"""uint8 (w, crops, T, S, S, 3) -> what is said of each window; ``flag`` says whether its poster is kept."""


@dataclass
class WindowReader:
    """Takes the pieces of a video and gives each window to ``score`` once it is whole, ``batch_size`` at a time."""

    plan: Plan
    times: np.ndarray
    fps: float
    score: Score
    batch_size: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One per window that was whole: what ``score`` says, and what the rule does."""
    posters: dict[int, bytes] = field(default_factory=dict)
    """By window."""
    frames_held: int = 0
    """The most of the model's frames in memory at once."""
    _squares: dict[int, np.ndarray] = field(default_factory=dict)
    _small: dict[int, np.ndarray] = field(default_factory=dict)
    _pictures: dict[int, bytes] = field(default_factory=dict)
    _ready: list[tuple[np.ndarray, dict[str, Any]]] = field(default_factory=list)
    _next: int = 0

    def __post_init__(self) -> None:
        self._until, self._poster, self._wanted = self.plan.until, self.plan.poster, self.plan.wanted
        self._shown = np.unique(self._poster)
        # What a window and all later ones need begins here.
        needs = self.plan.indices.min(1), self.plan.judged[:, 0], self._poster
        self._from = [np.minimum.accumulate(need[::-1])[::-1] for need in needs]

    def take(self, piece: Piece) -> None:
        """Keep a piece's frames, score the windows that are whole, let go of what none to come needs."""
        every = np.arange(piece.first, piece.first + len(piece.small))
        _keep(self._squares, self._wanted, piece, piece.squares)
        _keep(self._pictures, self._shown, piece, piece.posters)
        _keep(self._small, every, piece, piece.small)
        self.frames_held = max(self.frames_held, len(self._squares))
        while self._next < len(self._until) and self._until[self._next] <= piece.last:
            self._window(self._next)
            self._next += 1
        done = self._next, self._next, self._next - len(self._ready)
        stores: tuple[dict[int, Any], ...] = (self._squares, self._small, self._pictures)
        for store, needed, number in zip(stores, self._from, done, strict=True):
            least = needed[number] if number < len(needed) else piece.last
            for position in [p for p in store if p < least]:
                del store[position]

    def finish(self) -> None:
        """Score the windows that are left over from the last batch."""
        if not self._ready:
            return
        said = self.score(np.stack([frames for frames, _ in self._ready]))
        step = -(-len(self._until) // STRIP)
        for (_, rule), row in zip(self._ready, said, strict=True):
            number = len(self.rows)
            start, end = self.plan.spans[number].tolist()
            if row.pop("flag") or rule.get("rule_unsafe") or number % step == 0:
                self.posters[number] = self._pictures[int(self._poster[number])]
            self.rows.append({"start_seconds": start, "end_seconds": end} | row | rule)
        self._ready.clear()

    def _window(self, number: int) -> None:
        frames = np.stack([self._squares[i] for i in self.plan.indices[number].tolist()], axis=1)  # (crops, T, S, S, 3)
        self._ready.append((frames, self._rule(*self.plan.judged[number].tolist())))
        if len(self._ready) == self.batch_size:
            self.finish()

    def _rule(self, first: int, last: int) -> dict[str, Any]:
        if first == last:
            return {"general_flashes": None, "red_flashes": None, "rule_unsafe": None}
        frames = np.stack([self._small[i] for i in range(first, last)])
        report = flash_report(*steady(frames, self.times[first:last], self.fps))
        counts = {"general_flashes": report.general_flashes, "red_flashes": report.red_flashes}
        return counts | {"rule_unsafe": report.unsafe}


def _keep(store: dict[int, Any], places: np.ndarray, piece: Piece, values: Sequence[Any] | np.ndarray) -> None:
    inside = places[np.searchsorted(places, piece.first) : np.searchsorted(places, piece.last)]
    store.update(zip(inside.tolist(), values, strict=True))
