"""Learning curves, runs of one setup but for the seed taken together."""

from collections.abc import Mapping
from typing import Any

import pandas as pd


def curves_of(
    runs: Mapping[str, Any], setups: Mapping[str, Mapping[int, str]], task: str | None = None
) -> pd.DataFrame:
    """One row per setup and epoch: ``setup, epoch, seeds``, and of ``train_loss`` and ``score`` (the task's validation
    metric where the histories have it, else ``val_score``) the mean, ``<name>_low`` and ``<name>_high``: least and most
    over the seeds.

    ``runs``: by name, with a ``history``; those of ``setups`` that are not among them are left out. An epoch that only
    some seeds reached is the mean of those.
    """
    parts = []
    for name, members in setups.items():
        known = [runs[run].history for run in members.values() if run in runs]
        if not known:
            continue
        column = f"val_{task}" if task and all(f"val_{task}" in history for history in known) else "val_score"
        stacked = pd.concat([h[["epoch", "train_loss", column]] for h in known]).rename(columns={column: "score"})
        by_epoch = stacked.groupby("epoch")
        means = by_epoch.mean().assign(seeds=by_epoch.size())
        joined = means.join(by_epoch.min().add_suffix("_low")).join(by_epoch.max().add_suffix("_high"))
        parts.append(joined.reset_index().assign(setup=name))
    columns = ["setup", "epoch", "seeds"]
    columns += [n + end for n in ("train_loss", "score") for end in ("", "_low", "_high")]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
