"""V-JEPA 2 (https://arxiv.org/abs/2506.09985): joint space-time attention with rotary positions, no CLS token."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, VJEPA2ForVideoClassification, VJEPA2Model

from workbench.models.families.base import Family
from workbench.models.families.positions import Geometry, Grid, square
from workbench.models.tokens import Tokens


class VJEPA2(Family):
    """Positions are rotations of queries and keys by row, column and time step, computed for any geometry.

    Only the encoder is kept; the predictor of pretraining is not, nor a classifier's attentive pooler. Blocks return
    tuples whose first part is the tokens.
    """

    model_class = VJEPA2Model
    dispensable = ("predictor.",)

    def geometry(self, config_dict: dict[str, Any]) -> Geometry:
        config = self.model_class.config_class.from_dict(config_dict)
        return Geometry(
            num_frames=config.frames_per_clip, tubelet_size=config.tubelet_size,
            size_px=config.crop_size, patch_size=square("patch_size", config.patch_size),
        )  # fmt: skip

    def config_changes(self, geometry: Geometry) -> dict[str, Any]:
        # The grid in which the rotations count is the config's: a larger clip under the old one would be misplaced.
        return {"frames_per_clip": geometry.num_frames, "crop_size": geometry.size_px}

    def finish(self, model: PreTrainedModel, geometry: Geometry) -> PreTrainedModel:
        model.predictor = nn.Identity()
        return model

    def forward(self, model: PreTrainedModel, pixel_values: torch.Tensor, grid: Grid) -> Tokens:
        return self.split(model.encoder(pixel_values).last_hidden_state, grid)

    def pooler(self, name: str) -> nn.Module:
        model, info = VJEPA2ForVideoClassification.from_pretrained(
            name, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        if any(k.startswith("pooler.") for k in info["missing_keys"]):
            raise ValueError(f"{name}: this checkpoint has no attentive pooler, only an encoder; use a classifier's")
        found: nn.Module = model.pooler.eval()
        return found

    def embedding(self, model: PreTrainedModel) -> nn.Module:
        found: nn.Module = model.encoder.embeddings
        return found


FAMILIES = {"vjepa2": VJEPA2()}
