"""A VideoMAE small enough to check by hand, saved the way the packaged checkpoint is."""

import json

import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from workbench.models.backbones import load_backbone

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def tiny_config(**changes):
    sizes = {
        "image_size": 32, "patch_size": 8, "num_frames": 8, "tubelet_size": 4, "hidden_size": 24, "num_labels": 5,
        "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48, "use_mean_pooling": True,
    }  # fmt: skip
    return VideoMAEConfig(**(sizes | changes))


def save_checkpoint(folder, model, **preprocessing):
    # Spread the weights: at the default init of 0.02 every clip gives the same tokens and a mix-up would not show.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval().save_pretrained(folder)
    record = {"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": 32}, **preprocessing}
    (folder / "preprocessor_config.json").write_text(json.dumps(record))
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """(folder, the Hugging Face model saved in it)."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, save_checkpoint(folder, VideoMAEForVideoClassification(tiny_config()))


@pytest.fixture
def backbone(checkpoint):
    return load_backbone(checkpoint[0])


@pytest.fixture
def clips():
    return torch.randint(0, 256, (3, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
