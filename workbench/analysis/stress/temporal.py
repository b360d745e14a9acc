"""Does a run use motion? Its score when the frames are the same and their order is not."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from workbench.analysis.bootstrap import percentile_interval
from workbench.analysis.predictions import Predictions
from workbench.analysis.robustness import tasks_in
from workbench.analysis.shown import ShownReport, interval_text
from workbench.analysis.stress.answers import answers, chance, evidence_of, rearranged
from workbench.data.corruptions import clip_seed
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task
from workbench.training.predict import decode_for, pick_device
from workbench.training.runs import Run

AS_IT_IS = "as it is"


def _shuffled(frames: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(frames)


def _reversed(frames: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(frames)[::-1]


def _single(frames: int, rng: np.random.Generator) -> np.ndarray:
    return np.full(frames, frames // 2)


def _half_speed(frames: int, rng: np.random.Generator) -> np.ndarray:
    return frames // 4 + np.arange(frames) // 2


PROBES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "shuffled": _shuffled, "reversed": _reversed, "single frame": _single, "half speed": _half_speed,
}  # fmt: skip
"""Which of T frames is shown at each place, int64 (T,). ``single frame``: the middle one throughout; ``half speed``:
the middle half of the clip, each frame twice."""


@dataclass(frozen=True, repr=False)
class TemporalProbes(ShownReport):
    """Scores on rearranged clips. Made by :func:`temporal_probes`.

    ``table``: one row per task and probe (``as it is``, ``shuffled``, ``reversed``, ``single frame``, ``half speed``):
    ``task, metric, probe, value, low, high, change, change_low, change_high`` (to ``as it is``, on the same resamples
    of groups), ``n, groups``.

    ``motion``: one row per task: ``task, metric, chance, uses_motion, low, high``. *Uses motion* is the share of the
    score's distance from chance that is lost when the middle frame is shown throughout: 0, one frame tells as much; 1,
    without change in time the run is guessing. It may leave 0..1, and is NaN where the score's own interval reaches
    chance. What is lost includes what other frames merely show better (a hidden object): ``shuffled`` keeps all frames.
    """

    run: str
    table: pd.DataFrame
    motion: pd.DataFrame
    protocol: Protocol

    @property
    def caption(self) -> str:
        """What the numbers mean."""
        return (
            f"Run {self.run!r}. Intervals: 95 % over resamples of groups; changes are paired. 'uses motion': share of "
            "the score's distance from chance that is lost with the middle frame shown throughout.\n"
            f"Protocol: {self.protocol.describe()}."
        )

    def uses_motion(self, task: str) -> float:
        """The number of one task. Raises ValueError for a task that was not probed."""
        found = self.motion[self.motion.task == task]
        if not len(found):
            raise ValueError(f"no task {task!r}; there are {list(self.motion.task)}")
        return float(found.uses_motion.iloc[0])

    def formatted(self) -> pd.DataFrame:
        """Tasks by probes as text, for reading."""
        values = self.table[["value", "low", "high"]].to_numpy(float)
        shown = self.table.assign(text=[interval_text(*v) for v in values])
        wide = shown.pivot(index=["task", "metric"], columns="probe", values="text")[[AS_IT_IS, *PROBES]].reset_index()
        text = [
            interval_text(*v)
            for v in self.motion.set_index("task").loc[wide.task, ["uses_motion", "low", "high"]].to_numpy()
        ]
        return wide.rename_axis(columns=None).assign(**{"uses motion": text})


def temporal_probes(
    run: Run,
    clips: ClipTable,
    *,
    split: str = "test",
    task: str | None = None,
    seed: int = 0,
    resamples: int = 2000,
    device: str = "auto",
    workers: int = 2,
    progress: bool = True,
) -> TemporalProbes:
    """Score ``run`` on the clips of ``split`` with the frames that its protocol picks, in other orders.

    ``seed`` and a clip's id alone decide how it is shuffled. ``task`` None takes all that the table has labels of.
    Raises ValueError for a split or task that is not there, and for a protocol that shows a single frame anyhow.
    """
    chosen, tasks = clips.split(split), tasks_in(run, clips, task)
    if not len(chosen):
        raise ValueError(f"the clip table has no clips for split={split!r}; {clips!r}")
    if run.protocol.num_frames < 2 or run.protocol.sampling == "single":
        raise ValueError(
            f"run {run.name!r} sees a single frame ({run.protocol.describe()}): there is no order to change"
        )
    frames, table = decode_for(run, chosen, workers=workers, progress=progress)
    model = run.model(str(pick_device(device)))
    cells = {AS_IT_IS: answers(run, model, table, frames, split)}
    for name in PROBES:
        cells[name] = rearranged(run, model, table, frames, _order(name, seed), split)
    return probed(run.name, tasks, cells, replace(run.protocol, split=split), resamples=resamples, seed=seed)


def _order(probe: str, seed: int) -> Callable[[int, str], np.ndarray]:
    """``(T, clip_id)`` -> which frame is shown at each place."""
    return lambda frames, clip: PROBES[probe](frames, np.random.default_rng(clip_seed(clip, seed)))


def probed(
    name: str, tasks: Sequence[Task], cells: Mapping[str, Predictions], protocol: Protocol, *, resamples: int, seed: int
) -> TemporalProbes:
    """The tables of predictions by probe, ``as it is`` among them."""
    lines, motion = [], []
    for one in tasks:
        found = evidence_of(one, cells, protocol.split, resamples=resamples, seed=seed)
        base, still, guess = found.draws[AS_IT_IS], found.draws["single frame"], chance(found)
        for probe in cells:
            own, gap = percentile_interval(found.draws[probe]), percentile_interval(found.draws[probe] - base)
            lines.append({
                "task": one.name, "metric": found.metric, "probe": probe, "value": found.values[probe], "low": own.low,
                "high": own.high, "change": found.values[probe] - found.values[AS_IT_IS], "change_low": gap.low,
                "change_high": gap.high, "n": len(found.clip_id), "groups": found.num_groups,
            })  # fmt: skip
        share, spread = math.nan, None
        if percentile_interval(base).low > guess:
            above = base - guess
            draws = np.divide(base - still, above, out=np.full_like(base, np.nan), where=above > 0)
            spread = percentile_interval(draws)
            share = (found.values[AS_IT_IS] - found.values["single frame"]) / (found.values[AS_IT_IS] - guess)
        motion.append({
            "task": one.name, "metric": found.metric, "chance": guess, "uses_motion": share,
            "low": math.nan if spread is None else spread.low, "high": math.nan if spread is None else spread.high,
        })  # fmt: skip
    return TemporalProbes(name, pd.DataFrame(lines), pd.DataFrame(motion), protocol)
