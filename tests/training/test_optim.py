"""Optimisers, schedules and averages against torch's own and against sums done by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from workbench.training.optim import Ema, Schedule, make_optimizer, rate
from workbench.training.setup import Setup

SGD = {"optimizer": "sgd", "lr": 0.1, "head_lr": 0.1}


def stand_in(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize("steps", [10, 57])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.3])
def test_rate_one_cycle_equals_torch(steps: int, warmup: float) -> None:
    optimizer = stand_in()
    if warmup * steps == 1:  # torch divides by zero here: its rising phase has no length
        assert rate(0, steps, warmup, "one_cycle") == 1.0
        return
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2.0, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )
    for step in range(steps):
        assert 2.0 * rate(step, steps, warmup, "one_cycle") == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        if step < steps - 1:
            optimizer.step()
            theirs.step()


def test_rate_cosine_by_hand() -> None:
    # Ten steps, two of warm-up: a half, the whole, then half a cosine over the other eight.
    seen = [rate(step, 10, 0.2) for step in range(10)]
    assert seen[:3] == [0.5, 1.0, 1.0]
    assert seen[6] == pytest.approx(0.5)  # half way
    assert seen[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert [rate(step, 10, 0.2, "constant") for step in range(10)] == [0.5] + [1.0] * 9


def test_schedule_plateau_falls_when_torch_says_so_and_remembers_it() -> None:
    losses = [1.0, 0.9, 0.95, 0.92, 0.91, 0.93, 0.94, 0.8, 0.81, 0.82, 0.83, 0.84, 0.85]
    by_hand = [1.0] * 5 + [0.1] * 6 + [0.01] * 2  # the fourth epoch without a new best takes a tenth
    whole, broken = (Schedule(Setup(schedule="plateau", warmup=0), 100) for _ in range(2))
    for loss, factor in zip(losses, by_hand, strict=True):
        whole.after_epoch(loss, 0.0)
        broken.after_epoch(loss, 0.0)
        assert whole.factor(50) == pytest.approx(factor)
        resumed = Schedule(Setup(schedule="plateau", warmup=0), 100)
        resumed.load_state_dict(broken.state_dict())
        broken = resumed
        assert broken.factor(50) == whole.factor(50)


def test_schedule_plateau_follows_the_train_loss_where_val_has_none() -> None:
    schedule = Schedule(Setup(schedule="plateau", warmup=0), 100)
    for train_loss in (5.0, 4.0, 3.0, 2.0, 1.0, 0.5):
        schedule.after_epoch(math.nan, train_loss)
    assert schedule.factor(0) == 1.0
    for _ in range(4):
        schedule.after_epoch(math.nan, 0.5)
    assert schedule.factor(0) == pytest.approx(0.1)


def test_schedule_sets_each_group_to_its_own_peak_times_the_factor() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [first], "peak": 0.5}, {"params": [second], "peak": 0.02}], lr=9.0)
    Schedule(Setup(warmup=0.2), 10).apply(optimizer, 0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.01]


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, lambda p: torch.optim.AdamW([p], lr=0.1, betas=(0.9, 0.999), weight_decay=0.05)),
        ({"betas": (0.5, 0.9)}, lambda p: torch.optim.AdamW([p], lr=0.1, betas=(0.5, 0.9), weight_decay=0.05)),
        ({"optimizer": "adam"}, lambda p: torch.optim.Adam([p], lr=0.1, weight_decay=0.05)),
        (SGD | {"momentum": 0.5}, lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.5, weight_decay=0.05)),
    ],
)
def test_make_optimizer_steps_as_torchs_plain_one(options: dict[str, Any], theirs: Any) -> None:
    start = torch.linspace(-1, 1, 7)
    parameters = [nn.Parameter(start.clone()) for _ in range(2)]
    setup = Setup(weight_decay=0.05, **options)
    ours = make_optimizer([{"params": [parameters[0]], "lr": 0.1, "weight_decay": 0.05}], setup)
    for optimizer, parameter in ((ours, parameters[0]), (theirs(parameters[1]), parameters[1])):
        for step in range(5):
            optimizer.zero_grad()
            (parameter**2 * (step + 1)).sum().backward()
            optimizer.step()
    torch.testing.assert_close(parameters[0], parameters[1], rtol=1e-6, atol=1e-7)
    assert (parameters[0] - start).abs().max() > 0.1


def test_ema_is_the_weighted_sum_of_the_weights_it_saw() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema, expected = Ema(model, 0.5), 1.0
    for step, value in enumerate((2.0, 5.0, -3.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0), start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))  # 2/11, 3/12, ... then 0.5 from step 8 on
        expected = decay * expected + (1 - decay) * value
    with ema.applied():
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 4.0


def test_ema_leaves_the_model_as_it_was_after_an_error_and_without_decay() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ema = Ema(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update()
    now = model.weight.detach().clone()
    with ema.applied():
        assert not torch.equal(model.weight, now) and torch.equal(model.bias, before["bias"])
    assert torch.equal(model.weight, now)
    with pytest.raises(KeyError), ema.applied():
        raise KeyError
    assert torch.equal(model.weight, now)
    off = Ema(model, 0.0)
    off.update()
    with off.applied():
        assert torch.equal(model.weight, now)
    assert off.state_dict() == {}


def test_ema_goes_on_where_it_was_saved() -> None:
    model = nn.Linear(2, 2)
    first = Ema(model, 0.9)
    second = Ema(model, 0.9)
    for step in range(6):
        with torch.no_grad():
            model.weight.add_(0.1 * step)
        first.update()
        if step < 3:
            second.update()
        if step == 2:
            saved = {"updates": second.updates, "averages": {n: v.clone() for n, v in second._averages.items()}}
            second = Ema(model, 0.9)
            second.load_state_dict(saved)
        if step >= 3:
            second.update()
    with first.applied():
        one = model.weight.detach().clone()
    with second.applied():
        assert torch.equal(model.weight, one)
