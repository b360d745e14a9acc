"""One tiny checkpoint per family, saved by plain transformers, and the plain model's own answer."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
SIZES: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
VIDEO: dict[str, Any] = SIZES | {"image_size": 32, "num_frames": 8, "intermediate_size": 48}


@dataclass(frozen=True)
class Tiny:
    """``kind``: the class whose weights are saved; ``model``: the plain encoder that answers."""

    config: str
    kind: str
    model: str
    sizes: dict[str, Any]
    grid: tuple[int, int, int]
    call: Callable[[Any, Tensor], Tensor] = lambda model, x: model(x).last_hidden_state
    options: dict[str, Any] = field(default_factory=dict)
    """For load_backbone."""
    prefix: int = 0
    attn: tuple[str, ...] = ("sdpa", "eager")


def _timesformer(attention_type: str) -> Tiny:
    sizes = VIDEO | {"patch_size": 8, "attention_type": attention_type}
    return Tiny(
        "TimesformerConfig", "TimesformerForVideoClassification", "TimesformerModel", sizes, (8, 4, 4),
        prefix=1, attn=("eager",),
    )  # fmt: skip


def _image(name: str, **sizes: Any) -> Tiny:
    return Tiny(
        f"{name}Config", f"{name}Model", f"{name}Model", SIZES | {"image_size": 32, "patch_size": 8} | sizes, (8, 4, 4),
        call=lambda model, x: model(x.flatten(0, 1)).last_hidden_state, prefix=8,
    )  # fmt: skip


def _text(name: str, **sizes: Any) -> Tiny:
    words = {"vocab_size": 40, "max_position_embeddings": 66, "intermediate_size": 48}
    return Tiny(
        f"{name}Config", f"{name}ForMaskedLM", f"{name}Model", SIZES | words | sizes, (4, 2, 2),
        options={"num_frames": 8, "size_px": 32},
    )  # fmt: skip


TINY = {
    "videomae": Tiny(
        "VideoMAEConfig", "VideoMAEForVideoClassification", "VideoMAEModel",
        VIDEO | {"patch_size": 8, "tubelet_size": 4, "use_mean_pooling": True}, (2, 4, 4),
    ),
    "timesformer": _timesformer("divided_space_time"),
    "timesformer-joint": _timesformer("joint_space_time"),
    "vivit": Tiny(
        "VivitConfig", "VivitForVideoClassification", "VivitModel", VIDEO | {"tubelet_size": [2, 8, 8]}, (4, 4, 4),
        prefix=1,
    ),
    "vjepa2": Tiny(
        "VJEPA2Config", "VJEPA2ForVideoClassification", "VJEPA2Model",
        SIZES | {"crop_size": 32, "frames_per_clip": 8, "patch_size": 8, "tubelet_size": 2, "mlp_ratio": 2,
                 "pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1},
        (4, 4, 4), call=lambda model, x: model(x, skip_predictor=True).last_hidden_state,
    ),
    "vit": _image("ViT", intermediate_size=48),
    "dinov2": _image("Dinov2", mlp_ratio=2),
    "bert": _text("Bert"),
    "roberta": _text("Roberta", pad_token_id=1),
}  # fmt: skip


def spread(model: torch.nn.Module, seed: int = 11) -> torch.nn.Module:
    """At the usual initial deviation of 0.02 every clip gives the same tokens, and a mix-up would not show."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save(name: str, folder: Path, **changes: Any) -> Path:
    """A checkpoint of the family with spread weights; ``changes`` go into its config."""
    tiny = TINY[name]
    config = getattr(transformers, tiny.config)(**(tiny.sizes | changes))
    spread(getattr(transformers, tiny.kind)(config)).save_pretrained(folder)  # type: ignore[operator]
    if not name.endswith("bert") and name != "roberta":
        record = {"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": 32}, "crop_size": 32}
        (folder / "preprocessor_config.json").write_text(json.dumps(record))
    return folder


def plain(name: str, folder: Path, **changes: Any) -> Any:
    """The encoder as plain transformers loads it, with eager attention."""
    model = getattr(transformers, TINY[name].model).from_pretrained(folder, attn_implementation="eager", **changes)
    return model.eval()
