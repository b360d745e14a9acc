"""The table of scores on real files with a tiny backbone, and agreement with trained results."""
# ruff: noqa: F811 (fixtures come by their names)

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kendalltau

from tests.training.conftest import tiny_checkpoint, tiny_table  # noqa: F401  (fixtures)
from workbench.analysis.predictions import Predictions
from workbench.analysis.transfer_scores import SCORES, logme
from workbench.analysis.transferability import beside_runs, rank_agreement, transferability
from workbench.data.cache import decode_table
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task
from workbench.models.backbones import load_backbone

DIRECTION = Task("direction", "multiclass", ("left", "right"))


def test_transferability_scores_the_train_clips_by_the_backbones_own_pooled_tokens(
    tiny_table: ClipTable,
    tiny_checkpoint: str,
) -> None:
    scores = transferability(tiny_table, {"tiny": tiny_checkpoint}, progress=False)
    assert scores.task.tolist() == ["direction", "bright", "speed"]
    assert scores.n.tolist() == [15, 16, 15]  # 16 train clips, a label missing in two tasks
    backbone, train = load_backbone(tiny_checkpoint), tiny_table.train
    clips = decode_table(train, num_frames=8, size_px=32, resize_px=backbone.resize_px, progress=False).clips
    with torch.inference_mode():
        pooled = backbone.pool(backbone(backbone.prepare(torch.from_numpy(np.asarray(clips)))).tokens).double().numpy()
    target = train.targets("bright")
    assert scores.logme[1] == pytest.approx(logme(pooled, target, "binary"), rel=1e-4)
    assert scores.loc[2, ["h_score", "separation"]].isna().all()


def test_transferability_never_looks_at_val_and_test(tiny_table: ClipTable, tiny_checkpoint: str) -> None:
    frame = tiny_table.frame.copy()
    held = frame.split != "train"
    frame.loc[held, "path"] = "not-there.mp4"
    frame.loc[held, "direction"] = "left"
    other = ClipTable(frame, tiny_table.tasks, root=tiny_table.root, info=tiny_table.info)
    first, second = (
        transferability(t, {"tiny": tiny_checkpoint}, tasks=["direction"], progress=False) for t in (tiny_table, other)
    )
    assert first[list(SCORES)].equals(second[list(SCORES)])


def test_transferability_takes_loaded_backbones_and_ranks_a_spoiled_one_lower(
    tiny_table: ClipTable,
    tiny_checkpoint: str,
) -> None:
    dull = load_backbone(tiny_checkpoint)
    with torch.no_grad():
        for parameter in dull.parameters():
            parameter.zero_()
        for parameter in dull.norm.parameters():  # every clip gets the same features, not all zero
            parameter.fill_(1.0)
    scores = transferability(
        tiny_table, {"whole": tiny_checkpoint, "blind": dull}, tasks=["bright"], scores=("knn",), progress=False
    )
    assert scores.backbone.tolist() == ["whole", "blind"]
    assert scores.knn[0] > scores.knn[1]


def test_transferability_refuses_unknown_scores_and_tables_without_train_clips(
    tiny_table: ClipTable,
    tiny_checkpoint: str,
) -> None:
    with pytest.raises(ValueError, match="unknown score"):
        transferability(tiny_table, [tiny_checkpoint], scores=("leep",))
    with pytest.raises(ValueError, match="no train clips"):
        transferability(tiny_table.test, [tiny_checkpoint])


def predicted(name: str, right: int) -> Predictions:
    frame = pd.DataFrame(
        {"clip_id": [str(i) for i in range(10)], "task": "direction", "split": "test", "target": 0.0,
         "prediction": [0.0] * right + [1.0] * (10 - right)}
    )  # fmt: skip
    return Predictions(name, (DIRECTION,), frame, Protocol(num_frames=8, size_px=32, decoder="pyav"))


def test_beside_runs_puts_each_backbones_test_score_into_its_rows() -> None:
    scores = pd.DataFrame({"backbone": ["a", "b", "c", "a"], "task": ["direction"] * 3 + ["speed"], "logme": 0.0})
    table = beside_runs(scores, {"a": predicted("a", 7), "b": predicted("b", 2)})
    assert table.trained[:2].tolist() == [0.7, 0.2]
    assert table.trained[2:].isna().all()
    with pytest.raises(ValueError, match="name none of the backbones"):
        beside_runs(scores, {"x": predicted("a", 7)})


def ranking(trained: list[float]) -> pd.DataFrame:
    n = len(trained)
    return pd.DataFrame({"task": "t", "logme": np.arange(n), "knn": -np.arange(n), "trained": trained})


def test_rank_agreement_equals_scipy_and_the_closed_interval() -> None:
    trained = [0.2, 0.1, 0.4, 0.3, 0.6, 0.5, 0.7, 0.9]
    row = rank_agreement(ranking(trained)).set_index("score").loc["logme"]
    found = kendalltau(range(8), trained)
    assert (row.kendall, row.p, row.n) == pytest.approx((found.statistic, found.pvalue, 8))
    half = 1.959964 * math.sqrt(0.437 / 4)
    z = math.atanh(found.statistic)
    assert (row.low, row.high) == pytest.approx((math.tanh(z - half), math.tanh(z + half)), rel=1e-5)
    assert rank_agreement(ranking(trained)).set_index("score").kendall["knn"] == pytest.approx(-found.statistic)


def test_rank_agreement_says_when_setups_are_too_few() -> None:
    row = rank_agreement(ranking([0.1, 0.2, 0.3, 0.4])).set_index("score").loc["logme"]
    assert row.kendall == 1.0 and np.isnan([row.low, row.high, row.p]).all()
    assert row.note == "4 setups are too few to show agreement; it takes 5"
    five = rank_agreement(ranking([0.1, 0.2, 0.3, 0.4, 0.5])).set_index("score").loc["logme"]
    assert five.p == pytest.approx(2 / 120) and five.high == pytest.approx(1.0) and five.low < 0.9


def test_rank_agreement_covers_the_true_tau() -> None:
    """400 samples of 12 setups from a normal pair of correlation 0.6, whose tau is 2 / pi arcsin(0.6): about 95 %."""
    rng, tau = np.random.default_rng(0), 2 / math.pi * math.asin(0.6)
    covered = 0
    for _ in range(400):
        x = rng.normal(size=12)
        y = 0.6 * x + 0.8 * rng.normal(size=12)
        row = rank_agreement(pd.DataFrame({"task": "t", "logme": x, "trained": y})).iloc[0]
        covered += row.low <= tau <= row.high
    assert 0.91 < covered / 400 < 0.99


def test_rank_agreement_needs_the_trained_column_and_two_values() -> None:
    with pytest.raises(ValueError, match="beside_runs"):
        rank_agreement(ranking([0.1, 0.2]).drop(columns="trained"))
    row = rank_agreement(ranking([0.5] * 6)).iloc[0]
    assert np.isnan(row.kendall) and "no order" in row.note


def test_transferability_takes_one_backbone_and_task_and_names_a_table_that_is_too_small(
    tiny_table: ClipTable, tiny_checkpoint: str
) -> None:
    scores = transferability(tiny_table, tiny_checkpoint, tasks="bright", scores="knn", progress=False)
    assert scores[["backbone", "task"]].values.tolist() == [[tiny_checkpoint, "bright"]]
    small = tiny_table._with(tiny_table.frame.iloc[:2])
    with pytest.raises(ValueError, match=r"2 train clip\(s\) of 'squares' have a label of 'direction'; .* need 3"):
        transferability(small, tiny_checkpoint, progress=False)
