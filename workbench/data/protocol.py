"""How a number was made. Two numbers are comparable only under the same protocol."""

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything between a video file and a metric that is not the model.

    Gaps of 5 to 10 points between published video scores were traced to clip- against video-level scores and to
    frame rate (pytorch/vision#6241), so every metric carries this record.
    """

    num_frames: int
    """Frames the model sees per clip."""
    size_px: int
    """Height and width of the frames the model sees."""
    sampling: str = "uniform"
    """``uniform``: frame ``floor((i + 0.5) * n / num_frames)`` of the clip's ``n`` frames.
    ``single``: the middle one of those frames, repeated; the baseline that sees no motion."""
    fit: str = "crop"
    """How another aspect ratio becomes a square: ``crop`` (centre), ``pad`` (black bars) or ``stretch``."""
    decoder: str = "decord"
    split: str = "test"
    level: str = "clip"
    """``clip``: one score per clip. ``video``: scores averaged over the clips of one video."""
    num_clips: int = 1
    num_crops: int = 1

    def __post_init__(self) -> None:
        choices = {
            "sampling": ("uniform", "single"),
            "fit": ("crop", "pad", "stretch"),
            "level": ("clip", "video"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("num_frames", "size_px", "num_clips", "num_crops"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def differences(self, other: "Protocol") -> list[str]:
        """Lines ``field: mine against theirs`` for each field that differs; empty when comparable."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{f.name}: {mine[f.name]} against {theirs[f.name]}" for f in fields(self) if mine[f.name] != theirs[f.name]
        ]

    def describe(self) -> str:
        """One line for a table or a caption."""
        return (
            f"{self.level}-level, {self.num_clips}x{self.num_crops} view(s) of {self.num_frames} {self.sampling} "
            f"frames at {self.size_px} px ({self.fit}), {self.decoder}, {self.split} split"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
