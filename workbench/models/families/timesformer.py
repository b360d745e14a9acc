"""TimeSformer (https://arxiv.org/abs/2102.05095): attention along time, then within each frame; a CLS token first."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TimesformerModel

from workbench.models.families.base import LeadingCLS, State
from workbench.models.families.positions import Geometry, Grid, resize_positions, square
from workbench.models.probe import Layout, Note
from workbench.models.tokens import Attention, DividedAttention, Tokens


class TimeSformer(LeadingCLS):
    """Blocks hold CLS and then the tokens place by place, each with all its time steps (space-major).

    Learned positions, one table for places and one for times; both are interpolated by the nearest neighbour, as the
    model's own code does it. ``attention_type`` may be ``divided_space_time`` or ``joint_space_time``.
    """

    model_class = TimesformerModel
    implementations = ("eager",)

    def geometry(self, config_dict: dict[str, Any]) -> Geometry:
        config = self.model_class.config_class.from_dict(config_dict)
        if config.attention_type == "space_only":
            raise ValueError(
                "attention_type='space_only' sees frames one by one and its transformers model does not join them; "
                "use an image family, or a checkpoint with divided_space_time or joint_space_time"
            )
        return Geometry(
            num_frames=config.num_frames, tubelet_size=1,
            size_px=square("image_size", config.image_size), patch_size=square("patch_size", config.patch_size),
        )  # fmt: skip

    def resize(self, state: State, own: Geometry, wanted: Geometry) -> State:
        places, times = "embeddings.position_embeddings", "embeddings.time_embeddings"
        if not state:
            return {}
        (T, H, W), (T_, H_, W_) = own.grid, wanted.grid
        cls, rest = state[places][0, :1], state[places][0, 1:]
        rest = resize_positions(rest, (1, H, W), (1, H_, W_), space="nearest")
        along = resize_positions(state[times][0], (T, 1, 1), (T_, 1, 1), time="nearest")
        return state | {places: torch.cat((cls, rest))[None], times: along[None]}

    def split(self, hidden: torch.Tensor, grid: Grid) -> Tokens:
        tokens = hidden[:, 1:].unflatten(1, (-1, grid[0])).transpose(1, 2).flatten(1, 2)  # (B, S, T) -> (B, T, S)
        return Tokens(tokens, grid, hidden[:, :1])

    def join(self, tokens: Tokens) -> torch.Tensor:
        assert tokens.prefix is not None
        spatial = tokens.tokens.unflatten(1, (tokens.grid[0], -1)).transpose(1, 2).flatten(1, 2)
        return torch.cat((tokens.prefix, spatial), 1)

    def attention_modules(self, model: Any) -> list[nn.Module]:
        found: list[nn.Module] = []
        for block in self.blocks(model):
            parts: list[Any] = [getattr(block, name, None) for name in ("temporal_attention", "attention")]
            found += [part.attention for part in parts if part is not None]
        return found

    def listen(self, module: nn.Module, note: Callable[[torch.Tensor], None]) -> list[Any]:
        """The module gives its softmax only when asked, and its blocks never ask for that along time."""

        def ask(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
            return args[0], True

        return [module.register_forward_pre_hook(ask), *super().listen(module, note)]

    def layouts(self, model: Any, grid: Grid) -> tuple[Layout, ...]:
        if model.config.attention_type == "joint_space_time":
            order = self._time_major(grid, next(model.parameters()).device).argsort()
            return (Layout("joint", grid, prefix=1, order=order),) * len(self.attention_modules(model))
        both = (Layout("time", grid, prefix=1), Layout("space", grid, prefix=1))
        return both * len(self.blocks(model))

    def watch(self, module: nn.Module, note: Note) -> list[Any]:
        """Its attention is written out, so torch's function is never called."""
        parts: list[torch.Tensor] = []
        own: Any = module

        def told(_module: nn.Module, _args: Any, output: tuple[torch.Tensor, ...]) -> None:
            q, k, v = parts.pop().unflatten(-1, (3, own.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B', A, n, d)
            note(q, k, v, own.scale, output[0])

        hook = own.qkv.register_forward_hook(lambda _m, _i, output: parts.append(output))
        return [hook, own.register_forward_hook(told)]

    def fused(self, module: Any) -> nn.Module:
        found: nn.Module = module.qkv
        return found

    def attentions(self, model: Any, seen: list[torch.Tensor], grid: Grid) -> tuple[Attention, ...]:
        """Divided: two per block, first along time, then in space. Joint: one per block."""
        T, S = grid[0], grid[1] * grid[2]
        if model.config.attention_type == "joint_space_time":
            order = self._time_major(grid, seen[0].device)
            return tuple(a[:, :, order][..., order] for a in seen)
        found: list[Attention] = []
        for along_time, in_space in zip(seen[::2], seen[1::2], strict=True):
            w = along_time.unflatten(0, (-1, S)).transpose(1, 2)  # (B * S, A, T, T) -> (B, A, S, T, T)
            found.append(DividedAttention(w, "time", prefix=1))
            w = in_space.unflatten(0, (-1, T)).transpose(1, 2)  # (B, A, T, 1 + S, 1 + S)
            found.append(DividedAttention(w, "space", prefix=1))
        return tuple(found)

    @staticmethod
    def _time_major(grid: Grid, device: torch.device) -> torch.Tensor:
        """Where in the model's order, CLS first, the time-major tokens stand."""
        T, S = grid[0], grid[1] * grid[2]
        place = torch.arange(T * S, device=device).view(S, T).T.reshape(-1)  # time-major -> space-major
        return torch.cat((place.new_zeros(1), place + 1))


FAMILIES = {"timesformer": TimeSformer()}
