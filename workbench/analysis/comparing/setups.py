"""What differs between runs, and which of them are one setup trained with several seeds."""

import json
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from workbench.analysis.predictions import Predicted

ABSENT = "–"


def differences_of(runs: Mapping[str, Predicted]) -> pd.DataFrame:
    """One row per fact in which the records of the runs differ, one column per run: ``setup.lr``, ``data.clips.train``,
    ``device.precision``, ``environment.torch`` and so on; a dash where a record lacks it. Empty where all agree."""
    facts = {name: _facts(_record(run)) for name, run in runs.items()}
    names = list(dict.fromkeys(key for own in facts.values() for key in own))
    rows = {key: [own.get(key, ABSENT) for own in facts.values()] for key in names}
    odd = {key: values for key, values in rows.items() if len(set(values)) > 1}
    return pd.DataFrame.from_dict(odd, orient="index", columns=list(facts)).rename_axis("what")


def same_setup(runs: Mapping[str, Predicted]) -> dict[str, dict[int, str]]:
    """Runs that are one setup on the same data but for the seed: ``{setup: {seed: run}}``, in the order met.

    A run without a record of its setup stands alone, as seed 0. A setup is named as its runs are, without the seed.
    """
    found: dict[str, dict[int, str]] = {}
    for name, run in runs.items():
        record = _record(run)
        setup = dict(record.get("setup") or {})
        seed = setup.pop("seed", 0)
        data = (record.get("data") or {}).get("fingerprint")
        key = json.dumps([setup, data], sort_keys=True, default=str) if setup else f"alone: {name}"
        if seed in found.get(key, {}):
            key += f" again: {name}"  # the same training twice is no further seed
        found.setdefault(key, {})[int(seed)] = name
    named: dict[str, dict[int, str]] = {}
    for members in found.values():
        first = next(iter(members.values()))
        plain = re.sub(r"[-_ ]?seed[-_= ]?\d+", "", first) if len(members) > 1 else first
        named[plain if plain and plain not in named else first] = members
    return named


def _record(run: Predicted) -> dict[str, Any]:
    return dict(getattr(run, "record", None) or {})


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    """The facts of a record that can tell runs apart, flat; never its paths, timings or scores."""
    data, device = dict(record.get("data") or {}), dict(record.get("device") or {})
    parts = {
        "setup": dict(record.get("setup") or {}),
        "data": {key: data[key] for key in ("name", "fingerprint", "clips", "quarantined") if key in data},
        "backbone": {"fingerprint": record["backbone_fingerprint"]} if "backbone_fingerprint" in record else {},
        "device": {key: device[key] for key in ("kind", "precision") if key in device},
        "environment": dict(record.get("environment") or {}),
    }
    found: dict[str, str] = {}
    for part, facts in parts.items():
        for key, value in facts.items():
            if isinstance(value, Mapping):
                found |= {f"{part}.{key}.{inner}": _text(own) for inner, own in value.items()}
            else:
                found[f"{part}.{key}"] = _text(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
