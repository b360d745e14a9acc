"""The labels of the playground, each held against an oracle that does not share the generator's code."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.stats import ks_2samp
from skimage.metrics import structural_similarity

from workbench.data.synthetic import playground as module
from workbench.data.synthetic.flash import flash_report
from workbench.data.synthetic.motions import PLAYGROUND_ACTIONS
from workbench.data.synthetic.playground import ClipTruth, playground, playground_truth

CLIPS = 60  # fifteen scenes: every action five times


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    return playground(tmp_path_factory.mktemp("playground") / "home", clips=CLIPS, workers=2, progress=False)


@pytest.fixture(scope="module")
def truths(small) -> dict[str, ClipTruth]:
    return {clip_id: playground_truth(clip_id) for clip_id in small.frame.clip_id}


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def named_from_track(truth: ClipTruth) -> str:
    """The action by hand, from track, size and angle alone (camera shake moves all a little)."""
    x, y = (truth.track_px - truth.track_px.mean(0)).T / 48
    if abs(np.log(truth.scale_px[-1] / truth.scale_px[0])) > 0.8:
        return "grow" if truth.scale_px[-1] > truth.scale_px[0] else "shrink"
    if abs(truth.angle[-1] - truth.angle[0]) > 2:
        return "spin_cw" if truth.angle[-1] > truth.angle[0] else "spin_ccw"
    width, height = np.ptp(x), np.ptp(y)
    area = 0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))
    if min(width, height) > 0.45 * max(width, height) and abs(area) > 0.35 * width * height:
        return "circle_cw" if area > 0 else "circle_ccw"
    net = x[-1] - x[0], y[-1] - y[0]
    if max(map(abs, net)) > 0.7 * max(width, height):
        if abs(net[0]) > abs(net[1]):
            return "move_right" if net[0] > 0 else "move_left"
        return "move_down" if net[1] > 0 else "move_up"
    return "shake" if width > height else "bounce"


def test_playground_actions_follow_from_the_tracks(small, truths) -> None:
    said = dict(zip(small.frame.clip_id, small.frame.action, strict=True))
    seen = {clip_id: named_from_track(truth) for clip_id, truth in truths.items()}
    assert seen == said


def test_playground_is_balanced_and_grouped(small) -> None:
    assert len(small) == CLIPS
    assert small.frame.action.value_counts().to_dict() == dict.fromkeys(PLAYGROUND_ACTIONS, 5)
    assert (small.frame.groupby("group").split.nunique() == 1).all()
    assert small.frame.split.value_counts().to_dict() == {"train": 40, "test": 12, "val": 8}


def test_playground_quality_is_the_ssim_of_the_stored_file(small, truths) -> None:
    weights = np.array([0.299, 0.587, 0.114])
    for row in small.frame.iloc[::12].itertuples():
        stored = decoded(small.root / row.path)
        scores = [
            structural_similarity(
                a @ weights, b @ weights, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            for a, b in zip(truths[row.clip_id].pristine[::2], stored[::2], strict=True)
        ]
        # Six decimals are stored; decord's and PyAV's colour conversion are the same.
        assert row.quality == pytest.approx(np.mean(scores), abs=2e-4), row.clip_id


def test_playground_quality_spans_the_ladder(small) -> None:
    by_severity = small.frame.groupby("severity").quality.mean()
    assert by_severity[0] > 0.93
    assert by_severity[5] < by_severity[0] - 0.15
    assert small.frame.quality.between(0, 1).all()


def test_playground_safety_is_the_rule_on_pristine_frames(small, truths) -> None:
    for row in small.frame.itertuples():
        assert bool(row.safety) == flash_report(truths[row.clip_id].pristine, 24).unsafe
        if row.flash in ("none", "slow", "small"):  # hard negatives stay under the limit
            assert not row.safety, (row.clip_id, row.flash)


def test_draw_flash_gives_about_fifteen_percent_positives_and_many_near_misses() -> None:
    drawn = [module._draw_flash(np.random.default_rng(i)) for i in range(1500)]
    kinds = [f.kind for f in drawn]
    assert 0.12 < kinds.count("over") / 1500 < 0.2
    assert 0.2 < sum(k in ("slow", "faint", "small") for k in kinds) / 1500 < 0.3
    # 24 frames per second: a period of 3 to 6 frames is 4 to 8 flashes per second, of 8 or more at most three.
    assert all(f.period <= 6 for f in drawn if f.kind == "over")
    assert all(f.period >= 8 for f in drawn if f.kind == "slow")


def test_main_track_has_a_middle_frame_that_tells_nothing_of_the_action() -> None:
    middles = {}
    for action in PLAYGROUND_ACTIONS:
        tracks = [module._main_track(action, np.random.default_rng([i, 77])) for i in range(300)]
        middle = [(t.center[15] + t.center[16]) / 2 for t in tracks]
        size = [np.sqrt(t.scale[15] * t.scale[16]) for t in tracks]
        middles[action] = np.column_stack([middle, size])
    everyone = np.concatenate(list(middles.values()))
    for action, mine in middles.items():
        for column in range(3):
            # Twelve actions x three columns: a threshold of 1e-4 is under 0.4 % for all of them together.
            assert ks_2samp(mine[:, column], everyone[:, column]).pvalue > 1e-4, (action, column)


def test_playground_truth_mask_lies_on_the_track(truths) -> None:
    ys, xs = np.mgrid[:96, :96] + 0.5
    for truth in list(truths.values())[::6]:
        for t in (4, 16, 28):
            center, size, mask = truth.track_px[t], truth.scale_px[t], truth.mask[t]
            if np.all((center > size) & (center < 96 - size)):  # wholly in view
                seen = np.array([(xs * mask).sum(), (ys * mask).sum()]) / mask.sum()
                assert np.linalg.norm(seen - center) < 0.25 * size + 1


def test_playground_truth_refuses_other_ids() -> None:
    for wrong in ("clip7", "s001-c4", "s-1-c0"):
        with pytest.raises(ValueError, match="no playground clip id"):
            playground_truth(wrong)


def test_playground_refuses_a_number_of_workers_that_builds_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers=0 must be at least 1"):
        playground(tmp_path / "pg", clips=60, workers=0)
    assert not list(tmp_path.iterdir())


def test_playground_refuses_sizes_that_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="clips=61 must be a multiple of 4"):
        playground(tmp_path / "p", clips=61)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_playground_is_byte_identical_for_a_seed_also_from_a_script_without_a_main_guard(small, tmp_path: Path) -> None:
    script = tmp_path / "plain.py"
    script.write_text(
        "import sys, workbench as wb\nprint('main runs')\n"
        f"print(len(wb.playground(sys.argv[1], clips={CLIPS}, workers=1, progress=False)))\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "again")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, f"main runs\n{CLIPS}\n"), done.stderr
    assert digest(tmp_path / "again") == digest(small.root)
    other = module._produce(1, 0, 0)
    assert not np.array_equal(other.pristine, playground_truth("s000-c0").pristine)


def test_playground_killed_while_building_leaves_no_playground(tmp_path: Path) -> None:
    home = tmp_path / "home"
    code = (
        "from workbench.data.synthetic.playground import playground\n"
        f"if __name__ == '__main__': playground({str(home)!r}, clips={CLIPS}, workers=1, progress=False)"
    )
    script = tmp_path / "build.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".home.*/train/*.mp4")):
        assert time.monotonic() < deadline and process.poll() is None, "the build never started"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not home.exists()
