"""Can its probabilities be believed? Reliability per bin, the calibration error with an interval, one temperature."""

import html
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from workbench.analysis.bootstrap import Interval, bootstrap, percentile_interval
from workbench.analysis.mistakes.outcomes import Outcomes, outcomes
from workbench.analysis.predictions import Predicted, TaskRows, task_rows
from workbench.data.protocol import Protocol
from workbench.data.tables import Task

BINS = 15
_TEMPERATURES = (0.02, 50.0)
_DRAWS = 1000
_TINY = 1e-12  # a probability of exactly 0 has no logarithm


@dataclass(frozen=True, repr=False)
class Calibration:
    """How far a run's probabilities can be believed on one task and split. Made by :func:`calibration`.

    ``bins``: ``low, high`` (edges of the probability), ``clips, confidence`` (its mean), ``rate`` (share right),
    ``rate_low, rate_high`` (95 % over groups; NaN where it cannot be had), ``gap`` (confidence - rate); one row per
    bin, NaN where it is empty. ``clip_bins``: clip_id -> row of ``bins``.
    """

    run: str
    task: Task
    protocol: Protocol
    bins: pd.DataFrame
    clip_bins: pd.Series
    ece: float
    interval: Interval
    """Of ``ece``, over groups of clips."""
    expected: tuple[float, float]
    """Mean and 95th percentile of the ECE that these very probabilities would show if they were true: bins of few
    clips deviate by chance, so no finite sample has an ECE of 0."""
    nll: float
    """Mean negative log-likelihood of the truth, in nats."""
    temperature: float
    """Fitted on ``fitted_on``; above 1 the run was too sure. NaN where there was nothing to fit on."""
    fitted_on: str
    scaled_ece: float
    scaled_nll: float
    n: int
    groups: int

    @property
    def caption(self) -> str:
        """What the numbers mean and what they leave out."""
        of = f"p({_positive(self.task)}) and the share of {_positive(self.task)!r}" if self.task.kind == "binary" else (
            "the probability of the predicted class and the share of clips that are right"
        )  # fmt: skip
        floor = f"true probabilities would show {self.expected[0]:.3f} (up to {self.expected[1]:.3f}) by chance alone"
        lines = [
            f"Run {self.run!r}, task {self.task.name!r}, {self.n} clips of {self.protocol.split} in {self.groups} "
            f"groups. Expected calibration error (ECE) {self.ece:.3f} [{self.interval.low:.3f}, "
            f"{self.interval.high:.3f}], the mean gap between {of}, {len(self.bins)} bins of equal width; {floor}."
        ]
        if np.isfinite(self.temperature):
            lines.append(
                f"Temperature {self.temperature:.2f} fitted on {self.fitted_on}: ECE {self.scaled_ece:.3f}, negative "
                f"log-likelihood {self.nll:.3f} -> {self.scaled_nll:.3f} on {self.protocol.split}. "
                f"{_verdict(self.temperature)}"
            )
        else:
            lines.append(f"No temperature: {self.fitted_on}.")
        return "\n".join(lines)

    def clips(self, row: int) -> list[str]:
        """Ids of the clips in one bin (a row of ``bins``). Raises IndexError for a row that is not there."""
        if not 0 <= row < len(self.bins):
            raise IndexError(f"bin {row}: there are {len(self.bins)}, counted from 0")
        return [str(c) for c in self.clip_bins.index[self.clip_bins == row]]

    def __str__(self) -> str:
        return f"{self.bins.to_string(index=False, float_format=_short)}\n\n{self.caption}"

    __repr__ = __str__  # what a shell shows

    def _repr_html_(self) -> str:
        shown = self.bins[self.bins.clips > 0]
        body = shown.to_html(index=False, escape=True, border=0, float_format=_short, classes="workbench-errors")
        return f"<p>{html.escape(self.caption)}</p>{body}"


def calibration(
    run: Predicted,
    *,
    task: str | None = None,
    split: str = "test",
    fit_on: str = "val",
    bins: int = BINS,
    resamples: int = 2000,
    seed: int = 0,
) -> Calibration:
    """Hold what a run says it is sure of against how often it is right.

    ``bins``: of equal width over 0 to 1, each with its lower edge, the last with both. ``fit_on``: the split that the
    temperature is fitted on (never the one reported). For a binary task the probability is the positive's and the rate
    is how often the positive is true, elsewhere those of the predicted class. ECE: Naeini et al. 2015 and Guo et al.
    2017 (https://arxiv.org/abs/1706.04599), which temperature scaling is from: log-probabilities divided by one number.

    Raises ValueError for a regression or multilabel task, without probabilities, or ``split == fit_on``.
    """
    if bins < 2:
        raise ValueError(f"bins={bins} must be at least 2; {BINS} is usual")
    if split == fit_on:
        raise ValueError(f"split and fit_on are both {split!r}; a temperature judged where it was fitted flatters")
    out = outcomes(run, task=task, split=split)
    if out.task.kind == "regression":
        raise ValueError(f"task {out.task.name!r} is a regression: its predictions carry no probability to calibrate")
    if out.rows.probabilities is None:
        raise ValueError(f"run {run.name!r} has no probabilities for task {out.task.name!r}; calibration needs them")
    sure, right = confidences(out.task, out.rows)
    which = bin_of(sure, bins)
    resampled = _resampled(which, sure, right, bins, out.rows.groups, resamples, seed)
    temperature, why = _temperature(run, out, fit_on)
    scaled = None if np.isnan(temperature) else tempered(out.rows.probabilities, temperature)
    return Calibration(
        run=run.name, task=out.task, protocol=out.protocol, bins=_table(which, sure, right, bins, resampled[1:]),
        clip_bins=pd.Series(which, index=out.rows.clip_id.astype(str)), ece=ece(sure, right, bins),
        interval=percentile_interval(resampled[0]), expected=_by_chance(which, sure, bins, seed),
        nll=_nll(out.rows.probabilities, out.rows.target), temperature=temperature, fitted_on=why,
        scaled_ece=float("nan") if scaled is None else ece(*_sure(out.task, scaled, out.rows), bins),
        scaled_nll=float("nan") if scaled is None else _nll(scaled, out.rows.target),
        n=len(out.rows), groups=out.rows.num_groups,
    )  # fmt: skip


def confidences(task: Task, rows: TaskRows) -> tuple[np.ndarray, np.ndarray]:
    """What is held against each other, both (n,): a probability, and 1.0 where it came true."""
    assert rows.probabilities is not None
    return _sure(task, rows.probabilities, rows)


def _sure(task: Task, probabilities: np.ndarray, rows: TaskRows) -> tuple[np.ndarray, np.ndarray]:
    if task.kind == "binary":
        return probabilities[:, 1], (rows.target == 1).astype(float)
    said = rows.prediction.astype(int)
    return probabilities[np.arange(len(said)), said], (rows.prediction == rows.target).astype(float)


def bin_of(sure: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each probability, (n,) in 0..bins-1; an edge belongs to the bin above it."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, sure, side="right") - 1, 0, bins - 1)


def ece(sure: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: mean over clips of |mean confidence - share right| of their bin."""
    one = np.zeros(len(sure), int)
    return float(np.abs(_sums(bin_of(sure, bins), sure - right, bins, one)).sum() / len(sure))


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (n, K) of the logits divided by ``temperature``; their order stays."""
    logits = np.log(np.maximum(probabilities, _TINY)) / temperature
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def fit_temperature(probabilities: np.ndarray, target: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood on (n, K) probabilities and class indices (n,).

    Between 0.02 and 50: where every clip is right, ever smaller ones are ever better.
    """
    low, high = np.log(_TEMPERATURES)
    found = minimize_scalar(
        lambda t: _nll(tempered(probabilities, float(np.exp(t))), target), bounds=(low, high), method="bounded",
        options={"xatol": 1e-6},
    )  # fmt: skip
    return float(np.exp(found.x))


def _temperature(run: Predicted, out: Outcomes, fit_on: str) -> tuple[float, str]:
    """The temperature, and what it was fitted on or why there is none."""
    nan = float("nan")
    if "split" not in run.predictions.columns or fit_on not in set(run.predictions.split.dropna()):
        return nan, f"there are no predictions on {fit_on} to fit one on"
    rows = task_rows(run, out.task, fit_on)
    if not len(rows) or rows.probabilities is None:
        return nan, f"no labelled clip with probabilities on {fit_on}"
    return fit_temperature(rows.probabilities, rows.target), f"{len(rows)} clips of {fit_on}"


def _nll(probabilities: np.ndarray, target: np.ndarray) -> float:
    true = probabilities[np.arange(len(target)), target.astype(int)]
    return float(-np.log(np.maximum(true, _TINY)).mean())


def _sums(which: np.ndarray, values: np.ndarray, bins: int, groups: np.ndarray) -> np.ndarray:
    """Sum of ``values`` per group and bin: (G, bins)."""
    count = int(groups.max()) + 1
    return np.bincount(groups * bins + which, weights=values, minlength=count * bins).reshape(count, bins)


def _resampled(
    which: np.ndarray, sure: np.ndarray, right: np.ndarray, bins: int, groups: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    """(1 + bins, resamples): the ECE, and the share right of each bin (NaN where a resample leaves it empty)."""
    gaps, hits, clips = (_sums(which, v, bins, groups) for v in (sure - right, right, np.ones(len(which))))

    def statistics(weights: np.ndarray) -> np.ndarray:  # (r, G) -> (1 + bins, r)
        size, hit = weights @ clips, weights @ hits
        rates = np.divide(hit, size, out=np.full(size.shape, np.nan), where=size > 0)
        return np.column_stack([np.abs(weights @ gaps).sum(1) / size.sum(1), rates]).T

    return bootstrap(statistics, np.arange(len(clips)), resamples=resamples, seed=seed)


def _table(which: np.ndarray, sure: np.ndarray, right: np.ndarray, bins: int, resampled: np.ndarray) -> pd.DataFrame:
    one, edges = np.zeros(len(which), int), np.linspace(0, 1, bins + 1)
    clips = _sums(which, np.ones(len(which)), bins, one)[0]
    with np.errstate(invalid="ignore"):
        confidence = _sums(which, sure, bins, one)[0] / clips
        rate = _sums(which, right, bins, one)[0] / clips
    spans = [percentile_interval(row) for row in resampled]
    return pd.DataFrame(
        {
            "low": edges[:-1], "high": edges[1:], "clips": clips.astype(int), "confidence": confidence, "rate": rate,
            "rate_low": [s.low for s in spans], "rate_high": [s.high for s in spans], "gap": confidence - rate,
        }
    )  # fmt: skip


def _by_chance(which: np.ndarray, sure: np.ndarray, bins: int, seed: int) -> tuple[float, float]:
    """Mean and 95th percentile of the ECE if each probability were true (consistency resampling: Broecker and Smith
    2007); clips are then independent, so clustered clips deviate more than this."""
    rng, found = np.random.default_rng(seed), []
    step = max(1, 2_000_000 // len(sure))
    spread = np.zeros((len(sure), bins))
    spread[np.arange(len(sure)), which] = 1.0
    for first in range(0, _DRAWS, step):
        drawn = rng.random((min(step, _DRAWS - first), len(sure))) < sure
        found.append(np.abs((sure - drawn) @ spread).sum(1) / len(sure))
    eces = np.concatenate(found)
    return float(eces.mean()), float(np.percentile(eces, 95))


def _positive(task: Task) -> str:
    return (task.classes or ("0", "1"))[1]


def _verdict(temperature: float) -> str:
    if abs(np.log(temperature)) < np.log(1.1):
        return "It says hardly more or less than it knows."
    return "It was too sure." if temperature > 1 else "It was not sure enough."


def _short(value: float) -> str:
    return f"{value:.3g}"
