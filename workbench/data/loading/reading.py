"""How clips are read, and what identifies one that has been: the bytes of its file, its times and how it was read."""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.data.clips import READER_VERSION, decoder_name
from workbench.data.frames import Sampling, check_views

if TYPE_CHECKING:  # child processes import this module: it must not pull in pandas
    from workbench.data.tables import ClipTable


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How clips are read from files: the arguments of :func:`workbench.data.clips.read_views`, checked when made."""

    num_frames: int
    size_px: int | None
    fit: str = "crop"
    sampling: str = "uniform"
    sampling_rate: int = 1
    fps: float | None = None
    num_clips: int = 1
    num_crops: int = 1
    short: str = "repeat_last"
    resize_px: int | None = None
    decoder: str = "auto"

    def __post_init__(self) -> None:
        Sampling(
            num_frames=self.num_frames, sampling=self.sampling, sampling_rate=self.sampling_rate, fps=self.fps,
            num_clips=self.num_clips, short=self.short,
        )  # fmt: skip
        check_views(self.size_px, self.fit, self.num_crops, self.resize_px)
        object.__setattr__(self, "decoder", decoder_name(self.decoder))
        for name, value in asdict(self).items():
            if isinstance(value, np.generic):  # NumPy's numbers are no JSON
                object.__setattr__(self, name, value.item())
        if self.resize_px == self.size_px:
            object.__setattr__(self, "resize_px", None)  # one way to say it, so that equal readings share entries

    @property
    def views(self) -> int:
        """V: windows along time x crops of each."""
        return self.num_clips * self.num_crops

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(V, T, S, S, 3), or None where each file keeps its own size."""
        return None if self.size_px is None else (self.views, self.num_frames, self.size_px, self.size_px, 3)


class Rows:
    """The rows of a table as something to read: ``item`` says what to read, ``key`` under what name it is kept.

    A row with a value in a column ``decoder`` is read by that decoder, whatever ``reading`` says.
    """

    def __init__(self, table: "ClipTable", reading: Reading) -> None:
        # Absolute, for children and later readers, whose working folder may be another one.
        self.reading, self._root, frame = reading, os.path.abspath(table.root), table.frame
        self._paths = frame["path"].to_numpy()
        self._starts, self._ends = (frame[c].to_numpy(float) for c in ("start_seconds", "end_seconds"))
        self._decoders = frame["decoder"].to_numpy() if "decoder" in frame.columns else None
        self._digests: dict[str, Any] = {}

    def path(self, row: int) -> str:
        return os.path.join(self._root, str(self._paths[row]))

    def item(self, row: int) -> dict[str, Any]:
        """The arguments of :func:`workbench.data.clips.read_views`."""
        start, end = (None if math.isnan(t) else float(t) for t in (self._starts[row], self._ends[row]))
        own = {"path": self.path(row), "start_seconds": start, "end_seconds": end, "decoder": self._decoder(row)}
        return asdict(self.reading) | own

    def key(self, row: int, content: str) -> str:
        """64 hex digits that change with the file's content id, the clip's times, its decoder and how it is read."""
        decoder = self._decoder(row)
        if decoder not in self._digests:
            text = json.dumps([READER_VERSION, asdict(self.reading) | {"decoder": decoder}], sort_keys=True)
            self._digests[decoder] = hashlib.sha256(text.encode())
        digest = self._digests[decoder].copy()
        digest.update(f"{content} {float(self._starts[row])} {float(self._ends[row])}".encode())
        return digest.hexdigest()

    def _decoder(self, row: int) -> str:
        own = None if self._decoders is None else self._decoders[row]
        return decoder_name(own) if isinstance(own, str) and own else self.reading.decoder

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_digests": {}}  # a running digest cannot be copied to another process
