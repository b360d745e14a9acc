import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import VideoMAEForVideoClassification

import workbench
from workbench.data.synthetic.motions import PRETRAIN_MOTIONS
from workbench.data.synthetic.procedural import ProceduralClips
from workbench.models.backbones import load_backbone, to_pixel_values
from workbench.training.pretrain import MEAN, STD, PretrainModel, PretrainSetup, losses, pretrain

TINY = PretrainSetup(
    steps=6, batch_size=4, num_frames=8, size_px=32, hidden_size=24, layers=1, heads=2, warmup_steps=2, easy_steps=4
)


def test_rate_warms_up_stays_and_falls_to_zero() -> None:
    setup = PretrainSetup(steps=1000, lr=1.0, warmup_steps=100, decay_fraction=0.2)
    assert [setup.rate(s) for s in (0, 49, 99, 500, 800, 900, 1000)] == pytest.approx([0.01, 0.5, 1, 1, 1, 0.5, 0])


def test_losses_of_perfect_outputs_are_at_their_floor() -> None:
    batch = ProceduralClips(0, batch_size=4, num_frames=8, size_px=32).batch(0)
    sure = 30.0
    coverage = batch.coverage.flatten(2).transpose(1, 2)
    flow = 10.0 * batch.flow.flatten(2).transpose(1, 2)
    outputs = {"dense": torch.cat([torch.logit(coverage, eps=1e-6), flow], dim=-1), "path": batch.path.flatten(1)}
    for name, width in (("motion", len(PRETRAIN_MOTIONS)), ("camera", 8), ("shape", 8), ("count", 4)):
        outputs[name] = sure * torch.nn.functional.one_hot(getattr(batch, name), width).float()
    terms = losses(outputs, batch)
    for name in ("flow", "path", "motion", "camera", "shape", "count"):
        assert terms[name].item() == pytest.approx(0, abs=1e-6), name
    # The floor of a cross entropy with soft targets is their entropy.
    p = coverage.clamp(1e-6, 1 - 1e-6)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean().item()
    assert terms["coverage"].item() == pytest.approx(2 * entropy, abs=1e-3)


def test_pretrain_interrupted_and_resumed_equals_unbroken(tmp_path: Path) -> None:
    whole = pretrain(tmp_path / "whole", TINY, device="cpu", checkpoint_every=100)
    pretrain(tmp_path / "parts", TINY, device="cpu", checkpoint_every=1, stop_after=3)
    parts = pretrain(tmp_path / "parts", TINY, device="cpu", checkpoint_every=1)
    a, b = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_pretrain_writes_a_checkpoint_that_plain_transformers_and_the_workbench_load(tmp_path: Path) -> None:
    folder = pretrain(tmp_path / "p", TINY, device="cpu")
    model, info = VideoMAEForVideoClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.id2label[0] == PRETRAIN_MOTIONS[0]
    clips = ProceduralClips(1, batch_size=2, num_frames=8, size_px=32).batch(0).clips
    pixels = to_pixel_values(clips, MEAN, STD)
    backbone = load_backbone(folder)
    assert torch.equal(backbone.prepare(clips), pixels)
    with torch.no_grad():
        pooled = backbone.pool(backbone(pixels).tokens)
        assert torch.allclose(model.classifier(pooled), model.eval()(pixels).logits, atol=1e-5)


def test_pretrain_model_learns_where_the_object_is() -> None:
    # One batch, many steps: dense coverage must be fitted far below its value at the start.
    torch.manual_seed(0)
    model = PretrainModel(replace(TINY, hidden_size=64, layers=2))
    batch = ProceduralClips(0, batch_size=8, num_frames=8, size_px=32, easy_batches=100).batch(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(150):
        terms = losses(model(to_pixel_values(batch.clips, MEAN, STD)), batch)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        values.append(terms["coverage"].item())
    assert values[-1] < 0.5 * values[0]


def test_nano_is_small_whole_and_loads_by_name() -> None:
    backbone = load_backbone("nano")
    assert (backbone.num_frames, backbone.size_px, backbone.grid) == (16, 64, (4, 8, 8))
    folder = Path(workbench.__file__).parent / "models" / "checkpoints" / "nano"
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 12 * 2**20
    assert json.loads((folder / "config.json").read_text())["use_mean_pooling"] is True


@pytest.mark.slow
def test_nano_names_the_motion_of_procedural_clips_it_never_saw() -> None:
    folder = Path(workbench.__file__).parent / "models" / "checkpoints" / "nano"
    model = VideoMAEForVideoClassification.from_pretrained(folder).eval()
    batch = ProceduralClips(123, batch_size=128).batch(0)
    with torch.no_grad():
        said = model(to_pixel_values(batch.clips, MEAN, STD)).logits.argmax(-1)
    accuracy = (said == batch.motion).float().mean().item()
    chance = 1 / len(PRETRAIN_MOTIONS)
    # Five binomial standard errors above chance.
    assert accuracy > chance + 5 * math.sqrt(chance * (1 - chance) / 128)
