import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from workbench.data import augment
from workbench.data.augment import OVERSAMPLE, RAND_OPS, Augment, _geometry, _photometry


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_clips(B: int = 4, T: int = 6, S: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (B, T, S, S, 3), dtype=torch.uint8, generator=chance(9))


def test_augment_with_nothing_to_do_returns_the_clip() -> None:
    clips = random_clips()
    same = Augment(num_frames=6, size_px=16, crop_scale=(1.0, 1.0), aspect=1.0, color=0.0)
    assert torch.equal(same(clips, chance()), clips)


def test_augment_is_the_same_for_the_same_generator_seed() -> None:
    clips, views = random_clips(), Augment(num_frames=6, size_px=12)
    assert torch.equal(views(clips, chance(1)), views(clips, chance(1)))
    assert not torch.equal(views(clips, chance(1)), views(clips, chance(2)))


def test_augment_gives_all_frames_of_a_clip_one_transform_and_each_clip_its_own() -> None:
    still = random_clips(B=1, T=1).expand(3, 6, -1, -1, -1)
    out = Augment(num_frames=6, size_px=16, crop_scale=(0.3, 0.6))(still, chance())
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert not torch.equal(out[0], out[1])


def test_augment_takes_each_frame_from_its_own_neighbours() -> None:
    T = 8
    levels = torch.arange(T * OVERSAMPLE, dtype=torch.uint8)
    clips = levels.view(1, -1, 1, 1, 1).expand(5, -1, 4, 4, 3)
    plain = Augment(num_frames=T, size_px=4, crop_scale=(1.0, 1.0), aspect=1.0, color=0.0)
    out = plain(clips, chance())[:, :, 0, 0, 0].long()
    assert (out // OVERSAMPLE == torch.arange(T)).all()
    assert len((out % OVERSAMPLE).unique()) == OVERSAMPLE
    assert len(out.unique(dim=0)) == len(out)  # each clip draws its own


def test_augment_mirrors_only_where_labels_allow_it() -> None:
    ramp = torch.arange(0, 160, 10, dtype=torch.uint8).view(1, 1, 1, 16, 1).expand(64, 2, 16, -1, 3)
    options = {"num_frames": 2, "size_px": 16, "color": 0.0}
    rising = [bool((row[-1].int() > row[0].int()).item()) for row in Augment(**options)(ramp, chance())[:, 0, 8, :, 0]]
    assert all(rising)
    mirrored = Augment(**options, flip=True)(ramp, chance())[:, 0, 8, :, 0]
    share = sum(bool((row[-1].int() < row[0].int()).item()) for row in mirrored) / 64
    assert 0.3 < share < 0.7


def test_augment_crops_stay_inside_the_frame() -> None:
    # One bright border pixel column never wraps or leaks black: a constant picture stays constant.
    flat = torch.full((16, 2, 16, 16, 3), 200, dtype=torch.uint8)
    out = Augment(num_frames=2, size_px=12, crop_scale=(0.2, 1.0), color=0.0)(flat, chance())
    assert (out == 200).all()


def test_augment_refuses_frames_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="7 stored frames are not a multiple of num_frames=3"):
        Augment(num_frames=3, size_px=8)(random_clips(T=7), chance())


def one_op(name: str, strength: float, clips: torch.Tensor) -> torch.Tensor:
    """uint8 (B, T, S, S, 3) after one photometric operation, rounded."""
    index = torch.full((1, len(clips)), RAND_OPS.index(name))
    x = clips.permute(0, 1, 4, 2, 3).float()
    out = _photometry(x, index, torch.full((1, len(clips)), strength))
    return out.round().to(torch.uint8).permute(0, 1, 3, 4, 2)


def as_picture(clip: torch.Tensor) -> Image.Image:
    """All frames of a clip (T, S, S, 3), one under the other: what changes them together changes this."""
    return Image.fromarray(clip.flatten(0, 1).numpy())


@pytest.mark.parametrize("strength", [0.6, -0.6, 1.0])
def test_photometry_brightness_posterize_and_autocontrast_equal_pillow(strength: float) -> None:
    clips = random_clips(B=2)
    clips[1] = clips[1] // 3 + 40  # leaves room for a stretch
    expected = {
        "brightness": lambda p: ImageEnhance.Brightness(p).enhance(1 + 0.9 * strength),
        "posterize": lambda p: ImageOps.posterize(p, 8 - round(4 * abs(strength))),
        "autocontrast": lambda p: ImageOps.autocontrast(p),
    }
    for name, change in expected.items():
        ours = one_op(name, strength, clips)
        for clip, out in zip(clips, ours, strict=True):
            difference = np.asarray(change(as_picture(clip))).astype(int) - np.asarray(as_picture(out))
            assert abs(difference).max() <= 1, name  # Pillow cuts where we round


@pytest.mark.parametrize("strength", [0.7, -0.7])
def test_photometry_sharpness_equals_pillow(strength: float) -> None:
    clips = random_clips(B=1, T=2)
    ours = one_op("sharpness", strength, clips)[0]
    for frame, out in zip(clips[0], ours, strict=True):
        expected = np.asarray(ImageEnhance.Sharpness(Image.fromarray(frame.numpy())).enhance(1 + 0.9 * strength))
        # Pillow rounds the smoothed picture first (up to 1.63 levels then) and leaves the border pixels as they are.
        assert abs(expected.astype(int) - out.numpy())[1:-1, 1:-1].max() <= 2


def test_photometry_contrast_and_saturation_by_hand() -> None:
    clip = torch.tensor([[100, 130, 160], [40, 40, 40]], dtype=torch.uint8).view(1, 1, 1, 2, 3)
    # Mean of the clip (130 + 40) / 2 = 85; grey of the pixels 130 and 40; factor 1.45.
    assert one_op("contrast", 0.5, clip).flatten().tolist() == [107, 150, 194, 20, 20, 20]
    assert one_op("saturation", 0.5, clip).flatten().tolist() == [86, 130, 174, 40, 40, 40]


def test_photometry_of_a_batch_is_that_of_each_clip_alone() -> None:
    x = random_clips(B=len(RAND_OPS), T=2).permute(0, 1, 4, 2, 3).float()
    ops = torch.stack([torch.arange(len(RAND_OPS)), torch.arange(len(RAND_OPS)).flip(0)])
    strengths = torch.linspace(-1, 1, ops.numel()).view_as(ops)
    whole = _photometry(x, ops, strengths)
    for b in range(len(x)):
        alone = _photometry(x[b : b + 1], ops[:, b : b + 1], strengths[:, b : b + 1])
        torch.testing.assert_close(whole[b : b + 1], alone, atol=1e-3, rtol=0)


def test_geometry_by_hand() -> None:
    ops = torch.tensor([[RAND_OPS.index(name) for name in ("rotate", "shear_x", "translate_y", "brightness")]])
    out = _geometry(ops, torch.tensor([[1.0, -0.5, 1.0, 1.0]]))
    half, root = 0.5, 3**0.5 / 2  # of 30 degrees
    expected = [
        [[root, -half, 0], [half, root, 0], [0, 0, 1]],
        [[1, -0.15, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 1, 0.6], [0, 0, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    ]
    torch.testing.assert_close(out, torch.tensor(expected), atol=1e-6, rtol=0)
    twice = _geometry(ops[:, :2].T.contiguous(), torch.tensor([[1.0], [-0.5]]))
    torch.testing.assert_close(twice[0], out[0] @ out[1], atol=1e-6, rtol=0)


def test_augment_translates_by_the_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    # A white column at x = 10 of 20: at magnitude 5 the picture moves by 15 % = 3 px to either side.
    monkeypatch.setattr(Augment, "_operations", fixed_operations("translate_x", 0.5))
    clips = torch.zeros(2, 2, 20, 20, 3, dtype=torch.uint8)
    clips[:, :, :, 10] = 255
    plain = Augment(num_frames=2, size_px=20, crop_scale=(1.0, 1.0), aspect=1.0, color=0.0, rand_augment=1)
    out = plain(clips, chance())
    assert [out[b, 1, 5, :, 0].nonzero().flatten().tolist() for b in (0, 1)] == [[7], [13]]


def fixed_operations(name: str, strength: float):
    def operations(self: Augment, B: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        signs = torch.tensor([1.0, -1.0]).repeat(B)[:B]
        return torch.full((1, B), augment.RAND_OPS.index(name)), (strength * signs)[None]

    return operations


STRONG = {"rand_augment": 4, "magnitude": 10.0, "erasing": 0.5, "reverse": True, "flip": True}


def test_augment_with_everything_on_gives_all_frames_of_a_clip_one_transform() -> None:
    still = random_clips(B=1, T=1).expand(24, 6, -1, -1, -1)
    out = Augment(num_frames=6, size_px=16, **STRONG)(still, chance())
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert len({clip.numpy().tobytes() for clip in out}) == 24


def test_augment_with_everything_on_is_the_same_for_the_same_seed() -> None:
    clips, strong = random_clips(B=8), Augment(num_frames=3, size_px=12, **STRONG)
    assert torch.equal(strong(clips, chance(1)), strong(clips, chance(1)))
    assert not torch.equal(strong(clips, chance(1)), strong(clips, chance(2)))


def test_augment_draws_every_operation_in_both_directions() -> None:
    ops, strengths = Augment(num_frames=1, size_px=8, rand_augment=3, magnitude=4.0)._operations(400, chance())
    counts = torch.bincount(ops.flatten(), minlength=len(RAND_OPS))
    assert counts.min() > 0.6 * 1200 / len(RAND_OPS) and counts.sum() == 1200
    assert sorted(strengths.unique().tolist()) == pytest.approx([-0.4, 0.4])
    assert 0.4 < (strengths > 0).float().mean() < 0.6


def test_rand_augment_never_mirrors() -> None:
    """Brightness rises from left to right; whatever the operations, no part of any row falls back by much."""
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).view(1, 1, 1, 32, 1).expand(128, 1, 32, -1, 3)
    out = Augment(num_frames=1, size_px=32, color=0.0, rand_augment=3, magnitude=10.0)(ramp, chance())[:, 0, :, :, 0]
    fall = out.int().cummax(-1).values - out.int()
    assert fall.max() < 40  # an overshoot of sharpening; a mirrored border falls by 100 and more


def test_augment_erases_one_box_through_all_frames() -> None:
    clips = random_clips(B=200, T=2, S=32)
    options = {"num_frames": 2, "size_px": 32, "crop_scale": (1.0, 1.0), "aspect": 1.0, "color": 0.0}
    out = Augment(**options, erasing=0.5)(clips, chance())
    changed = (out != clips).any(-1)  # (B, T, S, S)
    erased = changed.flatten(1).any(1)
    assert 0.4 < erased.float().mean() < 0.6
    for clip, before, here in zip(out[erased], clips[erased], changed[erased], strict=True):
        rows, columns = (here.any(0).any(dim).nonzero().flatten() for dim in (1, 0))
        box = clip[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert torch.equal(box, box[:1, :1, :1].expand_as(box))  # one colour, in both frames
        assert (box[0, 0, 0] - before.float().mean(dim=(0, 1, 2))).abs().max() <= 0.5
        assert 0.01 < box.shape[1] * box.shape[2] / 32**2 < 0.37
    assert torch.equal(Augment(**options, erasing=0.0)(clips, chance()), clips)


def test_augment_reverses_half_the_clips_only_where_labels_allow_it() -> None:
    clips = torch.arange(8, dtype=torch.uint8).view(1, 8, 1, 1, 1).expand(64, -1, 4, 4, 3)
    plain = {"num_frames": 8, "size_px": 4, "color": 0.0}
    forwards = list(range(8))
    levels = Augment(**plain, reverse=True)(clips, chance())[:, :, 0, 0, 0].tolist()
    assert all(one in (forwards, forwards[::-1]) for one in levels)
    assert 20 < sum(one == forwards for one in levels) < 44
    assert Augment(**plain)(clips, chance())[:, :, 0, 0, 0].tolist() == [forwards] * 64


def test_augment_new_options_leave_the_crops_of_a_seed_as_they_were() -> None:
    """What is off draws nothing, and what is on draws after the crops and colours: those stay those of the seed."""
    clips, options = random_clips(), {"num_frames": 6, "size_px": 16}
    idle = Augment(**options, rand_augment=2, magnitude=0.0)
    assert torch.equal(idle._crops(4, chance()), Augment(**options)._crops(4, chance()))
    none = torch.tensor([[RAND_OPS.index("identity")] * 4])
    assert torch.equal(_geometry(none, torch.ones(1, 4)), torch.eye(3).expand(4, -1, -1))
    early = Augment(**options, erasing=1e-9)(clips, chance())  # draws, and changes nothing
    assert torch.equal(early, Augment(**options)(clips, chance()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rand_augment": -1}, "rand_augment=-1 must be 0"),
        ({"magnitude": 11.0}, "magnitude=11.0 must lie between 0 and 10"),
        ({"erasing": 2.0}, "erasing=2.0 is a probability"),
    ],
)
def test_augment_says_what_is_wrong(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augment(num_frames=1, size_px=8, **options)


@pytest.mark.gpu
def test_augment_is_the_same_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    clips, strong = random_clips(B=32, T=6, S=64), Augment(num_frames=3, size_px=56, **STRONG)
    here, there = strong(clips, chance()), strong(clips.cuda(), chance()).cpu()
    difference = (here.int() - there.int()).abs()
    # The same transforms; sums in another order may tip a rounding, and posterising makes a step of that.
    assert (difference > 1).float().mean() < 1e-3
