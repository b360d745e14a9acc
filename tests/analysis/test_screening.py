"""A folder for a reviewer: order, thresholds, quarantine, the rule beside the model, and what the flags rest on."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.analysis.screened import TASKS, BrightRun, grey_video, probability
from tests.data.test_judging import flicker
from workbench.analysis.maps import Maps
from workbench.analysis.operating_point import OperatingPoint
from workbench.analysis.screening import _driving, _Surest, operating_point_of, review_of, roles_of, screen
from workbench.data.clips import write_clip
from workbench.data.judging import Judged
from workbench.data.tables import ClipTable, DatasetInfo, Task
from workbench.models.backbones import load_backbone
from workbench.models.tml import TML
from workbench.training.predict import predict

QUIET: dict[str, Any] = {"device": "cpu", "progress": False, "workers": 1}
LEVELS = {"a.mp4": 60, "b/c.mp4": 190, "d.mp4": 110, "e.mp4": 240}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four grey clips, one that flashes, two that are none, and a file that is not asked about."""
    root = tmp_path_factory.mktemp("clips")
    (root / "b").mkdir()
    for name, level in LEVELS.items():
        grey_video(root / name, [float(level)] * 12)
    write_clip(root / "flash.mp4", flicker(1.5, 0, 1.5), fps=24, crf=12)
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("hello")
    (root / "notes.txt").write_text("hello")
    return root


class NanoRun(BrightRun):
    """A real model, its heads never trained."""

    def model(self, device: str = "cpu") -> TML:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return TML(load_backbone("nano"), TASKS).eval()


@pytest.fixture(scope="module")
def nano(folder: Path) -> NanoRun:
    model = load_backbone("nano")
    protocol = BrightRun().protocol.__class__(num_frames=model.num_frames, size_px=model.size_px, decoder="pyav")
    return NanoRun(protocol=protocol)


def test_screen_sorts_for_a_reviewer_and_counts_what_it_cannot_read(folder: Path) -> None:
    found = screen(BrightRun(), folder, threshold=0.8, explain=0, **QUIET)
    assert found.table["path"].tolist() == ["e.mp4", "b/c.mp4", "flash.mp4", "d.mp4", "a.mp4"]
    assert found.table["review"].tolist() == ["model only", "model only", "rule only", "clear", "clear"]
    grey = found.table[found.table["path"] != "flash.mp4"]
    expected = [probability(LEVELS[p]) for p in grey["path"]]
    np.testing.assert_allclose(grey["safety_probability"], expected, atol=0.02)
    assert dict(found.quarantine[["path", "reason"]].to_numpy()).keys() == {"empty.mp4", "text.mp4"}
    assert found.counts() == {"both": 0, "model only": 2, "rule only": 1, "clear": 2, "not readable": 2}
    assert found.maps is None and set(found.table["driving_seconds"]) == {()}
    assert "2 not readable" in repr(found)


def test_screen_says_what_predict_says(folder: Path, nano: NanoRun) -> None:
    found = screen(nano, folder, threshold=0.5, explain=0, **QUIET)
    told = predict(nano, [folder / p for p in found.table["path"]], device="cpu", workers=1)
    np.testing.assert_allclose(found.table["safety_probability"], told["safety_probability"], rtol=1e-5)
    assert found.table["action"].tolist() == told["action"].tolist()
    np.testing.assert_allclose(found.table["quality"], told["quality"], rtol=1e-4, atol=1e-6)


def test_only_flagged_clips_are_explained_the_surest_first(folder: Path, nano: NanoRun) -> None:
    every = screen(nano, folder, threshold=0.0, explain=0, **QUIET).table["safety_probability"].sort_values().to_numpy()
    how: dict[str, Any] = {"threshold": float(every[1:3].mean()), "method": "gradient_x_activation"} | QUIET
    found = screen(nano, folder, explain=2, **how)
    flagged = found.table[found.table["flagged"]].sort_values("safety_probability", ascending=False)
    assert len(flagged) == 3 and found.maps is not None
    assert found.maps.clip_ids == tuple(flagged["clip_id"][:2]) and found.maps.task == "safety"
    explained = found.table["driving_seconds"].map(len) > 0
    assert set(found.table["clip_id"][explained]) == set(found.maps.clip_ids)
    more = screen(nano, folder, explain=5, flash=False, **how).maps  # room for all five, of which three are flagged
    assert more is not None and more.clip_ids == tuple(flagged["clip_id"])
    seconds = found.frame_seconds[found.maps.clip_ids[0]]
    assert len(seconds) == nano.protocol.num_frames
    assert set(flagged["driving_seconds"].iloc[0]) <= set(seconds[::2].tolist())


def test_driving_names_the_steps_with_the_most_mass() -> None:
    """Six frames in three steps; the mass lies in the last and the first."""
    values = np.zeros((1, 3, 2, 2), np.float32)
    values[0, 2, 0, 0], values[0, 0, 1, 1], values[0, 1] = 5.0, 1.0, -9.0
    values[0, 1, 0, 0] = 0.5
    maps = Maps("attnlrp", "safety", ("bright",), values, True, np.zeros((1, 6, 4, 4, 3), np.uint8), ("a",))
    assert _driving(maps, 0, np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])) == (0.0, 0.2, 0.4)
    many = np.zeros((1, 6, 1, 1), np.float32)
    many[0, :, 0, 0] = [1, 9, 2, 8, 3, 7]
    maps = Maps("attnlrp", "safety", ("bright",), many, True, np.zeros((1, 6, 4, 4, 3), np.uint8), ("a",))
    assert _driving(maps, 0, np.arange(6.0)) == (1.0, 3.0, 5.0)


def test_surest_keeps_the_frames_of_so_many_and_no_more() -> None:
    surest = _Surest(2)
    for i, probability_ in enumerate([0.3, 0.9, 0.1, 0.9, 0.5]):
        surest.offer(probability_, f"c{i}", Judged(np.full((3, 1, 2, 2, 3), i, np.uint8), np.zeros(1), None))
    assert sorted(entry[2] for entry in surest._kept) == ["c1", "c3"]
    assert all((entry[3] == int(entry[2][1])).all() for entry in surest._kept)
    assert _Surest(0).explained(None, "safety", "attnlrp", "cpu", False) == (None, {})


def test_a_threshold_that_nothing_reaches_flags_nothing(folder: Path) -> None:
    point = OperatingPoint(float("inf"), 0.05, 0.0, 0.0, 20, 5)
    found = screen(BrightRun(), folder, threshold=point, explain=4, **QUIET)
    assert not found.table["flagged"].any() and found.maps is None and found.operating_point is point


def test_screen_reads_the_stretches_of_a_table(tmp_path: Path) -> None:
    grey_video(tmp_path / "long.mp4", [40.0] * 20 + [230.0] * 20)
    frame = pd.DataFrame({
        "clip_id": ["late", "early"], "path": "long.mp4", "start_seconds": [2.0, 0.0], "end_seconds": [4.0, 2.0],
        "split": "test", "group": "a",
    })  # fmt: skip
    lost = pd.DataFrame({"clip_id": ["gone"], "path": ["gone.mp4"], "reason": ["was broken"]})
    table = ClipTable(frame, (), root=tmp_path, info=DatasetInfo(name="cut"), quarantine=lost)
    found = screen(BrightRun(), table, threshold=0.5, explain=0, flash=False, **QUIET)
    assert found.table["clip_id"].tolist() == ["late", "early"]
    np.testing.assert_allclose(found.table["quality"], [230 / 255, 40 / 255], atol=0.01)
    assert found.quarantine["reason"].tolist() == ["was broken"] and found.table["rule_unsafe"].isna().all()


def test_to_csv_holds_the_lost_files_too(folder: Path, tmp_path: Path) -> None:
    found = screen(BrightRun(), folder, threshold=0.8, explain=0, **QUIET)
    back = pd.read_csv(found.to_csv(tmp_path / "s.csv"))
    assert back["review"].tolist() == [*found.table["review"], "not readable", "not readable"]
    assert back["reason"].notna().tolist() == [False] * 5 + [True] * 2


def test_operating_point_is_chosen_on_val_by_hand() -> None:
    """Negatives score 0.02 + 0.04 i, but for i = 3, 7 ... 19: of fifteen at most two at a rate of 0.15, 18 and 17."""
    point = operating_point_of(BrightRun(), TASKS[1], None, 0.15)
    assert point.threshold == pytest.approx((0.66 + 0.70) / 2)
    assert point.false_positive_rate == pytest.approx(2 / 15) and point.recall == pytest.approx(1 / 5)
    assert operating_point_of(BrightRun(), TASKS[1], 0.3, 0.15).threshold == 0.3


@pytest.mark.parametrize(
    ("target", "said"),
    [(np.nan, "no val clip of run 'bright' has a label of 'safety'"), (1.0, "0 negative"), (0.0, "no positive clip")],
)
def test_operating_point_is_refused_where_val_cannot_show_it(target: float, said: str) -> None:
    class OneSided(BrightRun):
        @property
        def predictions(self) -> pd.DataFrame:
            return super().predictions.assign(target=target)

    with pytest.raises(ValueError, match=f"{said}.*give threshold="):
        operating_point_of(OneSided(), TASKS[1], None, 0.15)


def test_roles_are_found_or_must_be_named() -> None:
    several = BrightRun(tasks=(*TASKS, Task("fight", "binary")))
    with pytest.raises(ValueError, match=r"2 binary task\(s\) \['safety', 'fight'\].*name it by safety="):
        roles_of(several)
    assert roles_of(several, "fight").safety.name == "fight"
    with pytest.raises(ValueError, match="no binary task, so nothing to flag by"):
        roles_of(BrightRun(tasks=TASKS[:1]))
    assert roles_of(BrightRun(tasks=TASKS[1:2])).columns() == ["safety_probability"]


def test_review_follows_the_model_where_the_rule_is_silent() -> None:
    pairs = [(True, True), (True, False), (True, None), (False, True), (False, None)]
    assert [review_of(*p) for p in pairs] == ["both", "model only", "model only", "rule only", "clear"]


def test_screen_refuses_an_empty_folder_and_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no video to screen"):
        screen(BrightRun(), tmp_path, threshold=0.5, **QUIET)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        screen(BrightRun(), tmp_path / "nowhere", threshold=0.5, **QUIET)


def test_a_model_that_says_nan_is_refused(folder: Path) -> None:
    """It would otherwise never be flagged, and pass as clear."""

    class Broken(BrightRun):
        def model(self, device: str = "cpu") -> Any:
            model = super().model(device)
            forward = model.forward
            model.forward = lambda x: {name: out * float("nan") for name, out in forward(x).items()}
            return model

    with pytest.raises(ValueError, match="no finite probability of 'safety'"):
        screen(Broken(), folder, threshold=0.5, explain=0, **QUIET)
