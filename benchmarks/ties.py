"""How often does a comparison claim a difference where there is none? ``python benchmarks/ties.py``

Runs of equal skill answer the same clips, some of which are hard for all, in groups that resemble each other. Every
"better" or "worse" is a false claim; at most 5 % of the tables may hold one.
"""

import argparse
import time
from collections.abc import Iterator
from datetime import date

import numpy as np
import pandas as pd
from results import write_section
from scipy.stats import beta

from workbench.analysis.compare import compare
from workbench.analysis.predictions import Predictions
from workbench.data.protocol import Protocol
from workbench.data.tables import Task

PROTOCOL = Protocol(num_frames=16, size_px=64)
TASKS = {
    "accuracy": Task("action", "multiclass", ("left", "right", "up", "down")),
    "auroc": Task("safety", "binary", ("safe", "flashing")),
    "srcc": Task("quality", "regression"),
}
CASES = (  # metric, groups, clips in each, runs
    ("accuracy", 12, 3, 2), ("accuracy", 40, 1, 2), ("accuracy", 40, 3, 2), ("accuracy", 120, 1, 2),
    ("auroc", 40, 3, 2), ("auroc", 120, 1, 2), ("srcc", 40, 3, 2), ("accuracy", 40, 3, 5),
)  # fmt: skip


def tied_runs(metric: str, groups: int, clips: int, runs: int, seed: int) -> list[Predictions]:
    """Predictions of runs of one skill on the same clips."""
    rng, task = np.random.default_rng([seed, 1]), TASKS[metric]  # not the stream that draws the resamples
    group = np.repeat(np.arange(groups), clips)
    n = len(group)
    hard = rng.normal(size=groups)[group] + 0.5 * rng.normal(size=n)
    target = rng.integers(4, size=n).astype(float) if metric == "accuracy" else rng.random(n)
    target = (rng.random(n) < 0.3).astype(float) if metric == "auroc" else target
    frame = pd.DataFrame({"clip_id": [f"c{i:05d}" for i in range(n)], "group": group.astype(str), "split": "test"})
    frame["task"], frame["target"] = task.name, target
    made = []
    chances: list[list[float]] = [[]] * n
    for run in range(runs):
        noise = rng.normal(size=n)
        if metric == "accuracy":
            said = np.where(hard + noise < 0.3, target, (target + 1) % 4)
        elif metric == "auroc":
            flagged = 1 / (1 + np.exp(-(1.2 * target + 0.5 * hard + noise)))
            said, chances = (flagged > 0.5).astype(float), np.c_[1 - flagged, flagged].tolist()
        else:
            said = target + 0.3 * hard + 0.3 * noise
        made.append(Predictions(f"run {run}", (task,), frame.assign(prediction=said, probabilities=chances), PROTOCOL))
    return made


def shares(
    trials: int, resamples: int, *, first: int = 0, cases: tuple[int, ...] = tuple(range(len(CASES)))
) -> Iterator[dict[str, object]]:
    """Per case: tables with a false claim against the reference, and among all pairs, with exact 95 % intervals."""
    for metric, groups, clips, runs in [CASES[case] for case in cases]:
        claims = pairs = 0
        for seed in range(first, first + trials):
            found = compare(tied_runs(metric, groups, clips, runs, seed), resamples=resamples, seed=seed)
            claims += bool(found.table.verdict.isin(["better", "worse"]).any())
            pairs += bool(found.pairs().table.verdict.str.startswith("run").any())
        yield {
            "metric": metric, "groups x clips": f"{groups} x {clips}", "runs": runs,
            "no clear difference": _share(trials - claims, trials), "among all pairs": _share(trials - pairs, trials),
        }  # fmt: skip


def _share(count: int, trials: int) -> str:
    """A share with its exact (Clopper-Pearson) interval."""
    low = beta.ppf(0.025, count, trials - count + 1) if count else 0.0
    high = beta.ppf(0.975, count + 1, trials - count) if count < trials else 1.0
    return f"{100 * count / trials:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first trial")
    parser.add_argument("--case", type=int, help="this one only, counted from 0: a section of its own")
    args = parser.parse_args()
    began = time.monotonic()
    cases = tuple(range(len(CASES))) if args.case is None else (args.case,)
    rows = list(shares(args.trials, args.resamples, first=args.first, cases=cases))
    heads = list(rows[0])
    command = f"python benchmarks/ties.py --trials {args.trials} --resamples {args.resamples}"
    command += "" if args.case is None else f" --first {args.first} --case {args.case}"
    lines = [
        f"`{command}`, {date.today()}, {time.monotonic() - began:.0f} s. {args.trials} tables of runs of equal skill "
        "each; the share in which `wb.compare` calls no run better or worse, with its exact 95 % interval: against the "
        "reference run, and among all pairs (`.pairs()`). A verdict may be wrong in 5 % of tables.",
        "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|",
        *[f"| {' | '.join(str(v) for v in row.values())} |" for row in rows],
    ]  # fmt: skip
    write_section("Simulated ties" if args.case is None else f"Simulated ties: case {args.case} again", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
