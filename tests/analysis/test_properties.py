"""Properties: known by construction, and measured on the span of a clip, not on its file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.analysis.mistakes.properties import PROPERTIES, clip_properties, looks
from workbench.data.clips import write_clip
from workbench.data.tables import ClipTable, Task


def grey(levels: list[int], size: int = 32) -> np.ndarray:
    return np.stack([np.full((size, size, 3), v, np.uint8) for v in levels])


def test_looks_by_hand() -> None:
    still = looks(grey([100] * 8))
    assert still["brightness"] == pytest.approx(100, abs=0.1)
    assert still["motion"] == still["contrast"] == still["sharpness"] == still["colourfulness"] == still["cuts"] == 0
    ramp = looks(grey([0, 10, 20, 30]))
    assert ramp["motion"] == pytest.approx(10, abs=0.01) and ramp["cuts"] == 0
    cut = looks(grey([10] * 6 + [200] * 6))
    assert cut["cuts"] == 1
    red = looks(np.stack([np.full((8, 8, 3), (200, 40, 40), np.uint8)] * 2))
    assert red["colourfulness"] == 160


def test_looks_sharpness_falls_with_blur() -> None:
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 255, (4, 32, 32, 1), dtype=np.uint8).repeat(3, -1)
    soft = np.stack([np.stack([f[i : i + 24, j : j + 24] for i in range(8) for j in range(8)]).mean(0) for f in sharp])
    assert looks(sharp)["sharpness"] > 3 * looks(soft.astype(np.uint8))["sharpness"]


def test_clip_properties_are_of_the_clip_and_survive_a_bad_file(tmp_path: Path) -> None:
    write_clip(tmp_path / "half.mp4", grey([20] * 16 + [220] * 16, 64), 8.0, crf=10)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    frame = pd.DataFrame(
        {
            "clip_id": ["whole", "dark", "bright", "bad"], "path": ["half.mp4"] * 3 + ["bad.mp4"],
            "start_seconds": [np.nan, 0.0, 2.0, np.nan], "end_seconds": [np.nan, 2.0, 4.0, np.nan],
            "split": "test", "group": "g", "x": 1.0,
        }
    )  # fmt: skip
    found = clip_properties(ClipTable(frame, (Task("x", "regression"),), root=tmp_path), progress=False)
    assert list(found.columns) == ["clip_id", *PROPERTIES]
    found = found.set_index("clip_id")
    assert found.brightness["dark"] == pytest.approx(20, abs=4) and found.brightness["bright"] == pytest.approx(
        220, abs=4
    )
    assert found.cuts.to_dict() == {"whole": 1, "dark": 0, "bright": 0, "bad": pytest.approx(np.nan, nan_ok=True)}
    assert found.seconds["whole"] == pytest.approx(4) and found.seconds["dark"] == pytest.approx(2)
    assert found.short_side_px["whole"] == 64 and found.fps["whole"] == pytest.approx(8)
    assert found.loc["bad"].isna().all()
