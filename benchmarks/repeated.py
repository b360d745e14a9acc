"""What the benchmarks that train many times share: which runs, their test predictions, and one line of a table."""

import argparse
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import pandas as pd
from results import RESULTS, write_section

import workbench as wb
from workbench.analysis.repeats import Repeated, difference
from workbench.training.runs import environment


def numbers(text: str) -> list[int]:
    """``0,2`` or ``0-4`` from a command line."""
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    return found


def test_rows(run: wb.Run, task: str) -> pd.DataFrame:
    """Of a run, its predictions of one task on test."""
    rows = run.predictions
    return rows[(rows.split == "test") & (rows.task == task)].reset_index(drop=True)


def score_lines(
    scores: Mapping[str, Repeated], floors: Sequence[str], extra: Mapping[str, Mapping[str, object]]
) -> pd.DataFrame:
    """One row per way: mean and interval over groups, each seed's spread, difference to each floor."""
    rows = []
    for name, score in scores.items():
        of_seed = pd.Series(score.by_part).groupby(level=1)
        # A seed that has not seen all splits yet was tested on other clips than the others.
        by_seed = of_seed.mean()[of_seed.size() == len(score.cells)]
        row: dict[str, object] = {
            "what": name, "score": str(score), "splits": len(score.cells), "seeds": len(of_seed),
            "seeds' range": f"{by_seed.min():.3f}-{by_seed.max():.3f}" if len(by_seed) > 1 else "",
        }  # fmt: skip
        for floor in floors:
            comparable = name not in floors and set(score.cells) == set(scores[floor].cells)
            row[f"minus {floor}"] = str(difference(score, scores[floor])) if comparable else ""
        rows.append(row | dict(extra.get(name, {})))
    return pd.DataFrame(rows).fillna("")


def text_of(table: pd.DataFrame) -> list[str]:
    return ["```", table.to_string(index=False), "```", ""]


def stamp() -> str:
    """Date, machine and versions, as every section ends."""
    versions = ", ".join(f"{name} {value}" for name, value in environment().items())
    return f"{date.today()}; {platform.machine()}, {platform.system()}; {versions}"


def publish(title: str, lines: Sequence[str], results: Path | None) -> None:
    """Write the section and show it; ``None`` only shows it."""
    if results is not None:
        write_section(title, [*lines, stamp()], results)
    print("\n".join(lines), flush=True)


def common_options(description: str) -> argparse.ArgumentParser:
    """A parser with what every such benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"), help="finished runs are read again from here")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file whose section is replaced")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbone", default="nano", help="name, folder or hub id")
    return parser
