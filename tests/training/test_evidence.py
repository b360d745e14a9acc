"""Whether outputs say anything about targets: against entropies by hand, a fitted model, permutations, NumPy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.data.mix import Pairing
from workbench.data.tables import Task
from workbench.training.checking.evidence import KEPT_ROWS, Evidence, Seen

ACTION = Task("action", "multiclass", ("a", "b", "c"))
SAFE = Task("safe", "binary")
SPEED = Task("speed", "regression")


def seen(task: Task, output: Tensor, target: Tensor, pairing: Pairing | None = None) -> Evidence:
    store = Seen([task])
    store.add({task.name: output}, target[:, None].double(), pairing)
    found = store.evidence(0)
    assert isinstance(found, Evidence)
    return found


def weak(n: int = 900, strength: float = 0.2) -> tuple[Tensor, Tensor]:
    """Logits (n, 3) that lean a little to the label, with offsets of their own; labels (n,) 6 : 3 : 1."""
    rng = torch.Generator().manual_seed(0)
    target = torch.tensor([0] * 6 + [1] * 3 + [2]).repeat(n // 10).double()
    logits = torch.randn(n, 3, generator=rng, dtype=torch.float64) + strength * F.one_hot(target.long(), 3)
    return logits + torch.tensor([0.5, -2.0, 1.0]), target


def test_guess_is_ln_k_of_even_classes_and_the_entropy_of_others() -> None:
    even = seen(ACTION, torch.zeros(6, 3), torch.tensor([0.0, 1, 2, 0, 1, 2]))
    assert even.guess == pytest.approx(math.log(3)) and even.loss == pytest.approx(math.log(3), rel=1e-6)
    rare = seen(SAFE, torch.zeros(4), torch.tensor([1.0, 0, 0, 0]))
    assert rare.guess == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    assert rare.loss == pytest.approx(math.log(2))


def test_loss_is_the_cross_entropy_of_the_labelled_clips() -> None:
    logits, target = weak(30)
    target[::4] = math.nan
    known = ~torch.isnan(target)
    found = seen(ACTION, logits, target)
    assert found.loss == pytest.approx(float(F.cross_entropy(logits[known], target[known].long())), rel=1e-6)
    assert found.clips == int(known.sum())


def test_outputs_without_spread_explain_nothing() -> None:
    target = torch.tensor([0.0, 1, 2, 0, 1, 2])
    found = seen(ACTION, torch.tensor([[3.0, 1.0, -1.0]]).repeat(6, 1), target)
    assert (found.share, found.sigmas, found.spread) == pytest.approx((0, 0, 0), abs=1e-6)
    assert found.uninformed


def test_perfect_outputs_are_informed_and_reversed_ones_are_not() -> None:
    target = torch.tensor([0.0, 1, 2]).repeat(20)
    logits = 4 * F.one_hot(target.long(), 3).float()
    assert seen(ACTION, logits, target).share > 0.5
    assert seen(ACTION, -logits, target).share == 0
    assert seen(SAFE, torch.tensor([-3.0, 3.0] * 9), torch.tensor([0.0, 1.0] * 9)).share > 0.5


def test_share_is_what_a_fitted_model_gains_where_there_is_little_to_gain() -> None:
    logits, target = weak()
    scale, shift = torch.zeros((), dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    parameters = [scale.requires_grad_(), shift.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(scale * logits + shift, target.long())
        value.backward()
        return value

    optimizer.step(loss)
    found = seen(ACTION, logits, target)
    gain = found.guess - loss().item()
    assert gain > 0.005
    assert found.share * found.guess == pytest.approx(gain, rel=0.1)
    assert found.sigmas == pytest.approx(math.sqrt(2 * len(target) * gain), rel=0.05)


def test_sigmas_are_standard_normal_where_labels_are_shuffled() -> None:
    logits, target = weak(200)
    rng = np.random.default_rng(1)
    found = [seen(ACTION, logits, target[torch.from_numpy(rng.permutation(200))]) for _ in range(600)]
    sigmas = np.array([f.sigmas for f in found])
    assert np.mean(sigmas > 0) == pytest.approx(0.5, abs=0.06)  # the other half is below zero, and counts as none
    assert np.mean(sigmas**2) == pytest.approx(0.5, abs=0.1)
    assert np.mean([f.uninformed for f in found]) > 0.95


def test_share_does_not_care_how_logits_are_scaled_and_shifted() -> None:
    logits, target = weak()
    plain, moved = seen(ACTION, logits, target), seen(ACTION, 7 * logits + torch.tensor([9.0, 0.0, -4.0]), target)
    assert moved.share == pytest.approx(plain.share, rel=1e-5) and moved.sigmas == pytest.approx(plain.sigmas, rel=1e-5)
    assert moved.loss > plain.loss


def test_mixed_clips_have_soft_targets_and_missing_labels_count_on_their_side_only() -> None:
    output = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    pairing = Pairing(torch.tensor([1, 0]), 0.75)
    both = seen(ACTION, output, torch.tensor([0.0, 1.0]), pairing)
    log_p = output.double().log_softmax(1)
    rows = [0.75 * log_p[0, 0] + 0.25 * log_p[0, 1], 0.75 * log_p[1, 1] + 0.25 * log_p[1, 0]]
    assert both.loss == pytest.approx(float(-sum(rows) / 2), rel=1e-6)
    assert both.guess == pytest.approx(math.log(2))
    store = Seen([ACTION])
    store.add({"action": output}, torch.tensor([[0.0], [math.nan]], dtype=torch.float64), pairing)
    assert store.evidence(0) is None  # one class is left, and nothing to tell it from


def test_values_by_their_squared_correlation() -> None:
    rng = np.random.default_rng(2)
    target = rng.normal(5, 3, 400)
    output = 0.3 * (target - 5) / 3 + rng.normal(0, 1, 400)
    found = seen(SPEED, torch.from_numpy(output), torch.from_numpy(target))
    r = np.corrcoef(output, target)[0, 1]
    assert found.share == pytest.approx(r**2) and found.sigmas == pytest.approx(r * 20) and found.guess == 1
    assert found.loss == pytest.approx(np.mean((output - (target - target.mean()) / target.std()) ** 2))
    assert seen(SPEED, torch.from_numpy(-output), torch.from_numpy(target)).share == 0


def test_mixed_values_are_blended() -> None:
    target, pairing = torch.tensor([0.0, 4.0, 8.0, 2.0]), Pairing(torch.tensor([1, 2, 3, 0]), 0.5)
    output = torch.tensor([2.0, 6.0, 5.0, 1.0])  # the blends themselves
    assert seen(SPEED, output, target, pairing).share == pytest.approx(1.0)


def test_evidence_is_none_where_there_is_nothing_to_compare() -> None:
    store = Seen([ACTION, SPEED])
    assert store.evidence(0) is None
    store.add({"action": torch.zeros(3, 3), "speed": torch.zeros(3)}, torch.full((3, 2), math.nan), None)
    assert store.evidence(0) is None and store.evidence(1) is None
    store.add({"action": torch.zeros(3, 3), "speed": torch.zeros(3)}, torch.ones(3, 2), None)
    assert store.evidence(0) is None and store.evidence(1) is None


def test_seen_keeps_the_latest_clips_only() -> None:
    store, batch = Seen([SAFE]), 1000
    for i in range(7):
        store.add({"safe": torch.full((batch,), float(i))}, torch.arange(batch)[:, None] % 2.0, None)
    found = store.evidence(0)
    assert found is not None and KEPT_ROWS <= found.clips < KEPT_ROWS + batch
    assert float(store.state_dict()[0]["outputs"]["safe"][0]) == 2.0


def test_seen_goes_on_from_a_state() -> None:
    logits, target = weak(60)
    whole, first, second = Seen([ACTION]), Seen([ACTION]), Seen([ACTION])
    pairing = Pairing(torch.arange(30).roll(1), 0.3)
    for part, store in ((slice(30), first), (slice(30), whole), (slice(30, 60), whole)):
        store.add({"action": logits[part]}, target[part, None], pairing)
    second.load_state_dict(first.state_dict())
    second.add({"action": logits[30:]}, target[30:, None], pairing)
    assert second.evidence(0) == whole.evidence(0)
