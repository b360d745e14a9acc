import pytest
import torch

from workbench.data.augment import OVERSAMPLE, Augment


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_clips(B: int = 4, T: int = 6, S: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (B, T, S, S, 3), dtype=torch.uint8, generator=chance(9))


def test_augment_with_nothing_to_do_returns_the_clip() -> None:
    clips = random_clips()
    same = Augment(num_frames=6, size_px=16, crop_scale=(1.0, 1.0), aspect=1.0, color=0.0)
    assert torch.equal(same(clips, chance()), clips)


def test_augment_is_the_same_for_the_same_generator_seed() -> None:
    clips, augment = random_clips(), Augment(num_frames=6, size_px=12)
    assert torch.equal(augment(clips, chance(1)), augment(clips, chance(1)))
    assert not torch.equal(augment(clips, chance(1)), augment(clips, chance(2)))


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
