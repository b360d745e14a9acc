"""What every backbone returns, and what its attention looks like where it does not span the whole clip."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tokens:
    """What every backbone returns.

    ``tokens`` (B, N, D), time-major: N = T' * H' * W' for ``grid`` (T', H', W').
    ``prefix`` (B, P, D): tokens that belong to no place in the clip (CLS); None where the family has none.
    """

    tokens: torch.Tensor
    grid: tuple[int, int, int]
    prefix: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.tokens.shape[1] != math.prod(self.grid):
            raise ValueError(
                f"tokens of shape {tuple(self.tokens.shape)} do not fit the grid {self.grid}; "
                f"expected (B, {math.prod(self.grid)}, D)"
            )


@dataclass(frozen=True)
class DividedAttention:
    """One softmax among the tokens of one place, or of one time step. T, S: time steps and places, S = H' * W'.

    ``axis="time"``: ``weights`` (B, A, S, T, T); each place looks along time, prefix tokens look nowhere.
    ``axis="space"``: ``weights`` (B, A, T, Q + S, Q + S); each time step looks at its places and Q prefix tokens,
    which come first. ``shared_prefix``: the prefix tokens are the same for all time steps (they look from each, and
    the mean of that is kept); else each time step has its own.
    """

    weights: torch.Tensor
    axis: str
    prefix: int
    """P, prefix tokens in the clip: Q where they are shared, else T * Q."""
    shared_prefix: bool = True

    def __post_init__(self) -> None:
        if self.axis not in ("time", "space") or self.weights.ndim != 5:
            raise ValueError(
                f"axis={self.axis!r} with weights of shape {tuple(self.weights.shape)}; expected 'time' with "
                "(B, A, S, T, T) or 'space' with (B, A, T, Q + S, Q + S)"
            )

    def dense(self) -> torch.Tensor:
        """The same as one matrix over all tokens, (B, A, P + N, P + N): prefix first, then time-major; rows sum to 1.

        A token that does not look (a prefix token along time) keeps itself. Quadratic in N: convert a layer at a time.
        """
        return self._dense_time() if self.axis == "time" else self._dense_space()

    def _dense_time(self) -> torch.Tensor:
        B, A, S, T, _ = self.weights.shape
        places = torch.arange(S, device=self.weights.device)
        inner = self.weights.new_zeros(B, A, T, S, T, S)
        inner[:, :, :, places, :, places] = self.weights.permute(2, 0, 1, 3, 4)  # (S, B, A, T, T)
        out = self.weights.new_zeros(B, A, self.prefix + T * S, self.prefix + T * S)
        out[:, :, self.prefix :, self.prefix :] = inner.reshape(B, A, T * S, T * S)
        keep = torch.arange(self.prefix, device=out.device)
        out[:, :, keep, keep] = 1.0
        return out

    def _dense_space(self) -> torch.Tensor:
        B, A, T, width, _ = self.weights.shape
        P, Q = self.prefix, self.prefix if self.shared_prefix else self.prefix // T
        S = width - Q
        out = self.weights.new_zeros(B, A, P + T * S, P + T * S)
        for t in range(T):
            step = self.weights[:, :, t]  # (B, A, Q + S, Q + S)
            own = slice(P + t * S, P + (t + 1) * S)
            cls = slice(0, Q) if self.shared_prefix else slice(t * Q, (t + 1) * Q)
            share = 1 / T if self.shared_prefix else 1.0
            out[:, :, own, own] = step[:, :, Q:, Q:]
            out[:, :, own, cls] = step[:, :, Q:, :Q]
            out[:, :, cls, own] = step[:, :, :Q, Q:] * share
            out[:, :, cls, cls] += step[:, :, :Q, :Q] * share
        return out


Attention = torch.Tensor | DividedAttention
"""One softmax: (B, A, P + N, P + N), prefix first, then time-major tokens; or divided."""


def dense_attentions(attentions: Iterable[Attention]) -> tuple[torch.Tensor, ...]:
    """Every softmax as (B, A, P + N, P + N), in the order in which the model applies them, as a rollout needs it."""
    return tuple(a.dense() if isinstance(a, DividedAttention) else a for a in attentions)
