"""How a number was made. Two numbers are comparable only under the same protocol."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from workbench.data.frames import Sampling, check_views


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
    """``uniform``, ``dense``, ``fps`` or ``single``: :mod:`workbench.data.frames` works each by hand."""
    sampling_rate: int = 1
    """``dense``: step between kept frames, in frames."""
    fps: float | None = None
    """``fps``: kept frames per second."""
    short: str = "repeat_last"
    """What a clip shorter than its window does: ``repeat_last``, ``wrap`` or ``error``."""
    fit: str = "crop"
    """How another aspect ratio becomes a square: ``crop`` (centre), ``pad`` (black bars) or ``stretch``."""
    resize_px: int | None = None
    """Short side before the crop, where it is more than ``size_px``."""
    decoder: str = "decord"
    split: str = "test"
    level: str = "clip"
    """``clip``: one score per clip from one view. ``video``: probabilities averaged over ``num_clips`` x ``num_crops``
    views of it."""
    num_clips: int = 1
    """Windows along time."""
    num_crops: int = 1
    """Squares per window: 1 (the centre) or 3 (along the long side)."""

    def __post_init__(self) -> None:
        if self.level not in ("clip", "video"):
            raise ValueError(f"level={self.level!r} is not one of clip, video")
        if self.resize_px == self.size_px:
            object.__setattr__(self, "resize_px", None)  # one way to say it, so that equal protocols compare equal
        Sampling(
            num_frames=self.num_frames, sampling=self.sampling, sampling_rate=self.sampling_rate, fps=self.fps,
            num_clips=self.num_clips, short=self.short,
        )  # fmt: skip
        check_views(self.size_px, self.fit, self.num_crops, self.resize_px)
        if (self.level == "video") != (self.num_clips * self.num_crops > 1):
            raise ValueError(
                f"level={self.level!r} with {self.num_clips}x{self.num_crops} view(s): several views make a "
                "video-level score, one view a clip-level score"
            )

    def reading(self) -> dict[str, Any]:
        """The keyword arguments of :func:`workbench.data.clips.read_views` that read a clip this way."""
        names = ("num_frames", "size_px", "fit", "sampling", "sampling_rate", "fps", "num_clips", "num_crops", "short",
                 "resize_px", "decoder")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def differences(self, other: "Protocol") -> list[str]:
        """Lines ``field: mine against theirs`` for each field that differs; empty when comparable."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{f.name}: {mine[f.name]} against {theirs[f.name]}" for f in fields(self) if mine[f.name] != theirs[f.name]
        ]

    def describe(self) -> str:
        """One line for a table or a caption."""
        how = {"dense": f"dense (step {self.sampling_rate})", "fps": f"{self.fps:g}-a-second" if self.fps else ""}
        sampling = how.get(self.sampling, self.sampling) + (
            "" if self.short == "repeat_last" else f", short: {self.short}"
        )
        size = f"{self.size_px} px" + (f" of {self.resize_px}" if self.resize_px else "")
        return (
            f"{self.level}-level, {self.num_clips}x{self.num_crops} view(s) of {self.num_frames} {sampling} "
            f"frames at {size} ({self.fit}), {self.decoder}, {self.split} split"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
