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
from workbench.training.pretrain import MEAN, STD, PretrainModel, PretrainSetup, _Log, _objective, losses, pretrain

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


@pytest.mark.parametrize(
    ("changes", "untouched"),
    [
        ({"dense": False}, {"dense"}),
        ({"clip_targets": False}, {"classifier.classifier", "path", "camera", "shape", "count", "classifier.fc_norm"}),
        (
            {"dense": False, "clip_targets": False, "masked": 1.0},
            {"dense", "classifier.classifier", "path", "camera", "shape", "count", "classifier.fc_norm"},
        ),
        ({"masked": 0.5}, set()),
    ],
)
def test_objective_trains_what_the_switches_leave_and_nothing_else(changes: dict, untouched: set[str]) -> None:
    torch.manual_seed(0)
    setup = replace(TINY, **changes)
    model = PretrainModel(setup)
    terms, _ = _objective(model, setup.data().batch(0), 0)
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in model.named_parameters():
        moved = parameter.grad is not None and parameter.grad.abs().sum() > 0
        expected = not any(name.startswith(part + ".") for part in untouched)
        # A key's bias moves every score of a query alike, which a softmax does not see: its gradient is rounding.
        if not name.endswith("key.bias"):
            assert moved == expected, name
    assert ("masked" in terms) == bool(setup.masked)


def test_objective_weighs_masked_reconstruction() -> None:
    torch.manual_seed(0)
    model = PretrainModel(replace(TINY, masked=1.0))
    batch = TINY.data().batch(0)
    one = _objective(model, batch, 3)[0]["masked"].item()
    model.setup = replace(TINY, masked=0.25)
    assert _objective(model, batch, 3)[0]["masked"].item() == pytest.approx(one / 4, rel=1e-6)
    assert _objective(model, batch, 4)[0]["masked"].item() != pytest.approx(one / 4, rel=1e-4)  # another mask


def test_objective_masked_learns_to_fill_in_what_is_hidden() -> None:
    torch.manual_seed(0)
    setup = replace(TINY, hidden_size=64, masked=1.0, dense=False, clip_targets=False, textures="flat", mask_ratio=0.5)
    model, batch = PretrainModel(setup), setup.data().batch(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(120):
        loss = _objective(model, batch, 0)[0]["masked"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.75 * values[0]


def test_pretrain_with_masking_resumes_as_unbroken_and_saves_the_encoder_alone(tmp_path: Path) -> None:
    setup = replace(TINY, masked=1.0)
    whole = pretrain(tmp_path / "whole", setup, device="cpu")
    pretrain(tmp_path / "parts", setup, device="cpu", stop_after=3)
    parts = pretrain(tmp_path / "parts", setup, device="cpu")
    a, b = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    _, info = VideoMAEForVideoClassification.from_pretrained(whole, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_pretrain_refuses_a_folder_begun_with_another_recipe(tmp_path: Path) -> None:
    pretrain(tmp_path, TINY, device="cpu", stop_after=1)
    with pytest.raises(ValueError, match=r"textures=natural \(begun with mixed\)"):
        pretrain(tmp_path, replace(TINY, textures="natural"), device="cpu")
    pretrain(tmp_path, replace(TINY, steps=7), device="cpu", stop_after=2)  # more steps are the same recipe
    assert json.loads((tmp_path / "setup.json").read_text())["steps"] == 7


def test_pretrain_goes_on_in_a_folder_whose_setup_knew_fewer_fields(tmp_path: Path) -> None:
    pretrain(tmp_path, TINY, device="cpu", stop_after=1)
    record = json.loads((tmp_path / "setup.json").read_text())
    (tmp_path / "setup.json").write_text(json.dumps({k: v for k, v in record.items() if k not in ("masked", "dense")}))
    pretrain(tmp_path, TINY, device="cpu", stop_after=2)
    with pytest.raises(ValueError, match=r"dense=False \(begun with True\)"):
        pretrain(tmp_path, replace(TINY, dense=False), device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"textures": "wool"}, "textures='wool'"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0"),
        ({"dense": False, "clip_targets": False}, "nothing to learn"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_pretrain_setup_refuses_what_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_pretrain_logs_means_of_the_steps_since_the_last_line(tmp_path: Path) -> None:
    lines = _Log(tmp_path)
    for step in range(24, 51):  # resumed just before a line is due
        lines.add(step, {"loss": torch.tensor(float(step))})
    written = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in written] == [(25, 24.5), (50, 38.0)]


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
