"""Attention as queries and keys: recorded while the model runs as it always does, made into weights piece by piece.

All layers' weights are B * L * A * N * N numbers (103 GB for a V-JEPA 2-L and one clip of 64 frames); the queries and
keys they come from are 2 * B * L * N * D. Most questions need a weighted sum of rows only, so the weights themselves
never have to exist at once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

PIECE_BYTES = 2**26
"""Of weights that exist at a time."""


@dataclass(frozen=True)
class Layout:
    """How the sequences of one softmax lie in a clip of P prefix tokens and then T * S time-major tokens.

    ``axis="joint"``: one sequence of all tokens, in the order ``order`` (indices into prefix and time-major tokens;
    None: as they are). ``"time"``: a sequence of T per place; prefix tokens look nowhere and keep themselves.
    ``"space"``: a sequence of Q + S per time step, Q prefix tokens first; with ``shared_prefix`` the same ones in all
    time steps (what they see is the mean over the steps), else each step has its own.
    """

    axis: str
    grid: tuple[int, int, int]
    """(T', H', W')."""
    prefix: int = 0
    """P, prefix tokens of the clip."""
    shared_prefix: bool = True
    order: Tensor | None = None

    @property
    def tokens(self) -> int:
        """P + N."""
        return self.prefix + math.prod(self.grid)

    def enter(self, reading: Tensor) -> Tensor:
        """A weight for each token of the clip (B, P + N) -> for each token of each sequence (B', n)."""
        if self.axis == "joint":
            return reading if self.order is None else reading[:, self.order]
        prefix, tokens = reading[:, : self.prefix], reading[:, self.prefix :].unflatten(1, (self.grid[0], -1))
        if self.axis == "time":
            return tokens.transpose(1, 2).flatten(0, 1)  # (B, T, S) -> (B * S, T)
        each = prefix[:, None].expand(-1, self.grid[0], -1) / self.grid[0] if self.shared_prefix else prefix[:, :, None]
        return torch.cat((each, tokens), 2).flatten(0, 1)  # (B * T, Q + S)

    def leave(self, seen: Tensor, reading: Tensor) -> Tensor:
        """What the sequences' tokens received (B', A, n) -> (B, A, P + N). ``reading``: what :meth:`enter` took."""
        clips = len(reading)
        if self.axis == "joint":
            if self.order is None:
                return seen
            back = torch.empty_like(seen)
            back[:, :, self.order] = seen
            return back
        seen = seen.unflatten(0, (clips, -1)).transpose(1, 2)  # (B, A, S or T, n)
        if self.axis == "time":
            kept = reading[:, None, : self.prefix].expand(-1, seen.shape[1], -1)
            return torch.cat((kept, seen.transpose(2, 3).flatten(2)), 2)
        each = self.prefix if self.shared_prefix else 1
        first, tokens = seen[..., :each], seen[..., each:].flatten(2)
        return torch.cat((first.sum(2) if self.shared_prefix else first.flatten(2), tokens), 2)


@dataclass(frozen=True)
class Softmax:
    """One softmax of one forward pass over B clips, in the B' sequences in which the model computed it."""

    q: Tensor
    """(B', A, n, d)."""
    k: Tensor
    """(B', A, n, d)."""
    scale: float
    """The weights are softmax(scale * q @ k^T)."""
    layout: Layout
    v: Tensor | None = None
    """(B', A, n, d), where asked for."""
    context: Tensor | None = None
    """What came of it, where asked for: the weights times ``v``, (B', A, n, d) or (B', n, A * d), in the autograd
    graph."""

    @property
    def clips(self) -> int:
        """B."""
        tokens = self.layout.tokens if self.layout.axis == "joint" else math.prod(self.layout.grid)
        if self.layout.axis == "space":
            return len(self.q) // self.layout.grid[0]
        return len(self.q) * self.q.shape[2] // tokens

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of the weights, a few at a time: (which, (B', A, rows, n)); each row sums to 1."""
        sequences, heads, n, _ = self.q.shape
        rows = max(1, PIECE_BYTES // (self.q.element_size() * sequences * heads * n))
        turned = self.k.transpose(-1, -2)
        for start in range(0, n, rows):
            part = slice(start, min(start + rows, n))
            yield part, ((self.q[:, :, part] * self.scale) @ turned).softmax(-1)

    def weights(self) -> Tensor:
        """All at once, (B', A, n, n)."""
        return torch.cat([piece for _, piece in self.pieces()], 2)

    def read(self, reading: Tensor) -> Tensor:
        """What each token receives in each head, when the tokens' outputs are read with the weights ``reading``:
        (B, P + N) -> (B, A, P + N), ``reading @ weights``. Sums are kept."""
        return self._gather(reading, lambda _rows, piece: piece)

    def read_weighted(self, reading: Tensor, gradient: Tensor) -> Tensor:
        """The same of ``max(0, weights * their gradients)``. ``gradient``: that of the output by ``context``.

        A prefix token that does not look (along time) hands nothing on. Raises ValueError without ``v``.
        """
        if self.v is None:
            raise ValueError("recorded without values; record with values=True")
        if gradient.ndim == 3:
            gradient = gradient.unflatten(-1, (self.v.shape[1], -1)).transpose(1, 2)  # (B', A, n, d)
        values = self.v.transpose(-1, -2)
        seen = self._gather(reading, lambda rows, piece: (piece * (gradient[:, :, rows] @ values)).clamp_min_(0))
        if self.layout.axis == "time":
            seen[..., : self.layout.prefix] = 0
        return seen

    def look(self, token: int) -> Tensor:
        """Where one token (prefix first, then time-major) looks, in each head and clip: (B, A, P + N), sums to 1."""
        if not 0 <= token < self.layout.tokens:
            raise ValueError(f"token={token} is not one of the {self.layout.tokens} tokens of a clip")
        reading = self.q.new_zeros(self.clips, self.layout.tokens)
        reading[:, token] = 1
        return self.read(reading)

    def _gather(self, reading: Tensor, piece_of: Callable[[slice, Tensor], Tensor]) -> Tensor:
        entered = self.layout.enter(reading)  # (B', n)
        seen = self.q.new_zeros(*self.q.shape[:2], self.k.shape[2])
        for rows, piece in self.pieces():
            seen += (entered[:, None, None, rows] @ piece_of(rows, piece)).squeeze(2)
        return self.layout.leave(seen, reading)


Note = Callable[[Tensor, Tensor, Tensor, float, Tensor], None]
"""Takes q, k, v, scale and context of one softmax."""


class Probe(TorchFunctionMode):
    """Inside, ``note`` is told of each call of torch's scaled dot-product attention in this thread.

    What torch computes stays as it is: no module is hooked, no function replaced, and outside nothing is different.
    """

    def __init__(self, note: Note) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            self._noted(out, *args, **(kwargs or {}))
        return out

    def _noted(
        self, out: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, **_rest: Any,
    ) -> None:  # fmt: skip
        if attn_mask is not None or is_causal or dropout_p:
            raise ValueError(
                "attention with a mask, causal or with dropout cannot be recorded; put the model in eval mode"
            )
        self.note(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale, out)
