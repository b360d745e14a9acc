"""Captum's two metrics of an explanation, brought to video: infidelity over tubes, and the largest sensitivity.

Yeh and others, On the (In)fidelity and Sensitivity of Explanations, https://arxiv.org/abs/1901.09392
"""

from collections.abc import Callable

import numpy as np
import torch
from captum.metrics import infidelity, sensitivity_max

from workbench.analysis.trust.perturb import ExplainedOutput, tube_pixels

DROPPED = (0.1, 0.5)
"""Between which shares of the tubes a perturbation takes away."""


class TubeInfidelity:
    """Infidelity of maps of the same clips: how badly a map foretells what taking tubes away does to the logit.

    ``fill`` like the clips, from :func:`~workbench.analysis.trust.perturb.fill_pixels`. Every map meets the same
    ``perturbations`` random sets of tubes per clip, and what the model answers to each is kept, so that a second map
    costs no further pass.
    """

    def __init__(
        self, output: ExplainedOutput, fill: torch.Tensor, grid: tuple[int, int, int], *, perturbations: int = 20,
        seed: int = 0,
    ) -> None:  # fmt: skip
        if perturbations < 2:
            raise ValueError(f"perturbations={perturbations} must be at least 2; 20 is usual")
        self.output, self.fill, self.grid = output, fill, grid
        self.perturbations, self.seed = perturbations, seed
        self._known: dict[tuple[int, bytes], float] = {}

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Relative infidelity (B,) of a map (B, T', H', W'): 0 foretells every change, 1 is no better than nothing.

        Captum's ``infidelity(normalize=True)`` (so a map's scale does not matter: attention has none) over the mean
        squared change of the logit under the same perturbations. NaN where no perturbation changes anything.
        """
        present = torch.ones(len(values), *self.grid)
        rows = torch.arange(len(values))

        def measure(attributions: torch.Tensor, *, normalize: bool) -> np.ndarray:
            generator = torch.Generator().manual_seed(self.seed)  # the same draws for every map

            def drop(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                share = torch.empty(len(inputs), 1, 1, 1).uniform_(*DROPPED, generator=generator)
                gone = (torch.rand(inputs.shape, generator=generator) < share).float()
                return gone, inputs - gone

            found: np.ndarray = infidelity(
                self._logits, drop, present, attributions, additional_forward_args=(rows,),
                n_perturb_samples=self.perturbations, max_examples_per_batch=len(values), normalize=normalize,
            ).double().numpy()  # fmt: skip
            return found

        # A map's scale does not matter, and tiny gradients squared would drown in float32.
        scale = np.abs(values).max((1, 2, 3), keepdims=True)
        maps = torch.from_numpy((values / np.where(scale > 0, scale, 1)).astype(np.float32))
        missed = measure(maps, normalize=True)
        change = measure(torch.zeros_like(maps), normalize=False)
        return np.where(change > 0, missed / np.where(change > 0, change, 1), np.nan)

    def _logits(self, present: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The logit of clips ``rows`` (n,) with only the tubes in ``present`` (n, T', H', W'), float32 (n,)."""
        keys = [(int(row), one.numpy().tobytes()) for row, one in zip(rows, present > 0.5, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            clips = rows[new].numpy()
            on_device = torch.from_numpy(clips).to(self.fill.device)
            x, x0 = self.output.pixel_values[on_device], self.fill[on_device]
            keep = tube_pixels((present[new] > 0.5).numpy(), x)
            for i, value in zip(new, self.output.logits(torch.where(keep, x, x0), clips), strict=True):
                self._known[keys[i]] = float(value)
        return torch.tensor([self._known[key] for key in keys])


def largest_sensitivity(
    explain_frames: Callable[[np.ndarray], np.ndarray], frames: np.ndarray, *, levels: float = 5.0, samples: int = 5,
    seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """Captum's ``sensitivity_max``: how far a map moves, relative to its norm, when every pixel moves a little, (B,).

    ``explain_frames``: versions of the same clips, uint8 (B, T, H, W, 3) -> maps (B, T', H', W').
    ``levels``: the most that a pixel moves, in grey levels of 255. Lower is steadier; but a map that never looks at the
    clip scores a perfect 0, so steadiness is no evidence of truth.
    """
    if not 0 < levels <= 255 or samples < 1:
        raise ValueError(f"levels={levels} must lie in (0, 255] and samples={samples} be at least 1")
    generator = torch.Generator().manual_seed(seed)

    def jitter(inputs: torch.Tensor) -> torch.Tensor:
        return inputs + torch.empty(inputs.shape).uniform_(-levels, levels, generator=generator)

    def explain_float(inputs: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        if isinstance(inputs, tuple):  # Captum wraps the clips themselves, but not those that moved
            (inputs,) = inputs
        with torch.enable_grad():  # Captum turns gradients off, and most methods need them
            found = explain_frames(inputs.round().clamp(0, 255).byte().numpy())
        return (torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32)),)

    # As many examples as clips: each pass then holds one version of every clip, in order.
    moved: np.ndarray = sensitivity_max(
        explain_float, torch.from_numpy(frames).float(), jitter, n_perturb_samples=samples,
        max_examples_per_batch=len(frames),
    ).double().numpy()  # fmt: skip
    return moved
