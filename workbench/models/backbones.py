"""Pretrained video transformers behind one interface: uint8 clips in, tokens out.

Only this module knows a transformer family by name; a new one is one more entry in :data:`FAMILIES`.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, VideoMAEConfig, VideoMAEForVideoClassification

from workbench.models.hub import locate, quiet, read_preprocessing, readable_errors
from workbench.models.preprocess import Preprocessing
from workbench.models.preprocess import to_pixel_values as to_pixel_values

log = logging.getLogger(__name__)

WEIGHTS = ("pretrained", "random")


@dataclass(frozen=True)
class Tokens:
    """What every backbone returns.

    ``tokens`` (B, N, D), time-major: N = T' * H' * W' for ``grid`` (T', H', W').
    ``prefix`` (B, P, D): tokens that belong to no place in the clip (CLS); None where the family has none.
    """

    tokens: torch.Tensor
    grid: tuple[int, int, int]
    prefix: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.tokens.shape[1] != math.prod(self.grid):
            raise ValueError(
                f"tokens of shape {tuple(self.tokens.shape)} do not fit the grid {self.grid}; "
                f"expected (B, {math.prod(self.grid)}, D)"
            )


class VideoMAEFamily:
    """VideoMAE (https://arxiv.org/abs/2203.12602): joint space-time attention, no CLS token.

    With ``use_mean_pooling`` the final norm is not in the encoder: it is the classifier's ``fc_norm``, after the mean.
    """

    def load(self, name: str, config_dict: dict[str, Any]) -> tuple[PreTrainedModel, nn.Module]:
        """The encoder and the norm that follows the mean, with the checkpoint's weights."""
        config = VideoMAEConfig.from_dict(config_dict)
        # A head is needed only because fc_norm lives beside it; any number of labels would do.
        model, info = VideoMAEForVideoClassification.from_pretrained(
            name, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        lost = sorted(k for k in info["missing_keys"] if not k.startswith(("classifier.", "fc_norm.")))
        if lost:
            raise ValueError(
                f"checkpoint {name!r} lacks {len(lost)} encoder weights, for example {lost[:3]}; "
                "it is not a VideoMAE encoder or is damaged"
            )
        if any(k.startswith("fc_norm.") for k in info["missing_keys"]):
            log.warning("%s has no fc_norm (no classifier was saved with it): a fresh LayerNorm follows the mean", name)
        return self._parts(model)

    def build(self, config_dict: dict[str, Any]) -> tuple[PreTrainedModel, nn.Module]:
        """The same two modules with fresh weights."""
        return self._parts(self.classifier(config_dict))

    def classifier(self, config_dict: dict[str, Any]) -> PreTrainedModel:
        """A freshly initialised classifier in the family's own format, to pretrain and save."""
        return VideoMAEForVideoClassification(VideoMAEConfig.from_dict(config_dict))

    @staticmethod
    def _parts(model: VideoMAEForVideoClassification) -> tuple[PreTrainedModel, nn.Module]:
        return model.videomae, model.fc_norm if model.fc_norm is not None else nn.Identity()

    def blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        return list(model.encoder.layer)

    def embedding(self, model: PreTrainedModel) -> nn.Module:
        return model.embeddings

    def attentions(self, model: PreTrainedModel) -> list[nn.Module]:
        """Modules whose second output is the softmax (B, A, N, N) under eager attention, in depth order."""
        return [block.attention.attention for block in model.encoder.layer]


FAMILIES = {"videomae": VideoMAEFamily()}


def new_classifier(config_dict: dict[str, Any]) -> PreTrainedModel:
    """A fresh classifier of the family that ``config_dict["model_type"]`` names; see :func:`classifier_parts`."""
    return FAMILIES[config_dict["model_type"]].classifier(config_dict)


def classifier_parts(model: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module, nn.Module]:
    """Of a classifier: its encoder, the norm after the mean of the tokens, and its last linear layer."""
    return *FAMILIES[model.config.model_type]._parts(model), model.classifier


class Backbone(nn.Module):
    """An encoder that turns ``pixel_values`` (B, T, C, H, W) into :class:`Tokens` (B, N, D). Made by `load_backbone`.

    ``model`` is the Hugging Face encoder; ``norm`` follows the mean of the tokens (identity where the encoder already
    ends in its norm); ``preprocessing`` is the checkpoint's own.
    """

    def __init__(
        self, family: str, source: str, model: PreTrainedModel, norm: nn.Module, *, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.family, self.source, self.model, self.norm = family, source, model, norm
        config = self.config = model.config
        self.hidden_size: int = config.hidden_size
        self.num_heads: int = config.num_attention_heads
        self.num_frames: int = config.num_frames
        self.tubelet_size: int = config.tubelet_size
        self.size_px = _square("image_size", config.image_size)
        self.patch_size = _square("patch_size", config.patch_size)
        side = self.size_px // self.patch_size
        self.grid = (self.num_frames // self.tubelet_size, side, side)
        self.preprocessing = preprocessing.for_model(self.size_px)

    @property
    def blocks(self) -> list[nn.Module]:
        """The encoder's blocks in depth order."""
        return FAMILIES[self.family].blocks(self.model)

    @property
    def embedding(self) -> nn.Module:
        """The module whose output is the tokens (B, N, D) before block 0, positions included."""
        return FAMILIES[self.family].embedding(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def resize_px(self) -> int:
        """Short side of a frame before the centre crop to ``size_px``, as the checkpoint's file says."""
        return self.preprocessing.short_side(self.size_px)

    def prepare(self, clips: torch.Tensor | np.ndarray) -> torch.Tensor:
        """uint8 clips (B, T, H, W, C) -> normalised ``pixel_values`` (B, T, C, size_px, size_px) on the clips' device.

        Clips that are ``size_px`` squares are only normalised; others go through the checkpoint's own resize and crop.
        """
        clips, steps = torch.as_tensor(clips), self.preprocessing
        if tuple(clips.shape[2:4]) == (self.size_px, self.size_px):
            x = to_pixel_values(clips, steps.mean, steps.std, scale=steps.scale)
        else:
            x = steps.pixel_values(clips)
        self._check(x)
        return x

    def forward(self, pixel_values: torch.Tensor) -> Tokens:
        """``pixel_values`` (B, T, C, H, W) -> tokens (B, N, D); raises on another frame count or size."""
        self._check(pixel_values)
        return Tokens(self.model(pixel_values).last_hidden_state, self.grid)

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) -> (B, D): their mean, then the checkpoint's own norm where that comes after the mean."""
        return self.norm(tokens.mean(1))

    def forward_with_attention(self, pixel_values: torch.Tensor) -> tuple[Tokens, tuple[torch.Tensor, ...]]:
        """Tokens and the softmax weights of every layer, each (B, A, N, N), whatever attention is set.

        ``output_attentions=True`` would do neither: sdpa answers with an empty tuple, and transformers 5 leaves its
        capturing hooks in the model for good.
        """
        seen: list[torch.Tensor] = []
        hooks = []
        try:
            for module in FAMILIES[self.family].attentions(self.model):
                hooks.append(module.register_forward_hook(lambda _m, _i, output: seen.append(output[1])))
            with self.attention_implementation("eager"):
                tokens = self(pixel_values)
        finally:
            for hook in hooks:
                hook.remove()
        return tokens, tuple(seen)

    @contextmanager
    def attention_implementation(self, name: str) -> Iterator[None]:
        """Inside, the encoder computes attention with ``name`` ("eager", "sdpa"); afterwards as before."""
        before = self.config._attn_implementation
        try:
            self._set_attention(name)
            yield
        finally:
            self._set_attention(before)

    def _set_attention(self, name: str) -> None:
        self.model.set_attn_implementation(name)
        if self.config._attn_implementation != name:
            raise ValueError(f"{self.family} cannot run attn={name!r}; it stays at {self.config._attn_implementation}")

    def fingerprint(self) -> str:
        """Sixteen hex digits that change when a weight does."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def extra_repr(self) -> str:
        return f"{self.family} from {self.source}: {self.num_frames} frames of {self.size_px} px -> grid {self.grid}"

    def _check(self, pixel_values: torch.Tensor) -> None:
        shape = tuple(pixel_values.shape)
        channels = len(self.preprocessing.mean)
        wanted = (self.num_frames, channels, self.size_px, self.size_px)
        if len(shape) != 5 or shape[1:] != wanted:
            raise ValueError(
                f"{self.source} takes clips of num_frames={self.num_frames} at size_px={self.size_px} with "
                f"{channels} channels: (B, T, C, H, W) = (B, {', '.join(map(str, wanted))}), not {shape}; "
                f"decode with num_frames={self.num_frames}, size_px={self.size_px}"
            )


def load_backbone(
    name_or_path: str | Path, *, weights: str = "pretrained", seed: int = 0, attn: str = "sdpa"
) -> Backbone:
    """A backbone in eval mode on the CPU, in float32.

    ``name_or_path``: ``"nano"`` (packaged), a local folder in Hugging Face format, or a hub id ``owner/name`` (needs a
    network). ``weights="random"``: the same architecture freshly initialised from ``seed``, for training from scratch;
    the global random state is left as it was. Only safetensors are read, and no code from a checkpoint is run.
    Raises FileNotFoundError or ValueError naming what is accepted, OSError when the hub cannot deliver.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} is not one of {', '.join(WEIGHTS)}")
    source = str(name_or_path)
    location = locate(source)
    with readable_errors(source):
        config_dict, _ = PreTrainedConfig.get_config_dict(location)
    family = config_dict.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{source} is a {family!r} model; the families known here are {', '.join(FAMILIES)}")
    preprocessing = read_preprocessing(source, location)

    # Building and loading both draw random numbers (load: for the classifier we drop). CPU generator only, by name:
    # torch.manual_seed would reach into the CUDA generators too.
    with torch.random.fork_rng(devices=[]), quiet(), readable_errors(source):
        torch.default_generator.manual_seed(seed)
        adapter = FAMILIES[family]
        model, norm = adapter.build(config_dict) if weights == "random" else adapter.load(location, config_dict)
    backbone = Backbone(family, source, model, norm, preprocessing=preprocessing)
    backbone._set_attention(attn)
    return backbone.eval()


def _square(name: str, value: int | Sequence[int]) -> int:
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ValueError(f"{name}={value} is not square; only square frames and patches are supported")
    return sides.pop()
