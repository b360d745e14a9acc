"""The first place where a number is not one, found by a second look; and nothing left behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.test_checkup import TASKS, train
from workbench.models.tml import TML
from workbench.training.checking.nonfinite import first_nonfinite
from workbench.training.runs import build_model
from workbench.training.setup import Setup


class Root(nn.Module):
    """x, but with a gradient of 0 * inf: the root has a slope of infinity at 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x * 0) * 0 + x


def net(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(middle, nn.GELU()), nn.Linear(4, 2))


def forward(model: nn.Module, x: Tensor) -> tuple[Any, Tensor]:
    y = model(x)
    return y, (y**2).mean()


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


X = torch.linspace(-1, 1, 15).reshape(5, 3)


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_first_nonfinite_names_the_innermost_module_whose_output_is(factor: float) -> None:
    assert first_nonfinite(net(Times(factor)), forward, X) == "the output of 1.0 (Times)"


def test_first_nonfinite_finds_a_gradient_where_all_outputs_are_finite() -> None:
    # backwards, the first value that is not finite is the gradient at what Root read
    assert first_nonfinite(net(Root()), forward, X) == "the gradient at 0 (Linear)"


def test_first_nonfinite_names_broken_weights_before_what_comes_of_them() -> None:
    model = net(nn.Identity())
    with torch.no_grad():
        model.get_parameter("2.weight")[0, 1] = torch.nan
    found = first_nonfinite(model, forward, X)
    assert found == "the weights of 2.weight: the step before had a gradient that was not finite"


def test_first_nonfinite_tells_the_loss_from_the_model() -> None:
    model = net(nn.Identity())
    found = first_nonfinite(model, lambda m, x: (None, m(x).sum() * torch.inf), X)
    assert found == "the loss itself, though every output of the model is finite"


def test_first_nonfinite_of_a_sound_model_is_none_and_leaves_nothing_behind() -> None:
    model = net(nn.Identity())
    forward(model, X)[1].backward()
    before = [p.grad for p in model.parameters()]
    copies = [g.clone() for g in before if g is not None]
    assert first_nonfinite(model, forward, X) is None
    with pytest.raises(RuntimeError, match="boom"):
        first_nonfinite(model, lambda m, x: (_ for _ in ()).throw(RuntimeError("boom")), X)
    after = [p.grad for p in model.parameters()]
    assert all(a is b for a, b in zip(after, before, strict=True)) and len(copies) == 4
    assert all(torch.equal(a, c) for a, c in zip(after, copies, strict=True) if a is not None)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())


def test_first_nonfinite_reads_tokens_and_dicts_of_a_video_model(tiny_checkpoint: str) -> None:
    model = build_model(Setup(backbone=tiny_checkpoint), TASKS)
    clips = torch.zeros(2, 8, 3, 32, 32)

    def loss(m: Any, x: Tensor) -> tuple[Any, Tensor]:
        outputs = m(x)
        return outputs, torch.stack([o.sum() for o in outputs.values()]).sum()

    assert first_nonfinite(model, loss, clips) is None
    found = first_nonfinite(model, loss, clips / 0)
    assert found is not None and found.startswith("the output of backbone.model.embeddings.patch_embeddings")


def test_a_run_that_breaks_says_where(tiny_checkpoint: str, tmp_path: Path) -> None:
    def plant(model: TML) -> None:
        block = model.backbone.blocks[1]
        block.register_forward_hook(lambda _m, _i, y: y * torch.inf if isinstance(y, Tensor) else (y[0] * torch.inf,))

    name = r"First not finite: the output of backbone\.model\.\S*layer\.1 \(VideoMAELayer\)"
    with pytest.raises(FloatingPointError, match=rf"became \S+ in epoch 1, batch 0; lower lr .*{name}"):
        train(tiny_checkpoint, tmp_path, change=plant, epochs=1)
