"""What the training doctor found: a fault, the evidence for it, and what to do about it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import pandas as pd

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run. ``str(finding)`` is a sentence for a log."""

    code: str
    """What kind of fault, for a program: see the table in :mod:`workbench.training.checking.checkup`."""
    severity: str
    """``error``: the run does not do what its setup says; ``warning``: its result will be poor or cannot be judged;
    ``note``: worth knowing."""
    message: str
    """What was seen, with its numbers."""
    fix: str
    """What to do."""
    about: str = ""
    """The task or field it is about; with ``code``, what makes two findings the same."""
    epoch: int = 0
    """Epoch (from 1) after or in which it was seen; 0: before training."""
    step: int = 0
    """Optimiser steps done by then."""

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity={self.severity!r} is not one of {', '.join(SEVERITIES)}")

    def __str__(self) -> str:
        when = f"epoch {self.epoch}" if self.epoch else "before training"
        return f"{self.severity} ({when}): {self.message}. {self.fix}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> "Finding":
        return Finding(**record)


def findings_frame(findings: Iterable[Finding]) -> pd.DataFrame:
    """One row per finding, the grave ones first; columns as the fields of :class:`Finding`."""
    ordered = sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.epoch))
    return pd.DataFrame([f.to_json() for f in ordered], columns=[f.name for f in fields(Finding)])
