"""Tubes: occlusion against feature ablation and by hand, Shapley values against their axioms."""

import numpy as np
import pytest
import torch

from tests.analysis.family_runs import family_run, random_clips
from workbench.analysis.explain import baseline_pixels, explain
from workbench.analysis.explaining.tubes import check_tube, tube_attributions, tube_numbers

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tubes")


@pytest.mark.parametrize("name", ["videomae", "timesformer", "vjepa2", "vit"])
def test_occlusion_equals_feature_ablation_on_the_same_tubes(folder, name):
    run, clips = family_run(name, folder), random_clips()
    tube = (run.tml.backbone.grid[0] // 2, 2, 2)
    a, b = (explain(run, clips, method=m, tube=tube, target=1, **QUIET).values for m in ("occlusion", "ablation"))
    np.testing.assert_array_equal(a, b)


def test_occlusion_equals_the_difference_by_hand(folder):
    """Leave out one tubelet: rows 8 to 16, columns 24 to 32 of the last four frames."""
    run, clips = family_run("videomae", folder), random_clips()
    maps = explain(run, clips, method="occlusion", tube=(1, 1, 1), baseline="frozen", target=2, **QUIET)
    x = run.tml.backbone.prepare(clips)
    x0 = baseline_pixels(x, torch.zeros(3), "frozen")
    changed = x.clone()
    changed[:, 4:8, :, 8:16, 24:32] = x0[:, 4:8, :, 8:16, 24:32]
    with torch.no_grad():
        lost = run.tml(x)["action"][:, 2] - run.tml(changed)["action"][:, 2]
    np.testing.assert_allclose(maps.values[:, 1, 1, 3], lost, atol=1e-5)
    assert maps.baseline == "frozen" and maps.signed


def test_tubes_share_their_number_evenly_among_their_tokens(folder):
    run, clips = family_run("videomae", folder), random_clips()
    coarse = explain(run, clips, method="occlusion", tube=(2, 2, 4), **QUIET).values
    assert np.unique(coarse[0]).size == 2
    np.testing.assert_array_equal(coarse[:, :, :2], np.broadcast_to(coarse[:, :1, :1, :1], (2, 2, 2, 4)))


@pytest.mark.parametrize("name", ["videomae", "timesformer"])
def test_shapley_sums_to_the_output_minus_the_baselines(folder, name):
    run, clips = family_run(name, folder), random_clips()
    grid = run.tml.backbone.grid
    maps = explain(run, clips, method="shapley", tube=(grid[0] // 2, 2, 2), permutations=2, target=0, **QUIET)
    x = run.tml.backbone.prepare(clips)
    with torch.no_grad():
        ends = [run.tml(p)["action"][:, 0] for p in (x, baseline_pixels(x, torch.zeros(3), "blur"))]
    np.testing.assert_allclose(maps.values.sum((1, 2, 3)), ends[0] - ends[1], atol=1e-4)
    assert maps.converged and np.max(maps.completeness_error) < 1e-3
    again = explain(run, clips, method="shapley", tube=(grid[0] // 2, 2, 2), permutations=2, target=0, **QUIET)
    np.testing.assert_array_equal(maps.values, again.values)  # the orders come from the seed


class Product(torch.nn.Module):
    """f(x) = mean of the first half of the frames times the mean of the second: each half's Shapley value is half."""

    def forward(self, x):
        return (x[:, :4].mean((1, 2, 3, 4)) * x[:, 4:].mean((1, 2, 3, 4)))[:, None]


def test_shapley_shares_an_interaction_equally_and_occlusion_counts_it_twice(folder):
    backbone = family_run("videomae", folder).tml.backbone
    x = torch.ones(1, 8, 3, 32, 32) * 2
    options = {"targets": [0], "tube": (1, 4, 4), "passes": 8}
    shapley = tube_attributions("shapley", Product(), backbone, x, 0 * x, permutations=40, **options)
    halves = shapley.reshape(2, -1).sum(1)
    torch.testing.assert_close(halves.sum(), torch.tensor(4.0))
    torch.testing.assert_close(halves, torch.tensor([2.0, 2.0]), atol=0.8, rtol=0)  # which of two comes first, 40 times
    occlusion = tube_attributions("occlusion", Product(), backbone, x, 0 * x, **options)
    torch.testing.assert_close(occlusion.reshape(2, -1).sum(1), torch.tensor([4.0, 4.0]))


def test_tube_numbers_count_without_a_gap_in_time_major_order(folder):
    backbone = family_run("vivit", folder).tml.backbone  # grid (4, 4, 4), tubelets of 2 frames and 8 px
    numbers = tube_numbers(backbone, (2, 2, 4))
    assert numbers.shape == (1, 8, 1, 32, 32)
    assert sorted(numbers.unique().tolist()) == [0, 1, 2, 3]
    assert [numbers[0, t, 0, y, 0].item() for t, y in ((0, 0), (3, 15), (0, 16), (4, 0), (7, 31))] == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("grid", "expected"), [((2, 4, 4), (1, 1, 1)), ((8, 14, 14), (1, 7, 7)), ((32, 16, 16), (8, 4, 4))]
)
def test_check_tube_makes_at_most_64_tubes_of_its_own(grid, expected):
    assert check_tube(grid, None) == expected


def test_check_tube_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="does not divide the token grid"):
        check_tube((4, 4, 4), (3, 2, 2))
