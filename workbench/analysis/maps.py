"""Where a model looked, or what moved its output: one number per token of a clip."""

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, repr=False)
class Maps:
    """Explanations of a few clips on the token grid (T', H', W'). Made by :func:`workbench.analysis.explain.explain`.

    Raw numbers, never rescaled per clip: rescaling would hide a difference between two clips or two models.
    """

    method: str
    """``attention``, ``rollout`` or ``integrated_gradients``."""
    task: str
    target: tuple[str, ...]
    """For each clip, the output explained: a class name, or the task's one logit or value."""
    values: np.ndarray
    """float32 (B, T', H', W'); for ``attention`` (B, L, A, T', H', W'): layers, heads.
    Attention and rollout sum to 1 over a grid; attributions sum to the output minus the baseline's output."""
    signed: bool
    """Whether negative values mean "against the target" (attributions) or cannot occur (attention)."""
    frames: np.ndarray
    """uint8 (B, T, H, W, 3): the clips as the model saw them."""
    clip_ids: tuple[str, ...]
    baseline: str | None = None
    """What an attribution is measured from: ``blur``, ``mean`` or ``black``."""
    completeness_error: np.ndarray | None = None
    """float (B,): \\|sum of attributions - (output - baseline output)\\| over \\|output - baseline output\\|."""
    steps: np.ndarray | None = None
    """int (B,): integration steps used."""
    converged: bool = True
    """False when an attribution's completeness error stayed above the tolerance for a clip: do not read that map."""

    def __post_init__(self) -> None:
        n = len(self.clip_ids)
        wanted = 6 if self.method == "attention" else 4
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
        for name in ("completeness_error", "steps"):
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
        return self.values.shape[1] if self.method == "attention" else None

    @property
    def num_heads(self) -> int | None:
        return self.values.shape[2] if self.method == "attention" else None

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __repr__(self) -> str:
        axes = "(B, L, A, T', H', W')" if self.method == "attention" else "(B, T', H', W')"
        lines = [
            f"Maps by {self.method} of task {self.task!r}, targets {', '.join(dict.fromkeys(self.target))}",
            f"  values {self.values.shape} {axes}{', signed' if self.signed else ''}; frames {self.frames.shape}",
        ]
        if self.completeness_error is not None:
            worst = float(self.completeness_error.max(initial=0.0))
            state = "converged" if self.converged else "NOT CONVERGED"
            lines.append(f"  baseline {self.baseline}; completeness error up to {worst:.2%}, {state}")
        return "\n".join(lines)

    def map(self, clip: int, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """float32 (T', H', W') of one clip; without ``layer`` or ``head`` the mean over them."""
        values = self.values[clip]
        if self.method != "attention":
            if layer is not None or head is not None:
                raise ValueError(f"method {self.method!r} has one map per clip, no layers or heads")
            return values
        values = values.mean(0) if layer is None else values[layer]  # (A, T', H', W')
        return values.mean(0) if head is None else values[head]  # (T', H', W')

    def upsampled(self, clip: int, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """float32 (T, H, W), trilinear between token centres: the map at the size of ``frames[clip]``."""
        coarse = torch.from_numpy(np.ascontiguousarray(self.map(clip, layer, head), dtype=np.float32))
        fine = torch.nn.functional.interpolate(
            coarse[None, None], size=self.frames.shape[1:4], mode="trilinear", align_corners=False
        )
        return fine[0, 0].numpy()
