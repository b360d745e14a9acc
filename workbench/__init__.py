"""Video Transfer Workbench: which way of transferring a pretrained video transformer to your clips works, and why.

``import workbench as wb`` loads nothing heavy; each verb below is imported the first time it is used.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "ClipTable": "data.tables",
    "Task": "data.tables",
    "Protocol": "data.protocol",
    "ClipDecodeError": "data.clips",
    "open_clips": "data.layouts",
    "read_clip": "data.clips",
    "playground": "data.playground",
    "playground_truth": "data.playground",
    "playground_example": "data.playground",
    "load_backbone": "models.backbones",
    "Setup": "training.setup",
    "Run": "training.runs",
    "fine_tune": "training.finetune",
    "sweep": "training.sweep",
    "load_run": "training.runs",
    "predict": "training.predict",
    "evaluate": "analysis.evaluate",
    "compare": "analysis.compare",
    "errors": "analysis.errors",
    "explain": "analysis.explain",
    "ClipPlayer": "views.players",
    "AttentionView": "views.attention_view",
    "ComparisonView": "views.comparison_view",
    "ErrorView": "views.error_view",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}; it offers {sorted(_PUBLIC)}")
    value = getattr(importlib.import_module(f"workbench.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
