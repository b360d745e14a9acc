"""Where one token looks, in any layer and head: asked token by token, so no N x N matrix is ever made."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.analysis.explaining.targets import evaluating, frames_of
from workbench.data.tables import ClipTable
from workbench.models.probe import Softmax
from workbench.models.tml import TML
from workbench.training.predict import pick_device


@dataclass(frozen=True, eq=False, repr=False)
class TokenAttention:
    """Attention of single tokens, looked up when asked for. Made by :func:`token_attention`.

    One clip's queries and keys are held at a time: ``2 * L * N * D`` numbers (115 MB for VideoMAE-base and 1568
    tokens), whatever the number of clips.
    """

    model: TML
    frames: np.ndarray
    """uint8 (B, T, H, W, 3): the clips as the model sees them."""
    clip_ids: tuple[str, ...]
    num_layers: int
    """Softmaxes of one forward pass; a family that divides attention has two to a block, time and space."""
    num_heads: int
    _kept: dict[int, tuple[Softmax, ...]] = field(default_factory=dict)
    """What was recorded of the clip looked at last."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """(T', H', W')."""
        return self.model.backbone.grid

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __repr__(self) -> str:
        return (
            f"TokenAttention of {len(self)} clips: {self.num_layers} layers, {self.num_heads} heads, "
            f"{math.prod(self.grid)} tokens on the grid {self.grid}"
        )

    def look(
        self, clip: int, token: tuple[int, int, int], *, layer: int | None = None, head: int | None = None
    ) -> np.ndarray:
        """float32 (T', H', W'): how much ``token`` (t', y, x) attends to each token of ``clip``.

        ``layer``: None is the last; ``head``: None is the mean over heads. Sums to 1 less what goes to prefix tokens
        (CLS), which belong to no place. Raises ValueError naming what there is.
        """
        for name, index, count in (("clip", clip, len(self)), ("head", head, self.num_heads),
                                   ("layer", layer, self.num_layers)):  # fmt: skip
            if index is not None and not 0 <= index < count:
                raise ValueError(f"{name}={index} is not one of the {count} there are, from 0")
        if len(token) != 3 or any(not 0 <= at < size for at, size in zip(token, self.grid, strict=True)):
            raise ValueError(f"token={token} does not lie on the grid {self.grid}; give (t', y, x), from 0")
        softmax = self._recorded(clip)[self.num_layers - 1 if layer is None else layer]
        number = softmax.layout.prefix + int(np.ravel_multi_index(token, self.grid))
        seen = _row(softmax, number)[0, :, softmax.layout.prefix :]  # (A, N)
        one = seen.mean(0) if head is None else seen[head]
        found: np.ndarray = one.float().cpu().numpy().reshape(self.grid)
        return found

    def _recorded(self, clip: int) -> tuple[Softmax, ...]:
        if clip not in self._kept:
            self._kept.clear()  # before the next one is made
            self._kept[clip] = _softmaxes(self.model, self.frames[clip : clip + 1], str(self.model.backbone.device))
        return self._kept[clip]


@torch.no_grad()
def _row(softmax: Softmax, token: int) -> Tensor:
    """What ``softmax.look(token)`` gives, (1, A, P + N), from the one row of weights that it needs."""
    layout = softmax.layout
    reading = softmax.q.new_zeros(1, layout.tokens)
    reading[:, token] = 1
    entered = layout.enter(reading)  # (B', n): zero but for this token
    seen = softmax.q.new_zeros(*softmax.q.shape[:2], softmax.k.shape[2])  # (B', A, n)
    for sequence, place in entered.nonzero().tolist():
        logits = softmax.k[sequence] @ (softmax.q[sequence, :, place] * softmax.scale)[:, :, None]  # (A, n, 1)
        seen[sequence] += entered[sequence, place] * logits[..., 0].softmax(-1)
    return layout.leave(seen, reading)


def _softmaxes(model: TML, frames: np.ndarray, device: str) -> tuple[Softmax, ...]:
    with evaluating(model), torch.no_grad():
        return model.backbone.forward_recording(model.backbone.prepare(torch.from_numpy(frames)).to(device))[1]


def token_attention(
    run: Any, clips: ClipTable | np.ndarray | Tensor, *, device: str = "auto", progress: bool = True
) -> TokenAttention:
    """For clicking on a token: where it looks, in every layer and head.

    ``run`` and ``clips`` as for :func:`~workbench.analysis.explain.explain`. The model runs on the first clip now, on
    another when that is first looked at. Attention says where tokens were mixed; it does not explain the output.
    """
    where = str(pick_device(device))
    model: TML = run.model(where)
    frames, clip_ids = frames_of(run, clips, progress)
    first = _softmaxes(model, frames[:1], where)
    return TokenAttention(model, frames, clip_ids, len(first), int(first[0].q.shape[1]), {0: first})
