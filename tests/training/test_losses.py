import numpy as np
import pytest
import torch

from workbench.data.mix import Pairing
from workbench.data.tables import Task
from workbench.training.losses import decide, mixed_loss, standardisation, task_loss, total_loss

ACTION = Task("action", "multiclass", ("a", "b", "c"))
FLAG = Task("flag", "binary")
SCORE = Task("score", "regression")
STANDARD = {"score": (10.0, 2.0)}
NAN = float("nan")


def test_task_loss_equals_torch_on_the_labelled_clips() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([2.0, NAN, 0.0, NAN], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits[[0, 2]], torch.tensor([2, 0]))
    assert torch.equal(task_loss(ACTION, logits, target, STANDARD), expected)


def test_task_loss_of_a_value_is_squared_error_in_standard_units() -> None:
    # Targets 12 and 6 are +1 and -2 standard deviations from 10; outputs 0 and 1: errors 1 and 9.
    loss = task_loss(SCORE, torch.tensor([0.0, 1.0]), torch.tensor([12.0, 6.0], dtype=torch.float64), STANDARD)
    assert loss.item() == pytest.approx((1 + 9) / 2)


def test_task_loss_of_a_flag_is_binary_cross_entropy() -> None:
    loss = task_loss(FLAG, torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0], dtype=torch.float64), STANDARD)
    assert loss.item() == pytest.approx((np.log(2) + np.log1p(np.exp(2.0))) / 2)


def test_total_loss_sends_no_gradient_from_a_missing_label() -> None:
    outputs = {
        "action": torch.randn(3, 3, requires_grad=True),
        "flag": torch.randn(3, requires_grad=True),
        "score": torch.randn(3, requires_grad=True),
    }
    targets = torch.tensor([[0.0, NAN, NAN], [NAN, 1.0, NAN], [1.0, NAN, NAN]], dtype=torch.float64)
    total_loss((ACTION, FLAG, SCORE), outputs, targets, STANDARD).backward()
    assert outputs["action"].grad is not None and outputs["flag"].grad is not None
    assert outputs["action"].grad[1].abs().max() == 0 and outputs["action"].grad[0].abs().max() > 0
    assert outputs["flag"].grad[[0, 2]].abs().max() == 0 and outputs["flag"].grad[1] != 0
    # No clip of the batch has a score: exactly zero, and still a graph that backward can run through.
    assert outputs["score"].grad is not None and outputs["score"].grad.abs().max() == 0


PAIRING = Pairing(torch.tensor([1, 2, 3, 0]), 0.7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_loss_is_cross_entropy_with_soft_labels(smoothing: float) -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([2.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    soft = 0.7 * torch.eye(3)[[2, 1, 0, 0]] + 0.3 * torch.eye(3)[[1, 0, 0, 2]]
    expected = torch.nn.functional.cross_entropy(logits, soft, label_smoothing=smoothing)
    ours = mixed_loss(ACTION, logits, target, STANDARD, PAIRING, label_smoothing=smoothing)
    torch.testing.assert_close(ours, expected)


def test_mixed_loss_of_a_flag_is_binary_cross_entropy_with_soft_labels() -> None:
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0])
    soft = torch.tensor([0.7, 0.3, 1.0, 1.0])  # of 1 0 1 1: 0.7 of a clip's own, 0.3 of the next one's
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, soft)
    ours = mixed_loss(FLAG, logits, torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64), STANDARD, PAIRING)
    torch.testing.assert_close(ours, expected)


def test_mixed_loss_leaves_out_a_missing_label_on_its_side_only() -> None:
    # At logit 0 every label costs log 2; the four logits make each clip's cost tell which side counted.
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0])
    target = torch.tensor([NAN, 1.0, NAN, 0.0], dtype=torch.float64)

    def cost(logit: float, label: float) -> float:
        return float(np.log1p(np.exp(logit)) - label * logit)

    own = (cost(1.0, 1.0) + cost(3.0, 0.0)) / 2  # clips 1 and 3 have a label
    partners = (cost(0.0, 1.0) + cost(2.0, 0.0)) / 2  # clips 0 and 2 have a partner with one
    ours = mixed_loss(FLAG, logits, target, STANDARD, PAIRING)
    assert ours.item() == pytest.approx(0.7 * own + 0.3 * partners)


def test_mixed_loss_of_a_value_is_that_of_the_interpolated_target() -> None:
    # Targets 12, 6, missing, 10: only clip 0 (12 and 6: 10.2) and clip 3 (10 and 12: 10.6) have both, 0.1 and 0.3
    # standard deviations above 10.
    target = torch.tensor([12.0, 6.0, NAN, 10.0], dtype=torch.float64)
    ours = mixed_loss(SCORE, torch.tensor([0.1, 9.0, 9.0, 1.3]), target, STANDARD, PAIRING)
    assert ours.item() == pytest.approx((0 + 1) / 2, abs=1e-6)


def test_total_loss_with_a_pairing_sums_the_mixed_losses() -> None:
    generator = torch.Generator().manual_seed(1)
    outputs = {"action": torch.randn(4, 3, generator=generator), "score": torch.randn(4, generator=generator)}
    targets = torch.tensor([[2.0, 12.0], [NAN, 9.0], [0.0, NAN], [1.0, 8.0]], dtype=torch.float64)
    parts = [
        mixed_loss(task, outputs[task.name], targets[:, i], STANDARD, PAIRING) for i, task in enumerate((ACTION, SCORE))
    ]
    assert torch.equal(total_loss((ACTION, SCORE), outputs, targets, STANDARD, pairing=PAIRING), sum(parts))
    whole = Pairing(PAIRING.partner, 1.0)  # a mix that takes nothing from the partners, where all labels are known
    known = targets.nan_to_num(1.0)
    plain = total_loss((ACTION, SCORE), outputs, known, STANDARD)
    assert torch.equal(total_loss((ACTION, SCORE), outputs, known, STANDARD, pairing=whole), plain)


def test_standardisation_ignores_missing_labels(tiny_table) -> None:
    known = tiny_table.train.frame.speed.dropna()
    stats = standardisation(tiny_table.train, tiny_table.tasks)
    assert stats == {"speed": (pytest.approx(known.mean()), pytest.approx(known.std(ddof=0)))}


def test_decide_turns_logits_into_predictions() -> None:
    index, probabilities = decide(ACTION, torch.tensor([[0.0, 2.0, 0.0]]), STANDARD)
    assert index.tolist() == [1.0]
    assert probabilities[0] == pytest.approx(np.exp([0, 2, 0]) / np.exp([0, 2, 0]).sum())
    flags, pairs = decide(FLAG, torch.tensor([-1.0, 3.0]), STANDARD)
    assert flags.tolist() == [0.0, 1.0]
    assert pairs[1] == pytest.approx([1 - 1 / (1 + np.exp(-3.0)), 1 / (1 + np.exp(-3.0))])
    values, none = decide(SCORE, torch.tensor([1.5]), STANDARD)
    assert values.tolist() == [13.0] and none == [[]]
