"""The front of balances: which points lie on it, when a method counts as better, and what is trained."""
# ruff: noqa: F811 (fixtures come by their names)

from pathlib import Path

import numpy as np
import pytest

from tests.analysis.balance_runs import STATIC, runs
from tests.training.conftest import tiny_checkpoint, tiny_table  # noqa: F401  (fixtures)
from workbench.analysis.balance_front import balance_front, front_of, static_grid
from workbench.data.tables import ClipTable
from workbench.training.setup import Setup


def test_static_grid_moves_one_task_at_a_time() -> None:
    assert static_grid(["a", "b"]) == ["sum", "static:a=0.25", "static:a=4", "static:b=0.25", "static:b=4"]
    with pytest.raises(ValueError, match="1 must be above 0 and not 1"):
        static_grid(["a"], [1])


def test_front_of_finds_what_nothing_dominates() -> None:
    front = front_of(STATIC | {"dwa:2": runs(0.6, 0.2)}, ["a", "b"], resamples=200)
    points = front.points.set_index("name")
    assert points.on_front.to_dict() == {"sum": True, "static:a=4": True, "static:b=4": False, "dwa:2": False}
    assert points.dominated_by.to_dict() == {"sum": "", "static:a=4": "", "static:b=4": "sum", "dwa:2": "static:a=4"}
    assert points.kind["dwa:2"] == "method" and np.isnan(points.weight_a["dwa:2"])
    assert (points.weight_a["static:a=4"], points.weight_b["static:a=4"]) == (4, 1)
    assert points.score["sum"] == pytest.approx(0.5)
    assert front.at("sum").value.tolist() == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match="no balance 'x' in this sweep"):
        front.at("x")


def test_front_of_chooses_the_static_point_on_val_not_on_test() -> None:
    static = {"sum": runs(0.7, 0.7, val=(0.3, 0.3)), "static:a=4": runs(0.3, 0.3, val=(0.6, 0.6))}
    front = front_of(static | {"uncertainty": runs(0.6, 0.6)}, ["a", "b"], resamples=200)
    assert front.chosen == "static:a=4"
    points = front.points.set_index("name")
    assert points.difference["uncertainty"] == pytest.approx(0.3)
    # Better than what was chosen, but worse than another static point in both tasks.
    assert points.difference_low["uncertainty"] > 0 and points.verdict["uncertainty"] == "no clear difference"
    assert points.verdict["static:a=4"] == "chosen on val" and points.p_holm[["sum", "static:a=4"]].isna().all()


def test_front_of_calls_a_method_better_only_beyond_the_front() -> None:
    methods = {"dwa:2": runs(0.8, 0.6), "uncertainty": runs(0.1, 0.1), "random": runs(0.5, 0.5)}
    verdicts = front_of(STATIC | methods, ["a", "b"], resamples=1000).points.set_index("name").verdict
    assert verdicts[list(methods)].tolist() == ["better", "worse", "no clear difference"]


def test_front_of_few_seeds_gives_no_verdict() -> None:
    few = {name: {s: own[s] for s in (0, 1)} for name, own in (STATIC | {"dwa:2": runs(0.9, 0.9)}).items()}
    front = front_of(few, ["a", "b"], resamples=100)
    row = front.points.set_index("name").loc["dwa:2"]
    assert row.verdict == "too few seeds" and np.isnan(row.p_holm)
    assert "2 seed(s)" in str(front) and "dwa:2" in front._repr_html_()


def test_nearest_compares_ratios() -> None:
    front = front_of(STATIC, ["a", "b"], resamples=10)
    assert front.nearest({"a": 1, "b": 1}) == front.nearest({"a": 30, "b": 30}) == "sum"
    assert front.nearest({"a": 1, "b": 0.2}) == "static:a=4"
    assert front.nearest({"a": 0, "b": 1}) == "static:b=4"
    with pytest.raises(ValueError, match=r"weights are of \['a'\]"):
        front.nearest({"a": 1})


def test_front_of_needs_fixed_weights() -> None:
    with pytest.raises(ValueError, match="holds no fixed weights"):
        front_of({"dwa:2": runs(0.5, 0.5)}, ["a", "b"])


def test_balance_front_trains_each_balance_once_per_seed(
    tiny_table: ClipTable, tiny_checkpoint: str, tmp_path: Path
) -> None:
    setup = Setup(backbone=tiny_checkpoint, epochs=1, batch_size=8, tasks=("direction", "bright"))
    front = balance_front(
        tiny_table, setup, grid=["sum", "static:bright=2"], methods=["dwa"], seeds=1, runs_dir=tmp_path, device="cpu",
        resamples=20, progress=False,
    )  # fmt: skip
    assert front.points.name.tolist() == ["sum", "static:bright=2", "dwa:2"]
    assert {name: own[1].setup.balance for name, own in front.runs.items()} == {n: n for n in front.points.name}
    assert len(list(tmp_path.glob("squares-*"))) == 3
    with pytest.raises(ValueError, match="is given twice"):
        balance_front(tiny_table, setup, grid=["sum", "sum"], runs_dir=tmp_path)
    with pytest.raises(ValueError, match="weighs the task 'x'"):
        balance_front(tiny_table, setup, grid=["static:x=2"], runs_dir=tmp_path)
