"""Several losses in one training step: gradients as without it, numbers by hand, and a memory that can be stored."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.conftest import TASKS
from workbench.models.tml import TML
from workbench.training.joint import Joint
from workbench.training.losses import labelled_clips, task_losses, total_loss
from workbench.training.runs import build_model
from workbench.training.setup import Setup

STANDARD = {"speed": (0.0, 1.0)}
TARGETS = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, -1.0], [math.nan, 1.0, math.nan]])
NAMES = [task.name for task in TASKS]


def made(checkpoint: str, **options: Any) -> tuple[Setup, TML]:
    setup = Setup(backbone=checkpoint, head="query", head_lr=0.25, **options)
    return setup, build_model(setup, TASKS).train()


def pixels(model: TML, seed: int = 0) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return model.backbone.prepare(torch.randint(0, 256, (3, 8, 32, 32, 3), dtype=torch.uint8, generator=chance))


def step(joint: Joint, model: TML, targets: Tensor = TARGETS, number: int = 0, accumulation: int = 1) -> Tensor | None:
    """One batch; the tokens that were kept."""
    with joint.watch(number) as seen:
        losses = task_losses(TASKS, model(pixels(model)), targets, STANDARD)
    joint.backward(losses, labelled_clips(TASKS, targets), seen, number, accumulation)
    return seen.tokens


def gradients(model: TML) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("missing", [[], [1], [0, 2]])
@pytest.mark.parametrize("measure", [0, 1])
def test_sum_gives_the_gradients_of_the_total_loss_to_the_bit(
    tiny_checkpoint: str, missing: list[int], measure: int
) -> None:
    setup, model = made(tiny_checkpoint, measure_conflict=measure)
    targets = TARGETS.clone()
    targets[:, missing] = math.nan
    step(Joint(setup, model, "cpu"), model, targets)
    found = gradients(model)
    model.zero_grad()
    total_loss(TASKS, model(pixels(model)), targets, STANDARD).backward()
    for name, wanted in gradients(model).items():
        ours = found[name]
        assert (ours is None) == (wanted is None), name
        assert ours is None or wanted is None or torch.equal(ours, wanted), name


def test_gradients_are_divided_by_the_batches_of_the_step(tiny_checkpoint: str) -> None:
    for balance in ("sum", "uncertainty", "pcgrad@tokens", "mgda@weights"):
        setup, model = made(tiny_checkpoint, balance=balance)
        step(Joint(setup, model, "cpu"), model)
        whole = gradients(model)
        model.zero_grad()
        joint = Joint(setup, model, "cpu")
        for _ in range(2):  # the same batch twice: the mean of the two is the one
            step(joint, model, accumulation=2)
        for name, gradient in gradients(model).items():
            if gradient is not None:
                torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6, msg=f"{balance} {name}")


def test_end_epoch_gives_means_over_the_batches_that_tell(tiny_checkpoint: str) -> None:
    setup, model = made(tiny_checkpoint, balance="static:bright=3", measure_conflict=2)
    joint = Joint(setup, model, "cpu")
    without = TARGETS.clone()
    without[:, 2] = math.nan
    cosines, losses = [], []
    for number, targets in enumerate((TARGETS, without, without)):  # measured at the first and the last
        step(joint, model, targets, number)
        outputs = model(pixels(model))
        losses.append(task_losses(TASKS, outputs, targets, STANDARD))
        if number != 1:  # by hand: gradients at the tokens, taken one by one
            tokens = model.backbone(pixels(model))
            own = task_losses(TASKS, model.forward_tokens(tokens), targets, STANDARD)
            grads = [torch.autograd.grad(own[name], tokens.tokens, retain_graph=True)[0].flatten() for name in NAMES]
            cosines.append([torch.cosine_similarity(grads[0], other, dim=0).item() for other in grads[1:]])
    line = joint.end_epoch()
    assert line["loss_bright"] == pytest.approx(sum(one["bright"].item() for one in losses) / 3, rel=1e-5)
    assert line["loss_speed"] == pytest.approx(losses[0]["speed"].item(), rel=1e-5)  # the other two have no label
    assert [line[f"weight_{name}"] for name in NAMES] == [1, 3, 1]
    assert line["cosine_direction_bright"] == pytest.approx((cosines[0][0] + cosines[1][0]) / 2, abs=1e-4)
    assert line["cosine_direction_speed"] == pytest.approx(cosines[0][1], abs=1e-4)
    assert {name.split("_")[0] for name in line} == {"loss", "weight", "norm", "cosine"} and len(line) == 12
    again = joint.end_epoch()
    assert set(again) == set(line) and all(math.isnan(value) for value in again.values())  # an epoch without batches


def test_tokens_are_kept_only_where_something_asks_for_them(tiny_checkpoint: str) -> None:
    for options, kept in (
        ({}, [False] * 3), ({"measure_conflict": 2}, [True, False, True]), ({"balance": "upgrad"}, [True] * 3),
        ({"balance": "upgrad@weights"}, [False] * 3), ({"balance": "dwa"}, [False] * 3),
    ):  # fmt: skip
        setup, model = made(tiny_checkpoint, **options)
        joint = Joint(setup, model, "cpu")
        assert [step(joint, model, number=i) is not None for i in range(3)] == kept, options
        assert not model.backbone._forward_hooks


def test_one_task_has_no_numbers_of_its_own(tiny_checkpoint: str) -> None:
    setup = Setup(backbone=tiny_checkpoint, measure_conflict=1)
    model = build_model(setup, TASKS[:1])
    joint = Joint(setup, model, "cpu")
    with joint.watch(0) as seen:
        losses = task_losses(TASKS[:1], model(pixels(model)), TARGETS[:, :1], STANDARD)
    joint.backward(losses, labelled_clips(TASKS[:1], TARGETS[:, :1]), seen, 0, 1)
    assert joint.end_epoch() == {} and seen.tokens is None


def test_groups_hold_what_uncertainty_learns_at_the_heads_rate_without_decay(tiny_checkpoint: str) -> None:
    setup, model = made(tiny_checkpoint, balance="uncertainty", weight_decay=0.5)
    joint = Joint(setup, model, "cpu")
    (group,) = joint.groups()
    assert (group["lr"], group["peak"], group["weight_decay"]) == (0.25, 0.25, 0.0)
    step(joint, model)
    assert group["params"][0].grad is not None and group["params"][0].shape == (3,)
    assert Joint(*made(tiny_checkpoint), "cpu").groups() == []


def test_state_dict_keeps_the_numbers_of_a_broken_off_epoch(tiny_checkpoint: str) -> None:
    setup, model = made(tiny_checkpoint, balance="dwa", measure_conflict=1)
    joint, after = Joint(setup, model, "cpu"), Joint(setup, model, "cpu")
    for number in range(2):
        step(joint, model, number=number)
    after.load_state_dict(copy.deepcopy(joint.state_dict()))
    after.load_state_dict({})  # of a checkpoint from before: nothing is lost
    for one in (joint, after):
        step(one, model, number=2)
    assert joint.end_epoch() == after.end_epoch() and int(after.balance.steps) == 3
