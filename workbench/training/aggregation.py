"""Gradient aggregation: from the tasks' gradients to the one step that is taken. The methods are torchjd's.

All of them give the step as a weighted sum of the tasks' gradients, with weights that depend on the gradients' inner
products alone. So they are asked for the weights, given the Gramian (tasks, tasks), and nothing as long as a gradient
is copied. Those that average are multiplied by the number of tasks, and Nash-MTL's are made to sum to it: for gradients
that are all alike, and for most methods wherever none hurts another, the step is the plain sum.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from workbench.training.balance_spec import check_solvers

_AVERAGING = ("upgrad", "dualproj", "cagrad", "mgda", "imtl_g", "aligned")


def torchjd_module(name: str, wanted_by: str) -> Any:
    """``torchjd.<name>``; ImportError saying what to install where it is absent."""
    try:
        return __import__(f"torchjd.{name}", fromlist=["_"])
    except ImportError as error:
        raise ImportError(
            f"balance={wanted_by!r} needs torchjd (MIT licence): pip install torchjd; or take balance='sum', "
            "'static:<task>=<weight>', 'uncertainty', 'dwa', 'random' or 'gradnorm'"
        ) from error


def gramian(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Inner products (tasks, tasks), in float32, of gradients that each are a list of tensors, alike for all tasks."""
    total: Tensor | None = None
    for parts in zip(*rows, strict=True):
        matrix = torch.stack([part.detach().flatten() for part in parts]).float()  # (tasks, P)
        product = matrix @ matrix.T
        total = product if total is None else total + product
    if total is None:
        raise ValueError("no gradient to compare: the list of shared tensors is empty")
    return total


@functools.lru_cache(maxsize=64)
def _weighting(method: str, value: float | None, tasks: int) -> Any:
    aggregation = torchjd_module("aggregation", method)
    check_solvers(method)
    if method == "upgrad":
        return aggregation.UPGradWeighting(projector=_projector())
    if method == "dualproj":
        return aggregation.DualProjWeighting(projector=_projector())
    if method == "cagrad":
        return aggregation.CAGradWeighting(c=0.4 if value is None else value)
    if method == "nash":
        return aggregation.NashMTL(n_tasks=tasks).weighting
    names = {"pcgrad": "PCGrad", "mgda": "MGDA", "imtl_g": "IMTLG", "aligned": "AlignedMTL"}
    return getattr(aggregation, f"{names[method]}Weighting")()


def aggregation_weights(method: str, products: Tensor, *, value: float | None = None, seed: int = 0) -> Tensor:
    """Weights of the tasks' gradients in the step, (tasks,) on the device of ``products`` (tasks, tasks), float32.

    ``method`` is one of :data:`~workbench.training.balance_spec.AGGREGATORS`; ``value`` is CAGrad's c, 0.4 unless
    given. ``seed`` decides the order in which PCGrad takes the tasks. Raises ImportError naming what to install, and
    ValueError on products that are not finite.
    """
    if not torch.isfinite(products).all():
        raise ValueError(f"the tasks' gradients are not finite, so balance={method!r} cannot weigh them")
    tasks = len(products)
    matrix = products.detach().cpu().double()
    # Gradients of a mean over many tokens are tiny; the solvers' tolerances are meant for numbers near one.
    size = float(matrix.diagonal().mean())
    if size == 0 or tasks == 1:  # nothing to weigh
        return torch.ones(tasks, device=products.device)
    weighting = _weighting(method, value, tasks)
    if method == "nash":
        weights = _bargain(weighting, matrix)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            weights = weighting(matrix / size)
    if method in _AVERAGING:
        weights = weights * tasks
    return weights.to(products.device, torch.float32)


def _bargain(weighting: Any, matrix: Tensor) -> Tensor:
    """Nash-MTL's weights, which tell proportions: its scale is that of an inner step length.

    It reads nothing but the Gramian of what it is given, so a square root of ours does for the gradients; and it starts
    from its last answer, here always from ones, so that a resumed run takes the same steps.
    """
    values, vectors = torch.linalg.eigh(matrix)
    root = vectors * values.clamp(min=0).sqrt()  # (tasks, tasks), root @ root.T is the matrix
    weighting.prvs_alpha = np.ones(len(matrix), np.float32)
    weights = weighting(root)
    return weights * len(matrix) / weights.sum()


def _projector() -> Any:
    """The projection onto the cone of steps that hurt no task, exact and without the GPL-licensed quadprog.

    torchjd asks for the v >= u of smallest v'Gv. With v = u + x and G = A'A that is the x >= 0 of smallest
    |A x + A u|: non-negative least squares (Lawson and Hanson), which SciPy solves exactly.
    """
    linalg = torchjd_module("linalg", "upgrad")
    base: type = linalg.DualConeProjector

    def project(self: Any, wanted: Tensor, products: Tensor) -> Tensor:
        values, vectors = np.linalg.eigh(products.detach().cpu().double().numpy())
        root = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
        rows = wanted.detach().cpu().double().reshape(-1, len(values)).numpy()
        solved = np.stack([u + nnls(root, -root @ u)[0] for u in rows])
        return torch.as_tensor(solved, device=products.device, dtype=products.dtype).reshape(wanted.shape)

    return type("NonNegativeProjector", (base,), {"__call__": project})()
