import numpy as np
import pytest
import torch

from workbench.data.tables import Task
from workbench.training.losses import decide, standardisation, task_loss, total_loss

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
