"""Transformer-based multi-task learning: one encoder, a light head, one output per task.

Linear and attentive probes, single-task models and full fine-tuning are all this model with parts frozen or swapped.
"""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from workbench.data.tables import Task
from workbench.models.backbones import Backbone, Tokens

log = logging.getLogger(__name__)

HEADS = ("mean", "query")


def task_linear(hidden_size: int, num_outputs: int) -> nn.Linear:
    """A task's last layer, started small so that the first predictions are near chance, not confidently wrong."""
    linear = nn.Linear(hidden_size, num_outputs)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear


class MeanHead(nn.Module):
    """The mean of the tokens (through the backbone's own final norm), then one linear layer per task."""

    def __init__(self, hidden_size: int, tasks: Sequence[Task]) -> None:
        super().__init__()
        # A list, not a ModuleDict: a task may be called "type" or "v1.2", which are no module names.
        self.linears = nn.ModuleList(task_linear(hidden_size, task.num_outputs) for task in tasks)

    def forward(self, pooled: torch.Tensor) -> list[torch.Tensor]:
        return [linear(pooled) for linear in self.linears]  # each (B, D) -> (B, K)


class DecoderBlock(nn.Module):
    """Queries look at each other (optional), then at the tokens, then think (MLP); pre-norm, residual."""

    def __init__(self, hidden_size: int, num_heads: int, *, self_attention: bool = True, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(hidden_size) if self_attention else None
        self.self_attention = (
            nn.MultiheadAttention(hidden_size, num_heads, batch_first=True) if self_attention else None
        )
        self.cross_norm = nn.LayerNorm(hidden_size)
        self.cross_attention = nn.MultiheadAttention(hidden_size, num_heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, mlp_ratio * hidden_size),
            nn.GELU(),
            nn.Linear(mlp_ratio * hidden_size, hidden_size),
        )

    def forward(
        self, q: torch.Tensor, memory: torch.Tensor, *, need_weights: bool = False, per_head: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Queries (B, Q, D) and memory (B, N, D) -> queries (B, Q, D), attention (B, Q, N) averaged over heads, or
        (B, A, Q, N)."""
        if self.self_attention is not None and self.self_norm is not None:
            x = self.self_norm(q)  # (B, Q, D)
            q = q + self.self_attention(x, x, x, need_weights=False)[0]  # (B, Q, D)
        x = self.cross_norm(q)  # (B, Q, D)
        seen, weights = self.cross_attention(
            x, memory, memory, need_weights=need_weights, average_attn_weights=not per_head
        )  # (B, Q, D), (B, Q, N) or (B, A, Q, N)
        q = q + seen  # (B, Q, D)
        return q + self.mlp(q), weights


class QueryHead(nn.Module):
    """One learned query per task reads the tokens through a small transformer decoder; one linear layer per task.

    With one task and one block this is the attentive probe of V-JEPA (https://arxiv.org/abs/2404.08471).
    ``task_attention``: whether the queries of several tasks see each other (with one task there is nothing to see).
    """

    def __init__(
        self, hidden_size: int, num_heads: int, tasks: Sequence[Task], *, layers: int = 1, task_attention: bool = True
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(len(tasks), hidden_size))  # (Q, D)
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.memory_norm = nn.LayerNorm(hidden_size)
        between = task_attention and len(tasks) > 1
        self.blocks = nn.ModuleList(DecoderBlock(hidden_size, num_heads, self_attention=between) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.linears = nn.ModuleList(task_linear(hidden_size, task.num_outputs) for task in tasks)
        self.added = nn.ParameterList()  # queries (1, D) of tasks that came later; see TML.add_task

    def forward(
        self, tokens: torch.Tensor, *, need_weights: bool = False, per_head: bool = False
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Tokens (B, N, D) -> one (B, K) per task, and the last block's cross-attention (B, Q, N) if asked for; with
        ``per_head`` every block's and every head's, (B, L, A, Q, N)."""
        memory = self.memory_norm(tokens)  # (B, N, D)
        queries = torch.cat([self.queries, *self.added]) if len(self.added) else self.queries  # (Q, D)
        q = queries.expand(len(tokens), -1, -1)  # (B, Q, D)
        weights, maps = None, []
        for block in self.blocks:
            q, weights = block(q, memory, need_weights=need_weights or per_head, per_head=per_head)  # (B, Q, D)
            maps.append(weights)
        q = self.norm(q)  # (B, Q, D)
        outputs = [linear(q[:, i]) for i, linear in enumerate(self.linears)]  # Q times (B, K)
        return outputs, torch.stack(maps, dim=1) if per_head else weights


class TML(nn.Module):
    """Backbone and head: ``pixel_values`` (B, T, C, H, W) -> {task name: logits}.

    Outputs are (B, K) for a multiclass or multilabel task, and (B,) for a binary one (logit of the positive) or a
    regression (value).
    ``head="mean"``: a linear layer per task on the mean token. ``head="query"``: a decoder with one query per task.
    """

    def __init__(
        self, backbone: Backbone, tasks: Sequence[Task], *,
        head: str = "mean", decoder_layers: int = 1, task_attention: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        names = [task.name for task in tasks]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"TML needs at least one task and no name twice; got {names}")
        if head not in HEADS:
            raise ValueError(f"head={head!r} is not one of {', '.join(HEADS)}")
        if decoder_layers < 1:
            raise ValueError(f"decoder_layers={decoder_layers} must be at least 1")
        self.backbone, self.tasks, self.head_kind = backbone, tuple(tasks), head
        width = backbone.hidden_size
        self.head: MeanHead | QueryHead = (
            MeanHead(width, tasks)
            if head == "mean"
            else QueryHead(width, backbone.num_heads, tasks, layers=decoder_layers, task_attention=task_attention)
        )

    def forward(
        self, pixel_values: torch.Tensor, *, return_attention: bool = False
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Outputs per task; with ``return_attention`` also {task: cross-attention (B, N)} (``head="query"`` only)."""
        tokens = self.backbone(pixel_values)  # (B, N, D)
        return self.forward_tokens_with_attention(tokens) if return_attention else self.forward_tokens(tokens)

    def forward_tokens(self, tokens: Tokens) -> dict[str, torch.Tensor]:
        """The head alone, on tokens computed before (B, N, D)."""
        if isinstance(self.head, MeanHead):
            return self._named(self.head(self.backbone.pool(tokens.tokens)))
        return self._named(self.head(tokens.tokens)[0])

    def forward_tokens_with_attention(self, tokens: Tokens) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Outputs per task, and how much each task's query attended to each token: {task: (B, N)}, rows sum to 1."""
        if not isinstance(self.head, QueryHead):
            raise ValueError("head='mean' has no cross-attention; build TML(..., head='query') to see it")
        outputs, weights = self.head(tokens.tokens, need_weights=True)  # Q times (B, K), (B, Q, N)
        return self._named(outputs), {task.name: weights[:, i] for i, task in enumerate(self.tasks)}

    def task_maps(self, tokens: Tokens) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Outputs per task, and where each task's query looked, block by block and head by head: {task: (B, L, A, N)}.

        Tokens count in time-major order, ``tokens.grid``; each row sums to 1. The mean over L = 1 and the heads is what
        :meth:`forward_tokens_with_attention` gives.
        """
        if not isinstance(self.head, QueryHead):
            raise ValueError("head='mean' has no cross-attention; build TML(..., head='query') to see it")
        outputs, maps = self.head(tokens.tokens, per_head=True)  # Q times (B, K), (B, L, A, Q, N)
        return self._named(outputs), {task.name: maps[..., i, :] for i, task in enumerate(self.tasks)}

    def add_task(self, task: Task, *, freeze_rest: bool = False, seed: int = 0) -> None:
        """Give a trained model one more task: a new query (``head="query"``) and a new last layer, drawn from ``seed``.

        ``freeze_rest``: nothing else trains from now on. Where the tasks' queries do not see each other
        (``task_attention=False``, a model made for one task, ``head="mean"``) the other tasks then stay as they are;
        where they do, the new query is seen by the others too and moves their outputs, which is warned of.
        :meth:`merge_added` afterwards gives the parameters the names of a model that was built with all its tasks.
        """
        if task.name in {known.name for known in self.tasks}:
            raise ValueError(f"the model has a task {task.name!r} already; it has {[t.name for t in self.tasks]}")
        if freeze_rest:
            self.requires_grad_(False)
        own = next(self.head.linears.parameters())  # (K, D)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.head.linears.append(task_linear(own.shape[1], task.num_outputs).to(own.device, own.dtype))
            if isinstance(self.head, QueryHead):
                query = nn.init.trunc_normal_(torch.empty(1, own.shape[1]), std=0.02)
                self.head.added.append(nn.Parameter(query.to(own.device, own.dtype)))
                if freeze_rest and any(block.self_attention is not None for block in self.head.blocks):
                    log.warning("the queries see each other: task %r moves the outputs of the others", task.name)
        self.tasks = (*self.tasks, task)

    def merge_added(self) -> None:
        """Put the queries that :meth:`add_task` made into ``head.queries``: the outputs stay, the names become those of
        ``TML(backbone, self.tasks, ...)``, whose ``load_state_dict`` takes them. Make a new optimiser afterwards."""
        if isinstance(self.head, QueryHead) and len(self.head.added):
            rows = torch.cat([self.head.queries, *self.head.added]).detach()
            self.head.queries = nn.Parameter(rows, requires_grad=any(q.requires_grad for q in self.head.added))
            self.head.added = nn.ParameterList()

    def _named(self, outputs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            task.name: y if task.kind in ("multiclass", "multilabel") else y.squeeze(-1)  # (B, K) or (B,)
            for task, y in zip(self.tasks, outputs, strict=True)
        }

    def task(self, name: str | None = None) -> Task:
        """The task called ``name``; without a name the only one."""
        found = [task for task in self.tasks if name in (None, task.name)]
        if len(found) != 1:
            raise ValueError(f"task={name!r}: name one of {[task.name for task in self.tasks]}")
        return found[0]

    def train(self, mode: bool = True) -> "TML":
        """As in torch, but a wholly frozen backbone stays in eval mode: no dropout, the same tokens every time."""
        super().train(mode)
        if not any(p.requires_grad for p in self.backbone.parameters()):
            self.backbone.eval()
        return self
