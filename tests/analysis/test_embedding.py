"""Maps of features and neighbours: equal to scikit-learn, and of the run's own encoder."""
# ruff: noqa: F811 (fixtures come by their names)

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from tests.analysis.mistaken import KIND, made
from tests.training.conftest import tiny_checkpoint, tiny_table  # noqa: F401  (fixtures)
from workbench.analysis.mistakes.embedding import embedding, nearest, neighbours, project
from workbench.analysis.mistakes.encode import run_features
from workbench.data.tables import ClipTable
from workbench.training.finetune import fine_tune
from workbench.training.runs import Run
from workbench.training.setup import Setup


def table(n: int, split: str = "test") -> ClipTable:
    frame = pd.DataFrame(
        {
            "clip_id": [f"c{i:05d}" for i in range(n)], "path": [f"c{i}.mp4" for i in range(n)],
            "start_seconds": np.nan, "end_seconds": np.nan, "split": split, "group": [f"g{i}" for i in range(n)],
            "kind": ["a"] * n,
        }
    )  # fmt: skip
    return ClipTable(frame, (KIND,))


def test_project_equals_sklearns_pca() -> None:
    values = (np.random.default_rng(0).normal(size=(60, 8)) @ np.diag(np.arange(1, 9.0))).astype(np.float32)
    points, kept = project(values)
    theirs = PCA(2).fit(values)
    np.testing.assert_allclose(np.abs(points), np.abs(theirs.transform(values)), rtol=1e-3, atol=1e-3)
    assert kept == pytest.approx(theirs.explained_variance_ratio_.sum(), rel=1e-5)


def test_project_does_not_depend_on_the_sign_the_solver_chose() -> None:
    values = np.random.default_rng(1).normal(size=(30, 5))
    np.testing.assert_allclose(project(values)[0], project(values[::-1])[0][::-1], atol=1e-9)


@pytest.mark.parametrize("values", [np.zeros((5, 3)), np.arange(5.0)[:, None], np.ones((3, 1))])
def test_project_takes_features_without_spread(values: np.ndarray) -> None:
    points, kept = project(values)
    assert points.shape == (len(values), 2) and np.isfinite(points).all() and kept == pytest.approx(1.0)


def test_embedding_by_tsne_keeps_clusters_apart() -> None:
    rng = np.random.default_rng(0)
    kind = np.arange(60) % 3
    values = 8 * np.eye(3, 10)[kind] + rng.normal(size=(60, 10)) * 0.3
    run = made(KIND, kind, kind)
    found = embedding(run, table(60), features=values.astype(np.float32), method="tsne")
    points = found.table[["x", "y"]].to_numpy()
    centres = np.stack([points[kind == k].mean(0) for k in range(3)])
    own = np.linalg.norm(points - centres[kind], axis=1)
    assert (np.linalg.norm(points[:, None] - centres[None], axis=2).argmin(1) == kind).all() and own.max() < 20
    assert np.isnan(found.explained) and "distances between clusters" in found.caption


def test_embedding_carries_truth_and_prediction_of_each_clip() -> None:
    run = made(KIND, [0, 1, 2, np.nan], [0, 2, 2, 1])
    found = embedding(run, table(4), features=np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32))
    assert found.table.wrong.tolist() == [False, True, False, False]
    assert found.table.predicted.tolist()[:3] == ["a", "c", "c"] and pd.isna(found.table.predicted[3])


def test_embedding_refuses_what_it_cannot_draw() -> None:
    run = made(KIND, [0, 1, 2], [0, 1, 2])
    with pytest.raises(ValueError, match="method='lda'"):
        embedding(run, table(3), method="lda")
    with pytest.raises(ValueError, match="make no map"):
        embedding(run, table(2))
    with pytest.raises(TypeError, match="without weights"):
        embedding(run, table(3))
    with pytest.raises(ValueError, match="features are"):
        embedding(run, table(3), features=np.zeros((2, 4), np.float32))


def test_nearest_equals_sklearns_by_cosine() -> None:
    rng = np.random.default_rng(2)
    pool, asked = rng.normal(size=(50, 7)), rng.normal(size=(6, 7))
    places, cosines = nearest(pool, asked, 4)
    theirs = NearestNeighbors(n_neighbors=4, metric="cosine").fit(pool)
    distances, indices = theirs.kneighbors(asked)
    np.testing.assert_array_equal(places, indices)
    np.testing.assert_allclose(1 - cosines, distances, atol=1e-9)
    assert nearest(pool[:2], asked, 9)[0].shape == (6, 2)


@pytest.fixture(scope="module")
def run(tiny_table: ClipTable, tiny_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    setup = Setup(
        backbone=tiny_checkpoint, strategy="full", tasks=("direction",), epochs=1, batch_size=8, augment=False
    )
    return fine_tune(setup, tiny_table, runs_dir=tmp_path_factory.mktemp("runs"), device="cpu", progress=False)


def test_run_features_differ_before_and_after_training(run: Run, tiny_table: ClipTable) -> None:
    after = np.asarray(run_features(run, tiny_table.test, device="cpu", progress=False).values)
    before = np.asarray(run_features(run, tiny_table.test, trained=False, device="cpu", progress=False).values)
    assert after.shape == before.shape == (len(tiny_table.test), 1, 48)
    assert np.abs(after - before).max() > 1e-4


def test_embedding_of_a_run_encodes_its_clips(run: Run, tiny_table: ClipTable) -> None:
    found = embedding(run, tiny_table, device="cpu", progress=False)
    assert found.table.clip_id.tolist() == tiny_table.test.frame.clip_id.tolist()
    assert found.table.predicted.notna().all() and 0 < found.explained <= 1


def test_neighbours_of_a_train_clip_leave_itself_out(run: Run, tiny_table: ClipTable) -> None:
    ids = ["clip03", "clip30"]
    found = neighbours(run, tiny_table, ids, k=3, device="cpu", progress=False)
    assert found.clip_id.tolist() == ["clip03"] * 3 + ["clip30"] * 3
    assert "clip03" not in found.neighbour[:3].tolist()
    assert set(found.neighbour) <= set(tiny_table.train.frame.clip_id)
    assert (found.groupby("clip_id").similarity.diff().dropna() <= 1e-9).all()
    with pytest.raises(ValueError, match="no clip"):
        neighbours(run, tiny_table, "nobody")
    with pytest.raises(ValueError, match="k=0"):
        neighbours(run, tiny_table, "clip03", k=0)


def test_corrected_table_is_one_that_fine_tune_takes(run: Run, tiny_table: ClipTable, tmp_path: Path) -> None:
    from workbench.analysis.mistakes.marks import Marks

    marks = Marks(tmp_path / "marks.csv")
    marks.set("clip00", "direction", "label error", label="left")
    marks.set("clip01", "direction", "label error")
    marks.set("clip02", "direction", "ambiguous")
    corrected = marks.corrected(tiny_table, ambiguous="drop")
    again = fine_tune(run.setup, corrected, runs_dir=tmp_path / "runs", device="cpu", progress=False)
    assert again.record["data"]["clips"]["train"] == run.record["data"]["clips"]["train"] - 1
    assert again.record["data"]["fingerprint"] != run.record["data"]["fingerprint"]
