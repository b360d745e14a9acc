"""How well frozen features would serve a task, from the features and labels alone: nothing is fine-tuned.

All take ``features`` (n, D) and ``target`` (n,), class index (``multiclass``, ``binary``) or value (``regression``),
without missing ones; higher is better, and only the order of backbones on one data set means something.
"""

from collections.abc import Callable

import numpy as np

from workbench.training.metrics import main_metric, weighted_metrics

NEIGHBOURS = 5
_FOLDS = 5
_ALPHAS = np.logspace(-2, 5, 15)


def logme(features: np.ndarray, target: np.ndarray, kind: str) -> float:
    """LogME: the largest log evidence per clip of a Bayesian linear model (https://arxiv.org/abs/2102.11005).

    The evidence of weights ~ N(0, 1/a) and noise ~ N(0, 1/b), y ~ N(0, I/b + F F'/a), is maximised over a and b; mean
    over the one-hot columns of the classes that occur. Features are taken as they are, as in the paper; a regression
    target is standardised. With one singular value decomposition only t = a/b is left to search: the best b follows
    from it, b = n / y'(I + F F'/t)^-1 y.
    """
    x = _checked(features, target)
    n = len(x)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    s2 = s**2
    if not s2[0] > 0:
        raise ValueError("all features are zero: a score of them means nothing")
    columns = _columns(target, kind)  # (n, C)
    z2 = (u.T @ columns) ** 2  # (r, C)
    rest = np.maximum((columns**2).sum(0) - z2.sum(0), 0.0)  # (C,), outside the span of the features

    def evidence(t: np.ndarray, which: slice | int) -> np.ndarray:
        """Log evidence (T, C) at each t, the best b inserted."""
        shrunk = t[:, None] / (t[:, None] + s2)  # (T, r)
        q = np.maximum(shrunk @ z2[:, which] + rest[which], np.finfo(float).tiny)
        spread = np.log1p(s2 / t[:, None]).sum(1)
        return 0.5 * (n * (np.log(n / q) - np.log(2 * np.pi) - 1) - spread.reshape(-1, *[1] * (q.ndim - 1)))

    from scipy.optimize import minimize_scalar

    # From features that explain all to features that explain nothing; beyond these ends the evidence is flat.
    grid = np.log(s2[0]) + np.linspace(-30, 30, 241)
    coarse = evidence(np.exp(grid), slice(None))
    best = []
    for c in range(columns.shape[1]):
        middle = grid[int(coarse[:, c].argmax())]
        fine = minimize_scalar(
            lambda log_t, c=c: -float(evidence(np.exp(np.array([log_t])), c)[0]),
            bounds=(middle - 0.5, middle + 0.5), method="bounded", options={"xatol": 1e-8},
        )  # fmt: skip
        best.append(max(-fine.fun, float(coarse[:, c].max())))
    return float(np.mean(best)) / n


def h_score(features: np.ndarray, target: np.ndarray) -> float:
    """H-score with shrinkage: ``(1 - s) tr(cov_s(f)^-1 cov(E[f|y]))``, at most about the number of classes minus one.

    The H-score (https://arxiv.org/abs/2212.10082) needs the inverse of a covariance; with fewer clips than features
    that is noise, so here it is Ledoit and Wolf's, s being their shrinkage ("Newer is not always better", NeurIPS 2021,
    https://openreview.net/forum?id=iz_Wwmfquno). For classes only.
    """
    from sklearn.covariance import ledoit_wolf

    x = _checked(features, target)
    x = x - x.mean(0)
    covariance, shrinkage = ledoit_wolf(x, assume_centered=True)
    means = np.zeros_like(x)
    for label in np.unique(target):
        means[target == label] = x[target == label].mean(0)
    between = means.T @ means / len(x)
    return float((1 - shrinkage) * np.trace(np.linalg.pinv(covariance, hermitian=True) @ between))


def separation(features: np.ndarray, target: np.ndarray) -> float:
    """Variance between the classes' means over the variance within classes, both summed over features: a baseline that
    knows nothing of how features depend on each other. For classes only; NaN where no class varies."""
    x = _checked(features, target)
    labels = np.unique(target)
    means = np.stack([x[target == label].mean(0) for label in labels])
    shares = np.array([(target == label).mean() for label in labels])
    between = float(shares @ ((means - x.mean(0)) ** 2).sum(1))
    within = float(((x - means[np.searchsorted(labels, target)]) ** 2).sum(1).mean())
    return between / within if within > 0 else float("nan")


def knn_score(features: np.ndarray, target: np.ndarray, groups: np.ndarray, kind: str, *, k: int = NEIGHBOURS) -> float:
    """The task's main metric when each clip is given what its ``k`` nearest clips of other groups have (by cosine).

    Majority vote (the nearest of a tie decides), share of positives, or mean value. NaN with fewer than two groups.
    """
    x = _checked(features, target)
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    near = unit @ unit.T
    near[groups[:, None] == groups[None, :]] = -np.inf
    k = min(k, int(np.isfinite(near).sum(1).min()))
    if k < 1:
        return float("nan")
    places = np.argsort(-near, axis=1, kind="stable")[:, :k]
    found = target[places]  # (n, k)
    if kind != "multiclass":
        return _metric(kind, target, found.mean(1))
    classes = int(target.max()) + 1
    votes = np.stack([(found == c).sum(1) for c in range(classes)], axis=1).astype(float)
    # A tie goes to the class of the nearest clip: less than a vote, and falling with the distance.
    for rank in range(k):
        votes[np.arange(len(x)), found[:, rank].astype(int)] += 0.5 * 2.0 ** -(rank + 1)
    return _metric(kind, target, votes)


def probe_score(features: np.ndarray, target: np.ndarray, groups: np.ndarray, kind: str, *, seed: int = 0) -> float:
    """The task's main metric of a ridge regression on the labels, on groups it was not fitted to (five folds).

    What the scores above have to beat: with the features at hand it takes no longer than they do. The penalty is chosen
    inside each fold. NaN with fewer groups than folds.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = _checked(features, target)
    if len(np.unique(groups)) < _FOLDS:
        return float("nan")
    columns = _columns(target, kind)
    said = np.zeros_like(columns)
    for train, test in GroupKFold(_FOLDS, shuffle=True, random_state=seed).split(x, groups=groups):
        model = make_pipeline(StandardScaler(), RidgeCV(alphas=_ALPHAS))
        said[test] = model.fit(x[train], columns[train]).predict(x[test]).reshape(len(test), -1)
    if kind != "multiclass":
        return _metric(kind, target, said[:, -1])
    classes = np.unique(target).astype(int)
    votes = np.full((len(x), int(classes[-1]) + 1), -np.inf)
    votes[:, classes] = said
    return _metric(kind, target, votes)


def _checked(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) != len(target) or len(x) < 3:
        raise ValueError(
            f"features {x.shape} and target {np.shape(target)} must be (n, D) and (n,) of at least 3 clips"
        )
    if not np.isfinite(x).all() or not np.isfinite(np.asarray(target, float)).all():
        raise ValueError("features and targets must be finite; take out clips without a label first")
    if len(np.unique(target)) < 2:
        raise ValueError("every clip has the same label: there is nothing to tell apart")
    return x


def _columns(target: np.ndarray, kind: str) -> np.ndarray:
    """(n, C): a column per class that occurs, or the standardised value."""
    if kind == "regression":
        return ((target - target.mean()) / target.std())[:, None]
    return (np.asarray(target)[:, None] == np.unique(target)).astype(float)


def _metric(kind: str, target: np.ndarray, output: np.ndarray) -> float:
    """The main metric of outputs (n, K) for ``multiclass``, else (n,): of any scale, as only their order counts."""
    prediction, probabilities = output, None
    if kind == "multiclass":
        prediction = output.argmax(1).astype(float)
    elif kind == "binary":
        probabilities = np.stack([-output, output], axis=1)
    value = weighted_metrics(
        kind, [main_metric(kind)], target=np.asarray(target, float), prediction=prediction,
        probabilities=probabilities, weights=np.ones((1, len(target))),
    )  # fmt: skip
    return float(value[0, 0])


Score = Callable[[np.ndarray, np.ndarray, np.ndarray, str], float]


def _of_classes(score: Callable[[np.ndarray, np.ndarray], float]) -> Score:
    return lambda x, y, groups, kind: float("nan") if kind == "regression" else score(x, y)


SCORES: dict[str, Score] = {
    "logme": lambda x, y, groups, kind: logme(x, y, kind),
    "h_score": _of_classes(h_score),
    "knn": knn_score,
    "separation": _of_classes(separation),
    "probe": probe_score,
}
"""By name, as a function of (features, target, group codes, kind)."""
BASELINES = ("separation", "probe")
