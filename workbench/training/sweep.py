"""Several setups on the same clips."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.data.layouts import open_clips
from workbench.data.tables import ClipTable
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
    them; ``common`` are Setup fields given to all (``epochs=5``, ``tasks=("action",)``). Finished runs are read,
    interrupted ones resumed. Raises ValueError when two setups would have the same name, TypeError on an unknown field.
    """
    table = clips if isinstance(clips, ClipTable) else open_clips(clips)
    named: dict[str, Setup] = {}
    pairs = setups.items() if isinstance(setups, Mapping) else ((None, s) for s in setups)
    for given, item in pairs:
        setup = Setup(strategy=item, **common) if isinstance(item, str) else item.replace(**common)
        name = given or setup_label(setup)
        if not given and isinstance(item, str):
            name = name.replace(setup.strategy, item, 1)  # "lora", as asked for, though the run records "lora:8"
        if name in named:
            raise ValueError(f"two setups are called {name!r}; give a mapping of your own names to setups")
        named[name] = setup
    if not named:
        raise ValueError("sweep needs at least one setup, for example ['scratch', 'linear', 'full']")
    options: dict[str, Any] = {"runs_dir": runs_dir, "device": device, "workers": workers, "progress": progress}
    return {name: fine_tune(setup, table, name=name, **options) for name, setup in named.items()}
