"""Which way of transferring wins as labels shrink: the same strategies at several numbers of labels per class."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from workbench.analysis.repeats import over_seeds, score_of
from workbench.data.layouts import open_clips
from workbench.data.splits import few_labels
from workbench.data.tables import ClipTable
from workbench.training.finetune import fine_tune
from workbench.training.setup import Setup


def label_study(
    clips: ClipTable | str | Path,
    strategies: str | Mapping[str, str | Setup] | Sequence[str],
    per_class: int | Sequence[int | None] = (1, 2, 5, 10, None),
    *,
    task: str,
    seeds: int | Sequence[int] = (0,),
    steps: int = 300,
    least_epochs: int = 1,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    workers: int = 2,
    progress: bool = True,
    **common: Any,
) -> pd.DataFrame:
    """Train every strategy at every number of training clips ``per_class`` of ``task`` (None: all there are).

    A seed fixes which clips keep their label (nested: those of 1 per class are among those of 2) and the training, and
    all strategies get the same, so that they are paired. Each training takes about ``steps`` optimiser steps, whatever
    the number of clips, but at least ``least_epochs`` epochs. ``common`` are Setup fields given to all.

    One row per training: ``strategy, per_class`` (NaN: all), ``seed, clips, epochs, metric, value`` (the task's main
    metric on test), ``folder`` of the run. Finished runs are read again. Raises ValueError without labelled test clips
    or where a class has too few training clips, TypeError on an unknown Setup field.
    """
    strategies = [strategies] if isinstance(strategies, str) else strategies
    per_class = [per_class] if isinstance(per_class, int) else per_class
    seeds = [seeds] if isinstance(seeds, int) else seeds
    table = (clips if isinstance(clips, ClipTable) else open_clips(clips)).with_tasks([task])
    if not len(table.test) or np.isnan(table.test.targets(task)).all():
        raise ValueError(f"no test clip of {table.info.name!r} has a label of {task!r}, by which to score a training")
    pairs = strategies.items() if isinstance(strategies, Mapping) else ((name, name) for name in strategies)
    setups = {
        name: Setup(strategy=item, **common) if isinstance(item, str) else item.replace(**common)
        for name, item in pairs
    }
    rows: list[dict[str, Any]] = []
    bar = tqdm(total=len(seeds) * len(per_class) * len(setups), desc="trainings", disable=not progress)
    for seed in seeds:
        for count in per_class:
            few = table if count is None else few_labels(table, count, task=task, seed=seed)
            for name, setup in setups.items():
                epochs = epochs_for(len(few.train), steps, setup.batch_size * setup.accumulation, least_epochs)
                run = fine_tune(
                    setup.replace(epochs=epochs, seed=seed), few, runs_dir=runs_dir, device=device, workers=workers,
                    progress=False,
                )  # fmt: skip
                metric, value = score_of(run, task)
                bar.update()
                rows.append(
                    {
                        "strategy": name, "per_class": math.nan if count is None else count, "seed": seed,
                        "clips": len(few.train), "epochs": epochs, "metric": metric, "value": value,
                        "folder": str(run.folder),
                    }
                )  # fmt: skip
    bar.close()
    return pd.DataFrame(rows)


def epochs_for(clips: int, steps: int, batch_size: int, least_epochs: int = 1) -> int:
    """As many epochs as make ``steps`` optimiser steps of ``batch_size`` clips, rounded up."""
    if min(clips, steps, batch_size, least_epochs) < 1:
        raise ValueError(
            f"clips={clips}, steps={steps}, batch_size={batch_size}, least_epochs={least_epochs}: each >= 1"
        )
    return max(least_epochs, math.ceil(steps / math.ceil(clips / batch_size)))


def over_levels(study: pd.DataFrame, *, reference: str | None = None) -> pd.DataFrame:
    """Of a :func:`label_study`: mean over seeds, and the paired difference to ``reference``, per strategy and level.

    Columns: ``strategy, per_class, clips, seeds, value, low, high`` and, given a reference, ``difference,
    difference_low, difference_high``; all intervals are Student's t over seeds, NaN with one seed. ``clips`` is the
    mean number of training clips.
    """
    if reference is not None and reference not in set(study.strategy):
        raise ValueError(f"reference={reference!r} is not among the strategies {sorted(set(study.strategy))}")
    base = study[study.strategy == reference][["per_class", "seed", "value"]]
    rows = []
    for (name, level), part in study.groupby(["strategy", "per_class"], sort=False, dropna=False):
        spread = over_seeds(part.value.to_numpy())
        row = {"strategy": name, "per_class": level, "clips": part.clips.mean(), "seeds": spread.n}
        row |= {"value": spread.value, "low": spread.low, "high": spread.high}
        if reference is not None:
            pairs = part.merge(base, on=["per_class", "seed"], suffixes=("", "_reference"))  # NaN meets NaN
            gap = over_seeds((pairs.value - pairs.value_reference).to_numpy())
            row |= {"difference": gap.value, "difference_low": gap.low, "difference_high": gap.high}
        rows.append(row)
    return pd.DataFrame(rows)
