"""Two tasks whose gradients are known: each method's step as its paper gives it, worked by hand."""

import math
import sys

import pytest
import torch
from torch import Tensor

from workbench.training.aggregation import aggregation_weights, gramian
from workbench.training.balance_spec import AGGREGATORS

# g1 . g2 = -1, |g1|^2 = 1, |g2|^2 = 5: they conflict.
G1, G2 = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 2.0])


def solver(name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is an optional solver of torchjd")


def step(method: str, *gradients: Tensor, value: float | None = None, seed: int = 0) -> Tensor:
    weights = aggregation_weights(method, gramian([[g] for g in gradients]), value=value, seed=seed)
    return (weights[:, None] * torch.stack(gradients)).sum(0)


def close(found: Tensor, by_hand: list[float], atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=found.dtype), atol=atol, rtol=0)


def test_upgrad_pcgrad_and_dualproj_by_hand() -> None:
    # g1 less its part against g2: g1 + g2 / 5 = (0.8, 0.4); g2 less its part against g1: g2 + g1 = (0, 2). Two tasks:
    # PCGrad adds these, UPGrad averages them, and is here scaled to the sum.
    close(step("pcgrad", G1, G2), [0.8, 2.4])
    close(step("upgrad", G1, G2), [0.8, 2.4])
    # DualProj projects the mean (0, 1): it hurts neither, since g1 . mean = 0 and g2 . mean = 2.
    close(step("dualproj", G1, G2), [0.0, 2.0])
    # With g2 ten times as long the sum hurts task 1: it is projected onto the steps with g1 . d >= 0.
    close(step("dualproj", G1, 10 * G2), [0.0, 20.0], atol=1e-4)


def test_mgda_is_the_shortest_point_between_the_gradients() -> None:
    # Of a g1 + (1 - a) g2 the shortest has a = (g2 - g1) . g2 / |g2 - g1|^2 = 6 / 8: (0.5, 0.5), times two tasks.
    close(step("mgda", G1, G2), [1.0, 1.0])


def test_imtl_g_has_the_same_projection_on_each_gradient() -> None:
    # a g1 + (1 - a) g2 = (2a - 1, 2 - 2a); on g1 it is 2a - 1, on g2 / sqrt(5) it is (5 - 6a) / sqrt(5).
    a = (5 + math.sqrt(5)) / (6 + 2 * math.sqrt(5))
    found = step("imtl_g", G1, G2)
    close(found, [2 * (2 * a - 1), 2 * (2 - 2 * a)])
    assert float(found @ G1) == pytest.approx(float(found @ G2) / math.sqrt(5), abs=1e-5)


def test_aligned_rotates_the_gradients_to_equal_lengths() -> None:
    # B = sqrt(smallest eigenvalue) G^(-1/2), applied to the mean. For 2 x 2, sqrt(G) = (G + sqrt(det) I) /
    # sqrt(trace + 2 sqrt(det)), so G^(-1/2) = sqrt(10) / 20 [[7, 1], [1, 3]]; eigenvalues 3 +- sqrt(5).
    b = math.sqrt(3 - math.sqrt(5)) * math.sqrt(10) / 20
    w1, w2 = b * 8, b * 4
    close(step("aligned", G1, G2), [w1 - w2, 2 * w2], atol=1e-4)


def test_cagrad_is_the_best_worst_case_within_its_ball() -> None:
    solver("cvxpy")
    # d is within c |g0| of the mean g0 and makes the smaller of g1 . d, g2 . d as large as can be: found by trying.
    c, mean = 0.4, (G1 + G2) / 2
    angles = torch.linspace(0, 2 * math.pi, 100_001)
    tried = mean + c * mean.norm() * torch.stack([angles.cos(), angles.sin()], dim=1)
    best = tried[torch.minimum(tried @ G1, tried @ G2).argmax()]
    close(step("cagrad", G1, G2), (2 * best).tolist(), atol=1e-3)
    # By symmetry, for g1 = (1, 0) and g2 = (0, 1) it is the mean, longer by c.
    close(step("cagrad", torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), value=0.5), [1.5, 1.5], atol=1e-4)


def test_nash_gives_each_task_the_inverse_of_its_length_where_they_do_not_meet() -> None:
    solver("ecos")
    # G a = 1 / a: for gradients at right angles a = 1 / |g|, so 2 : 1 for lengths 1 and 2, made to sum to two.
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    for _ in range(2):  # the second answer does not depend on the first
        close(step("nash", one, two), [4 / 3, 4 / 3], atol=1e-3)


ALL = [pytest.param(m, id=m) for m in AGGREGATORS]


def available(method: str) -> None:
    for name in {"cagrad": ("cvxpy", "clarabel"), "nash": ("cvxpy", "ecos")}.get(method, ()):
        solver(name)


@pytest.mark.parametrize("method", ALL)
def test_equal_tasks_get_the_plain_sum_whatever_their_number_and_scale(method: str) -> None:
    available(method)
    for scale in (1e-6, 1.0, 1e4):
        for tasks in (1, 2, 3):
            some = [scale * G2] * tasks
            found = step(method, *some)
            if method == "cagrad":  # longer by c at most, in the same direction
                assert 1 - 1e-3 <= float(found.norm() / (tasks * scale * G2.norm())) <= 1.4 + 1e-3
                found = found / found.norm() * tasks * scale * G2.norm()
            torch.testing.assert_close(found, tasks * scale * G2, rtol=2e-3, atol=0)


@pytest.mark.parametrize("method", ["upgrad", "dualproj"])
def test_projections_hurt_no_task(method: str) -> None:
    chance = torch.Generator().manual_seed(0)
    for tasks in (2, 3, 8):
        for _ in range(20):
            some = list(torch.randn(tasks, 20, generator=chance) + 0.5 * torch.randn(20, generator=chance))
            found = step(method, *some)
            assert min(float(g @ found) for g in some) > -1e-4


def test_upgrad_without_a_conflict_is_the_plain_sum() -> None:
    one, two = torch.tensor([1.0, 0.5]), torch.tensor([0.2, 3.0])
    close(step("upgrad", one, two), [1.2, 3.5])


def test_projection_equals_torchjds_own_where_quadprog_is_installed() -> None:
    solver("quadprog")
    from torchjd.aggregation import UPGradWeighting

    chance = torch.Generator().manual_seed(1)
    for _ in range(20):
        products = gramian([[g] for g in torch.randn(4, 10, generator=chance)]).double()
        theirs = 4 * UPGradWeighting()(products)
        ours = aggregation_weights("upgrad", products)
        # Theirs adds 1e-4 to the diagonal.
        torch.testing.assert_close(ours.double(), theirs, atol=5e-3, rtol=5e-3)


def test_pcgrad_of_three_tasks_depends_on_the_seed_alone_and_leaves_the_random_state() -> None:
    some = list(torch.randn(3, 4, generator=torch.Generator().manual_seed(3)) - torch.tensor([0.0, 0, 0, 0]))
    some = [some[0], some[1], -some[0] - some[1] + 0.3 * some[2]]
    state = torch.get_rng_state()
    found = [step("pcgrad", *some, seed=s) for s in (0, 0, 1, 2, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1]) and any(not torch.allclose(found[0], f) for f in found[2:])


def test_gramian_adds_up_over_tensors_and_is_float32() -> None:
    rows = [[torch.randn(2, 3).bfloat16(), torch.randn(4).bfloat16()] for _ in range(3)]
    flat = torch.stack([torch.cat([t.float().flatten() for t in row]) for row in rows])
    assert gramian(rows).dtype == torch.float32
    torch.testing.assert_close(gramian(rows), flat @ flat.T)
    with pytest.raises(ValueError, match="no gradient to compare"):
        gramian([[], []])


def test_zero_gradients_are_added_plainly_and_those_that_are_not_finite_refused() -> None:
    assert aggregation_weights("upgrad", torch.zeros(3, 3)).tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="not finite"):
        aggregation_weights("mgda", torch.full((2, 2), torch.nan))
    close(step("upgrad", G1, torch.zeros(2)), [1.0, 0.0])


def test_what_is_not_installed_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.training import aggregation, balance_spec

    monkeypatch.setattr(balance_spec, "find_spec", lambda name: None)
    aggregation._weighting.cache_clear()
    with pytest.raises(
        ImportError, match=r'balance=\'nash\' needs cvxpy and ecos \(ecos is .*GPL\): pip install "torchjd'
    ):
        aggregation_weights("nash", torch.eye(2))
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(
        ImportError, match=r"balance='upgrad' needs torchjd \(MIT licence\): pip install torchjd; or take"
    ):
        aggregation_weights("upgrad", torch.eye(2))
    aggregation._weighting.cache_clear()
