"""AttnLRP: layer-wise relevance propagation for transformers (https://arxiv.org/abs/2402.05602), by one backward pass.

Relevance is gradient times activation when the backward pass obeys the paper's rules (its section 3), here as changed
gradients:

- linear layers, sums and the softmax: the gradient itself (for the softmax that is the paper's Taylor rule);
- a product of two activations, as in ``queries @ keys`` and ``weights @ values``: half of the gradient to each factor;
- normalisation: the deviation counts as a constant; activation functions: ``y / x`` counts as a constant slope.

Scaling the gradients of queries, keys and values before they meet does the second rule for any implementation of
attention, so nothing quadratic is kept. The rules hold in one thread and for one call; outputs do not change.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.activations import ACT2CLS

from workbench.analysis.explaining.taps import Layer, TaskOutput, picked, tapped
from workbench.models.tml import TML

# Query and key pass two products (with each other, then the weights with the values), the value one.
SHARES = (0.25, 0.25, 0.5)
_CLASSES = {entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()}
ACTIVATIONS = (*(c for c in _CLASSES if isinstance(c, type)), nn.GELU, nn.SiLU, nn.Tanh)


class _Slope(torch.autograd.Function):
    """``y``, as if it were ``slope * x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, slope: Tensor | float) -> Tensor:
        ctx.save_for_backward(*([slope] if isinstance(slope, Tensor) else []))
        ctx.slope = None if isinstance(slope, Tensor) else slope
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * (ctx.saved_tensors[0] if ctx.slope is None else ctx.slope), None, None


class _Norm(torch.autograd.Function):
    """Layer normalisation with a constant deviation: only the mean's subtraction and the weight are differentiated."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        y, _, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(scale, *([] if weight is None else [weight]))
        ctx.dims = tuple(range(-len(shape), 0))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scale, *weight = ctx.saved_tensors
        gradient = gradient * weight[0] if weight else gradient
        return (gradient - gradient.mean(ctx.dims, keepdim=True)) * scale, None, None, None, None


def shared(x: Tensor, share: float) -> Tensor:
    """``x`` itself; of its gradient only ``share`` flows back."""
    return _Slope.apply(x, x, share) if x.requires_grad else x


def sloped(x: Tensor, y: Tensor) -> Tensor:
    """``y``, which an activation function made of ``x``, as if it were ``x`` times a constant."""
    with torch.no_grad():
        slope = (y / x).nan_to_num_()  # where x is 0 nothing arrives, whatever the slope
    return _Slope.apply(x, y, slope)


class Rules(TorchFunctionMode):
    """Inside, in this thread, torch's functions obey AttnLRP in the backward pass; their values stay as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled() and args:
            if func is F.layer_norm:
                return _normalised(*args, **kwargs)
            if func in (F.gelu, F.silu):
                with torch.no_grad():
                    y = func(*args, **kwargs)
                return sloped(args[0], y)
            if func in (F.scaled_dot_product_attention, F.multi_head_attention_forward):
                qkv = [shared(x, share) for x, share in zip(args[:3], SHARES, strict=True)]
                return func(*qkv, *args[3:], **kwargs)
        return func(*args, **kwargs)


def _normalised(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    return _Norm.apply(input, list(normalized_shape), weight, bias, eps)


def _split(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    """Queries, keys and values in one projection."""
    return torch.cat([shared(x, share) for x, share in zip(output.chunk(3, -1), SHARES, strict=True)], -1)


@contextmanager
def rules(model: TML) -> Iterator[None]:
    """Inside, a backward pass through ``model`` propagates relevance. No hook or rule is left afterwards."""
    backbone = model.backbone
    with ExitStack() as stack:
        for module in backbone.fused_projections:
            stack.callback(module.register_forward_hook(_split).remove)
        for module in model.modules():
            if isinstance(module, ACTIVATIONS):
                hook = module.register_forward_hook(lambda _m, args, y: sloped(args[0], y.detach()))
                stack.callback(hook.remove)
            if hasattr(module, "gate_proj") and hasattr(module, "up_proj"):  # a gate times values: SwiGLU
                parts: list[Any] = [module.gate_proj, module.up_proj]
                for part in parts:
                    stack.callback(part.register_forward_hook(lambda _m, _a, y: shared(y, 0.5)).remove)
        if not backbone.fused_projections:
            stack.enter_context(backbone.attention_implementation("sdpa"))
        stack.enter_context(Rules())
        yield


def relevance(
    model: TML, task: str, pixel_values: Tensor, targets: list[int] | None, layer: Layer = "embedding"
) -> tuple[Tensor, Tensor]:
    """Relevance for the clips' ``targets`` (None: what is predicted) at ``layer``, and the outputs (B, K).

    As :func:`~workbench.analysis.explaining.taps.tapped` lays it out; of pixels, (B, T, C, H, W). What biases
    contribute is in the output, but in no token.
    """
    output = TaskOutput(model, task)
    kept: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, x: Tensor) -> Tensor:
        """From here backwards nothing is needed, so the graph starts here."""
        kept.append(x.detach().requires_grad_())
        return kept[0]

    with ExitStack() as stack:
        if layer == "pixels":
            kept.append(pixel_values.detach().requires_grad_())
            pixel_values = kept[0]
        else:
            tap = stack.enter_context(tapped(model.backbone, layer))
            tap.register_forward_hook(cut)
        stack.enter_context(rules(model))
        stack.enter_context(torch.enable_grad())
        outputs = output(pixel_values)
        (gradient,) = torch.autograd.grad(picked(outputs, targets).sum(), kept[0])
    return gradient * kept[0].detach(), outputs.detach()
