"""Temporal probes: what is shown in which order; scores by hand of a run that sees change and one that does not."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tests.analysis.screened import BrightRun, grey_video
from workbench.analysis.stress.temporal import AS_IT_IS, PROBES, temporal_probes
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable, Task

TASKS = (Task("trend", "multiclass", ("falls", "rises")), Task("light", "multiclass", ("dark", "bright")))


class Trend(nn.Module):
    """*rises* where the last frame is brighter than the first; *bright* where the mean is over one half."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = TASKS
        self.backbone = BrightRun().model().backbone

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        light = x.mean((2, 3, 4))  # (B, T)
        slope, mean = light[:, -1] - light[:, 0] - 0.01, light.mean(1) - 0.5
        return {name: torch.stack([-v, v], 1) for name, v in (("trend", slope), ("light", mean))}


class TrendRun(BrightRun):
    def __init__(self, **changes: Any) -> None:
        super().__init__(name="trend", tasks=TASKS, **changes)

    def model(self, device: str = "cpu") -> Any:
        return Trend()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ClipTable:
    """Forty ramps of eight frames: brighter or darker, around a dark or a bright level."""
    root, rows = tmp_path_factory.mktemp("ramps"), []
    for i in range(40):
        rises, bright = bool(i % 2), bool(i // 2 % 2)
        ramp = np.linspace(-40, 40, 8) * (1 if rises else -1) + (180 if bright else 75)
        grey_video(root / f"{i}.mp4", ramp.tolist())
        rows.append({
            "clip_id": f"c{i:02d}", "path": f"{i}.mp4", "start_seconds": np.nan, "end_seconds": np.nan,
            "split": "test", "group": f"g{i}", "trend": TASKS[0].classes[rises], "light": TASKS[1].classes[bright],
        })  # fmt: skip
    return ClipTable(pd.DataFrame(rows), TASKS, root=root)


@pytest.fixture(scope="module")
def found(table: ClipTable) -> Any:
    run = TrendRun(protocol=Protocol(num_frames=8, size_px=32, decoder="pyav"))
    return temporal_probes(run, table, resamples=300, progress=False)


def score(found: Any, task: str, probe: str) -> float:
    return float(found.table[(found.table.task == task) & (found.table.probe == probe)].value.iloc[0])


def test_probes_show_these_frames():
    rng = np.random.default_rng(0)
    assert PROBES["reversed"](6, rng).tolist() == [5, 4, 3, 2, 1, 0]
    assert PROBES["single frame"](6, rng).tolist() == [3] * 6
    assert PROBES["half speed"](8, rng).tolist() == [2, 2, 3, 3, 4, 4, 5, 5]
    assert sorted(PROBES["shuffled"](16, rng).tolist()) == list(range(16))
    for frames in range(1, 20):
        for order in PROBES.values():
            shown = order(frames, np.random.default_rng(frames))
            assert shown.shape == (frames,) and shown.min() >= 0 and shown.max() < frames


def test_a_task_of_motion_and_one_of_appearance_are_told_apart(found: Any):
    assert score(found, "trend", AS_IT_IS) == 1 and score(found, "light", AS_IT_IS) == 1
    assert score(found, "trend", "reversed") == 0  # every ramp now runs the other way
    assert score(found, "trend", "single frame") == 0.5  # a picture that stands neither rises nor falls
    assert score(found, "trend", "half speed") == 1
    assert 0.2 < score(found, "trend", "shuffled") < 0.8
    light = found.table[found.table.task == "light"]
    assert (light.value == 1).all() and (light.change == 0).all()


def test_uses_motion_is_one_of_motion_and_zero_of_appearance(found: Any):
    assert found.uses_motion("trend") == pytest.approx(1.0)
    assert found.uses_motion("light") == 0.0
    trend = found.motion.set_index("task").loc["trend"]
    assert trend.chance == 0.5 and trend.low < 1 < trend.high
    with pytest.raises(ValueError, match="no task 'speed'.*trend"):
        found.uses_motion("speed")


def test_a_score_that_may_be_chance_has_no_share_of_motion(found: Any, table: ClipTable):
    frame = table.frame.assign(trend=[TASKS[0].classes[i // 2 % 2] for i in range(len(table))])  # the other's labels
    run = TrendRun(protocol=Protocol(num_frames=8, size_px=32, decoder="pyav"))
    odd = temporal_probes(run, ClipTable(frame, TASKS, root=table.root), task="trend", resamples=100, progress=False)
    assert np.isnan(odd.uses_motion("trend")) and odd.formatted()["uses motion"].tolist() == [""]


def test_shuffling_is_fixed_by_seed_and_clip_and_not_by_the_table(table: ClipTable):
    run = TrendRun(protocol=Protocol(num_frames=8, size_px=32, decoder="pyav"))
    options: dict[str, Any] = {"task": "trend", "resamples": 10, "progress": False}
    half = temporal_probes(run, table[np.arange(20)], **options)
    rest = temporal_probes(run, table[np.arange(20, 40)], **options)
    whole = temporal_probes(run, table, **options)
    mean = (score(half, "trend", "shuffled") + score(rest, "trend", "shuffled")) / 2
    assert score(whole, "trend", "shuffled") == pytest.approx(mean)
    other = [score(temporal_probes(run, table, seed=s, **options), "trend", "shuffled") for s in (1, 2, 3)]
    assert len({score(whole, "trend", "shuffled"), *other}) > 1


def test_several_views_are_each_rearranged(table: ClipTable):
    run = TrendRun(protocol=Protocol(num_frames=4, size_px=32, decoder="pyav", num_clips=2, level="video"))
    found = temporal_probes(run, table, resamples=10, progress=False)
    assert score(found, "trend", AS_IT_IS) == 1 and score(found, "trend", "reversed") == 0


def test_temporal_probes_refuses_what_has_no_order(table: ClipTable):
    still = TrendRun(protocol=Protocol(num_frames=8, size_px=32, decoder="pyav", sampling="single"))
    with pytest.raises(ValueError, match="sees a single frame"):
        temporal_probes(still, table, progress=False)
    with pytest.raises(ValueError, match="no clips for split='val'"):
        temporal_probes(TrendRun(), table, split="val", progress=False)


def test_report_shows_itself(found: Any):
    text = str(found)
    assert "uses motion" in text and "1.00 [1.00, 1.00]" in text and "test split" in text
    assert "<table" in found._repr_html_()
