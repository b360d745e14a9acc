"""VideoMAE (https://arxiv.org/abs/2203.12602): joint space-time attention, no CLS token, computed positions."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, VideoMAEForVideoClassification, VideoMAEModel

from workbench.models.families.base import Family, log
from workbench.models.families.positions import Geometry


class VideoMAE(Family):
    """With ``use_mean_pooling`` the final norm is the classifier's ``fc_norm``, after the mean, not the encoder's.

    Positions are a sinusoid of a token's place in the time-major sequence, computed by the model itself for any
    geometry. So with other frames the shared time steps keep their codes; at another size every place gets another one.
    """

    model_class = VideoMAEModel
    dispensable = ("classifier.", "fc_norm.")

    def load(
        self, name: str, config_dict: dict[str, Any], own: Geometry, wanted: Geometry
    ) -> tuple[PreTrainedModel, nn.Module]:
        # A head is needed only because fc_norm lives beside it; any number of labels would do.
        model, info = VideoMAEForVideoClassification.from_pretrained(
            name, config=self._config(config_dict, wanted), use_safetensors=True, dtype=torch.float32,
            output_loading_info=True,
        )  # fmt: skip
        self.check(name, info["missing_keys"])
        if any(k.startswith("fc_norm.") for k in info["missing_keys"]):
            log.warning("%s has no fc_norm (no classifier was saved with it): a fresh LayerNorm follows the mean", name)
        return self.parts(model)

    def build(self, config_dict: dict[str, Any], geometry: Geometry) -> tuple[PreTrainedModel, nn.Module]:
        return self.parts(self.classifier(config_dict | self.config_changes(geometry)))

    def warn(self, source: str, own: Geometry, wanted: Geometry) -> None:
        if own.size_px != wanted.size_px:
            log.warning(
                "%s was trained at size_px=%d; at %d its positions are computed anew and every place gets another "
                "code: fine-tune it before trusting it", source, own.size_px, wanted.size_px,
            )  # fmt: skip

    def save(self, model: PreTrainedModel, norm: nn.Module, folder: Path) -> None:
        shell = VideoMAEForVideoClassification(model.config)
        shell.videomae = model
        shell.fc_norm = None if isinstance(norm, nn.Identity) else norm
        kept = {k: v for k, v in shell.state_dict().items() if not k.startswith("classifier.")}
        shell.save_pretrained(folder, state_dict=kept)

    def classifier(self, config_dict: dict[str, Any]) -> PreTrainedModel:
        return VideoMAEForVideoClassification(VideoMAEModel.config_class.from_dict(config_dict))

    def parts(self, model: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module]:
        return model.videomae, model.fc_norm if model.fc_norm is not None else nn.Identity()


FAMILIES = {"videomae": VideoMAE()}
