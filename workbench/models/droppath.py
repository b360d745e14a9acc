"""Stochastic depth: while a backbone trains, each clip skips some of its blocks."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.models.backbones import Backbone


def rates(depth: int, rate: float) -> list[float]:
    """Probability that block i of ``depth`` is skipped: rising linearly from 0 in the first to ``rate`` in the last."""
    return [rate * i / max(1, depth - 1) for i in range(depth)]


class SkipBlock:
    """A forward hook that takes a block's input for its output in clips drawn with probability ``rate``.

    What other clips' blocks add is divided by ``1 - rate``, so that the mean of what comes out is the plain output.
    Behind a post-norm block (``residual=False``) the output is no sum of input and something added: nothing is scaled.
    """

    def __init__(self, backbone: Backbone, rate: float, *, residual: bool) -> None:
        self.backbone, self.rate, self.residual = backbone, rate, residual

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not block.training:
            return None
        before: Tensor = args[0] if args else kwargs["hidden_states"]
        after: Tensor = output[0] if isinstance(output, tuple) else output
        clips = len(self.backbone.tokens_of(after).tokens)  # image families hold a clip as several rows, one per frame
        kept = torch.rand(clips, device=after.device) >= self.rate
        kept = kept.repeat_interleave(len(after) // clips).view(-1, *[1] * (after.ndim - 1))
        step = after - before
        changed = before + torch.where(kept, step / (1 - self.rate) if self.residual else step, 0.0)
        changed = changed.to(after.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


@contextmanager
def drop_path(backbone: Backbone, rate: float) -> Iterator[None]:
    """Inside, blocks in train mode are skipped at random, clip by clip; names of weights stay, outputs in eval too.

    ``rate``: probability of the last block; earlier ones less (:func:`rates`), as in stochastic depth
    (https://arxiv.org/abs/1603.09382). A block is skipped whole, as there; timm and VideoMAE draw for its attention and
    its MLP apart. BERT and RoBERTa normalise after the sum, so their blocks are only skipped, never scaled, as in
    LayerDrop (https://arxiv.org/abs/1909.11556). Chance comes from PyTorch's global generator.

    Raises ValueError where ``rate`` is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path={rate!r} is a probability: at least 0 and below 1")
    with ExitStack() as hooks:
        blocks = backbone.blocks if rate else []
        for block, own in zip(blocks, rates(len(blocks), rate), strict=True):
            if own:
                hook = SkipBlock(backbone, own, residual=backbone.pre_norm)
                hooks.callback(block.register_forward_hook(hook, with_kwargs=True).remove)
        yield
