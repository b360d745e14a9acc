"""Features of a run's clips, as its encoder sees them or as it saw them before it was trained."""

from dataclasses import replace
from typing import Any

from workbench.data.tables import ClipTable
from workbench.models.backbones import load_backbone
from workbench.training.predict import pick_device
from workbench.training.probing.features import Features, features_of


def run_features(
    run: Any, clips: ClipTable, *, trained: bool = True, device: str = "auto", workers: int = 2, progress: bool = True
) -> Features:
    """Pooled features of every clip, (n, 1, D), read as the run's protocol says (its centre view), from the store where
    they are in it. ``trained=False``: of the backbone as it was before training, which has seen no label.

    Raises TypeError for predictions without weights.
    """
    if not hasattr(run, "model") or not hasattr(run, "setup"):
        raise TypeError(
            f"{getattr(run, 'name', run)!r} holds predictions without weights, so there is nothing to encode clips "
            "with; give a run (wb.load_run), or features that you have"
        )
    if trained:
        backbone = run.model().backbone
    else:
        setup = run.setup
        backbone = load_backbone(setup.backbone, num_frames=setup.num_frames, size_px=setup.size_px)
    reading = replace(run.protocol, num_clips=1, num_crops=1, level="clip")
    where = pick_device(device)
    return features_of(backbone, clips, reading=reading, device=where, workers=workers, progress=progress)
