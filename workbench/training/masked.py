"""Masked reconstruction, as in VideoMAE (https://arxiv.org/abs/2203.12602): hide most tubes, predict their pixels.

The encoder sees only the tokens that are not hidden, at their own positions; a small decoder, thrown away after
pretraining, fills in the rest. What is trained is the encoder as it is, so its checkpoint loads as before.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tube_mask(batch_size: int, grid: tuple[int, int, int], ratio: float, generator: torch.Generator) -> Tensor:
    """Which tokens are hidden, bool (B, N), time-major: the same places at every time step, ``ratio`` of them.

    ``grid`` (T', H', W'). The share is rounded to whole places, at least one hidden and one shown, so that all rows
    hide equally many. Drawn on the CPU.
    """
    T, places = grid[0], grid[1] * grid[2]
    hidden = min(max(round(ratio * places), 1), places - 1)
    order = torch.rand(batch_size, places, generator=generator).argsort(1)
    return (order < hidden).repeat(1, T)


def patch_targets(pixel_values: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """Each token's own pixels, every channel brought to mean 0 and variance 1 within the token.

    (B, T, C, H, W) -> (B, N, tubelet_size * patch_size * patch_size * C): frames, rows, columns, channels. The
    normalised pixels are VideoMAE's targets (``norm_pix_loss``).
    """
    B, T, C, H, W = pixel_values.shape
    t, p = tubelet_size, patch_size
    cut = pixel_values.reshape(B, T // t, t, C, H // p, p, W // p, p).permute(0, 1, 4, 6, 2, 5, 7, 3)
    patches = cut.reshape(B, (T // t) * (H // p) * (W // p), t * p * p, C)
    centred = patches - patches.mean(2, keepdim=True)
    return (centred / (patches.var(2, keepdim=True).sqrt() + 1e-6)).flatten(2)


def sinusoid(length: int, width: int) -> Tensor:
    """Fixed position codes (length, width): sines and cosines of geometrically spaced wavelengths."""
    rate = 10000.0 ** (-2 * (np.arange(width) // 2) / width)
    angle = np.arange(length)[:, None] * rate
    return torch.from_numpy(np.where(np.arange(width) % 2, np.cos(angle), np.sin(angle)).astype(np.float32))


class MaskedDecoder(nn.Module):
    """From the shown tokens to the pixels of the hidden ones; narrow and shallow, since it is thrown away.

    ``hidden_size``: of the encoder. ``tokens``: N of a whole clip. ``outputs``: numbers per token to predict.
    """

    def __init__(self, hidden_size: int, tokens: int, outputs: int, *, width: int = 96, layers: int = 1) -> None:
        super().__init__()
        self.embed = nn.Linear(hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.positions: Tensor
        self.register_buffer("positions", sinusoid(tokens, width), persistent=False)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, max(1, width // 32), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, outputs)

    def forward(self, shown: Tensor, mask: Tensor) -> Tensor:
        """Encoded shown tokens (B, n, D) and ``mask`` (B, N) -> predictions for the hidden ones (B, N - n, outputs)."""
        B, N = mask.shape
        embedded = self.embed(shown)
        tokens = self.mask_token.to(embedded.dtype).expand(B, N, -1).clone()
        tokens[~mask] = embedded.flatten(0, 1)
        tokens = tokens + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.predict(self.norm(tokens[mask].view(B, -1, tokens.shape[-1])))


def masked_loss(predicted: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error on the hidden tokens: ``predicted`` (B, m, P), ``targets`` (B, N, P), ``mask`` (B, N)."""
    return F.mse_loss(predicted.float(), targets[mask].view_as(predicted))
