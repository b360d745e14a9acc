"""Domain shift: label shift by hand, a linear rule that tells nothing or all apart, and groups that cannot be split."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analysis.screened import BrightRun, grey_video
from workbench.analysis.comparing.evidence import Evidence, gather
from workbench.analysis.predictions import Predictions, task_rows
from workbench.analysis.stress import domain as module
from workbench.analysis.stress.domain import domain_shift, separability
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task

ACTION = Task("action", "multiclass", ("a", "b"))
PROTOCOL = Protocol(num_frames=4, size_px=32)


def evidence(name: str, target: list[int], prediction: list[int]) -> Evidence:
    n = len(target)
    frame = pd.DataFrame({
        "clip_id": [f"{name}{i:03d}" for i in range(n)], "path": "x", "group": [f"g{i}" for i in range(n)],
        "split": "test", "task": "action", "target": np.array(target, float),
        "prediction": np.array(prediction, float), "probabilities": [[0.5, 0.5]] * n,
    })  # fmt: skip
    rows = task_rows(Predictions("run", (ACTION,), frame, PROTOCOL), ACTION, "test")
    return gather(ACTION, {name: rows}, None, resamples=400, seed=0)


def test_adjusted_undoes_a_shift_of_the_classes_alone():
    """Recall .9 of a and .5 of b in both tables; the source has 8 a to 2 b, the target the reverse."""
    source = evidence("source", [0] * 80 + [1] * 20, [0] * 72 + [1] * 8 + [1] * 10 + [0] * 10)
    target = evidence("target", [0] * 20 + [1] * 80, [0] * 18 + [1] * 2 + [1] * 40 + [0] * 40)
    line = module._line(source, target, 400, 0)
    assert line["source"] == pytest.approx(0.8 * 0.9 + 0.2 * 0.5)
    assert line["target"] == pytest.approx(0.2 * 0.9 + 0.8 * 0.5)
    assert line["adjusted"] == pytest.approx(line["source"])
    assert line["label_shift"] == pytest.approx(0.6)
    assert line["change_low"] < line["change"] < line["change_high"] < 0
    assert line["adjusted_low"] < line["adjusted"] < line["adjusted_high"]


def test_adjusted_is_unknown_where_the_target_lacks_a_class_of_the_source():
    line = module._line(evidence("source", [0, 1] * 10, [0, 1] * 10), evidence("target", [0] * 20, [0] * 20), 50, 0)
    assert math.isnan(line["adjusted"]) and line["label_shift"] == 0.5
    reverse = module._line(evidence("source", [0] * 20, [0] * 20), evidence("target", [0, 1] * 10, [0, 0] * 10), 50, 0)
    assert reverse["adjusted"] == 1.0  # of the class that the source has


def test_classes_have_their_recall_in_both():
    source, target = evidence("source", [0, 0, 1, 1], [0, 1, 1, 1]), evidence("target", [0, 0, 0, 0], [0, 0, 0, 1])
    (a, b) = module._classes(source, target)
    assert a == ("action", "a", 0.5, 0.75, 2, 4)
    assert b[:3] == ("action", "b", 1.0) and math.isnan(b[3]) and b[4:] == (2, 0)


def test_separability_is_a_half_of_alike_and_one_of_plainly_different():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4).astype(str)
    alike = []
    for s in range(8):
        x, y = rng.normal(size=(2, 120, 8))
        alike.append(separability(x, y, groups, groups, resamples=200, seed=s)[0])
    assert abs(np.mean(alike) - 0.5) < 0.06
    x, y = rng.normal(size=(2, 120, 8))
    value, low, high = separability(x, y + [3, *[0] * 7], groups, groups, resamples=200)
    assert value > 0.97 and low <= value <= high


def test_separability_does_not_learn_groups_by_heart():
    """Every group has a feature of its own, drawn alike in both tables: clips of a group held out tell nothing."""
    rng = np.random.default_rng(1)
    values, groups = [], np.repeat(np.arange(40), 6).astype(str)
    for _ in range(2):
        values.append(np.repeat(rng.normal(size=(40, 30)), 6, axis=0) + 0.01 * rng.normal(size=(240, 30)))
    value, low, high = separability(values[0], values[1], groups, groups, resamples=200)
    assert 0.3 < value < 0.7 and low < 0.5 < high


def test_separability_needs_six_groups_in_either():
    x, many, few = np.zeros((12, 2)), np.arange(12).astype(str), np.repeat(np.arange(5), 3)[:12].astype(str)
    assert all(map(math.isnan, separability(x, x, many, few)))


def _table(root: Any, levels: list[int], *, split: str = "test", name: str = "t") -> ClipTable:
    tasks = BrightRun().tasks[:1]
    rows = []
    for i, level in enumerate(levels):
        grey_video(root / f"{name}{i}.mp4", [level] * 4)
        rows.append({
            "clip_id": f"{name}{i}", "path": f"{name}{i}.mp4", "start_seconds": np.nan, "end_seconds": np.nan,
            "split": split, "group": f"g{i}", "action": tasks[0].classes[int(level > 127)],
        })  # fmt: skip
    return ClipTable(pd.DataFrame(rows), tasks, root=root)


def test_domain_shift_scores_both_tables(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    source = _table(tmp_path, [20, 60, 90, 160, 200, 230, 240, 250], name="s")
    target = _table(tmp_path, [30, 70, 100, 110, 170, 210, 220, 245], split="val", name="t")
    target = ClipTable(target.frame.assign(action=[*target.frame.action[:7], "dim"]), target.tasks, root=tmp_path)

    class Known:  # features are the brightness itself; encoding by a backbone is tested elsewhere
        def __init__(self, table: ClipTable) -> None:
            self.table, self.values = table, np.arange(len(table), dtype=np.float32)[:, None, None]

    monkeypatch.setattr(module, "run_features", lambda run, table, **options: Known(table))
    run = BrightRun(tasks=source.tasks, protocol=Protocol(num_frames=4, size_px=32, decoder="pyav"))
    found = domain_shift(run, source, target, target_split="val", resamples=200, progress=False)
    line = found.table.iloc[0]
    assert (line.source, line.target, line.change) == (1.0, 7 / 8, -1 / 8)
    assert (line.n_source, line.groups_target) == (8, 8)
    assert 0 <= found.separable <= 1 and "AUROC" in found.caption
    assert "<table" in found._repr_html_() and "label shift" in str(found)
    with pytest.raises(ValueError, match="8 clip.s. lie in both"):
        domain_shift(run, source, source, progress=False)
    with pytest.raises(ValueError, match="the target table has no clips"):
        domain_shift(run, source, target, progress=False)
    other = ClipTable(target.frame.rename(columns={"action": "gesture"}), (), root=tmp_path)
    with pytest.raises(ValueError, match="no task in common"):
        domain_shift(run, source, other, target_split="val", progress=False)
