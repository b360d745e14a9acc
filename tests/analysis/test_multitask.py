"""The multi-task report: arithmetic by hand, verdicts, what is refused, and the trainings it asks for."""
# ruff: noqa: F811 (fixtures come by their names)

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.training.conftest import tiny_checkpoint, tiny_table  # noqa: F401  (fixtures)
from workbench.analysis.costs import Costs
from workbench.analysis.multitask import (
    affinity_of,
    labelled_for,
    multitask_report,
    report_of,
    setup_for,
    task_affinity,
)
from workbench.analysis.predictions import Predictions
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task
from workbench.training.setup import Setup

ACTION, QUALITY = Task("action", "multiclass", ("a", "b")), Task("quality", "regression")
PROTOCOL = Protocol(num_frames=8, size_px=32)
SEEDS = tuple(range(6))
N = 48


def shown(rights: dict[Task, np.ndarray], name: str = "run", seconds: float = 10.0) -> Predictions:
    """Of each task, which clips are right (bool), or the values that are said of clips whose truth is their number."""
    parts = []
    for task, right in rights.items():
        value = task.kind == "regression"
        target = np.arange(N, dtype=float) if value else np.zeros(N)
        said = right.astype(float) if value else np.where(right, 0.0, 1.0)
        parts.append(pd.DataFrame({
            "clip_id": [f"c{i:02d}" for i in range(N)], "task": task.name,
            "group": [f"g{i % 12:02d}" for i in range(N)], "split": "test", "target": target, "prediction": said,
            "probabilities": [[] if value else [1 - s, s] for s in said],
        }))  # fmt: skip
    record = {"timings": {"train_seconds": seconds, "encode_seconds": 0.0}}
    return Predictions(name, tuple(rights), pd.concat(parts, ignore_index=True), PROTOCOL, record)


def part(share: float, seed: int = 0) -> np.ndarray:
    """This share of the clips right: spread over groups alike, others for another seed."""
    order = np.random.default_rng(seed).permutation(N)
    return np.isin(np.arange(N), order[: round(share * N)])


def noisy(sd: float, seed: int = 0) -> np.ndarray:
    return np.arange(N) + np.random.default_rng(seed + 50).normal(0, sd, N)


def test_report_of_divides_the_difference_by_what_is_reached_alone() -> None:
    other = Task("other", "multiclass", ("a", "b"))
    together = {s: shown({ACTION: part(0.75, s), other: part(0.25, s)}, seconds=30) for s in SEEDS}
    alone = {
        "action": {s: shown({ACTION: part(0.5, s)}, seconds=20 + s) for s in SEEDS},
        "other": {s: shown({other: part(0.5, s)}, seconds=40) for s in SEEDS},
    }
    report = report_of({"TML": together}, alone, resamples=400)
    rows = report.table.set_index("task")
    assert rows.alone.tolist() == [0.5, 0.5] and rows.together.tolist() == [0.75, 0.25]
    assert rows.difference.tolist() == pytest.approx([0.25, -0.25])
    assert rows.relative.tolist() == pytest.approx([0.5, -0.5])
    assert rows.verdict.tolist() == ["gain", "negative transfer"]
    assert rows.seeds_better.tolist() == [6, 0] and report.negative_transfer == ["TML: other"]
    total = report.totals.iloc[0]
    assert total.delta_m == pytest.approx(0.0) and total.tasks_counted == 2
    assert (total.train_seconds, total.alone_train_seconds) == (30, 62.5)
    assert total.train_ratio == pytest.approx(np.median([30 / (60 + s) for s in SEEDS]))
    assert np.isnan(total.inference_ms)


def test_report_of_equal_runs_finds_exactly_nothing() -> None:
    runs = {s: shown({ACTION: part(0.6, s), QUALITY: noisy(9, s)}) for s in SEEDS}
    report = report_of({"TML": runs}, {"action": runs, "quality": runs}, resamples=200)
    assert report.table[["difference", "low", "high", "relative_high"]].abs().to_numpy().max() == 0
    assert report.table.verdict.tolist() == ["no clear difference"] * 2
    assert report.totals.delta_m.item() == 0 and "none shown" in report.caption


def test_report_of_too_few_seeds_gives_no_verdict_and_says_so() -> None:
    together = {s: shown({ACTION: part(0.9, s)}) for s in range(5)}
    alone = {s: shown({ACTION: part(0.2, s)}) for s in range(5)}
    report = report_of({"TML": together}, {"action": alone}, resamples=200)
    assert report.table.low.item() > 0
    assert report.table.verdict.item() == report.totals.verdict.item() == "too few seeds"
    assert "Fewer than 6 seeds" in report.caption


def test_report_of_leaves_a_task_out_of_delta_m_that_learns_nothing_alone() -> None:
    """A correlation near zero: any change is many times as large, or of the wrong sign."""
    rng = np.random.default_rng(3)
    together = {s: shown({ACTION: part(0.6, s), QUALITY: noisy(3, s)}) for s in SEEDS}
    alone = {
        "action": {s: shown({ACTION: part(0.5, s)}) for s in SEEDS},
        "quality": {s: shown({QUALITY: rng.normal(size=N)}) for s in SEEDS},
    }
    report = report_of({"TML": together}, alone, resamples=400)
    rows = report.table.set_index("task")
    assert np.isnan(rows.relative["quality"]) and "not clearly above zero" in rows.note["quality"]
    assert rows.difference["quality"] > 0.5 and rows.verdict["quality"] == "gain"
    assert report.totals.tasks_counted.item() == 1
    assert report.totals.delta_m.item() == pytest.approx(rows.relative["action"])
    assert "counts 1 of 2 tasks" in report.caption


def test_report_of_shows_itself_escaped_and_as_json() -> None:
    runs = {s: shown({ACTION: part(0.6, s)}) for s in SEEDS}
    costs = Costs(1.0, 4.0, 0.25, 10.0, 8.0, 1_000_000, 3_000_000)
    report = report_of({"<b>x</b>": runs}, {"action": runs}, resamples=50, costs={"<b>x</b>": costs})
    assert "<b>x" not in report._repr_html_() and "&lt;b&gt;x" in report._repr_html_()
    text = report.formatted_totals().iloc[0]
    assert text["inference per clip"] == "1.0 against 4.0 ms (0.25x)"
    assert text["training memory"] == "10.0 against 8.0 MiB (1.25x)"
    assert text["parameters"] == "1.0 against 3.0 M (0.33x)"
    assert "delta-m" in str(report)
    json.dumps(report.to_json(), allow_nan=False)


def test_report_of_refuses_other_seeds() -> None:
    runs = {s: shown({ACTION: part(0.6, s)}) for s in SEEDS}
    fewer = {s: runs[s] for s in SEEDS[:3]}
    with pytest.raises(ValueError, match=r"'action' was trained with seeds \[0, 1, 2\]"):
        report_of({"TML": runs}, {"action": fewer})


def test_affinity_of_has_the_gaining_task_by_row() -> None:
    runs = {
        ("action",): {s: shown({ACTION: part(0.5, s)}) for s in SEEDS},
        ("quality",): {s: shown({QUALITY: noisy(4, s)}) for s in SEEDS},
        ("action", "quality"): {s: shown({ACTION: part(0.75, s), QUALITY: noisy(30, s)}) for s in SEEDS},
    }
    affinity = affinity_of(runs, ["action", "quality"], resamples=400)
    matrix = affinity.matrix()
    assert matrix.loc["action", "quality"] == pytest.approx(0.25)
    assert matrix.loc["quality", "action"] < -0.2
    assert np.isnan(np.diag(matrix)).all()
    verdicts = affinity.table.set_index(["task", "partner"]).verdict
    assert verdicts.tolist() == ["gain", "negative transfer"]
    assert "trained with" in str(affinity)


def test_labelled_for_keeps_clips_with_any_of_the_labels(tiny_table: ClipTable) -> None:
    assert len(labelled_for(tiny_table, ["speed"])) == 29
    assert len(labelled_for(tiny_table, ["speed", "bright"])) == 32
    assert [t.name for t in labelled_for(tiny_table, ["speed"]).tasks] == ["speed"]


def test_setup_for_leaves_out_what_is_of_other_tasks() -> None:
    setup = Setup(balance="static:a=2,b=3", class_weights={"a": "balanced", "b": "balanced"}, measure_conflict=5)
    pair = setup_for(setup, ["b", "c"])
    assert (pair.balance, pair.tasks, pair.weights_by_task) == ("static:b=3", ("b", "c"), {"b": "balanced"})
    single = setup_for(setup, ["c"])
    assert (single.balance, single.class_weights, single.measure_conflict) == ("sum", None, 0)
    assert setup_for(setup.replace(class_weights="balanced"), ["c"]).class_weights == "balanced"


def test_multitask_report_trains_each_way_once_per_seed_on_the_labelled_clips(
    tiny_table: ClipTable, tiny_checkpoint: str, tmp_path: Path
) -> None:
    setup = Setup(backbone=tiny_checkpoint, head="query", epochs=1, batch_size=8)
    options = {"seeds": (0, 1), "runs_dir": tmp_path, "device": "cpu", "resamples": 50, "progress": False}
    report = multitask_report(tiny_table, setup, singles={
        t: setup.replace(lr=1e-4 * i) for i, t in enumerate(("direction", "bright", "speed"), start=1)
    }, **options)  # fmt: skip
    assert len(list(tmp_path.glob("squares-*"))) == 8
    assert report.table.task.tolist() == ["direction", "bright", "speed"]
    speed = report.singles["speed"][1]
    assert speed.record["data"]["clips"] == {"train": 15, "val": 7, "test": 7} and speed.setup.lr == pytest.approx(3e-4)
    assert speed.setup.tasks == ("speed",) and speed.setup.seed == 1
    assert report.runs["TML"][0].record["data"]["clips"]["train"] == 16
    total = report.totals.iloc[0]
    assert total.inference_ms > 0 and 0 < total.train_seconds < total.alone_train_seconds * 3
    whole = sum(p.numel() for p in report.runs["TML"][0].model().parameters())
    assert total.parameters == whole and total.alone_parameters > 2 * whole
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/run.json")}
    affinity = task_affinity(tiny_table, setup.replace(tasks=("direction", "bright")), **options)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert affinity.matrix().shape == (2, 2)


def test_multitask_report_refuses_other_budgets_and_single_tasks(tiny_table: ClipTable, tmp_path: Path) -> None:
    setup = Setup(epochs=3)
    with pytest.raises(ValueError, match="'TML' and 'bright' differ in epochs 3 and 4"):
        multitask_report(tiny_table, setup, singles={
            "direction": setup, "bright": setup.replace(epochs=4), "speed": setup,
        }, runs_dir=tmp_path)  # fmt: skip
    with pytest.raises(ValueError, match="singles has no setup for task 'direction'"):
        multitask_report(tiny_table, setup, singles={"bright": setup}, runs_dir=tmp_path)
    with pytest.raises(ValueError, match=r"tasks=\['bright'\]: there is nothing to share"):
        multitask_report(tiny_table, setup.replace(tasks=("bright",)), runs_dir=tmp_path)
