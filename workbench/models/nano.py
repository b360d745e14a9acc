"""The shape of the embedded checkpoint, and how it is written: plain Hugging Face files anyone can load."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel


def nano_config(
    *,
    num_frames: int,
    size_px: int,
    tubelet_size: int,
    patch_size: int,
    hidden_size: int,
    layers: int,
    heads: int,
    labels: Sequence[str],
) -> dict[str, Any]:
    """``config.json`` of a small video classifier whose final norm follows the mean of the tokens."""
    return {
        "model_type": "videomae",
        "image_size": size_px,
        "patch_size": patch_size,
        "num_frames": num_frames,
        "tubelet_size": tubelet_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden_size,
        "use_mean_pooling": True,
        # The part for masked pretraining is not used here; its sizes only have to be consistent.
        "decoder_num_hidden_layers": 1,
        "decoder_hidden_size": hidden_size,
        "decoder_num_attention_heads": heads,
        "decoder_intermediate_size": hidden_size,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def save_classifier(
    model: PreTrainedModel, folder: str | Path, *, mean: Sequence[float], std: Sequence[float], size_px: int
) -> Path:
    """``config.json``, ``model.safetensors`` and ``preprocessor_config.json`` in ``folder``."""
    folder = Path(folder)
    model.save_pretrained(folder)
    record = {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_resize": True,
        "size": {"shortest_edge": size_px},
        "do_center_crop": True,
        "crop_size": {"height": size_px, "width": size_px},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return folder
