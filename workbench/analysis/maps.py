"""Where a model looked, or what moved its output: one number per token of a clip."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from workbench.analysis.explaining.baselines import baseline_frames

BY_HEAD = ("attention", "task_attention")
"""Methods that have a map for each layer and head."""


@dataclass(frozen=True, repr=False)
class Maps:
    """Explanations of a few clips on the token grid (T', H', W'). Made by :func:`workbench.analysis.explain.explain`.

    Raw numbers, never rescaled per clip: rescaling would hide a difference between two clips or two models.
    """

    method: str
    """One of :data:`workbench.analysis.explain.METHODS`."""
    task: str
    target: tuple[str, ...]
    """For each clip, the output explained: a class name, or the task's one logit or value."""
    values: np.ndarray
    """float32 (B, T', H', W'); for ``attention`` and ``task_attention`` (B, L, A, T', H', W'): layers, heads, unless
    one was chosen. Attention and rollout sum to 1 over a grid; integrated gradients and Shapley values to the output
    minus the baseline's."""
    signed: bool
    """Whether negative values mean "against the target" (attributions) or cannot occur (attention)."""
    frames: np.ndarray
    """uint8 (B, T, H, W, 3): the clips as the model saw them."""
    clip_ids: tuple[str, ...]
    baseline: str | None = None
    """What an attribution is measured from: ``blur``, ``mean``, ``black``, ``frozen``; see :meth:`baseline_frames`."""
    completeness_error: np.ndarray | None = None
    """float (B,): \\|sum of attributions - (output - baseline output)\\| over \\|output - baseline output\\|."""
    steps: np.ndarray | None = None
    """int (B,): integration steps used."""
    converged: bool = True
    """False when an attribution's completeness error stayed above the tolerance for a clip: do not read that map."""
    layer: int | str | None = None
    """Where an attribution was taken (``pixels``, ``embedding``, a block's number), or the attention layer chosen."""
    head: int | None = None
    """The attention head chosen."""
    output: np.ndarray | None = None
    """float32 (B,): the output that is explained, a logit or a value."""
    noise_samples: int = 0
    """Noisy copies that the map is a mean over; 0: of the clip alone."""

    def __post_init__(self) -> None:
        n = len(self.clip_ids)
        whole = self.method in BY_HEAD and self.layer is None and self.head is None
        wanted = 6 if whole else 4
        if self.values.ndim != wanted or len(self.values) != n:
            raise ValueError(
                f"values of shape {self.values.shape} for {n} clips: method {self.method!r} needs "
                f"({n}, {'L, A, ' if wanted == 6 else ''}T', H', W')"
            )
        if self.frames.dtype != np.uint8 or self.frames.ndim != 5 or len(self.frames) != n:
            raise ValueError(f"frames are {self.frames.dtype} {self.frames.shape}; expected uint8 ({n}, T, H, W, 3)")
        if any(big % small for big, small in zip(self.frames.shape[1:4], self.grid, strict=True)):
            raise ValueError(f"the grid {self.grid} does not divide the frames (T, H, W) = {self.frames.shape[1:4]}")
        if len(self.target) != n:
            raise ValueError(f"{len(self.target)} targets for {n} clips; give one name per clip")
        for name in ("completeness_error", "steps", "output"):
            value = getattr(self, name)
            if value is not None and value.shape != (n,):
                raise ValueError(f"{name} of shape {value.shape}; expected ({n},)")

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T', H', W')."""
        t, h, w = self.values.shape[-3:]
        return t, h, w

    @property
    def tokens_per_clip(self) -> int:
        return math.prod(self.grid)

    @property
    def num_layers(self) -> int | None:
        """L for ``attention``; None for a method that has one map per clip."""
        return self.values.shape[1] if self.values.ndim == 6 else None

    @property
    def num_heads(self) -> int | None:
        return self.values.shape[2] if self.values.ndim == 6 else None

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __repr__(self) -> str:
        axes = "(B, L, A, T', H', W')" if self.values.ndim == 6 else "(B, T', H', W')"
        lines = [
            f"Maps by {self.method}{self._where()} of task {self.task!r}, "
            f"targets {', '.join(dict.fromkeys(self.target))}",
            f"  values {self.values.shape} {axes}{', signed' if self.signed else ''}; frames {self.frames.shape}",
        ]
        if self.completeness_error is not None:
            worst = float(self.completeness_error.max(initial=0.0))
            state = "converged" if self.converged else "NOT CONVERGED"
            lines.append(f"  baseline {self.baseline}; completeness error up to {worst:.2%}, {state}")
        return "\n".join(lines)

    def _where(self) -> str:
        at = f" at {self.layer}" if isinstance(self.layer, str) else f" of layer {self.layer}"
        parts = ["" if self.layer is None else at, "" if self.head is None else f" of head {self.head}"]
        return "".join(parts) + (f", mean of {self.noise_samples} noisy copies," if self.noise_samples else "")

    def map(self, clip: int, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """float32 (T', H', W') of one clip; without ``layer`` or ``head`` the mean over them."""
        values = self.values[clip]
        if values.ndim == 3:
            if layer is not None or head is not None:
                raise ValueError(f"method {self.method!r} has one map per clip, no layers or heads")
            return values
        values = values.mean(0) if layer is None else values[layer]  # (A, T', H', W')
        return values.mean(0) if head is None else values[head]  # (T', H', W')

    def upsampled(self, clip: int, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """float32 (T, H, W), trilinear between token centres: the map at the size of ``frames[clip]``."""
        return upsample(self.map(clip, layer, head), self.frames.shape[1:4])

    def mass(self, clip: int, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """float64 (T', H', W') that sums to 1: each token's share of what speaks for the target.

        Of a signed map only the positive part. Where nothing speaks for the target every token has the same share.
        """
        positive = self.map(clip, layer, head).astype(np.float64).clip(0)
        total = positive.sum()
        return positive / total if total > 0 else np.full_like(positive, 1 / positive.size)

    def temporal_curve(self, clip: int, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """float64 (T,), sums to 1: each frame's share of :meth:`mass`; a time step's is shared among its frames."""
        steps = self.mass(clip, layer, head).sum((1, 2))
        frames = self.frames.shape[1] // len(steps)
        return np.repeat(steps / frames, frames)

    def share_in(self, clip: int, mask: np.ndarray, layer: int | None = None, head: int | None = None) -> float:
        """The share of :meth:`mass`, 0 to 1, within ``mask``: bool (T', H', W') of tokens, or (T, H, W) of pixels.

        A token that a mask of pixels covers in part counts by that part. Raises ValueError on another shape.
        """
        mass, size = self.mass(clip, layer, head), self.frames.shape[1:4]
        if mask.shape == size and size != self.grid:
            parts = [n for big, small in zip(size, self.grid, strict=True) for n in (small, big // small)]
            mask = mask.reshape(parts).mean((1, 3, 5))
        if mask.shape != self.grid:
            raise ValueError(f"mask of shape {mask.shape}; expected tokens {self.grid} or pixels (T, H, W) = {size}")
        return float((mass * mask).sum())

    def slice_xt(
        self, clip: int, row: int | None = None, layer: int | None = None, head: int | None = None
    ) -> np.ndarray:
        """float32 (T', W'), time down and the frame's width across: one row of tokens, or without ``row`` the sum of
        all rows. A thing that moves draws a slanted line."""
        values = self.map(clip, layer, head)
        if row is not None and not -values.shape[1] <= row < values.shape[1]:
            raise ValueError(f"row={row} is not one of the {values.shape[1]} rows of tokens, from 0")
        return values.sum(1) if row is None else values[:, row]

    def baseline_frames(self, clip: int) -> np.ndarray:
        """uint8 (T, H, W, 3): what the attributions of ``clip`` are measured from, to be looked at.

        Raises ValueError for a method that is measured from nothing.
        """
        if self.baseline is None:
            raise ValueError(f"method {self.method!r} has no baseline")
        return baseline_frames(self.frames[clip : clip + 1], self.baseline)[0]


def upsample(values: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
    """One map (T', H', W') -> float32 ``size`` (T, H, W), trilinear between token centres."""
    coarse = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    fine = torch.nn.functional.interpolate(coarse[None, None], size=size, mode="trilinear", align_corners=False)
    found: np.ndarray = fine[0, 0].numpy()
    return found
