"""Which runs are worth their cost: no other is as good for less, or better for as little."""

import numpy as np
import pandas as pd


def pareto(
    table: pd.DataFrame,
    metric: str = "value",
    cost: str = "trainable_parameters",
    *,
    higher_is_better: bool = True,
) -> pd.Series:
    """Whether each row is on the front: no other row costs no more and scores no less, with one of them truly better.

    Args:
        table: one row per run, for instance ``comparison.table`` of one task. Rows that tie in both stay together.
        metric, cost: its columns; a row in which either is NaN is not on the front, and pushes no other off it.
        higher_is_better: of the metric; the cost is better where it is lower.

    Raises ValueError naming a column that is missing. Point estimates only: a run just off the front may be on it with
    other clips.
    """
    missing = [name for name in (metric, cost) if name not in table.columns]
    if missing:
        raise ValueError(f"the table has no column(s) {missing}; it has {list(table.columns)}")
    score = table[metric].to_numpy(float) * (1 if higher_is_better else -1)
    price = table[cost].to_numpy(float)
    known = np.flatnonzero(np.isfinite(score) & np.isfinite(price))
    order = known[np.lexsort((-score[known], price[known]))]  # cheapest first, of equals the best
    front, best, paid = np.zeros(len(table), bool), -np.inf, np.nan
    for place in order:
        if score[place] > best:
            best, paid = score[place], price[place]
            front[place] = True
        else:
            front[place] = score[place] == best and price[place] == paid
    return pd.Series(front, index=table.index, name="on_front")
