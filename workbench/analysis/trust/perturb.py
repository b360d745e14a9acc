"""Take tubes away, most important first, and watch the output: deletion and insertion in space and time.

A *tube* is the pixels of one token: a patch over a tubelet's frames. What stands in its place, the *fill*, is ``blur``
(the clip without shape and motion) or ``freeze`` (its central frame, repeated: the clip without time).
"""

from collections.abc import Sequence

import numpy as np
import torch

from workbench.analysis.explain import baseline_pixels
from workbench.models.tml import TML

FILLS = ("blur", "freeze")
BATCH = 64  # clips per plain pass


class ExplainedOutput:
    """The one output of a model that is explained, for a fixed set of clips.

    ``pixel_values`` (B, T, C, H, W) on the model's device; ``columns`` (B,): which of the task's outputs, per clip (0
    for a task with one). Outputs are computed without gradients, in eval mode and in float32: enter
    :func:`~workbench.analysis.explain.evaluating` first.
    """

    def __init__(self, model: TML, task: str, pixel_values: torch.Tensor, columns: Sequence[int]) -> None:
        self.model, self.task, self.pixel_values = model, model.task(task), pixel_values
        self.columns = np.asarray(columns, np.int64)
        if self.columns.shape != (len(pixel_values),):
            raise ValueError(f"columns of shape {self.columns.shape} for {len(pixel_values)} clips; give one per clip")

    @torch.no_grad()
    def outputs(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """All outputs of the task, float32 (n, K), for any clips."""
        found = torch.cat([self.model(chunk)[self.task.name].float() for chunk in pixel_values.split(BATCH)])
        return found if found.ndim == 2 else found[:, None]

    def logits(self, pixel_values: torch.Tensor, rows: np.ndarray | None = None) -> np.ndarray:
        """The explained logit (or value), float64 (n,). ``rows`` (n,): of which of the B clips each is a version."""
        return self._pick(self.outputs(pixel_values), rows)

    def scores(self, pixel_values: torch.Tensor, rows: np.ndarray | None = None) -> np.ndarray:
        """Its probability; for a regression the value itself, float64 (n,)."""
        outputs = self.outputs(pixel_values)
        if self.task.kind == "multiclass":
            outputs = outputs.softmax(-1)
        elif self.task.kind != "regression":
            outputs = outputs.sigmoid()
        return self._pick(outputs, rows)

    def _pick(self, outputs: torch.Tensor, rows: np.ndarray | None) -> np.ndarray:
        rows = np.arange(len(self.columns)) if rows is None else rows
        columns = torch.from_numpy(self.columns[rows]).to(outputs.device)
        picked: np.ndarray = outputs.gather(1, columns[:, None])[:, 0].double().cpu().numpy()
        return picked


def fill_pixels(pixel_values: torch.Tensor, kind: str) -> torch.Tensor:
    """What stands in for what is taken away, (B, T, C, H, W); see :data:`FILLS`."""
    if kind not in FILLS:
        raise ValueError(f"fill={kind!r} is not one of {', '.join(FILLS)}")
    if kind == "freeze":
        middle = pixel_values.shape[1] // 2
        return pixel_values[:, middle : middle + 1].expand_as(pixel_values).contiguous()
    return baseline_pixels(pixel_values, pixel_values.new_zeros(pixel_values.shape[2]), "blur")


def tube_pixels(tubes: np.ndarray, pixel_values: torch.Tensor) -> torch.Tensor:
    """One number per tube (B, T', H', W') -> the same on every pixel, (B, T, 1, H, W), like ``pixel_values``."""
    out = torch.from_numpy(np.ascontiguousarray(tubes)).to(pixel_values.device)
    b, t, _, h, w = pixel_values.shape
    for axis, size in ((1, t), (2, h), (3, w)):
        if size % out.shape[axis]:
            raise ValueError(f"the grid {tuple(tubes.shape[1:])} does not divide clips of (T, H, W) = {(t, h, w)}")
        out = out.repeat_interleave(size // out.shape[axis], axis)
    return out[:, :, None]


def tube_ranks(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Each tube's place when they are sorted, most important first: int (B, T', H', W'), 0 is the most important.

    Ties are broken by ``seed``, not by place: an even map would otherwise take the clip away from its start.
    """
    flat = values.reshape(len(values), -1)
    if not np.isfinite(flat).all():
        raise ValueError("the map holds values that are not finite; see completeness_error, or explain in float32")
    luck = np.random.default_rng(seed).random(flat.shape)
    order = np.stack([np.lexsort((luck[i], -row)) for i, row in enumerate(flat)])
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(flat.shape[1])[None].repeat(len(flat), 0), 1)
    return ranks.reshape(values.shape)


def removed_tubes(ranks: np.ndarray, share: float, *, least_first: bool = False) -> np.ndarray:
    """bool (B, T', H', W'): the ``share`` of tubes that go first, rounded to whole tubes."""
    total = int(np.prod(ranks.shape[1:]))
    count = round(share * total)
    removed: np.ndarray = ranks >= total - count if least_first else ranks < count
    return removed


def deletion_curve(
    output: ExplainedOutput, fill: torch.Tensor, values: np.ndarray, *, steps: int = 10, insertion: bool = False,
    seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """The explained output's score while tubes go, most important first: float64 (B, steps + 1), from none to all.

    ``fill`` like the clips, from :func:`fill_pixels`. ``insertion``: the other way, from nothing but fill to the whole
    clip, most important first. A good map's deletion falls at once and its insertion rises at once.
    Petsiuk, Das and Saenko (for images), https://arxiv.org/abs/1806.07421
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1; 10 is usual")
    ranks = tube_ranks(values, seed=seed)
    curve = []
    for share in np.linspace(0, 1, steps + 1):
        gone = tube_pixels(removed_tubes(ranks, share), output.pixel_values)
        near, far = (fill, output.pixel_values) if insertion else (output.pixel_values, fill)
        curve.append(output.scores(torch.where(gone, far, near)))
    return np.stack(curve, 1)


def area(curve: np.ndarray) -> np.ndarray:
    """Area under curves over [0, 1], trapezoids: (B, S + 1) -> (B,)."""
    return np.trapezoid(curve, dx=1 / (curve.shape[1] - 1), axis=1)
