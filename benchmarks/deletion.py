"""Deletion and insertion by maps of the explanation methods, against maps that know nothing of the model.

    python benchmarks/deletion.py [--part playground|gestures] [--seeds 0-2] [--clips 48] [--epochs 12] [--steps 10]
                                  [--methods attnlrp,integrated_gradients,rollout] [--metrics deletion_blur,...,road]
                                  [--egogestar FOLDER] [--runs DIR]

``nano`` is fine-tuned (``full``) with each seed; its test clips are explained for the class it predicts. Runs are kept
in ``--runs`` and read again. The section of ``benchmarks/RESULTS.md`` is written anew after every seed.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from repeated import common_options, numbers, publish, text_of

import workbench as wb
from workbench.analysis.faithfulness import ExplanationReport
from workbench.data.splits import split_by_group

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "clips"
METRICS = "deletion_blur,deletion_freeze,insertion_blur"  # road too takes several times as long
PRIORS = ("random", "motion", "centre")
TITLES = {"playground": "Playground, *action*", "gestures": "EgoGestAR, sessions held out"}


@dataclass(frozen=True)
class Measured:
    """One seed's model, its accuracy on test and what was found."""

    seed: int
    accuracy: float
    report: ExplanationReport


def clips_of(part: str, options: argparse.Namespace, seed: int) -> tuple[wb.ClipTable, str]:
    if part == "playground":
        return wb.playground(clips=options.playground_clips).with_tasks(["action"]), "action"
    table = wb.open_clips(options.egogestar, task="gesture", exclude=("unclassified",))
    fractions = (0.5, 0.15, 0.35)  # a verdict needs six sessions to test on; the usual share holds three
    return split_by_group(table, fractions=fractions, seed=seed), "gesture"


def measured(part: str, options: argparse.Namespace, seed: int) -> Measured:
    table, task = clips_of(part, options, seed)
    setup = wb.Setup(
        backbone=options.backbone, strategy="full", tasks=(task,), epochs=options.epochs, batch_size=16, seed=seed
    )
    run = wb.fine_tune(setup, table, runs_dir=options.runs, name=f"deletion-{part}", device=options.device)
    test = run.predictions[(run.predictions.split == "test") & (run.predictions.task == task)]
    test = test[np.isfinite(test.target)]
    rows = np.random.default_rng(seed).permutation(len(table.test))[: options.clips]
    report = wb.explanation_report(
        run, table.test[sorted(rows.tolist())], options.methods.split(","), task=task,
        metrics=options.metrics.split(","), steps=options.steps, seed=seed, device=options.device,
    )  # fmt: skip
    return Measured(seed, float((test.target == test.prediction).mean()), report)


def rows_of(one: Measured) -> list[dict[str, object]]:
    """One line per method and prior: every metric with its interval; the areas' difference to the priors, deletion."""
    summary, found = one.report.summary, []
    for name in one.report.ranking.method:
        mine = summary[summary.method == name].set_index("metric")
        row: dict[str, object] = {"seed": one.seed, "method": name}
        for metric in mine.index:
            value, low, high = mine.loc[metric, ["value", "low", "high"]]
            row[metric] = f"{value:.3f} [{low:.3f}, {high:.3f}]"
        for prior in ("random", "motion"):
            keys = [f"vs_{prior}{end}" for end in ("", "_low", "_high")]
            known = name not in PRIORS
            value, low, high = mine.loc["deletion_blur", keys] if known else (np.nan,) * 3
            row[f"deletion_blur better than {prior} by"] = f"{value:.3f} [{low:.3f}, {high:.3f}]" if known else ""
        found.append(row | {"mean rank": round(float(one.report.ranking.set_index("method")["rank"][name]), 1)})
    return found


def apart(one: Measured, method: str, metric: str) -> dict[str, bool]:
    """For random and motion: whether the method's interval lies wholly on the better side of the prior's."""
    part = one.report.summary[one.report.summary.metric == metric].set_index("method")
    lower = part.better.iloc[0] == "lower"
    return {
        prior: bool(part.high[method] < part.low[prior] if lower else part.low[method] > part.high[prior])
        for prior in ("random", "motion")
    }


def section(found: dict[str, list[Measured]], options: argparse.Namespace) -> list[str]:
    lines = [
        f"`benchmarks/deletion.py --seeds {options.seeds} --clips {options.clips} --epochs {options.epochs} "
        f"--steps {options.steps}`: {options.backbone}, fine-tuned; up to {options.clips} test clips, explained for "
        "the class predicted.",
        "Area under the score while tubes are blurred or frozen away, most important first (lower is better), put back "
        "(higher), or imputed (ROAD, higher); 95 % intervals over groups of clips, not over seeds.",
        "",
    ]
    for part, models in found.items():
        accuracy = ", ".join(f"{m.accuracy:.3f}" for m in models)
        lines += [f"### {TITLES[part]} (test accuracy by seed: {accuracy})", ""]
        lines += text_of(pd.DataFrame([row for m in models for row in rows_of(m)]))
        default = options.methods.split(",")[0]
        for metric in options.metrics.split(","):
            wins = [apart(m, default, metric) for m in models]
            told = ", ".join(f"{sum(w[p] for w in wins)} of {len(wins)} {p}" for p in ("random", "motion"))
            lines.append(f"- {metric}: interval of {default} wholly better than the prior's, seeds: {told}")
        lines += ["", *_verdicts(models)]
    return lines


def _verdicts(models: Sequence[Measured]) -> list[str]:
    told = [f"seed {m.seed}, {name}: {verdict}" for m in models for name, verdict in m.report.verdicts.items()]
    return ["Verdicts over all metrics: " + "; ".join(told) + ".", ""]


def checked_parts(options: argparse.Namespace) -> list[str]:
    """The parts asked for, known and with their clips there: found out before hours of training, not after."""
    parts: list[str] = options.part.split(",")
    if set(parts) - set(TITLES):
        raise SystemExit(f"--part {options.part}: use some of {', '.join(TITLES)}")
    if "gestures" in parts and not options.egogestar.is_dir():
        raise SystemExit(f"there is no folder {options.egogestar}; name it with --egogestar, or use --part playground")
    if "deletion_blur" not in options.metrics.split(","):
        raise SystemExit(f"--metrics {options.metrics}: deletion_blur must be among them")
    return parts


def main() -> None:
    parser = common_options(__doc__.splitlines()[0])
    parser.add_argument("--part", default="playground,gestures")
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--clips", type=int, default=48, help="test clips explained per seed")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10, help="points of a deletion curve")
    parser.add_argument("--playground-clips", type=int, default=1800)
    parser.add_argument("--methods", default="attnlrp,integrated_gradients,rollout", help="the first is the default")
    parser.add_argument("--metrics", default=METRICS, help="of explanation_report; deletion_blur must be among them")
    parser.add_argument("--egogestar", type=Path, default=CLIPS / "egogestar")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    parts = checked_parts(options)
    found: dict[str, list[Measured]] = {part: [] for part in parts}
    for seed in numbers(options.seeds):
        for part in parts:
            found[part].append(measured(part, options, seed))
        publish("Deletion", section(found, options), options.results)


if __name__ == "__main__":
    main()
