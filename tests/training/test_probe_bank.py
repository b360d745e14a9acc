"""A bank of probes against the same heads, trained one by one with torch's own parts."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.data.tables import Task
from workbench.models.tml import MeanHead, QueryHead
from workbench.training.losses import task_loss
from workbench.training.probing.bank import Bank, answers, chunks, normalised

TASKS = {
    "multiclass": Task("a", "multiclass", ("x", "y", "z")),
    "binary": Task("b", "binary"),
    "regression": Task("c", "regression"),
}
STANDARD = {"c": (2.0, 0.5)}
LRS, DECAYS = [1e-2, 1e-3, 1e-2], [0.1, 0.8, 0.8]
D, N, B, SEEDS, STEPS = 24, 6, 5, 2, 6


def head_of(kind: str, task: Task, seed: int) -> MeanHead | QueryHead:
    torch.manual_seed(seed)
    head = MeanHead(D, [task]) if kind == "pooled" else QueryHead(D, 3, [task])
    with torch.no_grad():  # norms and biases that are not 1 and 0, so that none may be left out
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return (
        head.double()
    )  # Adam divides by a gradient's size: in float32 it would blow up what rounding leaves of a zero


def batches(kind: str, task: Task) -> tuple[Tensor, Tensor]:
    """(steps, S, B, ...) features and (steps, S, B) targets, some of them missing."""
    generator = torch.Generator().manual_seed(1)
    shape = (STEPS, SEEDS, B, D) if kind == "pooled" else (STEPS, SEEDS, B, N, D)
    targets = torch.randint(3 if task.kind == "multiclass" else 2, (STEPS, SEEDS, B), generator=generator).double()
    targets[0, 0, 2] = targets[3, 1] = torch.nan  # one clip, and a whole batch of one seed
    return 2 * torch.randn(shape, generator=generator, dtype=torch.float64) + 1, targets


def alone(head: MeanHead | QueryHead, task: Task, lr: float, decay: float, values: Tensor, targets: Tensor) -> None:
    """What a probe would be by itself: autograd through the module, torch's clipping and AdamW."""
    matrices = [p for p in head.parameters() if p.ndim > 1]
    vectors = [p for p in head.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99))
    for step, (x, y) in enumerate(zip(values, targets, strict=True)):
        optimizer.zero_grad()
        task_loss(task, output_of(head, task, x), y, STANDARD).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / 10)
        optimizer.step()


def output_of(head: MeanHead | QueryHead, task: Task, x: Tensor) -> Tensor:
    (out,) = head(x) if isinstance(head, MeanHead) else head(x)[0]
    return out if task.kind == "multiclass" else out.squeeze(-1)


def bank_of(kind: str, task: Task) -> Bank:
    heads = [head_of(kind, task, seed) for seed in range(SEEDS)]
    return Bank(
        task, heads, LRS, DECAYS, betas=(0.9, 0.99), clip_norm=0.5, standard=STANDARD, device=torch.device("cpu")
    )


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_bank_trains_each_probe_as_if_it_were_alone(kind: str, name: str) -> None:
    task = TASKS[name]
    values, targets = batches(kind, task)
    bank, seen = bank_of(kind, task), values if kind == "pooled" else normalised(values)
    start = bank.logits(seen[-1]).detach()
    for step in range(STEPS):
        bank.step(seen[step], targets[step], 1 - step / 10)
    found = bank.logits(seen[-1]).detach()  # (S, G, B, K)
    assert (found - start).abs().max() > 0.05  # it did learn something
    for seed in range(SEEDS):
        for setting, (lr, decay) in enumerate(zip(LRS, DECAYS, strict=True)):
            head = head_of(kind, task, seed)
            before = output_of(head, task, values[-1, seed]).detach()
            assert torch.allclose(start[seed, setting].view_as(before), before, atol=1e-5)
            alone(head, task, lr, decay, values[:, seed], targets[:, seed])
            expected = output_of(head, task, values[-1, seed]).detach()
            assert torch.allclose(found[seed, setting].view_as(expected), expected, atol=1e-5)
            head.load_state_dict(bank.state(seed, setting))
            again = output_of(head, task, values[-1, seed]).detach()
            assert torch.allclose(again, expected, atol=1e-5)


def test_chunks_cover_the_grid_once_in_rectangles_that_fit() -> None:
    for seeds, settings, most in [(3, 20, 100), (3, 20, 45), (3, 20, 20), (3, 20, 7), (2, 3, 0), (1, 1, 1)]:
        parts = chunks(seeds, settings, most)
        covered = [(s, g) for some, wide in parts for s in some for g in wide]
        assert sorted(covered) == [(s, g) for s in range(seeds) for g in range(settings)]
        assert all(len(some) * len(wide) <= max(1, most) for some, wide in parts)


def test_answers_are_what_decide_says() -> None:
    from workbench.training.losses import decide

    generator = torch.Generator().manual_seed(0)
    for task in TASKS.values():
        output = torch.randn((7, 3) if task.kind == "multiclass" else (7,), generator=generator)
        predicted, probabilities = answers(task, output, STANDARD)
        expected, listed = decide(task, output, STANDARD)
        assert np.array_equal(predicted, expected)
        assert probabilities is None if task.kind != "binary" else np.allclose(probabilities, listed)


def test_bank_refuses_a_head_it_cannot_batch() -> None:
    task = TASKS["binary"]
    with pytest.raises(ValueError, match="one query and one block, not 1 and 2"):
        Bank(
            task, [QueryHead(D, 3, [task], layers=2)], [1e-3], [0.0], betas=(0.9, 0.999), clip_norm=1.0, standard={},
            device=torch.device("cpu"),
        )  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_losses_are_means_over_the_labels_that_are_there(name: str) -> None:
    task = TASKS[name]
    bank, (values, targets) = bank_of("pooled", task), batches("pooled", task)
    for step in (0, 3):  # one clip without a label; a seed with none at all
        logits = bank.logits(values[step]).detach()
        losses = bank.losses(logits, targets[step])
        for s in range(SEEDS):
            for g in range(len(LRS)):
                own = logits[s, g] if name == "multiclass" else logits[s, g, :, 0]
                assert float(losses[s, g]) == pytest.approx(float(task_loss(task, own, targets[step, s], STANDARD)))
    assert (losses[1] == 0).all()
