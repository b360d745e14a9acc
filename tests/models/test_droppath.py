"""Stochastic depth on every family, held to what its formula says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.tiny import TINY, save
from workbench.models import droppath
from workbench.models.backbones import Backbone, load_backbone
from workbench.models.droppath import drop_path, rates


@pytest.fixture(params=TINY)
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Backbone:
    return load_backbone(save(request.param, tmp_path), **TINY[request.param].options)


def pixels(clips: int) -> Tensor:
    return torch.randn(clips, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def around_last(backbone: Backbone, clips: int) -> tuple[Tensor, Tensor]:
    """Tokens (clips, N, D) before and after the last block, in train mode."""
    seen: list[Tensor] = []

    def watch(_block: Any, args: Any, kwargs: Any, output: Any) -> None:
        tokens = (args[0] if args else kwargs["hidden_states"], output[0] if isinstance(output, tuple) else output)
        seen.extend(backbone.tokens_of(t).tokens.detach().clone() for t in tokens)

    handle = backbone.blocks[-1].register_forward_hook(watch, with_kwargs=True)
    try:
        backbone.train()
        backbone(pixels(clips))
    finally:
        handle.remove()
        backbone.eval()
    return seen[0], seen[1]


def test_rates_rise_linearly_from_zero() -> None:
    assert rates(5, 0.2) == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert rates(1, 0.2) == [0.0]


def test_drop_path_skips_a_block_for_whole_clips(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.tensor([0.1, 0.7, 0.4])  # at a rate of 0.5: the first and the third clip skip
    monkeypatch.setattr(droppath.torch, "rand", lambda n, device: draws[:n])
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    _, plain = around_last(backbone, 3)
    with drop_path(backbone, 0.5):
        before, after = around_last(backbone, 3)
    assert torch.equal(after[0], before[0]) and torch.equal(after[2], before[2])
    step = plain[1] - before[1]
    expected = before[1] + (2 * step if backbone.pre_norm else step)
    torch.testing.assert_close(after[1], expected, rtol=1e-4, atol=1e-4)


def test_drop_path_changes_neither_names_nor_outputs_in_eval_and_leaves_no_hook(backbone: Backbone) -> None:
    names, plain = list(backbone.state_dict()), backbone(pixels(2)).tokens
    hooks = [len(block._forward_hooks) for block in backbone.blocks]
    with drop_path(backbone, 0.9):
        assert list(backbone.state_dict()) == names
        assert torch.equal(backbone(pixels(2)).tokens, plain)
        assert [len(block._forward_hooks) for block in backbone.blocks] != hooks
    with pytest.raises(KeyError), drop_path(backbone, 0.9):
        raise KeyError
    assert [len(block._forward_hooks) for block in backbone.blocks] == hooks


def test_drop_path_keeps_the_mean_of_what_a_pre_norm_block_gives(tmp_path: Path) -> None:
    backbone = load_backbone(save("videomae", tmp_path))
    _, plain = around_last(backbone, 1)
    with drop_path(backbone, 0.3), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean = torch.stack([around_last(backbone, 1)[1] for _ in range(600)]).mean(0)
    before, _ = around_last(backbone, 1)
    ratio = ((mean - before) * (plain - before)).sum() / ((plain - before) ** 2).sum()
    # Of 600 draws 0.7 +- 0.019 are kept, each scaled by 1 / 0.7: three deviations are 0.08.
    assert ratio == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_drop_path_refuses_what_is_no_probability(tmp_path: Path, rate: float) -> None:
    backbone = load_backbone(save("videomae", tmp_path))
    with pytest.raises(ValueError, match="is a probability"), drop_path(backbone, rate):
        pass
