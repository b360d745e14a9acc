"""Many heads for one task trained at once on the same features: their weights stacked, every product batched.

Letters: S seeds, G settings (rate x decay) of each, B clips, N tokens, D width, A attention heads, d = D / A, K
outputs. Each of the S x G probes is what the head of a :class:`~workbench.models.tml.TML` would be alone: nothing is
shared but the reading of features, which depends on the seed alone.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.data.tables import Task
from workbench.models.tml import MeanHead, QueryHead
from workbench.training.losses import Standard

_BLOCK = "blocks.0."
_SPAN = "blocks.0.cross_attention."


class Bank:
    """S x G probes of one kind and task. ``heads``: one freshly drawn head per seed; ``lrs``, ``decays``: (G,)."""

    def __init__(
        self, task: Task, heads: Sequence[MeanHead | QueryHead], lrs: Sequence[float], decays: Sequence[float],
        *, betas: tuple[float, float], clip_norm: float, standard: Standard, device: torch.device,
    ) -> None:  # fmt: skip
        self.task, self.standard, self.betas, self.clip_norm = task, standard, betas, clip_norm
        self.pooled = isinstance(heads[0], MeanHead)
        states = [head.state_dict() for head in heads]
        self.weights: dict[str, Tensor] = {}
        for name in states[0]:
            stacked = torch.stack([state[name] for state in states])  # (S, ...)
            repeated = stacked[:, None].expand(-1, len(lrs), *stacked.shape[1:])
            self.weights[name] = repeated.to(device).contiguous().requires_grad_()
        # A single probe decays its matrices, those of two dimensions and more.
        self._decays = {name: value.ndim - 2 > 1 for name, value in self.weights.items()}
        self.shape = (len(heads), len(lrs))
        self._lrs, self._wds = (torch.tensor(v, device=device).expand(self.shape) for v in (lrs, decays))
        self._moments = {n: (torch.zeros_like(w), torch.zeros_like(w)) for n, w in self.weights.items()}
        self._steps = 0
        self._attention_heads = 1 if isinstance(heads[0], MeanHead) else _num_heads(heads[0])

    def step(self, values: Tensor, targets: Tensor, factor: float) -> None:
        """One step of AdamW for every probe, at ``factor`` times its rate.

        ``values`` (S, B, D), or (S, B, N, D) after :func:`normalised`; ``targets`` (S, B), NaN where missing.
        """
        losses = self.losses(self.logits(values), targets)  # (S, G)
        gradients = torch.autograd.grad(losses.sum(), list(self.weights.values()))
        self._update(dict(zip(self.weights, gradients, strict=True)), factor)

    def logits(self, values: Tensor) -> Tensor:
        """(S, B, D) pooled or (S, B, N, D) normalised tokens -> (S, G, B, K)."""
        if self.pooled:  # one product for all probes, since they read the same
            weight, bias = self.weights["linears.0.weight"], self.weights["linears.0.bias"]
            outputs = values @ weight.flatten(1, 2).transpose(-1, -2)  # (S, B, G K)
            return outputs.unflatten(-1, bias.shape[1:]).transpose(1, 2) + bias[:, :, None]
        return self._linear(self._attended(values), "linears.0")

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(S, G): each probe's mean loss over the clips that have the label; 0 where none has."""
        known = ~torch.isnan(targets)
        target = torch.where(known, targets, torch.zeros_like(targets))[:, None].expand(logits.shape[:3])  # (S, G, B)
        if self.task.kind == "multiclass":
            # Cross entropy; torch's own is slow over many rows of few classes.
            each = logits.logsumexp(-1) - logits.gather(-1, target[..., None].long())[..., 0]
        elif self.task.kind == "binary":
            each = F.binary_cross_entropy_with_logits(logits[..., 0], target.to(logits.dtype), reduction="none")
        else:
            mean, std = self.standard[self.task.name]
            each = (logits[..., 0] - ((target - mean) / std).to(logits.dtype)) ** 2
        return torch.where(known[:, None], each, 0.0).sum(-1) / known.sum(-1).clamp(min=1)[:, None]

    def state(self, seed: int, setting: int) -> dict[str, Tensor]:
        """The state of one probe's head, as :class:`~workbench.models.tml.TML` names it."""
        return {name: value[seed, setting].detach().cpu().clone() for name, value in self.weights.items()}

    @torch.no_grad()
    def _update(self, gradients: dict[str, Tensor], factor: float) -> None:
        """torch's AdamW after ``clip_grad_norm_``, each probe by itself."""
        self._steps += 1
        first, second = (1 - beta**self._steps for beta in self.betas)
        each = torch.stack([torch.linalg.vector_norm(g.flatten(2), dim=-1) for g in gradients.values()])
        norms = torch.linalg.vector_norm(each, dim=0)  # (S, G)
        scale, lrs = (self.clip_norm / (norms + 1e-6)).clamp(max=1), self._lrs * factor  # (S, G)
        for name, weight in self.weights.items():
            wide = (*self.shape, *[1] * (weight.ndim - 2))
            gradient = gradients[name].mul_(scale.view(wide))
            if self._decays[name]:
                weight.mul_((1 - lrs * self._wds).view(wide))
            mean, square = self._moments[name]
            mean.mul_(self.betas[0]).add_(gradient, alpha=1 - self.betas[0])  # lerp_ takes four times as long
            square.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
            denominator = square.sqrt().div_(second**0.5).add_(1e-8)
            weight.addcdiv_((lrs / first).view(wide) * mean, denominator, value=-1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        """(S, 1 or G, B, in) -> (S, G, B, out)."""
        return x @ self.weights[f"{name}.weight"].transpose(-1, -2) + self.weights[f"{name}.bias"][:, :, None]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """Layer norm of (S, G, B, D)."""
        return normalised(x) * self.weights[f"{name}.weight"][:, :, None] + self.weights[f"{name}.bias"][:, :, None]

    def _attended(self, tokens: Tensor) -> Tensor:
        """:class:`QueryHead` up to its last layer: normalised tokens (S, B, N, D) -> (S, G, B, D).

        One query looks at many tokens, so keys and values of all tokens are never made. With q a query and k = W m,
        q . k = (W^T q) . m, and the softmax forgets what is the same for all tokens; its weights sum to 1, so the mean
        of the values is the value of the mean. Both products are then between all probes' few vectors and the tokens
        themselves, which no probe changes: the norm's own weights go into the vectors too.
        """
        S, G = self.shape
        A, D = self._attention_heads, tokens.shape[-1]
        B, d = tokens.shape[1], D // A
        w = self.weights
        wq, wk, wv = w[f"{_SPAN}in_proj_weight"].view(S, G, 3, D, D).unbind(2)  # each (S, G, D, D)
        bq, _, bv = w[f"{_SPAN}in_proj_bias"].view(S, G, 3, 1, D).unbind(2)  # each (S, G, 1, D)
        queries = w["queries"]  # (S, G, 1, D)
        q = (self._norm(queries, f"{_BLOCK}cross_norm") @ wq.transpose(-1, -2) + bq).view(S, G, A, 1, d) / d**0.5
        looked = (q @ wk.view(S, G, A, d, D))[..., 0, :] * w["memory_norm.weight"][:, :, None]  # (S, G, A, D)
        scores = looked.view(S, 1, G * A, D) @ tokens.transpose(-1, -2)  # (S, B, G A, N)
        seen = (scores.softmax(-1) @ tokens).view(S, B, G, A, D).permute(0, 2, 3, 1, 4)  # (S, G, A, B, D)
        memory = seen * w["memory_norm.weight"][:, :, None, None] + w["memory_norm.bias"][:, :, None, None]
        values = memory @ wv.view(S, G, A, d, D).transpose(-1, -2)  # (S, G, A, B, d)
        values = values.permute(0, 1, 3, 2, 4).reshape(S, G, B, D) + bv
        x = queries + self._linear(values, f"{_SPAN}out_proj")  # (S, G, B, D)
        inner = F.gelu(self._linear(self._norm(x, f"{_BLOCK}mlp.0"), f"{_BLOCK}mlp.1"))
        return self._norm(x + self._linear(inner, f"{_BLOCK}mlp.3"), "norm")


def normalised(values: Tensor) -> Tensor:
    """Layer norm without weights, which every probe then applies with its own."""
    return F.layer_norm(values, values.shape[-1:])


def probe_bytes(kind: str, width: int, attention_heads: int, tokens: int, batch_size: int, outputs: int) -> int:
    """About what one more probe takes while it trains: its weights four times, and what backward keeps."""
    if kind == "pooled":
        return 4 * outputs * (4 * width + 4 * batch_size)
    weights = 12 * width * width + 20 * width + outputs * width
    kept = batch_size * (4 * attention_heads * (tokens + width) + 24 * width)
    return 4 * (4 * weights + kept)


def chunks(seeds: int, settings: int, most: int) -> list[tuple[range, range]]:
    """The seeds x settings grid in rectangles of at most ``most`` probes (at least one)."""
    most = max(1, most)
    many = max(1, most // settings)
    wide = settings if most >= settings else most
    return [
        (range(i, min(i + many, seeds)), range(j, min(j + wide, settings)))
        for i in range(0, seeds, many)
        for j in range(0, settings, wide)
    ]


def answers(task: Task, output: Tensor, standard: Standard) -> tuple[np.ndarray, np.ndarray | None]:
    """Predictions float64 (n,), and probabilities (n, 2) of a binary task, from a probe's (n, K) or (n,)."""
    output = output.double().cpu()
    if task.kind == "multiclass":
        return output.argmax(-1).double().numpy(), None
    if task.kind == "binary":
        positive = output.sigmoid()
        return (positive > 0.5).double().numpy(), torch.stack([1 - positive, positive], dim=1).numpy()
    mean, std = standard[task.name]
    return (output * std + mean).numpy(), None


def _num_heads(head: QueryHead) -> int:
    """Of a head that this module can batch: one query, one block. Raises ValueError on another."""
    attention = head.blocks[0].get_submodule("cross_attention")
    if len(head.blocks) != 1 or len(head.queries) != 1 or not isinstance(attention, nn.MultiheadAttention):
        raise ValueError(f"a batched probe has one query and one block, not {len(head.queries)} and {len(head.blocks)}")
    return attention.num_heads
