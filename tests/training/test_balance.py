"""Balancing: what is spelled, what each loss weight is by hand, and that gradients end where they should."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.tiny import TINY, save
from workbench.data.tables import Task
from workbench.models.backbones import load_backbone
from workbench.models.strategies import apply_strategy
from workbench.models.tml import TML
from workbench.training.balance import Balance, BalanceStep
from workbench.training.balance_spec import AGGREGATORS, SCALARIZERS, parse_balance
from workbench.training.conflict import split_parameters, watch_tokens
from workbench.training.losses import task_loss

TASKS = (Task("action", "multiclass", ("a", "b", "c")), Task("safety", "binary"), Task("quality", "regression"))
NAMES = tuple(task.name for task in TASKS)
HERE = [m for m in AGGREGATORS if m not in ("cagrad", "nash")]  # those two need solvers that are optional
STANDARD = {"quality": (0.0, 1.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return save("videomae", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def build(folder: Any) -> Callable[..., TML]:
    def make(head: str = "query", strategy: str = "full", **options: Any) -> TML:
        torch.manual_seed(0)
        model = TML(load_backbone(folder, **TINY["videomae"].options), TASKS, head=head, **options)
        apply_strategy(model, strategy)
        return model.train()

    return make


def losses_of(model: TML, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    clips = torch.randint(0, 256, (4, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    outputs = model(model.backbone.prepare(clips))
    return {t.name: task_loss(t, outputs[t.name], targets[t.name], STANDARD) for t in TASKS}


def all_labels() -> dict[str, Tensor]:
    return {
        "action": torch.tensor([0.0, 2, 1, 0]), "safety": torch.tensor([0.0, 1, 1, 0]),
        "quality": torch.tensor([0.3, -1.0, 2.0, 0.1]),
    }  # fmt: skip


def run(model: TML, spec: str, targets: dict[str, Tensor] | None = None, **options: Any) -> tuple[Any, BalanceStep]:
    """Gradients by name after one backward pass, and what the balance said."""
    model.zero_grad()
    balance = Balance(spec, NAMES)
    targets = targets or all_labels()
    labelled = {name: int((~torch.isnan(t)).sum()) for name, t in targets.items()}
    shared, heads = split_parameters(model, balance.spec.at or "tokens")
    with watch_tokens(model) as seen:
        losses = losses_of(model, targets)
    step = balance.backward(losses, labelled=labelled, tokens=seen.tokens, shared=shared, heads=heads, **options)
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}, step


def ordinary(model: TML, targets: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    model.zero_grad()
    torch.stack(list(losses_of(model, targets or all_labels()).values())).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def same(a: dict[str, Tensor], b: dict[str, Tensor], *, atol: float = 1e-6) -> None:
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=1e-5, msg=name)


# --- spelling


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("sum", "sum"), ("dwa", "dwa:2"), ("gradnorm:0.5", "gradnorm:0.5@tokens"), ("upgrad", "upgrad@tokens"),
        ("mgda@weights", "mgda@weights"), ("static:safety=2, action=0.5", "static:safety=2,action=0.5"),
    ],
)  # fmt: skip
def test_parse_balance_is_spelled_with_its_values_and_parses_to_the_same(text: str, spelled: str) -> None:
    spec = parse_balance(text, NAMES)
    assert str(spec) == spelled and parse_balance(spelled) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sums", "use one of sum, static.*aligned"), ("upgrad@head", "'tokens' or at 'weights'"),
        ("dwa@tokens", "leave out @tokens"), ("dwa:fast", "'fast' is no number"), ("dwa:0", "above 0"),
        ("pcgrad:2", "takes no value"), ("static", "write static:<task>=<weight>"), ("static:safety=-1", "from 0 up"),
        ("static:speed=1", r"the task 'speed'; there are \['action'"), ("", "is not known"),
    ],
)  # fmt: skip
def test_parse_balance_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_balance(text, NAMES)


# --- gradients end where they should


@pytest.mark.parametrize("head", ["mean", "query"])
def test_sum_equals_an_ordinary_backward_bit_by_bit(build: Callable[..., TML], head: str) -> None:
    model = build(head)
    wanted = ordinary(model)
    found, step = run(model, "sum")
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert step.weights.tolist() == [1, 1, 1]
    assert step.losses.tolist() == [loss.item() for loss in losses_of(model, all_labels()).values()]


@pytest.mark.parametrize("head", ["mean", "query"])
@pytest.mark.parametrize("at", ["tokens", "weights"])
def test_aggregation_with_weights_of_one_equals_an_ordinary_backward(
    build: Callable[..., TML], monkeypatch: pytest.MonkeyPatch, head: str, at: str
) -> None:
    """The way of the gradients is right: with the plain sum in place of the method, they are the plain gradients."""
    monkeypatch.setattr(
        "workbench.training.balance.aggregation_weights", lambda method, products, **_: torch.ones(len(products))
    )
    model = build(head)
    wanted = ordinary(model)
    same(run(model, f"upgrad@{at}")[0], wanted)
    half, _ = run(model, f"upgrad@{at}", accumulation=2)
    same({n: 2 * g for n, g in half.items()}, wanted)


@pytest.mark.parametrize("method", HERE)
@pytest.mark.parametrize("at", ["tokens", "weights"])
def test_aggregators_step_by_the_weights_they_name(build: Callable[..., TML], method: str, at: str) -> None:
    model = build()
    found, step = run(model, f"{method}@{at}")
    name = "backbone.model.encoder.layer.0.attention.attention.query.weight"
    name = name if name in found else next(n for n in found if n.startswith("backbone") and n.endswith("weight"))
    losses = losses_of(model, all_labels())
    each = [torch.autograd.grad(losses[t], model.get_parameter(name), retain_graph=True)[0] for t in NAMES]
    by_hand = sum(w * g for w, g in zip(step.weights, each, strict=True))
    torch.testing.assert_close(found[name], by_hand, atol=1e-5, rtol=1e-3)
    plain = ordinary(model)
    torch.testing.assert_close(found["head.linears.0.weight"], plain["head.linears.0.weight"], atol=1e-6, rtol=1e-5)
    assert step.conflict is not None and step.conflict.cosines.shape == (3, 3)


@pytest.mark.parametrize("spec", ["sum", "uncertainty", "dwa", "random", "gradnorm", "upgrad", "pcgrad@weights"])
def test_a_task_without_labels_gets_a_gradient_of_exactly_zero(build: Callable[..., TML], spec: str) -> None:
    model = build(task_attention=False)
    targets = all_labels() | {"safety": torch.full((4,), math.nan)}
    found, step = run(model, spec, targets)
    assert step.tasks == ("action", "quality")
    assert not found["head.linears.1.weight"].any() and not found["head.queries"][1].any()
    assert found["head.linears.0.weight"].any() and found["head.queries"][0].any()
    nothing, step = run(model, spec, {name: torch.full((4,), math.nan) for name in NAMES})
    assert step.tasks == () and all(g is None or not g.any() for g in nothing.values())


def test_masking_one_clips_label_leaves_no_trace_of_that_clip(build: Callable[..., TML]) -> None:
    """The gradient of a task whose clip 0 is masked does not depend on what clip 0's label was, nor on its pixels."""
    model = build("mean", "linear")
    kept = []
    for label in (0.0, 1.0):
        targets = all_labels()
        targets["safety"][0] = label
        targets["safety"][0] = math.nan
        kept.append(run(model, "sum", targets)[0]["head.linears.1.weight"].clone())
    assert torch.equal(*kept)
    model.zero_grad()
    outputs = model.head(model.backbone.pool(torch.randn(4, 32, 24, generator=torch.Generator().manual_seed(1))))[1]
    masked = torch.tensor([math.nan, 1.0, 0.0, 1.0])
    [slope] = torch.autograd.grad(task_loss(TASKS[1], outputs.squeeze(-1), masked, STANDARD), outputs)
    assert slope[0].item() == 0 and (slope[1:] != 0).all()


def test_gradient_methods_say_what_they_lack(build: Callable[..., TML]) -> None:
    model = build(strategy="attentive")
    with pytest.raises(ValueError, match="'upgrad@tokens' compares .* the backbone is frozen"):
        run(model, "upgrad")
    run(model, "upgrad@weights")  # the decoder is shared
    with pytest.raises(ValueError, match="share nothing that trains"):
        run(build("mean", "linear"), "mgda@weights")
    with pytest.raises(ValueError, match="but no tokens were given"):
        Balance("upgrad", NAMES).backward(losses_of(model, all_labels()))
    with pytest.raises(ValueError, match="losses are of"):
        Balance("sum", NAMES).backward({"action": torch.tensor(1.0)})


# --- the weights, by hand


def parameters(*values: float) -> tuple[nn.Parameter, dict[str, Tensor]]:
    """Losses L_i = x_i of a parameter x: the gradient of the objective is the weight."""
    x = nn.Parameter(torch.tensor(values))
    return x, {name: x[i] for i, name in enumerate(NAMES[: len(values)])}


def weights_of(balance: Balance, *values: float) -> list[float]:
    x, losses = parameters(*values)
    balance.backward(losses)
    assert x.grad is not None
    return x.grad.tolist()


def test_static_weights_are_those_given_and_one_elsewhere() -> None:
    assert weights_of(Balance("static:safety=2.5", NAMES), 1.0, 1.0, 1.0) == [1.0, 2.5, 1.0]


def test_uncertainty_starts_as_the_sum_and_settles_where_each_weight_is_one_over_the_loss() -> None:
    balance = Balance("uncertainty", NAMES)
    assert weights_of(balance, 3.0, 1.0, 0.25) == [1.0, 1.0, 1.0]
    assert balance.log_variances.grad is not None
    # d/ds of exp(-s) L + s at s = 0 is 1 - L.
    torch.testing.assert_close(balance.log_variances.grad, torch.tensor([-2.0, 0.0, 0.75]))
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        found = weights_of(balance, 3.0, 1.0, 0.25)
        optimizer.step()
    assert found == pytest.approx([1 / 3, 1.0, 4.0], rel=1e-3)


def test_uncertainty_is_twice_torchjds() -> None:
    from torchjd.scalarization import UW

    theirs, ours = UW(3), Balance("uncertainty", NAMES)
    with torch.no_grad():
        theirs.log_var.copy_(torch.tensor([0.3, -0.2, 1.0]))
        ours.log_variances.copy_(theirs.log_var)
    x, _ = parameters(3.0, 1.0, 0.25)
    (2 * theirs(x)).backward()
    assert x.grad is not None and theirs.log_var.grad is not None
    assert weights_of(ours, 3.0, 1.0, 0.25) == pytest.approx(x.grad.tolist())
    torch.testing.assert_close(ours.log_variances.grad, theirs.log_var.grad)


def test_dwa_equals_torchjds_over_epochs_and_is_uniform_for_two() -> None:
    from torchjd.scalarization import DWA

    theirs, ours = DWA(2.0), Balance("dwa:2", NAMES)
    chance = torch.Generator().manual_seed(0)
    for epoch in range(5):
        for _ in range(3):
            values = (torch.rand(3, generator=chance) + 0.1).tolist()
            x, _ = parameters(*values)
            theirs(x).backward()
            assert x.grad is not None
            found = weights_of(ours, *values)
            assert found == pytest.approx(x.grad.tolist(), rel=1e-5)
            assert (found == [1, 1, 1]) == (epoch < 2)
        theirs.step()
        ours.end_epoch()


def test_dwa_takes_a_task_without_history_to_stand_still() -> None:
    balance = Balance("dwa:1", NAMES[:2])
    for value in (2.0, 1.0):
        x, losses = parameters(value, 1.0)
        balance.backward(losses, labelled={"action": 1, "safety": 0})
        balance.end_epoch()
    total = math.exp(0.5) + math.exp(1.0)
    assert weights_of(balance, 1.0, 1.0) == pytest.approx([2 * math.exp(0.5) / total, 2 * math.exp(1.0) / total])


def test_random_weights_depend_on_seed_and_step_alone_and_sum_to_the_number_of_tasks() -> None:
    def three(seed: int) -> list[list[float]]:
        balance = Balance("random", NAMES, seed=seed)
        return [weights_of(balance, 1.0, 1.0, 1.0) for _ in range(3)]

    torch.manual_seed(0)
    once = three(1)
    torch.manual_seed(9)
    assert three(1) == once and three(2) != once and once[0] != once[1]
    assert [sum(w) for w in once] == pytest.approx([3, 3, 3]) and min(map(min, once)) > 0


def test_gradnorm_moves_the_weights_towards_equal_gradients_by_hand() -> None:
    """L1 = 3 t, L2 = t of tokens t: |g| = 3 and 1. At the first step no task lags, so the target is their mean, 2."""
    balance = Balance("gradnorm:1", NAMES[:2])
    tokens = torch.ones(1, 1, 1, requires_grad=True)
    hidden = tokens * 1.0
    step = balance.backward({"action": 3 * hidden.sum(), "safety": hidden.sum()}, tokens=hidden)
    # 1 - 0.025 * 3 / 2 and 1 + 0.025 * 1 / 2, then both scaled to sum to 2 again
    one, two = 1 - 0.0375, 1 + 0.0125
    by_hand = [2 * one / (one + two), 2 * two / (one + two)]
    assert step.weights.tolist() == pytest.approx(by_hand)
    assert tokens.grad is not None and float(tokens.grad) == pytest.approx(3 * by_hand[0] + by_hand[1])
    for _ in range(300):
        hidden = tokens * 1.0
        balance.backward({"action": 3 * hidden.sum(), "safety": hidden.sum()}, tokens=hidden)
    assert balance.weights.tolist() == pytest.approx([0.5, 1.5], abs=0.06)  # 3 w1 = w2, to one step


def test_gradnorm_gives_more_to_the_task_that_lags() -> None:
    balance, tokens = Balance("gradnorm:1", NAMES[:2]), torch.ones(1, 1, 1, requires_grad=True)
    for i in range(60):
        hidden = tokens * 1.0
        # equal gradients, but the second loss has fallen to a tenth, the first not at all
        fallen = 0.0 if i == 0 else 0.9
        balance.backward({"action": hidden.sum(), "safety": hidden.sum() - fallen}, tokens=hidden)
    assert balance.weights[0] > 1.3 and float(balance.weights.sum()) == pytest.approx(2)


@pytest.mark.parametrize("spec", ["geometric", "stch:0.1"])
def test_torchjds_scalarizers_of_equal_losses_are_the_plain_sum_and_else_lean_their_way(spec: str) -> None:
    assert weights_of(Balance(spec, NAMES), 0.7, 0.7, 0.7) == pytest.approx([1, 1, 1], rel=1e-5)
    found = weights_of(Balance(spec, NAMES), 2.0, 1.0, 0.5)
    if spec == "geometric":  # d / dx of (x y z)^(1/3) is a third of it over x; times three
        assert found == pytest.approx([0.5, 1.0, 2.0])
    else:
        shares = torch.softmax(torch.tensor([2.0, 1.0, 0.5]) / 0.1, 0) * 3
        assert found == pytest.approx(shares.tolist(), abs=1e-6)


@pytest.mark.parametrize("spec", ["uncertainty", "dwa", "random", "gradnorm", "pcgrad"])
def test_state_dict_lets_a_resumed_balance_go_on_as_an_unbroken_one(spec: str) -> None:
    def some_steps(balance: Balance, first: int, last: int) -> list[list[float]]:
        optimizer = torch.optim.SGD(balance.parameters(), lr=0.1) if spec == "uncertainty" else None
        said = []
        for i in range(first, last):
            tokens = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(i), requires_grad=True)
            hidden = tokens * 1.0
            losses = {
                n: (hidden * torch.sin(torch.arange(24.0) + k).view(4, 6)).sum() ** 2 for k, n in enumerate(NAMES)
            }
            said.append(balance.backward(losses, tokens=hidden).weights.tolist())
            if optimizer:
                optimizer.step()
                optimizer.zero_grad()
            balance.end_epoch()
        return said

    unbroken = some_steps(Balance(spec, NAMES), 0, 8)
    before = Balance(spec, NAMES)
    some_steps(before, 0, 4)
    after = Balance(spec, NAMES)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert some_steps(after, 4, 8) == unbroken[4:]


def test_every_method_is_one_of_two_kinds() -> None:
    assert set(SCALARIZERS).isdisjoint(AGGREGATORS)
