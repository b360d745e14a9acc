"""The shape of the embedded checkpoint, and how it is written: plain Hugging Face files anyone can load."""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import VideoMAEConfig, VideoMAEForVideoClassification


def new_classifier(
    *, num_frames: int, size_px: int, tubelet_size: int, patch_size: int, hidden_size: int, layers: int, heads: int,
    labels: Sequence[str],
) -> VideoMAEForVideoClassification:  # fmt: skip
    """A freshly initialised VideoMAE video classifier whose final norm follows the mean of the tokens."""
    config = VideoMAEConfig(
        image_size=size_px, patch_size=patch_size, num_frames=num_frames, tubelet_size=tubelet_size,
        hidden_size=hidden_size, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden_size, use_mean_pooling=True, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, decoder_num_hidden_layers=1, decoder_hidden_size=hidden_size,
        decoder_num_attention_heads=heads, decoder_intermediate_size=hidden_size,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    return VideoMAEForVideoClassification(config)


def save_classifier(
    model: VideoMAEForVideoClassification,
    folder: str | Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size_px: int,
) -> Path:
    """``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` in ``folder``."""
    folder = Path(folder)
    model.save_pretrained(folder)
    record = {
        "image_processor_type": "VideoMAEImageProcessor", "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(mean), "image_std": list(std), "do_resize": True,
        "size": {"shortest_edge": size_px}, "do_center_crop": True, "crop_size": {"height": size_px, "width": size_px},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return folder
