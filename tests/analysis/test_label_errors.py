"""Label errors: planted ones are ranked first, and nobody judges a label it was fitted to."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from tests.analysis.mistaken import FLASH, KIND, SCORE, made, softmax
from workbench.analysis.mistakes.label_errors import PROBE, RUN, label_errors, out_of_sample
from workbench.data.tables import ClipTable


def planted(seed: int, n: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of six separable classes, labels of which 5 % are flipped, and which."""
    rng = np.random.default_rng(seed)
    true = np.arange(n) % 6
    values = (3.0 * np.eye(6)[true] + rng.normal(size=(n, 6)) * 0.6).astype(np.float32)
    flipped = np.zeros(n, bool)
    flipped[rng.choice(n, n // 20, replace=False)] = True
    return values, np.where(flipped, (true + 1 + rng.integers(0, 5, n)) % 6, true), flipped


def train_table(labels: np.ndarray) -> ClipTable:
    n = len(labels)
    frame = pd.DataFrame(
        {
            "clip_id": [f"t{i:03d}" for i in range(n)], "path": [f"{i}.mp4" for i in range(n)], "start_seconds": np.nan,
            "end_seconds": np.nan, "split": "train", "group": [f"g{i // 2}" for i in range(n)],
            "kind": np.array(KIND.classes, object)[labels],
        }
    )  # fmt: skip
    return ClipTable(frame, (KIND,))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_label_errors_of_the_train_split_rank_planted_flips_first(seed: int) -> None:
    values, labels, flipped = planted(seed)
    run = made(KIND, [0, 1], [0, 1], np.eye(6)[:2])
    found = label_errors(run, train_table(labels), splits=["train"], features=values)
    truth = pd.Series(flipped, index=[f"t{i:03d}" for i in range(len(labels))])
    order = truth[found.table.clip_id].to_numpy()
    assert average_precision_score(order, -found.table.quality) >= 0.95
    assert order[found.table.flagged].mean() >= 0.8
    assert set(found.table.judged_by) == {PROBE} and len(found.penalties) == 5


def test_label_errors_suggest_the_true_class() -> None:
    values, labels, flipped = planted(3)
    found = label_errors(made(KIND, [0], [0], np.eye(6)[:1]), train_table(labels), splits=["train"], features=values)
    top = found.table.head(int(flipped.sum()))
    true = [KIND.classes[int(c[1:]) % 6] for c in top.clip_id]
    assert np.mean(top.suggested.to_numpy() == np.array(true)) >= 0.9


def test_out_of_sample_holds_whole_groups_out() -> None:
    rng = np.random.default_rng(0)
    group = np.arange(120) // 4
    labels = rng.integers(0, 2, 30)[group]  # a group shares its label, and its features name the group
    values = np.eye(30, dtype=np.float32)[group]
    chances, _ = out_of_sample(FLASH, values, labels, [f"g{g}" for g in group])
    assert chances.sum(1) == pytest.approx(1.0)
    assert ((chances[:, 1] > 0.5) == labels).mean() < 0.7  # what only the group's own clips tell is not known


def test_label_errors_of_val_and_test_are_judged_by_the_run() -> None:
    rng = np.random.default_rng(1)
    true = np.arange(200) % 6
    chances = softmax(4 * np.eye(6)[true] + rng.normal(size=(200, 6)) * 0.3)
    given = np.where(np.arange(200) < 10, (true + 2) % 6, true)
    run = made(KIND, given, chances.argmax(1), chances, split=["val" if i % 2 else "test" for i in range(200)])
    found = label_errors(run)
    assert set(found.table.clip_id[:10]) == {f"c{i:05d}" for i in range(10)}
    assert set(found.table.judged_by) == {RUN} and set(found.table.split) == {"val", "test"}
    assert found.accuracy == pytest.approx(0.95) and found.penalties == ()
    row = found.table.iloc[0]
    i = int(row.clip_id[1:])
    assert row.p_given == pytest.approx(chances[i, given[i]]) and row.suggested == KIND.classes[true[i]]
    assert set(label_errors(run, splits=["val"]).table.split) == {"val"}


def test_label_errors_quality_is_cleanlabs_normalised_margin_by_hand() -> None:
    chances = np.array([[0.7, 0.2, 0.1, 0, 0, 0], [0.1, 0.6, 0.3, 0, 0, 0], [0.3, 0.3, 0.4, 0, 0, 0]])
    found = label_errors(made(KIND, [0, 2, 2], [0, 1, 2], chances)).table.set_index("clip_id").quality
    assert found.to_dict() == pytest.approx({"c00000": 0.75, "c00001": 0.35, "c00002": 0.55})


def test_label_errors_leave_out_clips_without_a_label_and_take_one_class() -> None:
    chances = np.full((12, 6), 1 / 6)
    run = made(KIND, [0.0] * 11 + [np.nan], [0] * 12, chances)
    found = label_errors(run)
    assert len(found.table) == 11 and not found.table.flagged.any()


def test_label_errors_refuse_what_they_cannot_judge() -> None:
    with pytest.raises(ValueError, match="is regression"):
        label_errors(made(SCORE, [0.1], [0.2]))
    with pytest.raises(ValueError, match="has no probabilities"):
        label_errors(made(KIND, [0, 1], [0, 1]))
    with pytest.raises(ValueError, match="give clips for the train split"):
        label_errors(made(KIND, [0], [0], np.eye(6)[:1]), splits=["train"])
    values, labels, _ = planted(0)
    with pytest.raises(ValueError, match="features are"):
        label_errors(made(KIND, [0], [0], np.eye(6)[:1]), train_table(labels), features=values[:5])
    with pytest.raises(TypeError, match="without weights"):
        label_errors(made(KIND, [0], [0], np.eye(6)[:1]), train_table(labels))
    with pytest.raises(ValueError, match="too few to judge"):
        label_errors(made(KIND, [0], [0], np.eye(6)[:1]), train_table(labels[:6]), features=values[:6])
