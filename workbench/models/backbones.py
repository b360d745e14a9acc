"""Pretrained transformers behind one interface: uint8 clips in, tokens out.

What is peculiar to one family of them lies in :mod:`workbench.models.families`.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from workbench.models.families import family_of
from workbench.models.families.positions import Geometry
from workbench.models.hub import locate, preprocessing_record, quiet, read_preprocessing, readable_errors
from workbench.models.preprocess import Preprocessing
from workbench.models.preprocess import to_pixel_values as to_pixel_values
from workbench.models.probe import Probe, Softmax
from workbench.models.tokens import Attention
from workbench.models.tokens import Tokens as Tokens

log = logging.getLogger(__name__)

WEIGHTS = ("pretrained", "random")


def new_classifier(config_dict: dict[str, Any]) -> PreTrainedModel:
    """A fresh classifier of the family that ``config_dict["model_type"]`` names; see :func:`classifier_parts`.

    Raises ValueError where the family has none whose head reads the mean of the tokens.
    """
    return family_of(config_dict["model_type"]).classifier(config_dict)


def classifier_parts(model: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module, nn.Module]:
    """Of such a classifier: its encoder, the norm after the mean of the tokens, and its last linear layer."""
    return *family_of(model.config.model_type).parts(model), model.classifier


class Backbone(nn.Module):
    """An encoder that turns ``pixel_values`` (B, T, C, H, W) into :class:`Tokens` (B, N, D). Made by `load_backbone`.

    ``model`` is the Hugging Face encoder; ``norm`` follows the mean of the tokens (identity where the encoder already
    ends in its norm); ``preprocessing`` is the checkpoint's own. Sizes: ``num_frames``, ``tubelet_size`` (frames),
    ``size_px``, ``patch_size`` (pixels), ``grid`` (T', H', W'), ``hidden_size`` D and ``num_heads`` A.
    """

    def __init__(
        self,
        family: str,
        source: str,
        model: PreTrainedModel,
        norm: nn.Module,
        *,
        geometry: Geometry,
        preprocessing: Preprocessing,
    ) -> None:
        super().__init__()
        self.family, self.source, self.model, self.norm = family, source, model, norm
        config = self.config = model.config
        self.hidden_size: int = config.hidden_size
        self.num_heads: int = config.num_attention_heads
        self.num_frames, self.tubelet_size = geometry.num_frames, geometry.tubelet_size
        self.size_px, self.patch_size, self.grid = geometry.size_px, geometry.patch_size, geometry.grid
        self.preprocessing = preprocessing

    @property
    def blocks(self) -> list[nn.Module]:
        """The encoder's blocks in depth order; some families' give tuples whose first part is the tokens."""
        return family_of(self.family).blocks(self.model)

    @property
    def pre_norm(self) -> bool:
        """Whether a block adds to its input; BERT's and RoBERTa's normalise the sum."""
        return family_of(self.family).pre_norm

    @property
    def embedding(self) -> nn.Module:
        """The module whose output is what block 0 takes, positions included; :meth:`tokens_of` reads it."""
        return family_of(self.family).embedding(self.model)

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
        return family_of(self.family).forward(self.model, pixel_values, self.grid)

    def tokens_of(self, hidden: torch.Tensor) -> Tokens:
        """What a block takes or gives, in the family's own order and shape -> tokens on the grid, prefix apart.

        Time-major (B, N, D) already, for most. TimeSformer: CLS first, then place by place. Image families: frame by
        frame, (B * T, 1 + S, D).
        """
        return family_of(self.family).split(hidden, self.grid)

    def hidden_of(self, tokens: Tokens) -> torch.Tensor:
        """The way back from :meth:`tokens_of`."""
        return family_of(self.family).join(tokens)

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) -> (B, D): their mean, then the checkpoint's own norm where that comes after the mean."""
        return self.norm(tokens.mean(1))

    def forward_with_attention(self, pixel_values: torch.Tensor) -> tuple[Tokens, tuple[Attention, ...]]:
        """Tokens, and each softmax in the order in which the model applies them, whatever attention is set.

        VideoMAE, V-JEPA 2, BERT and RoBERTa: one (B, A, N, N) per block. ViViT, and TimeSformer with joint attention:
        (B, A, 1 + N, 1 + N), CLS first. TimeSformer with divided attention: two
        :class:`~workbench.models.tokens.DividedAttention` per block, along time and then in space. Image families: one
        per block, in space, each frame with its own CLS. Everywhere tokens count in time-major order, as in ``tokens``;
        :func:`~workbench.models.tokens.dense_attentions` makes every one a matrix over all tokens.

        ``output_attentions=True`` would not do: sdpa answers with an empty tuple, TimeSformer leaves out the softmax
        along time, and transformers 5 leaves its capturing hooks in the model for good.
        """
        family = family_of(self.family)
        seen: list[torch.Tensor] = []
        hooks: list[Any] = []
        try:
            for module in family.attention_modules(self.model):
                hooks += family.listen(module, seen.append)
            with self.attention_implementation("eager"):
                tokens = self(pixel_values)
        finally:
            for hook in hooks:
                hook.remove()
        return tokens, family.attentions(self.model, seen, self.grid)

    def forward_recording(
        self, pixel_values: torch.Tensor, *, values: bool = False
    ) -> tuple[Tokens, tuple[Softmax, ...]]:
        """Tokens, and each softmax as its queries and keys, in the order in which the model applies them.

        Runs with torch's own attention function, so long clips fit: the weights are made later, a piece at a time, by
        the :class:`~workbench.models.probe.Softmax`. ``values`` also keeps what a gradient of the weights needs.
        Raises RuntimeError where not every softmax was seen.
        """
        family = family_of(self.family)
        layouts = family.layouts(self.model, self.grid)
        seen: list[Softmax] = []

        def note(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, context: torch.Tensor) -> None:
            if len(seen) == len(layouts):
                raise RuntimeError(
                    f"saw more than the {len(layouts)} softmaxes of {self.family}; its code is not known"
                )
            seen.append(Softmax(q, k, scale, layouts[len(seen)], *((v, context) if values else ())))

        hooks: list[Any] = []
        usual = family.implementations[0]
        try:
            for module in family.attention_modules(self.model):
                hooks += family.watch(module, note)
            with self.attention_implementation(usual), Probe(note):
                tokens = self(pixel_values)
        finally:
            for hook in hooks:
                hook.remove()
        if len(seen) != len(layouts):
            raise RuntimeError(f"saw {len(seen)} of {len(layouts)} softmaxes of {self.family}; its code is not known")
        return tokens, tuple(seen)

    @property
    def fused_projections(self) -> list[nn.Module]:
        """Projections to queries, keys and values in one, of attention that torch's own function does not compute."""
        family = family_of(self.family)
        found = [family.fused(module) for module in family.attention_modules(self.model)]
        return [module for module in found if module is not None]

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
        known = family_of(self.family).implementations
        if name not in known:
            raise ValueError(f"{self.family} cannot run attn={name!r}; it can run {' and '.join(known)}")
        self.model.set_attn_implementation(name)
        if self.config._attn_implementation != name:
            raise ValueError(f"{self.family} cannot run attn={name!r}; it stays at {self.config._attn_implementation}")

    def fingerprint(self) -> str:
        """Sixteen hex digits that change when a weight of the checkpoint does; LoRA beside it does not count."""
        digest = hashlib.sha256()
        own = {n.replace(".base_layer.", "."): v for n, v in self.state_dict().items() if ".lora_" not in n}
        for name, value in sorted(own.items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, folder: str | Path) -> Path:
        """The encoder in Hugging Face format, from which :func:`load_backbone` makes the same backbone.

        ``config.json`` (with this backbone's own geometry), ``model.safetensors``, ``preprocessor_config.json``. Not
        among it: a classifier's head, and what a forward pass never uses, such as a text encoder's words.
        """
        folder = Path(folder)
        with quiet():
            family_of(self.family).save(self.model, self.norm, folder)
        record = preprocessing_record(self.preprocessing)
        (folder / "preprocessor_config.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return folder

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
    name_or_path: str | Path, *, weights: str = "pretrained", seed: int = 0, attn: str | None = None,
    num_frames: int | None = None, size_px: int | None = None,
) -> Backbone:  # fmt: skip
    """A backbone in eval mode on the CPU, in float32.

    ``name_or_path``: ``"nano"`` (packaged), a local folder in Hugging Face format, or a hub id ``owner/name`` (needs a
    network). ``weights="random"``: the same architecture freshly initialised from ``seed``, for training from scratch;
    the global random state is left as it was. ``seed`` also draws what a checkpoint lacks (a text encoder's projection
    of tubelets). ``attn``: ``sdpa`` or ``eager``; None takes the fastest that the family has.

    ``num_frames``, ``size_px``: another geometry than the checkpoint's; its preprocessing is scaled with the size.
    Positions follow by the family's own rule: computed anew for VideoMAE (sinusoids of the place in the sequence) and
    V-JEPA 2 (rotary), interpolated for ViT, DINOv2 (bicubic), ViViT (bicubic in space, linear in time) and TimeSformer
    (nearest); image families take any frame count; BERT and RoBERTa take as many tokens as they have positions.

    Only safetensors are read, and no code from a checkpoint is run. Raises FileNotFoundError or ValueError naming what
    is accepted, OSError when the hub cannot deliver.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} is not one of {', '.join(WEIGHTS)}")
    source = str(name_or_path)
    location = locate(source)
    with readable_errors(source):
        config_dict, _ = PreTrainedConfig.get_config_dict(location)
    try:
        family = family_of(str(config_dict.get("model_type")))
        own = family.geometry(config_dict)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    preprocessing = read_preprocessing(source, location, default=family.preprocessing)
    usual = family.usual_size(own, preprocessing)
    wanted = own.changed(num_frames, usual if size_px is None else size_px)

    # Building and loading both draw random numbers (load: for the classifier we drop). CPU generator only, by name:
    # torch.manual_seed would reach into the CUDA generators too.
    with torch.random.fork_rng(devices=[]), quiet(), readable_errors(source):
        torch.default_generator.manual_seed(seed)
        if weights == "random":
            model, norm = family.build(config_dict, wanted)
        else:
            model, norm = family.load(location, config_dict, own, wanted)
            family.warn(source, own, wanted)
    backbone = Backbone(
        config_dict["model_type"], source, model, norm, geometry=wanted,
        preprocessing=_scaled(preprocessing.for_model(usual), usual, wanted.size_px),
    )  # fmt: skip
    backbone._set_attention(attn or family.implementations[0])
    return backbone.eval()


@torch.no_grad()
def pooler_attention(name_or_path: str | Path, tokens: Tokens) -> torch.Tensor:
    """Where the attentive pooler of a classifier's checkpoint (V-JEPA 2) looks: (B, A, N), sums to 1 over N.

    ``tokens``: what the backbone of that checkpoint made of the clips, which is all that :func:`load_backbone` keeps.
    Raises ValueError where the checkpoint has no such pooler.
    """
    source = str(name_or_path)
    location = locate(source)
    with readable_errors(source):
        config_dict, _ = PreTrainedConfig.get_config_dict(location)
    seen: list[torch.Tensor] = []

    def note(q: torch.Tensor, k: torch.Tensor, _v: torch.Tensor, scale: float, _context: torch.Tensor) -> None:
        seen[:] = [(q * scale @ k.transpose(-1, -2)).softmax(-1)]  # its last attention is the query's

    with quiet(), torch.random.fork_rng(devices=[]), readable_errors(source):
        pooler = family_of(str(config_dict.get("model_type"))).pooler(location)
    with Probe(note):
        pooler.to(tokens.tokens.device)(tokens.tokens)
    if not seen:
        raise RuntimeError(f"saw no attention in the pooler of {source}; its code is not known")
    return seen[0][:, :, 0]


def _scaled(preprocessing: Preprocessing, usual: int, size_px: int) -> Preprocessing:
    """The same share of a frame, at another size."""

    def scale(side: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        if isinstance(side, tuple):
            return round(side[0] * size_px / usual), round(side[1] * size_px / usual)
        return None if side is None else round(side * size_px / usual)

    return replace(preprocessing, resize=scale(preprocessing.resize), crop=scale(preprocessing.crop))
