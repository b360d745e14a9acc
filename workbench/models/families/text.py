"""Text encoders over video, the cross-modal setup: BERT (https://arxiv.org/abs/1810.04805) and RoBERTa
(https://arxiv.org/abs/1907.11692), fed tubelets instead of words as in https://arxiv.org/abs/2103.05247."""

import math
from typing import Any

import torch
from torch import nn
from transformers import BertModel, PreTrainedConfig, PreTrainedModel, RobertaModel

from workbench.models.families.base import Family, log
from workbench.models.families.positions import Geometry, Grid
from workbench.models.preprocess import Preprocessing
from workbench.models.tokens import Tokens

DEFAULTS = {"num_frames": 16, "tubelet_size": 2, "image_size": 112, "patch_size": 16}
"""Of a checkpoint that knows no video: 8 x 7 x 7 = 392 tokens, within the 512 that these encoders can place."""


class TubeletEmbeddings(nn.Module):
    """Tubelets through a linear projection, in place of words; the rest as in the text model.

    A tubelet's position is its number in time-major order, as if the clip were read like a text; its token type is 0.
    """

    def __init__(self, config: PreTrainedConfig, text: Any, first_position: int) -> None:
        super().__init__()
        size = (config.tubelet_size, config.patch_size, config.patch_size)
        self.projection = nn.Conv3d(3, config.hidden_size, kernel_size=size, stride=size)
        self.position_embeddings, self.token_type_embeddings = text.position_embeddings, text.token_type_embeddings
        self.LayerNorm, self.dropout = text.LayerNorm, text.dropout
        self.first_position = first_position

    def forward(self, inputs_embeds: torch.Tensor, **_rest: Any) -> torch.Tensor:
        """Pixel values (B, T, C, H, W), under the name that the text model passes on -> (B, N, D)."""
        x = self.projection(inputs_embeds.transpose(1, 2)).flatten(2).transpose(1, 2)  # (B, N, D)
        place = torch.arange(x.shape[1], device=x.device) + self.first_position
        x = x + self.token_type_embeddings.weight[0] + self.position_embeddings(place)
        normed: torch.Tensor = self.dropout(self.LayerNorm(x))
        return normed


class VideoBertModel(BertModel):
    embeddings: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config, add_pooling_layer=False)
        self.embeddings = TubeletEmbeddings(config, self.embeddings, first_position=0)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = getattr(self.embeddings, "word_embeddings", None) or self.embeddings.projection
        return found


class VideoRobertaModel(RobertaModel):
    embeddings: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config, add_pooling_layer=False)
        # Positions up to the padding's number never occur in text.
        self.embeddings = TubeletEmbeddings(config, self.embeddings, first_position=config.pad_token_id + 1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = getattr(self.embeddings, "word_embeddings", None) or self.embeddings.projection
        return found


class Text(Family):
    """Text-pretrained blocks, positions and norms under a new, learned projection of tubelets; no CLS, no words.

    A text checkpoint says nothing of video, so geometry and normalisation are :data:`DEFAULTS` and mean and deviation
    of one half. A clip may have as many tokens as the encoder has positions (mostly 512); more is an error, as is any
    attempt to stretch what was learned of the order of words. The projection is drawn from the seed; a frozen
    backbone leaves it so.
    """

    dispensable = ("embeddings.projection.", "pooler.")
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    pre_norm = False

    def geometry(self, config_dict: dict[str, Any]) -> Geometry:
        say = DEFAULTS | {k: v for k, v in config_dict.items() if k in DEFAULTS}
        return Geometry(
            num_frames=say["num_frames"], tubelet_size=say["tubelet_size"],
            size_px=say["image_size"], patch_size=say["patch_size"],
        )  # fmt: skip

    def config_changes(self, geometry: Geometry) -> dict[str, Any]:
        return {
            "num_frames": geometry.num_frames, "tubelet_size": geometry.tubelet_size,
            "image_size": geometry.size_px, "patch_size": geometry.patch_size,
        }  # fmt: skip

    def check(self, name: str, missing: list[str]) -> None:
        super().check(name, missing)
        if any(k.startswith("embeddings.projection.") for k in missing):
            log.warning("%s was trained on text: the projection of tubelets into it is new and has to be trained", name)

    def forward(self, model: PreTrainedModel, pixel_values: torch.Tensor, grid: Grid) -> Tokens:
        return Tokens(model(inputs_embeds=pixel_values).last_hidden_state, grid)

    def _config(self, config_dict: dict[str, Any], geometry: Geometry) -> Any:
        config = super()._config(config_dict, geometry)
        tokens = math.prod(geometry.grid)
        room = config.max_position_embeddings - (config.pad_token_id + 1 if isinstance(self, RoBERTa) else 0)
        if tokens > room:
            raise ValueError(
                f"num_frames={geometry.num_frames} at size_px={geometry.size_px} makes {tokens} tokens, but this "
                f"{config.model_type} encoder has {room} positions; use fewer frames or a smaller size"
            )
        return config


class BERT(Text):
    model_class = VideoBertModel


class RoBERTa(Text):
    model_class = VideoRobertaModel


FAMILIES = {"bert": BERT(), "roberta": RoBERTa()}
