"""ViViT, model 1 (https://arxiv.org/abs/2103.15691): joint space-time attention; a CLS token first."""

from typing import Any

import torch
from transformers import VivitModel

from workbench.models.families.base import LeadingCLS, State
from workbench.models.families.positions import Geometry, resize_positions, square


class ViViT(LeadingCLS):
    """Learned positions, one per tubelet; they are interpolated bicubically in space and linearly in time.

    The library's own interpolation takes the table for that of a square image and is not used.
    """

    model_class = VivitModel
    options = {"add_pooling_layer": False}

    def geometry(self, config_dict: dict[str, Any]) -> Geometry:
        config = self.model_class.config_class.from_dict(config_dict)
        tubelet, *patch = config.tubelet_size
        return Geometry(
            num_frames=config.num_frames, tubelet_size=tubelet,
            size_px=square("image_size", config.image_size), patch_size=square("tubelet_size[1:]", patch),
        )  # fmt: skip

    def resize(self, state: State, own: Geometry, wanted: Geometry) -> State:
        name = "embeddings.position_embeddings"
        if not state:
            return {}
        cls, rest = state[name][0, :1], state[name][0, 1:]
        return state | {name: torch.cat((cls, resize_positions(rest, own.grid, wanted.grid)))[None]}


FAMILIES = {"vivit": ViViT()}
