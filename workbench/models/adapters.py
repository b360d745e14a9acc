"""Small modules put into a frozen backbone: LoRA on its attention projections, ST-Adapters before its blocks.

Both begin as nothing: before the first step the model's outputs are the plain backbone's. Nothing here knows a model
family: the projections are found among the modules, and the backbone says how its blocks hold the tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from workbench.models.backbones import Backbone
from workbench.models.tml import TML

# One value at every rank: the update is scaled by alpha / rank, so that the rate need not be tuned again when the rank
# changes (LoRA, https://arxiv.org/abs/2106.09685, section 4.1).
LORA_ALPHA = 16
# (time, height, width), as in the authors' runs (https://github.com/linziyi96/st-adapter): the blocks see space.
ADAPTER_KERNEL = (3, 1, 1)


class STAdapter(nn.Module):
    """ST-Adapter (https://arxiv.org/abs/2206.13559): down, depth-wise 3D convolution over the token grid, GELU, up.

    What it returns is to be added to its input. ``up`` starts at zero, so at first it adds nothing.
    """

    def __init__(self, hidden_size: int, width: int, kernel: tuple[int, int, int] = ADAPTER_KERNEL) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, width)
        self.conv = nn.Conv3d(width, width, kernel, padding="same", groups=width)
        self.up = nn.Linear(width, hidden_size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T', H', W', D) -> (B, T', H', W', D)."""
        # Contiguous: of a permuted input, PyTorch 2.13 on CPUs with bfloat16 gets the convolution's gradient wrong.
        x = self.down(tokens).permute(0, 4, 1, 2, 3).contiguous()  # (B, width, T', H', W')
        x = nn.functional.gelu(self.conv(x)).permute(0, 2, 3, 4, 1)  # (B, T', H', W', width)
        return self.up(x)


class BeforeBlock:
    """A forward pre-hook that adds an adapter's output to the tokens that enter a block; a prefix passes untouched.

    An object rather than a closure, so that a deep copy of a model calls the copy's own adapters.
    """

    def __init__(self, backbone: Backbone, adapter: STAdapter) -> None:
        self.backbone, self.adapter = backbone, adapter

    def __call__(
        self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        seen = self.backbone.tokens_of(hidden)  # (B, N, D), whatever order and batch the block has them in
        added = self.adapter(seen.tokens.unflatten(1, seen.grid)).flatten(1, 3)  # (B, N, D)
        changed = self.backbone.hidden_of(replace(seen, tokens=seen.tokens + added))
        return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})


def insert_adapters(model: TML, width: int, *, seed: int = 0) -> None:
    """Put an :class:`STAdapter` before every block; they are ``model.adapters``, the backbone's weights stay as named.

    The paper puts its adapter before a block's attention, which is where a block begins.
    """
    backbone = model.backbone
    with seeded(seed):
        adapters = [STAdapter(backbone.hidden_size, width).to(backbone.device) for _ in backbone.blocks]
    model.add_module("adapters", nn.ModuleList(adapters))
    for block, adapter in zip(backbone.blocks, adapters, strict=True):
        block.register_forward_pre_hook(BeforeBlock(backbone, adapter), with_kwargs=True)


def attention_projections(backbone: Backbone) -> list[str]:
    """Names, within ``backbone.model``, of the linear layers of its blocks' attention: Q, K, V and output.

    A block's attention modules are those whose class says so (``VideoMAEAttention``, ``VJEPA2RopeAttention``); what
    their layers are called differs by family and does not matter. All four kinds, as the paper (table 5) finds best
    at a given number of parameters. Raises ValueError on a block that has none.
    """
    names: list[str] = []
    for i, block in enumerate(backbone.blocks):
        inside = {
            id(layer)
            for module in block.modules()
            if "attention" in type(module).__name__.lower()
            for layer in module.modules()
            if isinstance(layer, nn.Linear)
        }
        if not inside:
            kinds = sorted({type(m).__name__ for m in block.modules()})
            raise ValueError(f"block {i} of {backbone.family} has no attention with linear layers; it has {kinds}")
        names += [name for name, module in backbone.model.named_modules() if id(module) in inside]
    return names


def insert_lora(model: TML, rank: int, *, seed: int = 0) -> None:
    """Put LoRA matrices (by peft) beside every attention projection of the backbone's blocks."""
    from peft import LoraConfig, inject_adapter_in_model  # heavy, and wanted by this strategy alone

    targets = attention_projections(model.backbone)
    with seeded(seed):
        config = LoraConfig(r=rank, lora_alpha=LORA_ALPHA, lora_dropout=0.0, bias="none", target_modules=targets)
        inject_adapter_in_model(config, model.backbone.model)


def merge_lora(model: TML) -> None:
    """Add the LoRA matrices to the weights they stand beside and take them out: a plain backbone with the same outputs.

    Does nothing where there are none.
    """
    if not any(".lora_" in name for name, _ in model.named_parameters()):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.backbone.get_submodule(parent), child, module.get_base_layer())


def inserted(model: TML) -> str | None:
    """``lora`` or ``adapter`` where the model carries such modules, else None."""
    if any(".lora_" in name for name, _ in model.named_parameters()):
        return "lora"
    return "adapter" if "adapters" in dict(model.named_children()) else None


def is_inserted(name: str) -> bool:
    """Whether a parameter of that name came with :func:`insert_lora` or :func:`insert_adapters`."""
    return name.startswith("adapters.") or ".lora_" in name


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the CPU's random numbers begin at ``seed``; afterwards the caller's go on where they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
