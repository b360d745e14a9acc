"""A task's last layer fitted anew on stored features, as strong as held-out clips allow."""

import copy
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import GroupKFold, StratifiedKFold
from torch import Tensor, nn

from workbench.data.tables import Task

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Tried for ``mean loss + penalty * |weights|^2``, features scaled to a mean square of 1."""
FOLDS = 5
ABSENT = -30.0  # bias of a class without a clip


def refitted(
    linear: nn.Linear, task: Task, features: Tensor, labels: np.ndarray, groups: Sequence[str] | None = None
) -> tuple[nn.Linear, float]:
    """A copy of ``linear`` fitted to ``features`` (n, D) and ``labels`` (n,), and the penalty chosen.

    Logistic regression (ridge for a regression). The penalty is the one with the lowest loss on folds held out, by
    the labels as given; whole ``groups`` are held out where there are enough of them. Raises ValueError for fewer than
    ``2 * FOLDS`` clips, a single class, or groups that leave no fold with two classes to learn from.
    """
    x = features.double().numpy()
    scale = float(np.sqrt(np.mean(x**2))) or 1.0
    x, kinds = x / scale, len(np.unique(labels))
    if len(labels) < 2 * FOLDS or (task.kind != "regression" and kinds < 2):
        raise ValueError(
            f"{len(labels)} training clips of {kinds} kinds are too few to refit the last layer of {task.name!r}; "
            f"give at least {2 * FOLDS} of two classes, or use refit=False"
        )
    folds = _folds(task, labels, groups)
    losses = [np.mean([_held_out(task, x, labels, fold, penalty) for fold in folds]) for penalty in PENALTIES]
    penalty = PENALTIES[int(np.argmin(losses))]
    model = _fit(task, x, labels, penalty)
    found = copy.deepcopy(linear).cpu()
    assert found.bias is not None
    weight, bias = np.zeros(found.weight.shape), np.full(found.bias.shape, ABSENT)
    if task.kind == "multiclass" and kinds == 2:  # sklearn then keeps one row, for the second class
        rows = model.classes_.astype(int)
        weight[rows[1]], bias[rows] = model.coef_[0], (0.0, model.intercept_[0])
    else:
        rows = model.classes_.astype(int) if task.kind == "multiclass" else np.array([0])
        weight[rows], bias[rows] = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    with torch.no_grad():
        found.weight.copy_(torch.from_numpy(weight / scale))
        found.bias.copy_(torch.from_numpy(bias))
    return found, penalty


def _fit(task: Task, x: np.ndarray, y: np.ndarray, penalty: float) -> LogisticRegression | Ridge:
    if task.kind == "regression":
        return Ridge(alpha=penalty * len(y)).fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties: their held-out loss decides
        return LogisticRegression(C=1 / (2 * penalty * len(y)), max_iter=300).fit(x, y)


def _held_out(task: Task, x: np.ndarray, y: np.ndarray, fold: tuple[np.ndarray, np.ndarray], penalty: float) -> float:
    train, held = fold
    model = _fit(task, x[train], y[train], penalty)
    if task.kind == "regression":
        return float(mean_squared_error(y[held], model.predict(x[held])))
    known = np.isin(y[held], model.classes_)  # a class that only this fold holds cannot be foretold by any penalty
    if not known.any():
        return 0.0
    chances = model.predict_proba(x[held][known])
    return float(log_loss(y[held][known], chances, labels=model.classes_))


def _folds(task: Task, y: np.ndarray, groups: Sequence[str] | None) -> list[tuple[np.ndarray, np.ndarray]]:
    empty = np.zeros(len(y))
    if groups is not None and len(set(groups)) >= 2 * FOLDS:
        found = list(GroupKFold(FOLDS).split(empty, groups=groups))
    else:
        strata = np.zeros(len(y), int) if task.kind == "regression" else y.astype(int)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class with fewer clips than folds
            found = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(empty, strata))
    both = [fold for fold in found if task.kind == "regression" or len(np.unique(y[fold[0]])) > 1]
    if not both:
        raise ValueError(f"no fold of the training clips of {task.name!r} holds two classes; use refit=False")
    return both
