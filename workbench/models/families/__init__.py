"""The families of pretrained encoders. Only the modules in here name one."""

from importlib import import_module

from workbench.models.families.base import Family

# model_type, as config.json has it -> the module here; imported when asked for, since each costs a part of a second.
_MODULES = {
    "videomae": "videomae", "timesformer": "timesformer", "vivit": "vivit", "vjepa2": "vjepa2",
    "vit": "image", "dinov2": "image", "bert": "text", "roberta": "text",
}  # fmt: skip
MODEL_TYPES = tuple(_MODULES)


def family_of(model_type: str) -> Family:
    """The family whose checkpoints say ``model_type``; see :data:`MODEL_TYPES`. Raises ValueError on another."""
    if model_type not in _MODULES:
        raise ValueError(f"model_type={model_type!r} is not known; the families known here are {', '.join(_MODULES)}")
    found: Family = import_module(f"{__name__}.{_MODULES[model_type]}").FAMILIES[model_type]
    return found
