"""Several setups on the same clips."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from workbench.data.layouts import open_clips
from workbench.data.tables import ClipTable
from workbench.models.strategies import parse_strategy
from workbench.training.finetune import fine_tune, setup_label
from workbench.training.runs import Run
from workbench.training.setup import Setup

log = logging.getLogger(__name__)


def sweep(
    clips: ClipTable | str | Path,
    setups: Iterable[str | Setup] | Mapping[str, str | Setup],
    *,
    runs_dir: str | Path = "runs",
    device: str = "auto",
    workers: int = 2,
    progress: bool = True,
    **common: Any,
) -> dict[str, Run]:
    """Fine-tune every setup on one table: ``{name: Run}`` in the order given.

    ``setups`` holds strategy names or :class:`Setup` objects (a strategy's name is its run's key), or maps names to
    them; ``common`` are Setup fields given to all (``epochs=5``, ``tasks=("action",)``; ``feature_views`` to those
    whose backbone is frozen, where there are others too). Setups that would have the same name are told apart by the
    fields in which they differ (``full-lr0.001``). Finished runs are read, interrupted ones resumed. Raises ValueError
    when two setups are alike, TypeError on an unknown field.
    """
    table = clips if isinstance(clips, ClipTable) else open_clips(clips)
    if isinstance(setups, str | Setup):
        raise ValueError(f"setups={setups!r} is one setup; give a list of them, or use fine_tune")
    keyed = dict(setups) if isinstance(setups, Mapping) else dict(enumerate(setups))
    made = _made(keyed, common)
    labels = list(keyed) if isinstance(setups, Mapping) else _labels(keyed, made)
    named: dict[str, Setup] = {}
    for name, setup in zip(labels, made.values(), strict=True):
        if name in named:
            raise ValueError(f"two setups are called {name!r}; give a mapping of your own names to setups")
        named[str(name)] = setup
    if not named:
        raise ValueError("sweep needs at least one setup, for example ['scratch', 'linear', 'full']")
    options: dict[str, Any] = {"runs_dir": runs_dir, "device": device, "workers": workers, "progress": progress}
    return {name: fine_tune(setup, table, name=name, **options) for name, setup in named.items()}


def _made(items: Mapping[Any, str | Setup], common: Mapping[str, Any]) -> dict[Any, Setup]:
    """Every item with the common fields."""
    strategies = {key: parse_strategy(s if isinstance(s, str) else s.strategy) for key, s in items.items()}
    some_frozen = any(strategy.frozen for strategy in strategies.values())
    made = {}
    for key, item in items.items():
        own = dict(common)
        if some_frozen and not strategies[key].frozen:
            own.pop("feature_views", None)
        made[key] = Setup(strategy=item, **own) if isinstance(item, str) else item.replace(**own)
    return made


def _labels(items: Mapping[Any, str | Setup], made: Mapping[Any, Setup]) -> list[str]:
    """A name per setup: its label and, where others have the same, the fields in which it differs from them."""
    labels = {}
    for key, item in items.items():
        labels[key] = setup_label(made[key])
        if isinstance(item, str):  # "lora", as asked for, though the run records "lora:8"
            labels[key] = labels[key].replace(made[key].strategy, item, 1)
    found = []
    for key, label in labels.items():
        alike = [made[other] for other, theirs in labels.items() if theirs == label]
        differing = [f.name for f in fields(Setup) if len({getattr(s, f.name) for s in alike}) > 1]
        parts = [(name, getattr(made[key], name)) for name in differing]
        found.append("-".join([label, *(f"{name}{_short(value)}" for name, value in parts if value is not None)]))
    return found


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(_short(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
