"""Image transformers, frame by frame: ViT (https://arxiv.org/abs/2010.11929) and DINOv2
(https://arxiv.org/abs/2304.07193)."""

from typing import Any

import torch
from transformers import Dinov2Model, PreTrainedModel, ViTModel

from workbench.models.families.base import Family, State
from workbench.models.families.positions import Geometry, Grid, resize_positions, sinusoid, square
from workbench.models.preprocess import Preprocessing
from workbench.models.probe import Layout
from workbench.models.tokens import Attention, DividedAttention, Tokens

DEFAULT_FRAMES = 8
"""Of a checkpoint that knows no frames."""


class PerFrame(Family):
    """Each frame is encoded alone, so blocks hold (B * T, 1 + S, D); then the frames' tokens are joined.

    Time enters after the final norm, as a fixed sinusoid of the frame's number that is added to all its tokens, CLS
    included: a head that attends can tell the frames' order, a mean sees a constant. Any frame count will do. There is
    one CLS token per frame, so the prefix is (B, T, D). Positions in a frame are learned and are interpolated
    bicubically, as the models' own code does it.
    """

    def geometry(self, config_dict: dict[str, Any]) -> Geometry:
        config = self.model_class.config_class.from_dict(config_dict)
        return Geometry(
            num_frames=config_dict.get("num_frames", DEFAULT_FRAMES), tubelet_size=1,
            size_px=square("image_size", config.image_size), patch_size=square("patch_size", config.patch_size),
        )  # fmt: skip

    def resize(self, state: State, own: Geometry, wanted: Geometry) -> State | None:
        name = "embeddings.position_embeddings"
        if own.grid[1:] == wanted.grid[1:]:
            return None
        if not state:
            return {}
        rest = resize_positions(state[name][0, 1:], (1, *own.grid[1:]), (1, *wanted.grid[1:]))
        return state | {name: torch.cat((state[name][0, :1], rest))[None]}

    def finish(self, model: PreTrainedModel, geometry: Geometry) -> PreTrainedModel:
        table = sinusoid(geometry.num_frames, model.config.hidden_size)
        model.register_buffer("temporal_positions", table, persistent=False)
        return model

    def forward(self, model: PreTrainedModel, pixel_values: torch.Tensor, grid: Grid) -> Tokens:
        hidden = model(pixel_values.flatten(0, 1)).last_hidden_state  # (B * T, 1 + S, D)
        hidden = hidden.unflatten(0, (-1, grid[0])) + model.temporal_positions[:, None]  # (B, T, 1 + S, D)
        return self.split(hidden.flatten(0, 1), grid)

    def split(self, hidden: torch.Tensor, grid: Grid) -> Tokens:
        hidden = hidden.unflatten(0, (-1, grid[0]))  # (B, T, 1 + S, D)
        return Tokens(hidden[:, :, 1:].flatten(1, 2), grid, hidden[:, :, 0])

    def join(self, tokens: Tokens) -> torch.Tensor:
        assert tokens.prefix is not None
        places = tokens.tokens.unflatten(1, (tokens.grid[0], -1))  # (B, T, S, D)
        return torch.cat((tokens.prefix[:, :, None], places), 2).flatten(0, 1)

    def layouts(self, model: Any, grid: Grid) -> tuple[Layout, ...]:
        space = Layout("space", grid, prefix=grid[0], shared_prefix=False)
        return (space,) * len(self.attention_modules(model))

    def attentions(self, model: Any, seen: list[torch.Tensor], grid: Grid) -> tuple[Attention, ...]:
        split = (a.unflatten(0, (-1, grid[0])).transpose(1, 2) for a in seen)  # (B, A, T, 1 + S, 1 + S)
        return tuple(DividedAttention(a, "space", prefix=grid[0], shared_prefix=False) for a in split)


class ViT(PerFrame):
    model_class = ViTModel
    options = {"add_pooling_layer": False}


class DINOv2(PerFrame):
    """Its last training step was at 518 px, but it is used at the crop of its preprocessing, mostly 224."""

    model_class = Dinov2Model

    def usual_size(self, own: Geometry, preprocessing: Preprocessing) -> int:
        crop = preprocessing.crop if isinstance(preprocessing.crop, int) else square("crop_size", preprocessing.crop)
        return crop or own.size_px

    def finish(self, model: PreTrainedModel, geometry: Geometry) -> PreTrainedModel:
        model.embeddings.mask_token = None  # for masked pretraining
        model.config.use_mask_token = False
        return super().finish(model, geometry)


FAMILIES = {"vit": ViT(), "dinov2": DINOv2()}
