import pytest
import torch

from workbench.data.synthetic.motions import CAMERA_MOTIONS, PRETRAIN_MOTIONS
from workbench.data.synthetic.procedural import ProceduralClips
from workbench.data.synthetic.scenes import screen_points
from workbench.data.synthetic.textures import SHAPES


@pytest.fixture(scope="module")
def batch():
    return ProceduralClips(0, batch_size=24, num_frames=8, size_px=32, tubelet_size=4, patch_size=8).batch(3)


def test_batch_depends_on_seed_and_step_alone(batch) -> None:
    def made(seed: int, step: int):
        return ProceduralClips(seed, batch_size=24, num_frames=8, size_px=32, tubelet_size=4, patch_size=8).batch(step)

    again = made(0, 3)
    for name, value in vars(batch).items():
        assert torch.equal(value, getattr(again, name)), name
    assert not torch.equal(batch.clips, made(0, 4).clips)
    assert not torch.equal(batch.clips, made(1, 3).clips)


def test_batch_has_targets_of_the_documented_shapes_and_ranges(batch) -> None:
    assert batch.clips.shape == (24, 8, 32, 32, 3) and batch.clips.dtype == torch.uint8
    assert batch.coverage.shape == batch.flow.shape == (24, 2, 2, 4, 4)
    assert batch.path.shape == (24, 8, 2)
    assert batch.coverage.min() >= 0 and batch.coverage.max() <= 1
    # The main object is one of the objects.
    assert (batch.coverage[:, 0] <= batch.coverage[:, 1] + 1e-6).all()
    for name, names in (("motion", PRETRAIN_MOTIONS), ("camera", CAMERA_MOTIONS), ("shape", SHAPES)):
        indices = getattr(batch, name)
        assert indices.min() >= 0 and indices.max() < len(names)
        assert len(indices.unique()) > 3
    assert batch.count.min() >= 0 and batch.count.max() <= 3


def test_batch_path_runs_through_the_main_objects_coverage() -> None:
    # Clips without an arm, in finer tokens: the centroid of coverage and the mean path of the tubelet agree.
    data = ProceduralClips(5, batch_size=48, num_frames=8, size_px=64, tubelet_size=2, patch_size=4)
    batch = data.batch(0)
    points = screen_points(16, 16)[:, :2]
    close = []
    for coverage, path in zip(batch.coverage[:, 0], batch.path.view(48, 4, 2, 2).mean(2), strict=True):
        weight = coverage.flatten(1)  # (T', H' * W')
        inside = (path.abs() < 0.5).all(1) & (weight.sum(1) > 1)
        centroid = weight @ points / weight.sum(1, keepdim=True).clamp(min=1e-6)
        close += ((centroid - path).norm(dim=1) < 0.15)[inside].tolist()
    # Arms (four in ten clips) and occlusion pull some centroids away; the rest must sit on the path.
    assert len(close) > 60
    assert sum(close) / len(close) > 0.55


SMALL = {"batch_size": 24, "num_frames": 8, "size_px": 32}


def test_batch_without_distractors_changes_nothing_but_what_they_cover() -> None:
    whole = ProceduralClips(2, **SMALL).batch(1)
    alone = ProceduralClips(2, **SMALL, distractors=False).batch(1)
    for name in ("path", "motion", "camera", "shape"):
        assert torch.equal(getattr(whole, name), getattr(alone, name)), name
    assert (alone.count == 0).all() and (whole.count > 0).any()
    # Nothing but the main object (and its arm) is left, so both coverages are one.
    assert torch.equal(alone.coverage[:, 0], alone.coverage[:, 1])
    had_none = whole.count == 0
    assert had_none.any()
    assert torch.equal(whole.clips[had_none], alone.clips[had_none])
    assert not torch.equal(whole.clips, alone.clips)


def test_batch_with_a_still_camera_keeps_the_clips_whose_camera_stood_still_anyway() -> None:
    whole = ProceduralClips(2, **SMALL).batch(1)
    still = ProceduralClips(2, **SMALL, camera_motion=False).batch(1)
    static = whole.camera == CAMERA_MOTIONS.index("static")
    assert (still.camera == CAMERA_MOTIONS.index("static")).all() and 0 < static.sum() < len(static)
    for name in ("clips", "path", "flow", "coverage"):
        assert torch.equal(getattr(whole, name)[static], getattr(still, name)[static]), name
        assert not torch.equal(getattr(whole, name), getattr(still, name)), name
    for name in ("motion", "shape", "count"):
        assert torch.equal(getattr(whole, name), getattr(still, name)), name


@pytest.mark.parametrize("textures", ["flat", "white", "natural"])
def test_batch_in_other_textures_moves_the_same(textures: str) -> None:
    whole = ProceduralClips(2, **SMALL).batch(1)
    other = ProceduralClips(2, **SMALL, textures=textures).batch(1)
    for name in ("path", "motion", "camera", "shape", "count"):
        assert torch.equal(getattr(whole, name), getattr(other, name)), name
    assert not torch.equal(whole.clips, other.clips)
    # The same objects at the same places, but for their proportions.
    assert (whole.coverage - other.coverage).abs().mean() < 0.1 * whole.coverage.mean()


def test_batch_does_not_depend_on_how_many_clips_are_painted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ProceduralClips(2, **SMALL)
    expected = data.batch(1)
    for at_once in (1, 7, 24):
        monkeypatch.setattr("workbench.data.synthetic.procedural._CLIPS_AT_ONCE", at_once)
        for name, value in vars(data.batch(1)).items():
            assert torch.equal(value, getattr(expected, name)), (at_once, name)


def test_procedural_clips_refuse_unknown_textures() -> None:
    with pytest.raises(ValueError, match="textures='wool' is not one of flat, white, mixed, natural"):
        ProceduralClips(0, textures="wool")
