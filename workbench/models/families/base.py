"""What a family of encoders has to say about itself; each family's module fills this in."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from workbench.models.families.positions import Geometry, Grid, square
from workbench.models.preprocess import Preprocessing
from workbench.models.probe import Layout, Note
from workbench.models.tokens import Attention, Tokens

log = logging.getLogger(__name__)

State = dict[str, torch.Tensor]
# A module that owns one of these projections computes one softmax, in every family and version of transformers.
_QUERIES = ("query", "q_proj", "qkv")


class Family:
    """An encoder's class, its shapes, where its parts are, and in which order its blocks hold the tokens.

    The defaults suit an encoder whose sequence is the time-major tokens alone, with a learned or computed position for
    each, whose config says ``num_frames``, ``image_size``, ``tubelet_size`` and ``patch_size``, and whose last step is
    its final norm.
    """

    model_class: ClassVar[Any]
    options: ClassVar[dict[str, Any]] = {}
    """Keyword arguments of the class besides the config."""
    implementations: ClassVar[tuple[str, ...]] = ("sdpa", "eager")
    """Of attention; the first is the default."""
    dispensable: ClassVar[tuple[str, ...]] = ()
    """How the names of weights begin that a checkpoint may lack."""
    preprocessing: ClassVar[Preprocessing | None] = None
    """Where a checkpoint of this family need not say."""
    pre_norm: ClassVar[bool] = True
    """Blocks normalise what they read and add to it; False: they normalise the sum, so what goes round them is lost."""

    # -- shapes

    def geometry(self, config_dict: dict[str, Any]) -> Geometry:
        """What the checkpoint's own weights are made for."""
        config = self.model_class.config_class.from_dict(config_dict)
        return Geometry(
            num_frames=config.num_frames, tubelet_size=config.tubelet_size,
            size_px=square("image_size", config.image_size), patch_size=square("patch_size", config.patch_size),
        )  # fmt: skip

    def usual_size(self, own: Geometry, preprocessing: Preprocessing) -> int:
        """The size that the checkpoint is used at, where nobody asks for another."""
        return own.size_px

    def config_changes(self, geometry: Geometry) -> dict[str, Any]:
        """Config entries that say ``geometry``."""
        return {"num_frames": geometry.num_frames, "image_size": geometry.size_px}

    def resize(self, state: State, own: Geometry, wanted: Geometry) -> State | None:
        """Weights for another geometry; None where all fit as they are, because positions are computed."""
        return None

    def warn(self, source: str, own: Geometry, wanted: Geometry) -> None:
        """Log what a user should know about these weights at this geometry."""

    # -- making

    def build(self, config_dict: dict[str, Any], geometry: Geometry) -> tuple[PreTrainedModel, nn.Module]:
        """The encoder and the norm that follows the mean of the tokens, with fresh weights."""
        model = self.model_class(self._config(config_dict, geometry), **self.options)
        return self.finish(model, geometry), nn.Identity()

    def load(
        self, name: str, config_dict: dict[str, Any], own: Geometry, wanted: Geometry
    ) -> tuple[PreTrainedModel, nn.Module]:
        """The same two modules with the checkpoint's weights, made for ``own``, at the geometry ``wanted``."""
        fits = own == wanted or self.resize({}, own, wanted) is None
        model, info = self.model_class.from_pretrained(
            name, config=self._config(config_dict, wanted if fits else own), use_safetensors=True, dtype=torch.float32,
            output_loading_info=True, **self.options,
        )  # fmt: skip
        self.check(name, info["missing_keys"])
        if not fits:
            other = self.model_class(self._config(config_dict, wanted), **self.options)
            other.load_state_dict(self.resize(model.state_dict(), own, wanted))
            model = other
        return self.finish(model, wanted), nn.Identity()

    def check(self, name: str, missing: list[str]) -> None:
        """Raise ValueError where a checkpoint lacks weights that it should have."""
        lost = sorted(k for k in missing if not k.startswith(self.dispensable))
        if lost:
            raise ValueError(
                f"checkpoint {name!r} lacks {len(lost)} encoder weights, for example {lost[:3]}; "
                f"it is not a {type(self).__name__} encoder or is damaged"
            )

    def finish(self, model: PreTrainedModel, geometry: Geometry) -> PreTrainedModel:
        """Take away what never takes part in a forward pass: it would count as trainable and get no gradient."""
        return model

    def save(self, model: PreTrainedModel, norm: nn.Module, folder: Path) -> None:
        """``config.json`` and ``model.safetensors`` from which :meth:`load` makes the same two modules."""
        model.save_pretrained(folder)

    def classifier(self, config_dict: dict[str, Any]) -> PreTrainedModel:
        """A freshly initialised classifier in the family's own format whose head reads the mean of the tokens."""
        raise ValueError(f"{type(self).__name__} has no classifier whose head reads the mean of the tokens")

    def parts(self, model: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module]:
        """Of a classifier: its encoder and the norm after the mean of the tokens."""
        raise ValueError(f"{type(self).__name__} has no classifier whose head reads the mean of the tokens")

    def _config(self, config_dict: dict[str, Any], geometry: Geometry) -> Any:
        return self.model_class.config_class.from_dict(config_dict | self.config_changes(geometry))

    def pooler(self, name: str) -> nn.Module:
        """The attention that pools the tokens in a classifier's checkpoint, tokens (B, N, D) -> (B, D)."""
        raise ValueError(f"{name}: no {type(self).__name__} checkpoint pools its tokens by attention")

    # -- running

    def forward(self, model: PreTrainedModel, pixel_values: torch.Tensor, grid: Grid) -> Tokens:
        """``pixel_values`` (B, T, C, H, W) -> tokens, the final norm applied where it is in the encoder."""
        return self.split(model(pixel_values).last_hidden_state, grid)

    def split(self, hidden: torch.Tensor, grid: Grid) -> Tokens:
        """What a block takes and gives -> tokens in time-major order, prefix apart."""
        return Tokens(hidden, grid)

    def join(self, tokens: Tokens) -> torch.Tensor:
        """The way back: ``join(split(hidden)) == hidden``."""
        return tokens.tokens

    # -- parts

    def blocks(self, model: PreTrainedModel) -> list[nn.Module]:
        """In depth order."""
        for path in ("encoder.layer", "layers", "encoder.layers", "layer"):  # the last ones differ between versions
            parts: Any = model
            for part in path.split("."):
                parts = getattr(parts, part, None)
            if isinstance(parts, nn.ModuleList):
                return list(parts)
        raise ValueError(f"found no blocks in {type(model).__name__}; this version of transformers is not known")

    def embedding(self, model: PreTrainedModel) -> nn.Module:
        """The module whose output block 0 takes, positions included."""
        found: nn.Module = model.embeddings
        return found

    # -- attention

    def attention_modules(self, model: PreTrainedModel) -> list[nn.Module]:
        """The modules that compute a softmax, in the order in which they run."""
        blocks = self.blocks(model)
        return [m for b in blocks for m in b.modules() if {n for n, _ in m.named_children()} & set(_QUERIES)]

    def listen(self, module: nn.Module, note: Callable[[torch.Tensor], None]) -> list[Any]:
        """Hooks that hand ``note`` each softmax that ``module`` computes under eager attention."""
        return [module.register_forward_hook(lambda _m, _i, output: note(output[1]))]

    def layouts(self, model: Any, grid: Grid) -> tuple[Layout, ...]:
        """How each softmax of a forward pass lies in a clip, in the order in which they run."""
        return (Layout("joint", grid),) * len(self.attention_modules(model))

    def watch(self, module: nn.Module, note: Note) -> list[Any]:
        """Hooks that tell ``note`` of a softmax that ``module`` computes without torch's attention function."""
        return []

    def fused(self, module: nn.Module) -> nn.Module | None:
        """Of such a module: the projection to queries, keys and values, one after another."""
        return None

    def attentions(self, model: Any, seen: list[torch.Tensor], grid: Grid) -> tuple[Attention, ...]:
        """The softmaxes of one forward pass, as documented in :mod:`workbench.models.tokens`."""
        return tuple(seen)


class LeadingCLS(Family):
    """A family whose sequence starts with one CLS token."""

    def layouts(self, model: Any, grid: Grid) -> tuple[Layout, ...]:
        return (Layout("joint", grid, prefix=1),) * len(self.attention_modules(model))

    def split(self, hidden: torch.Tensor, grid: Grid) -> Tokens:
        return Tokens(hidden[:, 1:], grid, hidden[:, :1])

    def join(self, tokens: Tokens) -> torch.Tensor:
        assert tokens.prefix is not None
        return torch.cat((tokens.prefix, tokens.tokens), 1)
