"""Attributions along gradients, by Captum: integrated gradients that check themselves, gradient x activation, Grad-CAM.

Not here: Captum's ``DeepLift``, whose completeness fails on these models, and its ``LRP``, which has no rule for their
layers.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from captum.attr import (
    Attribution,
    IntegratedGradients,
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
    NoiseTunnel,
)  # fmt: skip
from captum.log import log_usage
from torch import Tensor, nn
from tqdm.auto import tqdm

from workbench.analysis.explaining.taps import Layer, TaskOutput, picked, places, tapped
from workbench.models.tml import TML

TOLERANCE = 0.01
"""Completeness error of 1 %."""
Found = tuple[Tensor, Tensor | None]
"""Values of a method, and the outputs (B, K) where its own pass has them."""


def integrate_gradients(
    forward: nn.Module, layer: nn.Module | None, inputs: Tensor, baselines: Tensor, targets: Sequence[int], *,
    first_steps: int = 64, max_steps: int = 512, tolerance: float = TOLERANCE, internal_batch_size: int = 32,
    progress: bool = False,
) -> tuple[Tensor, np.ndarray, np.ndarray]:  # fmt: skip
    """Captum's integrated gradients that check themselves, one input at a time.

    ``forward``: ``inputs`` (B, ...) -> outputs (B, K); ``layer``: whose output is attributed, between its values for
    ``inputs`` and for ``baselines``; None: the inputs themselves. Steps double from ``first_steps`` until the
    attributions sum to the difference of the outputs within ``tolerance`` of it, or ``max_steps`` are used.
    ``internal_batch_size``: steps per pass.
    Returns attributions (like the layer's output), completeness error (B,) and steps (B,).
    """
    method = IntegratedGradients(forward) if layer is None else LayerIntegratedGradients(forward, layer)
    found, errors, used = [], [], []
    rows = tqdm(list(zip(inputs, baselines, targets, strict=True)), "explain", disable=not progress, leave=False)
    for x, x0, target in rows:
        with torch.no_grad():
            difference = (forward(x[None]) - forward(x0[None]))[0, target].item()
        steps = first_steps
        while True:
            attributions = method.attribute(
                x[None], x0[None], target=target, n_steps=steps, internal_batch_size=internal_batch_size
            ).detach()
            error = completeness_error(attributions.double().sum().item(), difference)
            if error < tolerance or steps >= max_steps:
                break
            steps = min(2 * steps, max_steps)
        found.append(attributions)
        errors.append(error)
        used.append(steps)
    return torch.cat(found), np.array(errors), np.array(used)


def completeness_error(total: float, difference: float) -> float:
    """How far attributions that sum to ``total`` miss the difference of the outputs, as a share of it."""
    return abs(total - difference) / max(abs(difference), 1e-4)  # the floor: noise of float32 where outputs are equal


def integrated_gradients(
    model: TML, task: str, pixel_values: Tensor, targets: list[int], baseline: Tensor, layer: Layer, *,
    steps: int, passes: int, progress: bool = False,
) -> tuple[Tensor, np.ndarray, np.ndarray]:  # fmt: skip
    """Summed for each token (B, N), completeness error (B,), steps (B,); ``passes``: steps per pass."""
    output = TaskOutput(model, task)
    with nullcontext() if layer == "pixels" else tapped(model.backbone, layer) as tap:
        found, error, used = integrate_gradients(
            output, tap, pixel_values, baseline, targets, first_steps=steps, internal_batch_size=passes,
            progress=progress,
        )  # fmt: skip
    return places(found, model.backbone), error, used


def gradient_x_activation(model: TML, task: str, pixel_values: Tensor, targets: list[int], layer: Layer) -> Found:
    """Captum's layer gradient x activation, summed for each token: (B, N)."""
    output = TaskOutput(model, task)
    if layer == "pixels":
        x = pixel_values.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(picked(output(x), targets).sum(), x)
        return places(gradient * x.detach(), model.backbone), output.last
    with tapped(model.backbone, layer) as tap:
        found = LayerGradientXActivation(output, tap).attribute(pixel_values, target=targets)
    return places(found.detach(), model.backbone), output.last


def grad_cam(model: TML, task: str, pixel_values: Tensor, targets: list[int], layer: Layer) -> Found:
    """Captum's Grad-CAM (https://arxiv.org/abs/1610.02391) of a block's tokens, not negative: (B, N).

    Pointed at a block itself Captum would take tokens for channels and give one number per feature; here it sees the
    features as channels of a (T', H', W') volume. Prefix tokens take no part.
    """
    output = TaskOutput(model, task)
    with tapped(model.backbone, layer, volume=True) as tap:
        found = LayerGradCam(output, tap).attribute(pixel_values, target=targets, relu_attributions=True)
    return found.detach().flatten(1), output.last  # (B, 1, T', H', W') -> (B, N)


class TokenMap(Attribution):
    """Any map on tokens as a Captum method, so that Captum's NoiseTunnel can run over it."""

    def __init__(self, forward: nn.Module, maps: Callable[[Tensor, list[int]], Tensor]) -> None:
        super().__init__(forward)
        self.maps = maps

    @log_usage()
    def attribute(self, inputs: Tensor, target: Tensor | list[int]) -> Tensor:
        """(B, T, C, H, W) and a target for each -> (B, N)."""
        targets = target.tolist() if isinstance(target, Tensor) else list(target)
        with torch.enable_grad():  # the tunnel itself runs without
            return self.maps(inputs.detach(), targets)


def noise_tunnel(
    forward: nn.Module, maps: Callable[[Tensor, list[int]], Tensor], pixel_values: Tensor, targets: list[int], *,
    samples: int, std: float, seed: int = 0,
) -> Tensor:  # fmt: skip
    """The mean of ``maps`` over noisy copies of each clip (SmoothGrad, https://arxiv.org/abs/1706.03825), by Captum.

    ``std``: of the noise, as a share of the range of the clips' values.
    """
    spread = float(std * (pixel_values.max() - pixel_values.min()))
    device = pixel_values.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        tunnel = NoiseTunnel(TokenMap(forward, maps))
        found: Tensor = tunnel.attribute(
            pixel_values, nt_type="smoothgrad", nt_samples=samples, nt_samples_batch_size=1, stdevs=spread,
            target=torch.tensor(targets, device=device),
        )  # fmt: skip
    return found
