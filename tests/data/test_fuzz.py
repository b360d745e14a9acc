"""Damaged files cost a verdict each and nothing else. ``WORKBENCH_FUZZ=10000`` makes it a long run."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.data.videos import CODECS, encode, moving
from workbench.data.checks.verdicts import VERDICTS
from workbench.data.doctor import examine
from workbench.data.tables import ClipTable

FILES = int(os.environ.get("WORKBENCH_FUZZ", "150"))
DAMAGES = ("cut short", "flipped bits", "noise", "zeros", "bytes left out", "bytes twice")


def damaged(data: bytes, damage: str, rng: np.random.Generator) -> bytes:
    """``data`` with one kind of damage at a random place."""
    here = np.frombuffer(data, np.uint8).copy()
    start = int(rng.integers(0, len(here)))
    length = int(rng.integers(1, max(2, len(here) // 8)))
    if damage == "cut short":
        return bytes(here[:start])
    if damage == "flipped bits":
        places = rng.integers(0, len(here), int(2 ** rng.integers(0, 8)))
        here[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
        return bytes(here)
    if damage in ("noise", "zeros"):
        part = here[start : start + length]
        part[:] = rng.integers(0, 256, len(part)) if damage == "noise" else 0
        return bytes(here)
    cut, again = here[start : start + length], damage == "bytes twice"
    return bytes(np.concatenate([here[:start], *([cut, cut] if again else []), here[start + length :]]))


@pytest.mark.timeout(600 if FILES <= 1000 else 8 * 3600)
def test_examine_gives_each_damaged_file_a_verdict(tmp_path: Path) -> None:
    rng = np.random.default_rng(int(os.environ.get("WORKBENCH_FUZZ_SEED", "0")))
    whole = {}
    for codec, (_, suffix, _) in CODECS.items():
        path = encode(tmp_path / f"whole_{codec}{suffix}", moving(0, frames=12, size=64), codec=codec)
        whole[codec] = (path.read_bytes(), suffix)
    rows = [(f"whole_{codec}{suffix}", codec, "none") for codec, (_, suffix) in whole.items()]
    for i in range(FILES):
        codec, damage = list(whole)[i % len(whole)], DAMAGES[i // len(whole) % len(DAMAGES)]
        data, suffix = whole[codec]
        name = f"{i:05d}{suffix}"
        (tmp_path / name).write_bytes(damaged(data, damage, rng))
        rows.append((name, codec, damage))
    frame = pd.DataFrame(rows, columns=["path", "codec", "damage"])
    clips = frame[["path"]].assign(clip_id=frame.path, group=frame.path, split=None)
    table = ClipTable(clips.assign(start_seconds=np.nan, end_seconds=np.nan), [], root=tmp_path)
    report = examine(table, num_frames=4, time_limit_seconds=20, progress=FILES > 1000)

    assert report.files.path.tolist() == frame.path.tolist()
    assert report.files.verdict.isin(VERDICTS).all()
    assert (report.files.reason.str.len() > 0).equals(report.files.verdict != "ok")
    intact = report.files.verdict[frame.damage == "none"]
    assert (intact != "quarantined").all()
    kept = set(report.table.frame.path)
    assert kept == set(report.files.path[report.files.verdict != "quarantined"])
    counts = Counter(report.files.verdict[frame.damage != "none"])
    assert counts["quarantined"] > 0.2 * FILES and counts["warning"] + counts["ok"] > 0.05 * FILES
    if FILES > 1000:
        out = Path(os.environ.get("WORKBENCH_FUZZ_TABLE", str(tmp_path / "outcomes.csv")))
        report.files.assign(codec=frame.codec, damage=frame.damage).to_csv(out, index=False)
