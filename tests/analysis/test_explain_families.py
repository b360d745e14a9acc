"""Every family is explained by the same three methods, on the same grid."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.models.tiny import TINY, save
from workbench.analysis.explain import explain
from workbench.data.tables import Task
from workbench.models.backbones import load_backbone
from workbench.models.tml import TML

ACTION = Task("action", "multiclass", ("left", "right", "up"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {name: save(name, folder / name) for name in TINY}


@pytest.mark.parametrize("name", list(TINY))
def test_explain_gives_maps_that_add_up_for_every_family(checkpoints, name):
    tml = TML(load_backbone(str(checkpoints[name]), **TINY[name].options), (ACTION,))
    for linear in tml.head.linears:
        torch.nn.init.normal_(linear.get_parameter("weight"), std=0.5)
    run = SimpleNamespace(model=lambda device: tml.to(device), tasks=(ACTION,))
    clips = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), np.uint8)
    rollout = explain(run, clips, method="rollout", task="action", progress=False)
    heads = explain(run, clips, method="attention", task="action", progress=False)
    gradients = explain(run, clips, method="integrated_gradients", task="action", steps=32, progress=False)
    assert rollout.values.shape == gradients.values.shape == (2, *TINY[name].grid)
    assert heads.values.shape == (2, 4 if name == "timesformer" else 2, 3, *TINY[name].grid)
    np.testing.assert_allclose(rollout.values.sum((1, 2, 3)), 1, atol=1e-5)
    np.testing.assert_allclose(heads.values.sum((3, 4, 5)), 1, atol=1e-5)
    assert np.max(gradients.completeness_error) < 0.01
    # What the clip shows matters: another clip, another map.
    assert np.abs(gradients.values[0] - gradients.values[1]).max() > 1e-3
