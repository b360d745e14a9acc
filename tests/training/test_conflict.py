"""Angles and lengths of gradients, by hand and against a plain backward."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.models.tiny import TINY, save
from workbench.data.tables import Task
from workbench.models.backbones import load_backbone
from workbench.models.strategies import apply_strategy
from workbench.models.tml import TML
from workbench.training.conflict import Conflict, conflict_by_layer, layers_of, split_parameters, watch_tokens

TASKS = (Task("a", "binary"), Task("b", "regression"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TML:
    folder = save("videomae", tmp_path_factory.mktemp("tiny"))
    torch.manual_seed(0)
    return TML(load_backbone(folder, **TINY["videomae"].options), TASKS, head="query")


def pixels(model: TML) -> Any:
    chance = torch.Generator().manual_seed(0)
    return model.backbone.prepare(torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8, generator=chance))


def test_conflict_cosines_and_norms_by_hand() -> None:
    # gradients (3, 0), (-4, 4), (0, 0)
    found = Conflict(("a", "b", "c"), torch.tensor([[9.0, -12, 0], [-12, 32, 0], [0, 0, 0]]))
    assert found.norms.tolist() == pytest.approx([3, 32**0.5, 0])
    assert found.cosines[0, 1].item() == pytest.approx(-(0.5**0.5)) and found.cosines[0, 0] == 1
    assert found.cosines[0, 2].isnan()  # no direction


def test_conflict_by_layer_equals_gradients_taken_one_by_one(model: TML) -> None:
    apply_strategy(model, "full")
    outputs = model(pixels(model))
    losses = {"a": outputs["a"].square().sum(), "b": (outputs["b"] - 1).square().sum()}
    layers = layers_of(model)
    assert list(layers) == ["embedding", "block 0", "block 1", "decoder"]
    table = conflict_by_layer(losses, layers, retain_graph=True).set_index("layer")
    assert all(p.grad is None for p in model.parameters())
    for layer, group in layers.items():
        flat = []
        for loss in losses.values():
            grads = torch.autograd.grad(loss, group, retain_graph=True, allow_unused=True)
            pairs = zip(grads, group, strict=True)
            flat.append(torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in pairs]))
        assert table.cosine[layer] == pytest.approx(
            float(nn.functional.cosine_similarity(flat[0], flat[1], dim=0)), abs=1e-5
        )
        assert table.norm_task[layer] == pytest.approx(float(flat[0].norm()), rel=1e-4)
        assert table.norm_other[layer] == pytest.approx(float(flat[1].norm()), rel=1e-4)


@pytest.mark.parametrize("strategy", ["full", "attentive", "lora:2", "adapter:8", "bitfit", "partial:1"])
@pytest.mark.parametrize("at", ["tokens", "weights"])
def test_split_parameters_takes_all_that_trains_once_and_parts_it_where_the_tokens_are(
    model: TML, strategy: str, at: str
) -> None:
    fresh = TML(load_backbone(model.backbone.source), TASKS, head="query")
    apply_strategy(fresh, strategy)
    shared, rest = split_parameters(fresh, at)
    trains = [p for p in fresh.parameters() if p.requires_grad]
    assert sorted(map(id, [*shared, *rest])) == sorted(map(id, trains))
    with watch_tokens(fresh) as seen:
        outputs = fresh(pixels(fresh))
    assert seen.tokens is not None
    if at == "tokens" and shared:  # what is shared moves the tokens, the rest does not
        reached = torch.autograd.grad(seen.tokens.sum(), trains, allow_unused=True, retain_graph=True)
        moved = {id(p) for p, g in zip(trains, reached, strict=True) if g is not None}
        assert moved == {id(p) for p in shared}
    if at == "weights":  # the rest is each task's own
        for own, other in (("a", "b"), ("b", "a")):
            i = [t.name for t in TASKS].index(own)
            own_layer = list(fresh.head.linears[i].parameters())
            grads = torch.autograd.grad(outputs[other].sum(), own_layer, allow_unused=True, retain_graph=True)
            assert grads == (None, None)


def test_watch_tokens_leaves_no_hook_after_an_error(model: TML) -> None:
    with pytest.raises(RuntimeError), watch_tokens(model):
        raise RuntimeError
    assert not model.backbone._forward_hooks
