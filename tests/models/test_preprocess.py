"""Our preprocessing beside transformers' own Pillow-backed processors, on the same frames."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import VideoMAEForVideoClassification
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil
from transformers.models.vivit.image_processing_vivit import VivitImageProcessor

from tests.models.conftest import save_checkpoint, tiny_config
from workbench.models import preprocess
from workbench.models.backbones import load_backbone
from workbench.models.preprocess import Preprocessing, to_pixel_values

IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
ON: dict[str, Any] = {"do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True}


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


# As the published checkpoints' files have them, by family.
RECORDS: dict[str, dict[str, Any]] = {
    "videomae": ON | IMAGENET | {"size": {"shortest_edge": 224}, "crop_size": square(224), "resample": 2},
    "timesformer": ON
    | {"image_mean": [0.45] * 3, "image_std": [0.225] * 3, "size": {"shortest_edge": 224}, "crop_size": square(224)},
    "vivit": ON
    | HALF
    | {"size": {"shortest_edge": 256}, "crop_size": square(224), "rescale_factor": 1 / 127.5, "offset": True},
    "vjepa2": ON | IMAGENET | {"size": {"shortest_edge": 292}, "crop_size": square(256), "resample": 2},
    "per-frame, bicubic": ON | IMAGENET | {"size": {"shortest_edge": 256}, "crop_size": square(224), "resample": 3},
    "stretched, not cropped": ON | HALF | {"size": square(96), "do_center_crop": False, "resample": 2},
    "smaller than its crop": ON | HALF | {"size": {"shortest_edge": 63}, "crop_size": square(70), "resample": 2},
    "not normalised": ON | {"do_normalize": False, "size": {"shortest_edge": 65}, "crop_size": square(64)},
}
# (height, width): landscape, portrait, very wide, smaller than the crop, odd sides, one side already right.
FRAMES = [(240, 320), (320, 180), (97, 333), (48, 64), (225, 301), (224, 224)]


def noisy_clip(height: int, width: int, T: int = 2) -> Tensor:
    """White noise over a ramp: the hardest picture for a resampler, uint8 (1, T, H, W, 3)."""
    rng = np.random.default_rng(height * 1000 + width)
    ramp = np.linspace(0, 255, width)[None, None, :, None]
    frames = 0.5 * ramp + 0.5 * rng.integers(0, 256, (T, height, width, 3))
    frames[:, : height // 3] = rng.integers(0, 2, (T, height // 3, width, 3)) * 255
    return torch.from_numpy(frames.astype(np.uint8))[None]


def theirs(record: dict[str, Any], clip: Tensor) -> Tensor:
    processor = VivitImageProcessor if record.get("offset") else VideoMAEImageProcessorPil
    return processor(**record)([list(video.numpy()) for video in clip], return_tensors="pt").pixel_values


def in_levels(pixel_values: Tensor, record: dict[str, Any]) -> Tensor:
    """Back to 0..255, where one level is one: (B, T, C, H, W)."""
    scale = record.get("rescale_factor", 1 / 255)
    mean, std = (torch.tensor(record.get(key, [fill] * 3)) for key, fill in (("image_mean", 0.0), ("image_std", 1.0)))
    values = pixel_values * std.view(3, 1, 1) + mean.view(3, 1, 1)
    return (values + (1 if record.get("offset") else 0)) / scale


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("size", FRAMES, ids=str)
def test_pixel_values_equal_hugging_faces_processor(record: dict[str, Any], size: tuple[int, int]) -> None:
    clip = noisy_clip(*size)
    ours = Preprocessing.from_record(record).for_model(224).pixel_values(clip)
    expected = theirs(record, clip)
    assert ours.shape == expected.shape and ours.dtype == torch.float32
    difference = (in_levels(ours, record) - in_levels(expected, record)).abs()
    # Exact but for float32 of the last two steps. A stretch may go along the columns first in Pillow 13: one level.
    assert difference.max() < (1.001 if record["size"] == square(96) else 0.001)
    assert difference.mean() < (0.2 if record["size"] == square(96) else 1e-5)


def test_pixel_values_of_another_filter_would_not_pass() -> None:
    """The tolerance above tells bilinear from bicubic and an antialiased from a plain resize."""
    clip, record = (
        noisy_clip(240, 320),
        RECORDS["videomae"] | {"size": {"shortest_edge": 112}, "crop_size": square(112)},
    )
    ours = Preprocessing.from_record(record | {"resample": 3}).pixel_values(clip)
    difference = (in_levels(ours, record) - in_levels(theirs(record, clip), record)).abs()
    assert difference.max() > 10 and difference.mean() > 1


def test_pixel_values_keep_the_aspect_ratio() -> None:
    # A white 40 x 40 square in the middle of 80 x 200 is, at half the height, a white 20 x 20 square.
    clip = torch.zeros(1, 1, 80, 200, 3, dtype=torch.uint8)
    clip[:, :, 20:60, 80:120] = 255
    out = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3, resize=40, crop=40).pixel_values(clip)
    bright = out[0, 0, 0] > 0.5
    assert bright.sum() == 400 and bright[10:30, 10:30].all()


def test_pixel_values_are_the_same_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Preprocessing.from_record(RECORDS["videomae"])
    clips = torch.cat([noisy_clip(60, 80, T=3), noisy_clip(60, 80, T=3).flip(3), 255 - noisy_clip(60, 80, T=3)])
    whole = steps.pixel_values(clips)
    monkeypatch.setattr(preprocess, "_CHUNK_VALUES", {"cpu": 1})  # one frame at a time
    assert torch.equal(steps.pixel_values(clips), whole)
    assert torch.equal(torch.cat([steps.pixel_values(clip[None]) for clip in clips]), whole)


def test_pixel_values_of_a_clip_that_has_its_size_are_only_normalised() -> None:
    clip, steps = noisy_clip(224, 224), Preprocessing.from_record(RECORDS["videomae"])
    expected = to_pixel_values(clip, IMAGENET["image_mean"], IMAGENET["image_std"])
    assert torch.equal(steps.pixel_values(clip), expected)


def test_from_record_subtracts_one_where_the_scale_doubles() -> None:
    """0, 127.5 and 255 become -1, 0 and 1, then are normalised: (-1 - 0.5) / 0.5 = -3 and (1 - 0.5) / 0.5 = 1."""
    record = HALF | {"rescale_factor": 1 / 127.5, "size": square(2), "do_center_crop": False}
    clip = torch.tensor([0, 255, 0, 255], dtype=torch.uint8).view(1, 1, 2, 2, 1).expand(-1, -1, -1, -1, 3)
    for said in (record, record | {"offset": True}):
        out = Preprocessing.from_record(said).pixel_values(clip)
        assert out[0, 0, 0, 0].tolist() == pytest.approx([-3.0, 1.0])
    plain = Preprocessing.from_record(record | {"offset": False}).pixel_values(clip)
    assert plain[0, 0, 0, 0].tolist() == pytest.approx([-1.0, 3.0])


def test_from_record_leaves_to_the_model_what_the_file_does_not_say() -> None:
    steps = Preprocessing.from_record(HALF)
    assert (steps.resize, steps.crop) == (preprocess.MODEL_SIZE, preprocess.MODEL_SIZE)
    assert steps.for_model(32).pixel_values(noisy_clip(50, 40)).shape == (1, 2, 3, 32, 32)
    assert steps.short_side(32) == 32
    # A bare number is the short side; a bare crop number is a square.
    old = Preprocessing.from_record(HALF | {"size": 40, "crop_size": 32})
    assert (old.resize, old.crop) == (40, 32) and old.for_model(64) == old


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image_mean": [0.5] * 3}, "image_std.* missing"),
        (HALF | {"resample": 1}, "resample=1 is none of the filters known here"),
        (HALF | {"size": {"longest_edge": 224}}, "size=.*longest_edge.* is not understood"),
        (HALF | {"crop_size": {"shortest_edge": 224}}, "crop_size=.* is not understood"),
        (HALF | {"image_std": [0.5, 0.0, 0.5]}, "image_std=.* must hold a positive number"),
    ],
)
def test_from_record_says_what_it_cannot_follow(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_record(record)


@pytest.mark.parametrize("bad", [torch.zeros(1, 2, 9, 9, 3), torch.zeros(2, 9, 9, 3, dtype=torch.uint8)])
def test_pixel_values_refuse_floats_and_single_clips(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        Preprocessing.from_record(RECORDS["videomae"]).pixel_values(bad)


def test_prepare_resizes_and_crops_as_the_checkpoint_says(tmp_path) -> None:
    record = ON | {"size": {"shortest_edge": 40}, "crop_size": square(32)} | HALF
    save_checkpoint(tmp_path, VideoMAEForVideoClassification(tiny_config()), **record)
    backbone, clip = load_backbone(tmp_path), noisy_clip(97, 60, T=8)
    assert backbone.resize_px == 40
    expected = theirs(record, clip)
    assert (backbone.prepare(clip) - expected).abs().max() < 1e-6
    # What has the model's size already was resized and cropped by the decoder: not a second time.
    done = clip[:, :, :32, :32]
    assert torch.equal(backbone.prepare(done), to_pixel_values(done, [0.5] * 3, [0.5] * 3))


def test_prepare_names_a_crop_that_its_model_does_not_take(tmp_path) -> None:
    save_checkpoint(tmp_path, VideoMAEForVideoClassification(tiny_config()), crop_size=square(48), size=square(48))
    with pytest.raises(ValueError, match=r"size_px=32.*not \(1, 8, 3, 48, 48\)"):
        load_backbone(tmp_path).prepare(noisy_clip(60, 60, T=8))


def test_read_preprocessing_names_the_file_that_lacks_something(tmp_path) -> None:
    save_checkpoint(tmp_path, VideoMAEForVideoClassification(tiny_config()))
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"image_mean": [0.5] * 3}))
    with pytest.raises(ValueError, match=r"preprocessor_config.json: \['image_std'\] missing"):
        load_backbone(tmp_path)


@pytest.mark.gpu
def test_pixel_values_are_the_same_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for record in RECORDS.values():
        steps, clip = Preprocessing.from_record(record).for_model(224), noisy_clip(225, 301)
        there = steps.pixel_values(clip.cuda()).cpu()
        assert (in_levels(there, record) - in_levels(steps.pixel_values(clip), record)).abs().max() < 1e-3
