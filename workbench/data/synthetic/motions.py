"""Motion programs: where an object is, how large and how turned, at each moment of a clip.

Coordinates are those of the scene: x to the right, y down, the frame spans [-1, 1] in both. Time runs over [0, 1].
"""

from dataclasses import dataclass

import numpy as np

PLAYGROUND_ACTIONS = (
    "move_left", "move_right", "move_up", "move_down", "circle_cw", "circle_ccw",
    "grow", "shrink", "spin_cw", "spin_ccw", "bounce", "shake",
)  # fmt: skip

# Strokes are polylines in a unit box, y down, drawn once during the clip.
_STROKES: dict[str, list[tuple[float, float]]] = {
    "move_left": [(1, 0), (-1, 0)],
    "move_right": [(-1, 0), (1, 0)],
    "move_up": [(0, 1), (0, -1)],
    "move_down": [(0, -1), (0, 1)],
    "move_up_left": [(1, 1), (-1, -1)],
    "move_up_right": [(-1, 1), (1, -1)],
    "move_down_left": [(1, -1), (-1, 1)],
    "move_down_right": [(-1, -1), (1, 1)],
    "caret": [(-1, 1), (0, -1), (1, 1)],
    "vee": [(-1, -1), (0, 1), (1, -1)],
    "check": [(-1, 0), (-0.3, 1), (1, -1)],
    "zigzag": [(-1, -0.6), (-0.4, 0.6), (0.2, -0.6), (0.8, 0.6)],
    "cross": [(-1, -1), (1, 1), (1, -1), (-1, 1)],
    "star": [
        (float(np.sin(2 * np.pi * 2 * k / 5)), float(-np.cos(2 * np.pi * 2 * k / 5))) for k in range(6)
    ],
}  # fmt: skip
_POLYGONS = {"triangle": 3, "square": 4}

PRETRAIN_MOTIONS = (
    *PLAYGROUND_ACTIONS,
    *(name for name in _STROKES if name not in PLAYGROUND_ACTIONS),
    *(f"{name}_{turn}" for name in _POLYGONS for turn in ("cw", "ccw")),
    "wander",
    "still",
)
"""The playground's twelve actions, stroke figures, closed figures in both senses, a smooth random path, and rest."""


@dataclass(frozen=True)
class Track:
    """One object's state per frame: ``center`` (T, 2), ``scale`` (T,) half-width, ``angle`` (T,) radians clockwise."""

    center: np.ndarray
    scale: np.ndarray
    angle: np.ndarray


def _along(points: np.ndarray, progress: np.ndarray) -> np.ndarray:
    """Points (P, 2) walked at unit speed: positions (T, 2) at ``progress`` in [0, 1] of the length."""
    lengths = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    at = progress * lengths[-1]
    return np.stack([np.interp(at, lengths, points[:, i]) for i in (0, 1)], axis=1)


def _polygon(corners: int, clockwise: bool, start: float) -> np.ndarray:
    sense = 1.0 if clockwise else -1.0  # y points down, so growing angles turn clockwise on the screen
    angles = start + sense * 2 * np.pi * np.arange(corners + 1) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _path(name: str, rng: np.random.Generator, progress: np.ndarray) -> np.ndarray:
    """Offsets (T, 2) in a unit box for motions of the centre; zero for motions that stay in place."""
    if name in _STROKES:
        return _along(np.array(_STROKES[name], float), progress)
    if name in ("circle_cw", "circle_ccw"):
        return _along(_polygon(64, name.endswith("_cw"), rng.uniform(0, 2 * np.pi)), progress)
    figure, _, turn = name.partition("_")
    if figure in _POLYGONS:
        corners = _POLYGONS[figure]
        first = -np.pi / 2 - (np.pi / 4 if corners == 4 else 0.0) + 2 * np.pi * rng.integers(corners) / corners
        return _along(_polygon(corners, turn == "cw", first), progress)
    if name == "bounce":
        return np.stack([0 * progress, 1 - 2 * np.abs(np.sin(2 * np.pi * progress))], axis=1)
    if name == "shake":
        return np.stack([np.sin(2 * np.pi * 2.5 * progress), 0 * progress], axis=1)
    if name == "wander":
        waves = rng.normal(size=(3, 2, 2)) / np.arange(1, 4)[:, None, None]
        turns = np.pi * np.arange(1, 4)[:, None] * progress
        return 0.8 * (
            np.einsum("kd,kt->td", waves[..., 0], np.sin(turns)) + np.einsum("kd,kt->td", waves[..., 1], np.cos(turns))
        )
    return np.zeros((len(progress), 2))


def track(
    name: str,
    num_frames: int,
    rng: np.random.Generator,
    *,
    center: tuple[float, float] = (0.0, 0.0),
    scale: float = 0.25,
    reach: float = 0.45,
    rest: float = 0.0,
    tilt: float = 0.0,
) -> Track:
    """The state of one object doing ``name`` over ``num_frames`` frames.

    ``center``: middle of the figure it draws. ``scale``: its half-width at mid-clip. ``reach``: half-width of the
    figure. ``rest``: up to this share of the clip is spent at rest before and after. ``tilt``: the figure is turned by
    up to this many radians. Raises ValueError on an unknown motion.
    """
    if name not in PRETRAIN_MOTIONS:
        raise ValueError(f"unknown motion {name!r}; known: {', '.join(PRETRAIN_MOTIONS)}")
    begin, end = rng.uniform(0, rest + 1e-9), 1 - rng.uniform(0, rest + 1e-9)
    times = (np.arange(num_frames) + 0.5) / num_frames
    progress = np.clip((times - begin) / (end - begin), 0, 1)
    offsets = _path(name, rng, progress)
    turn = rng.uniform(-tilt, tilt)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    scales = np.full(num_frames, scale)
    if name in ("grow", "shrink"):
        # Symmetric in log-size about mid-clip, so that the middle frame of both looks alike.
        factor = rng.uniform(1.7, 2.2) ** (1 if name == "grow" else -1)
        scales = scale * factor ** (2 * progress - 1)
    angle = np.full(num_frames, rng.uniform(0, 2 * np.pi))
    if name.startswith("spin"):
        angle = angle + (1 if name == "spin_cw" else -1) * rng.uniform(1.2, 2.0) * np.pi * (2 * progress - 1)
    return Track(np.asarray(center) + reach * offsets @ rotation.T, scales, angle)


CAMERA_MOTIONS = ("static", "pan_left", "pan_right", "pan_up", "pan_down", "zoom_in", "zoom_out", "handheld")


def camera(name: str, num_frames: int, rng: np.random.Generator) -> Track:
    """The camera as a track: ``center`` is where it looks, ``scale`` the half-width it sees, ``angle`` its roll."""
    if name not in CAMERA_MOTIONS:
        raise ValueError(f"unknown camera motion {name!r}; known: {', '.join(CAMERA_MOTIONS)}")
    times = 2 * (np.arange(num_frames) + 0.5) / num_frames - 1  # -1 .. 1
    center, scale, angle = np.zeros((num_frames, 2)), np.ones(num_frames), np.zeros(num_frames)
    amount = rng.uniform(0.1, 0.3)
    if name.startswith("pan"):
        direction = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[name[4:]]
        center = times[:, None] * amount * np.array(direction, float)
    elif name.startswith("zoom"):
        scale = (1 + amount) ** (-times if name == "zoom_in" else times)
    elif name == "handheld":
        waves = np.sin(np.pi * np.outer(times, rng.uniform(0.5, 2.5, 6)) + rng.uniform(0, 2 * np.pi, 6))
        center = waves[:, :2] * rng.uniform(0, 0.12, 2)
        scale = 1 + waves[:, 2] * rng.uniform(0, 0.04)
        angle = waves[:, 3] * rng.uniform(0, 0.05)
    return Track(center, scale, angle)
