import numpy as np
import pytest
import torch

from workbench.data.mix import Mix, Pairing


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat_clips(B: int = 6, H: int = 12, W: int = 20) -> torch.Tensor:
    """Clip b is of level 10 * b all over, its second frame one brighter."""
    levels = 10 * torch.arange(B).view(B, 1, 1, 1, 1) + torch.arange(2).view(1, 2, 1, 1, 1)
    return levels.to(torch.uint8).expand(B, 2, H, W, 3).contiguous()


def test_mixup_averages_each_clip_with_its_partner_by_the_weight() -> None:
    clips = flat_clips()
    for seed in range(5):
        mixed, pairing = Mix(mixup=1.0)(clips, chance(seed))
        level, partner = clips[:, :, 0, 0, 0].float(), clips[pairing.partner][:, :, 0, 0, 0].float()
        expected = (pairing.weight * level + (1 - pairing.weight) * partner).round()
        assert torch.equal(mixed, expected.to(torch.uint8)[:, :, None, None, None].expand_as(mixed))


def test_cutmix_puts_one_box_of_the_partner_through_all_frames() -> None:
    clips, shares = flat_clips(), []
    for seed in range(20):
        mixed, pairing = Mix(cutmix=1.0)(clips, chance(seed))
        theirs = clips[pairing.partner]
        here = (mixed == theirs).all(-1)  # (B, T, H, W)
        assert torch.equal(here, here[:1, :1].expand_as(here))
        box = here[0, 0]
        rows, columns = box.any(1).nonzero().flatten(), box.any(0).nonzero().flatten()
        assert box.sum() == len(rows) * len(columns)  # a full rectangle
        assert torch.equal(torch.where(here[..., None], theirs, clips), mixed)
        assert 1 - pairing.weight == pytest.approx(box.float().mean().item())
        shares.append(pairing.weight)
    assert min(shares) < 0.5 and max(shares) > 0.9


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mix_is_the_same_for_the_same_seed_and_leaves_its_input(options: dict[str, float]) -> None:
    clips, mix = flat_clips(), Mix(**options)
    before = clips.clone()
    (a, pair_a), (b, pair_b), (c, pair_c) = mix(clips, chance(3)), mix(clips, chance(3)), mix(clips, chance(4))
    assert torch.equal(a, b) and torch.equal(pair_a.partner, pair_b.partner) and pair_a.weight == pair_b.weight
    assert not torch.equal(a, c) and pair_a.weight != pair_c.weight
    assert torch.equal(clips, before)


def test_mix_partners_are_a_permutation_in_which_no_clip_is_its_own() -> None:
    seen = set()
    for seed in range(20):
        _, pairing = Mix(mixup=0.5)(flat_clips(), chance(seed))
        assert pairing.partner.sort().values.tolist() == list(range(6))
        assert (pairing.partner != torch.arange(6)).all()
        seen.add(pairing.partner[0].item())
    assert seen == {1, 2, 3, 4, 5}


def test_mix_weights_follow_the_beta_distribution() -> None:
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1))."""
    clips, mix, generator = flat_clips(B=1, H=1, W=1), Mix(mixup=0.2), chance()
    weights = [mix(clips, generator)[1].weight for _ in range(2000)]
    assert np.mean(weights) == pytest.approx(0.5, abs=0.04)
    assert np.var(weights) == pytest.approx(1 / (4 * 1.4), abs=0.015)


def test_mix_takes_either_kind_when_both_are_on() -> None:
    clips, mix, generator = flat_clips(), Mix(mixup=1.0, cutmix=1.0), chance()
    levels = set(clips.unique().tolist())
    cuts = sum(set(mix(clips, generator)[0].unique().tolist()) <= levels for _ in range(100))
    assert 30 < cuts < 70


def test_mix_of_a_single_clip_is_that_clip() -> None:
    clip = flat_clips()[3:4]
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        assert torch.equal(Mix(**options)(clip, chance())[0], clip)


def test_blended_targets_need_both_sides() -> None:
    pairing = Pairing(torch.tensor([1, 2, 0]), 0.75)
    out = pairing.blended(torch.tensor([4.0, 8.0, float("nan")], dtype=torch.float64))
    assert out[0].item() == 5.0 and torch.isnan(out[1:]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to mix"),
        ({"mixup": -1.0}, "mixup=-1.0 must be 0"),
        ({"cutmix": float("nan")}, "cutmix=nan must be 0"),
    ],
)
def test_mix_says_what_is_wrong(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mix(**options)


def test_pairing_refuses_a_weight_outside_0_to_1() -> None:
    with pytest.raises(ValueError, match=r"weight=1.5 must lie between 0 and 1"):
        Pairing(torch.tensor([0]), 1.5)


@pytest.mark.gpu
def test_mix_is_the_same_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for options in ({"mixup": 0.8}, {"cutmix": 1.0}):
        (here, pair), (there, other) = (
            Mix(**options)(clips, chance()) for clips in (flat_clips(), flat_clips().cuda())
        )
        assert other.partner.is_cuda and torch.equal(pair.partner, other.partner.cpu()) and pair.weight == other.weight
        assert (here.int() - there.cpu().int()).abs().max() <= 1
