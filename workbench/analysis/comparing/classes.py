"""In which classes is one run better than another: recall class by class, paired, with intervals over groups."""

import math

import numpy as np
import pandas as pd
from scipy.stats import t as student

from workbench.analysis.bootstrap import CONFIDENCE, MIN_GROUPS, holm
from workbench.analysis.comparing.evidence import Evidence


def class_deltas(one: Evidence, first: str, second: str) -> pd.DataFrame:
    """One row per class with labelled clips: ``class, first, second`` (recall), ``difference`` (first minus second),
    ``low, high, p, p_holm, n, groups``, in the task's order.

    The interval is Student's t with a variance between groups of the ratio "clips won less clips lost, of the class's
    clips" (linearised; Cochran, *Sampling Techniques*, 3rd ed., 1977, chapter 6): a class has too few groups to
    resample. It is NaN under 6 groups, or where every group says the same. Raises ValueError for regression and
    multilabel tasks, or a run that was not compared.
    """
    one.check(first, second)
    right = [one.right(run).astype(float) for run in (first, second)]
    names, groups, classes = one.task.classes or ("0", "1"), one.groups, one.target.astype(int)
    lines = []
    for k, name in enumerate(names):
        mine = classes == k
        if not mine.any():
            continue
        won = (right[0] - right[1])[mine]
        _, inside = np.unique(groups[mine], return_inverse=True)
        inside = inside.reshape(-1)
        low, high, p = _ratio(np.bincount(inside, won), np.bincount(inside).astype(float))
        lines.append(
            {
                "class": name, "first": right[0][mine].mean(), "second": right[1][mine].mean(),
                "difference": won.mean(), "low": low, "high": high, "p": p, "n": int(mine.sum()),
                "groups": int(inside.max()) + 1,
            }
        )  # fmt: skip
    columns = ["class", "first", "second", "difference", "low", "high", "p", "n", "groups"]
    table = pd.DataFrame(lines, columns=columns)
    table.insert(columns.index("p") + 1, "p_holm", holm(table.p.to_numpy(float)))
    return table


def _ratio(won: np.ndarray, size: np.ndarray) -> tuple[float, float, float]:
    """95 % interval and two-sided p-value of ``sum(won) / sum(size)``, both ``(G,)`` by group."""
    count, total = len(size), size.sum()
    if count < MIN_GROUPS:
        return math.nan, math.nan, math.nan
    value = won.sum() / total
    variance = count / (count - 1) * ((won - value * size) ** 2).sum() / total**2
    if variance < 1e-24:
        return math.nan, math.nan, math.nan
    half = float(student.ppf((1 + CONFIDENCE) / 2, count - 1)) * math.sqrt(variance)
    p = float(2 * student.sf(abs(value) / math.sqrt(variance), count - 1))
    return max(-1.0, value - half), min(1.0, value + half), p
