"""Does transferring ``nano`` beat training from scratch on the playground?

    python benchmarks/transfer.py [--runs DIR] [--device auto]

Writes the section "Transfer" of ``benchmarks/RESULTS.md``. Runs are kept in ``--runs`` and read again when finished.
Real clips, with several splits and seeds: ``strategies.py``.
"""

import argparse
import platform
from datetime import date
from pathlib import Path

from results import write_section

import workbench as wb
from workbench.training.runs import environment


def playground_part(args: argparse.Namespace) -> list[str]:
    """Scratch, linear, attentive and full at one budget, and full on a single repeated frame."""
    clips = wb.playground()
    setups = {name: wb.Setup(strategy=name, epochs=6) for name in ("scratch", "linear", "attentive", "full")}
    setups["full, single frame"] = wb.Setup(strategy="full", epochs=6, sampling="single")
    runs = wb.sweep(clips, setups, runs_dir=args.runs, device=args.device)
    single = runs.pop("full, single frame")
    comparison = wb.compare(runs, reference="scratch")
    one = wb.evaluate(single, task="action").query("metric == 'accuracy'").iloc[0]
    table = comparison.formatted().drop(columns="note", errors="ignore")
    sizes = ", ".join(f"{len(clips.split(split))} {split}" for split in ("train", "val", "test"))
    return [
        f"### Playground ({sizes} clips; 6 epochs, seed 0)",
        "",
        "```",
        table.to_string(index=False),
        "```",
        "",
        f"Full fine-tuning shown one frame, repeated: *action* {one.value:.2f} [{one.low:.2f}, {one.high:.2f}] "
        f"(n = {one.n}; chance {1 / 12:.2f}).",
        "",
        comparison.caption,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"))
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    lines = [*playground_part(args), ""]
    versions = ", ".join(f"{name} {value}" for name, value in environment().items())
    lines.append(f"{date.today()}; {platform.machine()}, {platform.system()}; {versions}")
    write_section("Transfer", lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
