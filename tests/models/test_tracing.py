"""The fake pass beside a real one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.tiny import TINY, save
from workbench.data.tables import Task
from workbench.models.backbones import load_backbone
from workbench.models.strategies import apply_strategy, parse_strategy
from workbench.models.tml import TML
from workbench.models.tracing import activation_bytes, wiring

TASKS = (Task("action", "multiclass", ("left", "right", "up")), Task("quality", "regression"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {name: save(name, tmp_path_factory.mktemp(name)) for name in TINY}


def build(folders, family: str, spelled: str) -> TML:
    model = TML(load_backbone(folders[family], **TINY[family].options), TASKS, head=parse_strategy(spelled).head)
    apply_strategy(model, spelled)
    return model


def really_saved(model: TML, batch_size: int) -> int:
    """Bytes that autograd holds after a real forward pass, without weights."""
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    b = model.backbone
    model.train()
    x = torch.randn(batch_size, b.num_frames, 3, b.size_px, b.size_px)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = model(x)
    assert len(outputs) == 2
    return sum(storage.nbytes() for storage in kept.values())


def hooks_of(model: TML) -> list[int]:
    return [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]


@pytest.mark.parametrize("spelled", ["linear", "attentive", "bitfit", "lora:2", "adapter:6", "partial:1", "full"])
@pytest.mark.parametrize("family", TINY)
def test_activation_bytes_equals_what_autograd_keeps(folders, family, spelled):
    model = build(folders, family, spelled)
    estimate = sum(activation_bytes(model, 3).values())
    # A storage of a few bytes may be a number kept by one kernel and computed by another.
    assert estimate == pytest.approx(really_saved(model, 3), rel=0.005)


def test_activation_bytes_and_wiring_leave_the_model_as_it_was(folders):
    model: Any = build(folders, "videomae", "adapter:6")
    model.eval()
    model.head.train()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    asked = [p.requires_grad for p in model.parameters()]
    modes, hooks = [m.training for m in model.modules()], hooks_of(model)
    random = torch.get_rng_state()
    activation_bytes(model, 2)
    wiring(model)
    assert [m.training for m in model.modules()] == modes
    assert hooks_of(model) == hooks
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(torch.equal(v, before[n]) and type(v) is Tensor for n, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("family", TINY)
def test_wiring_finds_the_stem_and_a_weight_that_does_nothing(folders, family):
    model = build(folders, family, "linear")
    model.backbone.blocks[0].register_parameter("idle", nn.Parameter(torch.ones(3)))
    wired = wiring(model)
    embedding = {id(p) for p in model.backbone.embedding.parameters()}
    names = dict(model.named_parameters())
    assert {id(names[n]) for n in wired.stem} == embedding
    idle = set(names) - wired.reached
    assert len(idle) == 1 and idle.pop().endswith(".idle")


def test_wiring_costs_no_memory_for_activations(folders):
    """A batch that no machine has room for: 2**20 clips."""
    model = build(folders, "videomae", "full")
    assert sum(activation_bytes(model, 2**20).values()) > 2**37
