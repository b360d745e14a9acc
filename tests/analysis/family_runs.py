"""A run on a tiny backbone of each family, and clips for it."""

from types import SimpleNamespace

import numpy as np
import torch

from tests.models.tiny import TINY, save
from workbench.data.tables import Task
from workbench.models.backbones import load_backbone
from workbench.models.tml import TML

ACTION = Task("action", "multiclass", ("left", "right", "up"))
SAFETY = Task("safety", "binary", ("safe", "unsafe"))
FAMILIES = list(TINY)


def family_run(name, folder, head="mean", tasks=(ACTION,), **options):
    """Anything :func:`workbench.explain` takes; ``run.tml`` is its model."""
    path = folder / name
    if not path.exists():
        save(name, path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tml = TML(load_backbone(str(path), **TINY[name].options), tasks, head=head, **options).eval()
        for linear in tml.head.linears:
            torch.nn.init.normal_(linear.weight, std=0.5)
    return SimpleNamespace(model=lambda device: tml.to(device), tasks=tasks, tml=tml)


def random_clips(n=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 32, 32, 3), np.uint8)


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
