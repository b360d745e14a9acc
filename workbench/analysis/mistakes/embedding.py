"""Clips as points: a map of what the encoder makes of them, where those that look alike to it lie together."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.mistakes.encode import run_features
from workbench.analysis.mistakes.outcomes import outcomes
from workbench.analysis.predictions import Predicted, tasks_of
from workbench.data.tables import ClipTable, Task
from workbench.training.probing.features import Features

METHODS = ("pca", "tsne", "umap")
_FIRST = 50  # principal components that t-SNE and UMAP start from
_PERPLEXITY = 30.0


@dataclass(frozen=True, repr=False)
class Embedding:
    """Clips on a plane. Made by :func:`embedding`.

    ``table``: ``clip_id, path, split, x, y, truth, predicted, wrong`` (None and False where the run has no prediction,
    as for train). ``features`` (n, D) float32, rows as in ``table``.
    """

    task: Task
    method: str
    table: pd.DataFrame
    features: np.ndarray
    explained: float
    """PCA: share of the variance that the plane keeps; NaN for the others."""
    quarantined: int

    @property
    def caption(self) -> str:
        """What the distances mean."""
        lost = f" {self.quarantined} clip(s) did not decode." if self.quarantined else ""
        if self.method == "pca":
            return (
                f"The first two principal components of {len(self.table)} clips' features keep {self.explained:.0%} of "
                f"the variance; what lies apart is apart, what lies together may differ in the rest.{lost}"
            )
        return (
            f"{self.method} of {len(self.table)} clips' features: neighbours are kept, distances between clusters and "
            f"their sizes mean nothing.{lost}"
        )

    def __repr__(self) -> str:
        return f"Embedding of {len(self.table)} clips by {self.method} for task {self.task.name!r}\n{self.caption}"


def embedding(
    run: Predicted,
    clips: ClipTable,
    *,
    task: str | None = None,
    split: str | None = "test",
    method: str = "pca",
    features: Features | np.ndarray | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> Embedding:
    """Lay the clips of ``split`` (None: all) on a plane by the features of the run's trained encoder.

    ``method``: ``pca``, ``tsne`` (scikit-learn) or ``umap`` (where umap-learn is installed). ``features`` (n, D) of
    these clips in the table's order spare encoding them. Raises ValueError on another method or fewer than three clips,
    ImportError without umap-learn, TypeError where features are needed and the run has no weights.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not one of {', '.join(METHODS)}")
    one = tasks_of(run, task)[0]
    chosen = clips if split is None else clips.split(split)
    if len(chosen) < 3:
        raise ValueError(f"{len(chosen)} clips in split {split!r} make no map; there must be at least 3")
    gone = 0
    if features is None:
        features = run_features(run, chosen, device=device, progress=progress)
        gone, chosen = len(chosen) - len(features.table), features.table
    values = np.asarray(features.values[:, 0] if isinstance(features, Features) else features, np.float32)
    if values.ndim != 2 or len(values) != len(chosen):
        raise ValueError(f"features are {values.shape} for {len(chosen)} clips; give (n, D) in the table's order")
    points, explained = project(values, method=method, seed=seed)
    table = pd.DataFrame(
        {
            "clip_id": chosen.frame.clip_id.astype(str), "path": chosen.frame.path, "split": chosen.frame.split,
            "x": points[:, 0], "y": points[:, 1],
        }
    )  # fmt: skip
    return Embedding(one, method, _with_outcomes(run, one, table), values, explained, gone)


def project(values: np.ndarray, *, method: str = "pca", seed: int = 0) -> tuple[np.ndarray, float]:
    """Points (n, 2) of features (n, D), and the share of variance kept (NaN but for PCA).

    PCA's axes have their largest loading positive, so that the same features give the same picture.
    """
    centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    scores = left * sizes * np.where(signs == 0, 1, signs)
    if scores.shape[1] < 2:
        scores = np.pad(scores, ((0, 0), (0, 2 - scores.shape[1])))
    if method == "pca":
        total = float((sizes**2).sum())
        return scores[:, :2], float((sizes[:2] ** 2).sum() / total) if total > 0 else 1.0
    return _neighbourly(scores[:, :_FIRST], method, seed), float("nan")


def _neighbourly(scores: np.ndarray, method: str, seed: int) -> np.ndarray:
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(_PERPLEXITY, max(1.0, (len(scores) - 1) / 3))
        return np.asarray(TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(scores))
    try:
        from umap import UMAP
    except ImportError as error:
        raise ImportError('method="umap" needs umap-learn: pip install umap-learn, or use "pca" or "tsne"') from error
    return np.asarray(UMAP(random_state=seed, n_neighbors=min(15, len(scores) - 1)).fit_transform(scores))


def _with_outcomes(run: Predicted, task: Task, table: pd.DataFrame) -> pd.DataFrame:
    known = set(run.predictions.split.dropna()) if "split" in run.predictions.columns else {run.protocol.split}
    splits = [s for s in table.split.dropna().unique() if s in known]
    if not splits or task.kind == "multilabel":
        return table.assign(truth=None, predicted=None, wrong=False)
    said = pd.concat([_outcomes(run, task, s) for s in splits], ignore_index=True)
    merged = table.merge(said[["clip_id", "truth", "predicted", "wrong"]], on="clip_id", how="left")
    return merged.assign(wrong=merged.wrong.eq(True))


def _outcomes(run: Predicted, task: Task, split: str) -> pd.DataFrame:
    try:
        return outcomes(run, task=task.name, split=split).table
    except ValueError as error:
        if "carries a label" not in str(error):
            raise
        return pd.DataFrame({c: [] for c in ("clip_id", "truth", "predicted", "wrong")}, dtype=object)


def nearest(values: np.ndarray, of: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` rows of ``values`` (n, D) most like each row of ``of`` (m, D) by cosine: places and cosines, (m, k)."""
    k = min(k, len(values))
    cosines = unit(of) @ unit(values).T
    places = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return places, np.take_along_axis(cosines, places, axis=1)


def unit(values: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    sizes = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, sizes, out=np.zeros_like(values), where=sizes > 0)


def neighbours(
    run: Any, clips: ClipTable, ids: str | list[str], *, k: int = 5, task: str | None = None, split: str = "train",
    device: str = "auto", progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """The clips of ``split`` that the run's encoder takes for most like each of ``ids``.

    Columns ``clip_id, rank, neighbour, similarity`` (cosine of the pooled features less the mean over ``split``, which
    all clips share), ``label`` (of the neighbour) and ``path``; a clip is no neighbour of itself. Raises ValueError for
    an id that is not in ``clips``, or ``k`` below 1.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    wanted = [ids] if isinstance(ids, str) else [str(i) for i in ids]
    known = clips.frame.clip_id.astype(str)
    if absent := [i for i in wanted if i not in set(known)][:3]:
        raise ValueError(f"no clip {absent} in the table; its clip_id are like {known.head(3).tolist()}")
    pool = run_features(run, clips.split(split), device=device, progress=progress)
    asked = run_features(run, clips[known.isin(wanted).to_numpy()], device=device, progress=progress)
    values = np.asarray(pool.values, np.float32)[:, 0]
    centre = values.mean(0)
    frame = pool.table.frame
    labels = (
        frame[tasks_of(run, task)[0].name] if tasks_of(run, task)[0].name in frame else pd.Series([None] * len(frame))
    )
    places, cosines = nearest(values - centre, np.asarray(asked.values, np.float32)[:, 0] - centre, k + 1)
    rows = []
    for clip_id, found, alike in zip(asked.table.frame.clip_id.astype(str), places, cosines, strict=True):
        near = [(i, c) for i, c in zip(found, alike, strict=True) if str(frame.clip_id.iloc[i]) != clip_id][:k]
        rows += [
            {"clip_id": clip_id, "rank": rank, "neighbour": str(frame.clip_id.iloc[i]), "similarity": float(c),
             "label": labels.iloc[i], "path": frame.path.iloc[i]}
            for rank, (i, c) in enumerate(near, 1)
        ]  # fmt: skip
    return pd.DataFrame(rows, columns=["clip_id", "rank", "neighbour", "similarity", "label", "path"])
