"""How much sooner is a probe trained on stored features than with the frozen backbone in every step?

    python benchmarks/probe.py [--clips 600] [--epochs 30] [--repeats 3] [--device auto]

A linear probe of ``nano`` on the playground's *action*, the same loop and setup both ways. Seconds of training (what
``run.json`` calls ``train_seconds``: every step, and the val split after every epoch), with and without the one
encoding, for the default number of stored views and for the plain view alone, each against the ordinary way with and
without augmentation. Then 32 probes (8 rates x 4 decays) in one pass against one. Each in turns, medians; the ordinary
way is timed over ``--ordinary-epochs`` and scaled to ``--epochs`` where these are fewer (its steps are all alike), but
its score comes from a run of all epochs unless ``--no-score``. Writes the section "Probes" of
``benchmarks/RESULTS.md``.
"""

import argparse
import logging
import os
import platform
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import write_section

import workbench as wb
from workbench.data.tables import ClipTable
from workbench.training.probing.probes import probes
from workbench.training.runs import Run, environment

RATES = (5e-2, 3e-2, 2e-2, 1e-2, 5e-3, 3e-3, 2e-3, 1e-3)
DECAYS = (0.01, 0.1, 0.4, 0.8)


class Bench:
    """Runs in a folder and a store of their own, so that nothing is found that was not asked for."""

    def __init__(self, clips: ClipTable, folder: Path, device: str) -> None:
        self.clips, self.folder, self.device, self.count = clips, folder, device, 0

    def run(self, **changes: Any) -> Run:
        """A new run, whatever ran before; features and decoded clips are found in the store."""
        self.count += 1
        setup = wb.Setup(strategy="linear", tasks=("action",), **changes)
        runs_dir = self.folder / f"runs{self.count}"
        return wb.fine_tune(setup, self.clips, runs_dir=runs_dir, device=self.device, progress=False)

    def forget_features(self) -> None:
        """Remove the entries of features, which are small; decoded clips stay."""
        for entry in (self.folder / "cache").rglob("*.clip"):
            if entry.stat().st_size < 64 * 1024:
                entry.unlink()


def train_seconds(run: Run) -> float:
    return float(run.record["timings"]["train_seconds"])


def accuracy(run: Run) -> tuple[int, int]:
    """Right ones among the test clips, and how many these are."""
    test = run.predictions.query("split == 'test'")
    return int((test.target == test.prediction).sum()), len(test)


def median(values: list[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def compared(bench: Bench, args: argparse.Namespace, augment: bool) -> list[str]:
    """The lines for one kind of training view."""
    ordinary: dict[str, Any] = {"augment": augment, "feature_views": 0}
    stored: dict[str, Any] = {"augment": augment, "epochs": args.epochs}
    few = min(args.ordinary_epochs, args.epochs)
    bench.run(**ordinary, epochs=1)  # decodes, and warms both ways up
    bench.run(**stored | {"epochs": 1})
    slow, fast, encode = [], [], []
    for _ in range(args.repeats):
        slow.append(train_seconds(bench.run(**ordinary, epochs=few)) * args.epochs / few)
        bench.forget_features()
        first = bench.run(**stored)
        encode.append(float(first.record["timings"]["encode_seconds"]))
        fast.append(train_seconds(first))
    views = first.record["features"]["views"]
    ratio = np.median(slow) / np.median(fast)
    whole = np.median(slow) / (np.median(fast) + np.median(encode))
    title = f"With augmentation, {views} stored views" if augment else "Plain clips, 1 stored view"
    lines = [
        f"- {title}: {args.epochs} epochs take {median(slow)} s with the backbone in every step, {median(fast)} s on "
        f"stored features: **{ratio:.0f} times** as fast. Encoding takes {median(encode)} s, once for all probes, "
        f"tasks and seeds; the first probe, encoding included, is {whole:.1f} times as fast."
    ]
    if not args.no_score:
        right, n = accuracy(first)
        expected, _ = accuracy(bench.run(**ordinary, epochs=args.epochs))
        lines.append(f"  Right on test: {right} of {n} on features, {expected} of {n} the ordinary way.")
    return lines


def many(bench: Bench, args: argparse.Namespace) -> list[str]:
    """32 probes against one, both by ``wb.probes`` on stored features, for each head."""
    lines = []
    bench.forget_features()
    for head in ("linear", "attentive"):
        options: dict[str, Any] = {
            "heads": (head,), "tasks": ("action",), "epochs": args.epochs if head == "linear" else 3,
            "device": bench.device, "progress": False, "memory_gb": 8.0,
        }  # fmt: skip
        first = probes(bench.clips, lrs=RATES[:1], weight_decays=DECAYS[:1], **options | {"epochs": 1})
        encode = first.seconds[head]["encode_seconds"]
        one, all_of_them = [], []
        for _ in range(args.repeats):
            alone = probes(bench.clips, lrs=RATES[4:5], weight_decays=DECAYS[:1], **options)
            one.append(alone.seconds[head]["train_seconds"])
            together = probes(bench.clips, lrs=RATES, weight_decays=DECAYS, **options)
            all_of_them.append(together.seconds[head]["train_seconds"])
        best, ratio = together.best.iloc[0], np.median(all_of_them) / np.median(one)
        with_pass = (encode + np.median(all_of_them)) / (encode + np.median(one))
        lines.append(
            f"- {head}, {options['epochs']} epochs: one probe {median(one)} s, 32 in one pass {median(all_of_them)} s: "
            f"**{ratio:.2f} times** one; with the {encode:.0f} s of the encoder's pass {with_pass:.2f} times. "
            f"Chosen on val: lr={best.lr:g}, "
            f"weight_decay={best.weight_decay:g}, val {best.val:.2f}, test {best.test:.2f}."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=600, help="of the playground, in all splits")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--ordinary-epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-score", action="store_true", help="skip the full ordinary runs, which take the longest")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    clips = wb.playground(clips=args.clips)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORKBENCH_CACHE"] = str(Path(folder) / "cache")
        bench = Bench(clips, Path(folder), args.device)
        lines = [
            f"`benchmarks/probe.py --clips {args.clips} --epochs {args.epochs} --repeats {args.repeats}`: a linear "
            f"probe of nano on *action*, {len(clips.train)} train, {len(clips.val)} val, {len(clips.test)} test clips; "
            f"median (least to most of {args.repeats} turns); the ordinary way timed over {args.ordinary_epochs} "
            "epoch(s) and scaled.",
            "",
            *compared(bench, args, augment=True),
            *compared(bench, args, augment=False),
            *many(bench, args),
            "",
            f"Encoding alone costs about as much as one epoch of the ordinary way per stored view, so that over "
            f"{args.epochs} epochs no first probe can gain more than about {args.epochs} / views times.",
            "",
        ]
    found = ", ".join(f"{name} {value}" for name, value in environment().items())
    threads = f"{torch.get_num_threads()} thread(s)"
    lines.append(f"{date.today()}; {platform.machine()}, {platform.system()}, {threads}; {found}")
    write_section("Probes", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
