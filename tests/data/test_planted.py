import numpy as np
import pytest

from workbench.data.synthetic.planted import CUES, PlantedClips, planted_clips, token_cover


def nearest_class(clips: PlantedClips, cue: str) -> np.ndarray:
    """Of each clip, the class whose mean patch (over the others) is nearest to its own evidence's: (B,)."""
    patches = []
    for frames, mask in zip(clips.frames, clips.masks[cue], strict=True):
        t, y, x = (np.flatnonzero(mask.any(axes)) for axes in ((1, 2), (0, 2), (0, 1)))
        patch = frames[t[0] : t[-1] + 1, y[0] : y[-1] + 1, x[0] : x[-1] + 1].mean(0).astype(float)
        patches.append((patch - patch.mean()).ravel())
    rows, labels = np.array(patches), clips.labels[cue]
    means = np.stack([rows[labels == k].mean(0) for k in range(len(CUES[cue]))])
    return (rows @ means.T).argmax(1)


@pytest.mark.parametrize("cue", list(CUES))
def test_planted_clips_evidence_tells_the_class_and_the_rest_does_not(cue):
    clips = planted_clips(200, seed=3, cues=(cue,))
    assert (nearest_class(clips, cue) == clips.labels[cue]).all()
    # Outside the mask: the mean colour of what is left goes with no class more than chance lets it.
    outside = np.where(clips.masks[cue][..., None], np.nan, clips.frames).reshape(200, -1, 3)
    colour = np.nanmean(outside, 1)
    for k in range(4):
        own, others = colour[clips.labels[cue] == k], colour[clips.labels[cue] != k]
        error = np.sqrt(own.var(0) / len(own) + others.var(0) / len(others))
        assert (np.abs(own.mean(0) - others.mean(0)) < 4 * error).all()


def test_planted_clips_masks_are_one_block_each_of_the_stated_size():
    clips = planted_clips(40, seed=0)
    mask = clips.masks["stripes"]
    assert (mask.sum((1, 2, 3)) == 4 * 16 * 16).all()  # an eighth of 8 x 32 x 32
    for axes, length in (((2, 3), 4), ((1, 3), 16), ((1, 2), 16)):
        assert (mask.any(axes).sum(1) == length).all()
    # Token by token too, on a grid whose cells the blocks are made of.
    assert (clips.token_mask("stripes", (4, 4, 4)).sum((1, 2, 3)) == 8).all()
    cover = token_cover(mask, (4, 4, 4))
    assert set(np.unique(cover)) == {0.0, 1.0}


def test_planted_clips_distractors_move_more_than_the_evidence_and_keep_out_of_it():
    with_one, without = planted_clips(30, seed=5), planted_clips(30, seed=5, distractors=0)
    assert without.frames.shape == with_one.frames.shape
    motion = np.abs(np.diff(with_one.frames.astype(float).mean(-1), axis=1)).mean((2, 3)).sum(1)
    still = np.abs(np.diff(without.frames.astype(float).mean(-1), axis=1)).mean((2, 3)).sum(1)
    assert motion.mean() > 1.5 * still.mean()


def test_planted_clips_two_tasks_lie_in_their_own_halves():
    clips = planted_clips(60, seed=1, cues=("stripes", "spots"))
    assert not clips.masks["stripes"][..., 16:].any()
    assert not clips.masks["spots"][..., :16].any()
    assert abs(np.corrcoef(clips.labels["stripes"], clips.labels["spots"])[0, 1]) < 0.3
    for cue in ("stripes", "spots"):
        assert (nearest_class(clips, cue) == clips.labels[cue]).mean() > 0.95


@pytest.mark.parametrize(("kind", "goes_with_the_label"), [("label", True), ("chance", False)])
def test_planted_clips_shortcut_goes_with_the_label_only_on_request(kind, goes_with_the_label):
    clips = planted_clips(200, seed=2, shortcut=kind)
    corner = clips.frames[:, :, :8, :8].mean((1, 2, 3))
    colour = corner - corner.mean(1, keepdims=True)  # without the ground's brightness
    means = np.stack([colour[clips.labels["stripes"] == k].mean(0) for k in range(4)])
    right = (((colour[:, None] - means) ** 2).sum(-1).argmin(1) == clips.labels["stripes"]).mean()
    assert (right == 1.0) if goes_with_the_label else (right < 0.5)
    assert clips.shortcut.sum() == 8 * 8 * 8
    assert not (clips.masks["stripes"] & clips.shortcut).any()


def test_planted_clips_without_a_shortcut_have_no_corner():
    assert not planted_clips(2, seed=0).shortcut.any()


def test_planted_clips_are_the_same_for_the_same_seed_and_others_for_another():
    one, same, other = (planted_clips(6, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one.frames, same.frames)
    assert (one.frames != other.frames).any()
    part = one[2:4]
    np.testing.assert_array_equal(part.frames, one.frames[2:4])
    np.testing.assert_array_equal(part.masks["stripes"], one.masks["stripes"][2:4])
    assert len(part) == 2 and "stripes" in repr(part)


def test_planted_clips_contrast_scales_the_evidence():
    strong, faint = (planted_clips(1, seed=9, contrast=c, noise=0.0, distractors=0) for c in (1.0, 0.5))
    inside = strong.masks["stripes"][0]

    def swing(clips):
        return np.ptp(clips.frames[0][inside].astype(float))

    assert swing(faint) == pytest.approx(swing(strong) / 2, rel=0.25)  # the ground's slope stays


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cues": ("stripes", "stripes")}, "one or two different"),
        ({"cues": ("smell",)}, "one or two different"),
        ({"shortcut": "always"}, "not one of none, label, chance"),
        ({"block_px": 18}, "multiple of 4"),
        ({"block_frames": 12}, "both fit"),
        ({"cues": ("stripes", "spots"), "block_px": 32}, "no room is left"),
    ],
)
def test_planted_clips_refuses_what_cannot_be_planted(options, message):
    with pytest.raises(ValueError, match=message):
        planted_clips(2, seed=0, **options)


def test_token_cover_refuses_a_grid_that_does_not_divide_the_clip():
    with pytest.raises(ValueError, match="does not divide"):
        token_cover(np.zeros((1, 8, 32, 32), bool), (3, 4, 4))
