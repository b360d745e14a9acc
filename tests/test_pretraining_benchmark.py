"""The ablations' own arithmetic: what is varied, how it is probed, and that finished work is not done again."""

import argparse
import importlib.util
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from workbench.data.tables import ClipTable, Task
from workbench.training.pretrain import PretrainSetup

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "pretraining.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))  # for its 'results'
    try:
        spec = importlib.util.spec_from_file_location("benchmark_pretraining", SCRIPT)
        assert spec and spec.loader
        module = sys.modules["benchmark_pretraining"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def gestures(n_groups: int = 20, per_group: int = 6) -> ClipTable:
    n = n_groups * per_group
    label = [("up", "down", "left")[i % 3] for i in range(n)]
    frame = pd.DataFrame({
        "clip_id": [f"c{i}" for i in range(n)], "path": [f"{i}.mp4" for i in range(n)], "start_seconds": np.nan,
        "end_seconds": np.nan, "split": "train", "group": [f"g{i // per_group}" for i in range(n)], "gesture": label,
        "score": np.arange(n) % 3 / 2,
    })  # fmt: skip
    return ClipTable(frame, (Task("gesture", "multiclass", ("up", "down", "left")), Task("score", "regression")))


def test_recipe_of_the_base_at_the_default_budget_is_the_default_recipe(script: ModuleType) -> None:
    assert script.recipe("base", PretrainSetup().steps, 0) == PretrainSetup()


def test_recipe_changes_one_thing_and_scales_warm_up_and_curriculum_with_the_budget(script: ModuleType) -> None:
    base = asdict(script.recipe("base", 1000, 3))
    assert (base["steps"], base["warmup_steps"], base["easy_steps"], base["seed"]) == (1000, 100, 600, 3)
    for name, changes in script.VARIANTS.items():
        mine = asdict(script.recipe(name, 1000, 3))
        differs = {field for field in mine if mine[field] != base[field]}
        expected = set(changes)
        assert differs == (expected | {"warmup_steps", "easy_steps"} if "steps" in expected else expected), name
    assert script.recipe("half the steps", 1000, 0) == script.recipe("base", 500, 0)


def test_probe_finds_what_is_there_and_nothing_in_noise(script: ModuleType) -> None:
    table, rng = gestures(), np.random.default_rng(0)
    data = script.Dataset("toy", table, None, ("gesture", "score"))
    noise = rng.normal(size=(len(table), 8))
    signal = noise.copy()
    signal[:, :3] += 6 * np.eye(3)[table.targets("gesture").astype(int)]
    for task, kind in (("gesture", "multiclass"), ("score", "regression")):
        found = script.probe(data, signal, task)
        assert len(found) == script.REPEATS * 2 * len(table) and found.prediction.notna().all()
        for _, part in found.groupby(["repeat", "probe"]):
            guess = part.sort_values("row").prediction.to_numpy()
            assert script.score(kind, table.targets(task), guess, np.ones((1, len(table))))[0] > 0.9
        for _, part in script.probe(data, noise, task).groupby(["repeat", "probe"]):
            guess = part.sort_values("row").prediction.to_numpy()
            assert script.score(kind, table.targets(task), guess, np.ones((1, len(table))))[0] < 0.55


def test_probe_holds_whole_groups_out(script: ModuleType) -> None:
    # Features that name the group and nothing else, and labels that are the group's: only a leak could find them.
    table = gestures()
    label = np.random.default_rng(1).permutation(np.arange(20) % 3).repeat(6)
    frame = table.frame.assign(gesture=np.array(("up", "down", "left"))[label])
    data = script.Dataset("toy", ClipTable(frame, table.tasks), None, ("gesture",))
    names = np.eye(20).repeat(6, axis=0)
    found = script.probe(data, names, "gesture").query("probe == 'nearest'")
    for _, part in found.groupby("repeat"):
        assert (part.sort_values("row").prediction.to_numpy() == label).mean() < 0.6


def test_summary_shows_accuracy_and_paired_difference_by_hand(script: ModuleType) -> None:
    table = gestures()
    data = script.Dataset("toy", table, None, ("gesture",))
    truth = table.targets("gesture")

    def said(wrong_groups: int) -> pd.DataFrame:
        guess = truth.copy()
        guess[: 6 * wrong_groups] = (guess[: 6 * wrong_groups] + 1) % 3
        parts = [
            pd.DataFrame({"repeat": 0, "probe": which, "row": np.arange(len(truth)), "prediction": guess})
            for which in ("nearest", "linear")
        ]
        return pd.concat(parts).assign(dataset="toy", task="gesture")

    made = {("base", 0): said(10), ("flat textures", 0): said(5), ("flat textures", 1): said(7)}
    shown = script.summary(made, data, "gesture").set_index("variant")
    assert shown.linear["base"].startswith("0.500 [")
    assert shown.linear["flat textures"].startswith("0.700 [")  # the mean over two seeds of 0.75 and 0.65
    assert shown["linear - base"]["flat textures"].startswith("+0.200 [+")
    assert shown["linear - base"]["base"] == "" and shown.seeds["flat textures"] == 2


def test_encoders_leaves_untrained_variants_out_and_trains_none_unless_asked(
    script: ModuleType, tmp_path: Path
) -> None:
    args = argparse.Namespace(runs=tmp_path, seeds=[0], variants=["base"], steps=3, train=False, device="cpu")
    found = {name: backbone is not None for name, _, _, backbone in script.encoders(args)}
    assert found == {"untrained": True, "nano as shipped": True, "base": False}


def test_scored_keeps_what_is_there(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = gestures()
    data = script.Dataset("toy", table, np.zeros(120), ("gesture",))
    calls: list[int] = []

    def counted(_: object, clips: np.ndarray) -> np.ndarray:
        calls.append(1)
        return np.random.default_rng(0).normal(size=(len(clips), 4))

    monkeypatch.setattr(script, "features", counted)
    first = script.scored(tmp_path, None, [data])
    again = script.scored(tmp_path, None, [data])
    assert len(calls) == 1 and first.prediction.tolist() == again.prediction.tolist()
    script.scored(tmp_path, None, [script.Dataset("toy", table[np.arange(60)], np.zeros(60), ("gesture",))])
    assert len(calls) == 2  # another size is another data set
