import logging
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve

from tests.analysis.toys import tube_sum
from workbench.analysis.trust.road import linear_imputation, road


def solved_by_scipy(volume: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The same system written out as a sparse matrix: weights 1, 1/2, 1/4 by the number of axes in which two differ."""
    places = {tuple(p): i for i, p in enumerate(np.argwhere(removed))}
    matrix, right = lil_matrix((len(places), len(places))), np.zeros(len(places))
    steps = [s for s in np.ndindex(3, 3, 3) if s != (1, 1, 1)]
    for place, i in places.items():
        for step in steps:
            other = tuple(int(p) + s - 1 for p, s in zip(place, step, strict=True))
            if any(not 0 <= o < n for o, n in zip(other, volume.shape, strict=True)):
                continue
            weight = 2.0 ** (1 - sum(s != 1 for s in step))
            matrix[i, i] += weight
            if other in places:
                matrix[i, places[other]] -= weight
            else:
                right[i] += weight * volume[other]
    out = volume.copy()
    out[removed] = spsolve(matrix.tocsr(), right)
    return out


def test_linear_imputation_equals_a_sparse_solver():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 2, 6, 5))
    removed = rng.random((2, 4, 1, 6, 5)) < 0.6
    out = linear_imputation(torch.from_numpy(x), torch.from_numpy(removed), noise=0, tolerance=1e-10).numpy()
    for b in range(2):
        for c in range(2):
            np.testing.assert_allclose(out[b, :, c], solved_by_scipy(x[b, :, c], removed[b, :, 0]), atol=1e-7)


def test_linear_imputation_continues_a_ramp_through_a_hole():
    """A linear function is its neighbours' mean, so a hole inside it is filled exactly, in space and in time."""
    t, y, x = np.meshgrid(np.arange(8), np.arange(12), np.arange(12), indexing="ij")
    ramp = torch.from_numpy(0.3 * t - 0.2 * y + 0.5 * x)[None, :, None]
    hole = torch.zeros(1, 8, 1, 12, 12, dtype=torch.bool)
    hole[:, 2:6, :, 4:9, 3:8] = True
    out = linear_imputation(torch.where(hole, torch.full_like(ramp, 99.0), ramp), hole, noise=0, tolerance=1e-12)
    torch.testing.assert_close(out, ramp, atol=1e-7, rtol=0)


def test_linear_imputation_leaves_what_is_known_and_adds_noise_to_the_rest():
    x = torch.rand(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    removed = torch.zeros(1, 4, 1, 8, 8, dtype=torch.bool)
    removed[:, :, :, 2:6, 2:6] = True
    smooth, noisy = (linear_imputation(x, removed, noise=n, seed=1) for n in (0, 0.1))
    where = removed.expand_as(x)
    assert torch.equal(smooth[~where], x[~where]) and torch.equal(noisy[~where], x[~where])
    assert (noisy - smooth)[where].std().item() == pytest.approx(0.1, rel=0.2)
    assert not (smooth[where] == x[where]).any()


def test_linear_imputation_of_nothing_left_is_the_mean_colour():
    x = torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    removed = torch.zeros(2, 4, 1, 8, 8, dtype=torch.bool)
    removed[0] = True
    out = linear_imputation(x, removed, noise=0)
    torch.testing.assert_close(out[0], x[0].mean((0, 2, 3), keepdim=True).expand_as(x[0]))
    assert torch.equal(out[1], x[1])


def test_linear_imputation_says_when_it_stops_early(caplog):
    x = torch.rand(1, 4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    removed = torch.rand(1, 4, 1, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.9
    with caplog.at_level(logging.WARNING):
        linear_imputation(x, removed, max_iterations=1)
    assert "stopped after 1 iterations" in caplog.text
    with pytest.raises(ValueError, match=r"\(B, T, 1, H, W\)"):
        linear_imputation(x, removed[:, :, 0])


def test_road_is_positive_for_the_exact_map_and_its_opposite_for_the_reverse():
    output, _, _ = tube_sum(n=4)
    x = output.pixel_values
    model: Any = output.model
    exact = (model.means(x) - x.mean((1, 2, 3, 4))[:, None, None, None]).numpy() * model.weights.numpy()
    found = road(output, exact, noise=0)
    assert (found > 0).all()
    np.testing.assert_allclose(road(output, -exact, noise=0), -found, atol=1e-6)


@pytest.mark.parametrize("shares", [(), (0.0, 0.5), (0.5, 1.0)])
def test_road_refuses_shares_at_which_both_orders_agree(shares):
    output, _, exact = tube_sum()
    with pytest.raises(ValueError, match="between 0 and 1"):
        road(output, exact, shares=shares)
