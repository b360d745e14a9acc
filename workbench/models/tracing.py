"""What a forward pass would do, found without doing it: which weights the outputs depend on, what backward would keep.

The pass runs on fake tensors (shapes, device and type, no numbers: what ``torch.compile`` traces with), so it costs no
memory and a fraction of a second at any model size, and takes the same attention kernels as the real one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from workbench.models.tml import TML, QueryHead


@dataclass(frozen=True)
class Wiring:
    """Names of parameters, by where they act."""

    reached: frozenset[str]
    """The outputs depend on them. The others (a mask token, an unused pooler) would never see a gradient."""
    stem: frozenset[str]
    """They act before the first block: patch embedding, positions, CLS token."""


def wiring(model: TML) -> Wiring:
    """Which parameters of ``model`` act at all, and which of them before block 0."""
    seen: list[Tensor] = []

    def first_block(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.extend(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))

    hook = model.backbone.blocks[0].register_forward_pre_hook(first_block, with_kwargs=True, prepend=True)
    try:
        outputs, names = _fake_forward(model, 1, every=True)
        return Wiring(_upstream(list(outputs.values()), names), _upstream(seen, names))
    finally:
        hook.remove()


def activation_bytes(model: TML, batch_size: int = 1) -> dict[str, int]:
    """Bytes that a training step keeps for backward, by part of the model, for ``batch_size`` clips in float32.

    Counted as autograd itself keeps them: every tensor that the forward saves, each storage once, weights left out.
    What a kernel needs while it runs and the gradients come on top; autocast to bf16 needs about half.
    """
    parts: dict[str, int] = {}
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Any] = {}
    place = ["backbone embedding"]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in kept:
            kept[storage._cdata] = storage  # held, so that its address is not given to another
            parts[place[0]] = parts.get(place[0], 0) + storage.nbytes()
        return tensor

    with _training(model), _announced(model, lambda part: place.__setitem__(0, part)):
        _fake_forward(model, batch_size, every=False, pack=pack, own=own)
    return parts


def _fake_forward(
    model: TML,
    batch_size: int,
    *,
    every: bool,
    pack: Callable[[Tensor], Tensor] | None = None,
    own: set[int] | None = None,
) -> tuple[dict[str, Tensor], dict[int, str]]:
    """Outputs on a fake batch, and the names of the fake parameters by id. ``every``: all of them ask for gradients."""
    backbone = model.backbone
    channels = len(backbone.preprocessing.mean)
    shape = (batch_size, backbone.num_frames, channels, backbone.size_px, backbone.size_px)
    # Tensors that are neither parameter nor buffer (tables of sinusoids) become fake when they are met.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    parameters: dict[str, Tensor] = {name: mode.from_tensor(p) for name, p in model.named_parameters()}
    if every:
        parameters = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    if own is not None:
        own |= {p.untyped_storage()._cdata for p in parameters.values()}
    state = parameters | {name: mode.from_tensor(b) for name, b in model.named_buffers()}
    with mode, torch.enable_grad(), torch.random.fork_rng(devices=[]):
        pixel_values = torch.empty(shape, device=backbone.device)
        with torch.autograd.graph.saved_tensors_hooks(pack or (lambda t: t), lambda t: t):
            outputs = torch.func.functional_call(model, state, (pixel_values,))
    return outputs, {id(p): name for name, p in parameters.items()}


def _upstream(tensors: list[Tensor], names: dict[int, str]) -> frozenset[str]:
    """The parameters in the autograd graph above ``tensors``."""
    found, done = set(), set()
    waiting: list[Any] = [t.grad_fn for t in tensors if t.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in done:
            continue
        done.add(node)
        if hasattr(node, "variable") and id(node.variable) in names:
            found.add(names[id(node.variable)])
        waiting += [following for following, _ in node.next_functions if following is not None]
    return frozenset(found)


@contextmanager
def _announced(model: TML, entered: Callable[[str], None]) -> Iterator[None]:
    """Inside, ``entered`` is told which part of the model begins to run; the names are those of ``report``."""
    blocks = model.backbone.blocks
    starts: list[tuple[nn.Module, str]] = [(b, f"backbone block {i}") for i, b in enumerate(blocks)]
    starts.append((model.head, "decoder" if isinstance(model.head, QueryHead) else "task heads"))
    starts += [(linear, "task heads") for linear in model.head.linears]
    hooks = [
        module.register_forward_pre_hook(lambda _m, _i, part=part: entered(part), prepend=True)
        for module, part in starts
    ]
    hooks.append(blocks[-1].register_forward_hook(lambda _m, _i, _o: entered("backbone norm")))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _training(model: TML) -> Iterator[None]:
    """Inside, the model is in train mode; afterwards every module is as it was."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        yield
    finally:
        for module, mode in before:
            module.training = mode
