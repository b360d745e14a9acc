from dataclasses import replace

import numpy as np
import pytest

from tests.analysis.toys import held_out, trained
from workbench.analysis.explain import explain
from workbench.analysis.map_comparison import compare_classes, compare_maps, quantities_of, shares_of
from workbench.analysis.maps import Maps

FRAMES = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 4, 3), np.uint8)


def maps(values: np.ndarray, **changes) -> Maps:
    made = Maps("rollout", "action", ("left",) * 8, values.astype(np.float32), False, FRAMES,
                tuple(f"clip {i}" for i in range(8)))  # fmt: skip
    return replace(made, **changes)


def at(t: int, y: int, x: int) -> np.ndarray:
    values = np.zeros((8, 2, 2, 2))
    values[:, t, y, x] = 1
    return values


def test_compare_maps_of_identical_checkpoints_is_exactly_zero():
    run, clips = trained(), held_out()[:4]
    one, two = (explain(run, clips.frames, method="integrated_gradients", device="cpu", progress=False) for _ in "ab")
    found = compare_maps(one, two, masks=clips.masks["stripes"])
    assert not found.difference.any()
    assert (found.clips.difference == 0).all()
    assert (found.summary[["difference", "low", "high"]] == 0).all(axis=None)


def test_compare_maps_by_hand_when_all_mass_moves_to_the_end():
    mask = at(1, 1, 1).astype(bool)
    found = compare_maps(maps(at(0, 0, 0)), maps(3 * at(1, 1, 1)), masks=mask, names=("before", "after"))
    rows = found.summary.set_index("quantity")
    assert rows.difference.to_dict() == pytest.approx({"mass": 2, "entropy": 0, "centre": 2, "in_mask": 1, "moved": 1})
    # Frames 0 and 1 are the first step, 2 and 3 the second: their middles lie at 0.5 and 2.5.
    assert rows.loc["centre", ["first", "second"]].tolist() == [0.5, 2.5]
    assert found.scale == 3 and found.difference.sum() == 8 * 2
    shares = compare_maps(maps(at(0, 0, 0)), maps(3 * at(1, 1, 1)), unit="share")
    assert shares.scale == 1 and shares.difference.sum() == 0
    assert "after" in repr(found) and "shared scale 3" in repr(found)


def test_entropy_is_one_for_an_even_map_and_zero_for_a_point():
    even, point = np.ones((8, 2, 2, 2)), at(0, 1, 0)
    assert quantities_of(even, shares_of(even), 2)["entropy"] == pytest.approx(np.ones(8))
    assert quantities_of(point, shares_of(point), 2)["entropy"] == pytest.approx(np.zeros(8))
    np.testing.assert_array_equal(shares_of(-even), np.full_like(even, 1 / 8))


def test_compare_maps_interval_covers_groups_not_clips():
    rng = np.random.default_rng(1)
    one, two = maps(rng.random((8, 2, 2, 2))), maps(rng.random((8, 2, 2, 2)))
    free, tied = (compare_maps(one, two, groups=g).summary.set_index("quantity") for g in (None, list("aabbccdd")))
    assert free.difference.equals(tied.difference)
    assert free.loc["moved", "low"] < free.loc["moved", "difference"] < free.loc["moved", "high"]
    assert not np.allclose(free[["low", "high"]], tied[["low", "high"]])


def test_compare_maps_refuses_what_has_no_common_unit():
    one = maps(at(0, 0, 0))
    with pytest.raises(ValueError, match="use unit='share'"):
        compare_maps(one, maps(at(0, 0, 0), method="integrated_gradients", baseline="blur"))
    with pytest.raises(ValueError, match="different clips"):
        compare_maps(one, maps(at(0, 0, 0), frames=FRAMES[::-1].copy()))
    with pytest.raises(ValueError, match="grids"):
        compare_maps(one, maps(np.ones((8, 1, 2, 2))))
    with pytest.raises(ValueError, match="raw, share"):
        compare_maps(one, one, unit="percent")


def test_compare_classes_difference_adds_up_to_the_difference_of_the_logits():
    import torch

    run, clips = trained(), held_out()[:4]
    found = compare_classes(run, clips.frames, "vertical", "rising", method="integrated_gradients", baseline="mean",
                            device="cpu", progress=False)  # fmt: skip
    with torch.no_grad():
        x = run.tml.backbone.prepare(clips.frames)
        logits = run.tml(x)["stripes"] - run.tml(x.mean((1, 3, 4), keepdim=True).expand_as(x))["stripes"]
    expected = (logits[:, 2] - logits[:, 0]).numpy()
    np.testing.assert_allclose(found.difference.sum((1, 2, 3)), expected, rtol=0.03, atol=0.02)
    assert found.names == ("vertical", "rising")


def test_compare_classes_refuses_a_method_that_does_not_know_the_class():
    run, clips = trained(), held_out()[:2]
    with pytest.raises(ValueError, match="every class the same map"):
        compare_classes(run, clips.frames, "vertical", "rising", method="rollout", device="cpu", progress=False)
    with pytest.raises(ValueError, match="two different"):
        compare_classes(run, clips.frames, "rising", "rising")
