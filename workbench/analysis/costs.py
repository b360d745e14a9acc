"""What one model for all tasks costs beside one model per task: time to answer, memory to train, parameters to keep."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch

from workbench.models.strategies import parse_strategy, report
from workbench.models.tml import TML
from workbench.training.setup import Setup


@dataclass(frozen=True)
class Costs:
    """One joint model against the models of its tasks, trained alone."""

    inference_ms: float
    """Per clip, from uint8 frames to the outputs of all tasks."""
    alone_inference_ms: float
    """Per clip, all single-task models one after the other."""
    inference_ratio: float
    """Median over the repeats of one divided by the other."""
    memory_mib: float
    """To train it: weights, gradients, the optimiser's two moments, and activations kept for the backward pass of one
    batch, in float32. Counted, not measured: without what the allocator and single operations add."""
    alone_memory_mib: float
    """The same of the largest single-task model: they can be trained one after the other."""
    parameters: int
    alone_parameters: int
    """Of all single-task models; a frozen backbone that they share counts once."""

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def costs_of(
    together: tuple[TML, Setup], alone: Mapping[str, tuple[TML, Setup]], *, clips: int = 8, repeats: int = 7
) -> Costs:
    """Measure and count, on the device the models are on.

    Each repeat times the joint model and then all others on the same random ``clips`` frames of the right size, so that
    whatever else the machine does falls on both; the first is not counted. Single-task models of a frozen backbone
    share one pass of it, as they would where they are used. Raises ValueError without single-task models or repeats.
    """
    if not alone or repeats < 1 or clips < 1:
        raise ValueError(f"{len(alone)} single-task models, repeats={repeats}, clips={clips}: each at least 1")
    model, setup = together
    singles = [one for one, _ in alone.values()]
    frozen = all(parse_strategy(own.strategy).frozen for _, own in alone.values())
    backbone = model.backbone
    shape = (clips, backbone.num_frames, backbone.size_px, backbone.size_px, 3)
    chance = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, shape, generator=chance, dtype=torch.uint8).to(backbone.device)
    for one in (model, *singles):
        one.eval()

    def apart() -> None:
        if frozen:
            tokens = singles[0].backbone(singles[0].backbone.prepare(frames))
            for one in singles:
                one.forward_tokens(tokens)
            return
        for one in singles:
            one(one.backbone.prepare(frames))

    pairs = _interleaved(lambda: model(backbone.prepare(frames)), apart, repeats, backbone.device)
    mine, theirs = np.median(pairs, axis=0) / clips * 1000
    own_parameters = [sum(p.numel() for p in one.parameters()) for one in singles]
    shared = sum(p.numel() for p in singles[0].backbone.parameters()) * (len(singles) - 1) if frozen else 0
    return Costs(
        float(mine), float(theirs), float(np.median(pairs[:, 0] / pairs[:, 1])),
        training_memory_mib(model, setup), max(training_memory_mib(*pair) for pair in alone.values()),
        sum(p.numel() for p in model.parameters()), sum(own_parameters) - shared,
    )  # fmt: skip


def training_memory_mib(model: TML, setup: Setup) -> float:
    """What training holds at once, in MiB of float32; see :attr:`Costs.memory_mib`."""
    parts = report(model, setup)
    state = {"adamw": 2, "adam": 2, "sgd": 1}[setup.optimizer]
    numbers = int(parts.total.sum()) + int(parts.trainable.sum()) * (1 + state)
    return float(parts.activation_mib.sum()) + numbers * 4 / 2**20


@torch.inference_mode()
def _interleaved(
    first: Callable[[], object], second: Callable[[], object], repeats: int, device: torch.device
) -> np.ndarray:
    """Seconds of both, one after the other (repeats, 2), after a round that is not counted."""

    def seconds(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    return np.array([(seconds(first), seconds(second)) for _ in range(repeats + 1)][1:])
