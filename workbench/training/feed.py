"""Decoded clips and encoded targets of one table, as the training loop wants them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from workbench.data.augment import MARGIN, OVERSAMPLE
from workbench.data.cache import DecodedClips, decode_table
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable
from workbench.models.backbones import Backbone
from workbench.training.setup import Setup

TRAIN_WINDOWS = 4
"""Windows stored per training clip where ``dense`` or ``fps`` sampling shows a part of it: from the first that fits to
the last; each epoch sees a random one, so that nothing is decoded again."""


@dataclass(frozen=True)
class Feed:
    """``train`` may hold more and larger frames than shown (see :mod:`workbench.data.augment`), or several windows;
    ``val`` is the centre view of each clip, watched during training; ``val_views`` and ``test`` are the protocol's."""

    train: DecodedClips
    val: DecodedClips
    val_views: DecodedClips
    test: DecodedClips | None
    protocol: Protocol

    def quarantined(self) -> list[dict[str, str]]:
        """Every clip that was left out, with its reason."""
        read = (self.train, self.val, self.val_views, self.test)
        parts = [part.table.quarantine for part in read if part is not None]
        rows = {row["clip_id"]: row for part in parts for row in part.to_dict("records")}
        return [{key: str(row[key]) for key in ("clip_id", "path", "reason")} for row in rows.values()]


def feed(table: ClipTable, setup: Setup, backbone: Backbone, *, workers: int, progress: bool) -> Feed:
    """Decode what a run needs (once; later runs find it in the cache). Raises ValueError on an empty train or val
    split."""
    for split, what in (("train", "train on"), ("val", "watch the training by")):
        if not (table.frame.split == split).any():
            raise ValueError(
                f"{table.info.name!r} has no {split} clips to {what}; split it, for example with "
                "open_clips(..., fractions=(.7, .15, .15)) or workbench.data.splits.split_by_group"
            )
    wanted = protocol_of(setup, backbone)
    one_view = replace(wanted, num_clips=1, num_crops=1, level="clip")

    def decoded(part: ClipTable, how: Protocol, **changes: Any) -> DecodedClips:
        return decode_table(part, **{**how.reading(), **changes}, workers=workers, progress=progress)

    train = decoded(table.train, one_view, **_train_reading(setup, one_view))
    val = decoded(table.val, one_view)
    val_views = decoded(table.val, wanted) if wanted.level == "video" else val
    test = decoded(table.test, wanted) if (table.frame.split == "test").any() else None
    return Feed(train, val, val_views, test, replace(wanted, decoder=train.decoder))


def protocol_of(setup: Setup, backbone: Backbone) -> Protocol:
    """How a run of this setup reads the clips it is scored on."""
    several = setup.test_clips * setup.test_crops > 1
    return Protocol(
        num_frames=backbone.num_frames, size_px=backbone.size_px, sampling=setup.sampling, fit=setup.fit,
        sampling_rate=setup.sampling_rate, fps=setup.fps, short=setup.short,
        resize_px=backbone.resize_px if setup.fit == "crop" else None, decoder=setup.decoder,
        num_clips=setup.test_clips, num_crops=setup.test_crops, level="video" if several else "clip",
    )  # fmt: skip


def _train_reading(setup: Setup, shown: Protocol) -> dict[str, Any]:
    """What training stores beyond what it shows: neighbouring frames, other windows, a margin for the crop."""
    if not setup.augment:
        return {}
    larger = {"size_px": round(shown.size_px * MARGIN), "resize_px": None}
    if setup.sampling == "uniform" and setup.short != "error":
        return larger | {"num_frames": shown.num_frames * OVERSAMPLE}
    return larger | ({"num_clips": TRAIN_WINDOWS} if setup.sampling in ("dense", "fps") else {})


class ClipSet(Dataset[tuple[Tensor, Tensor]]):
    """(clip uint8 (T, H, W, C), targets float64 (tasks,) with NaN where missing); with ``windows`` stored per clip,
    item ``i * windows + w`` is window ``w`` of clip ``i``."""

    def __init__(self, decoded: DecodedClips) -> None:
        self.clips = decoded.clips
        self.windows = self.clips.shape[1] if self.clips.ndim == 6 else 1
        self.targets = targets_of(decoded.table)

    def __len__(self) -> int:
        return len(self.clips) * self.windows

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """A batch at once, as PyTorch's loader asks for it: what is not stored is then decoded side by side."""
        rows, windows = np.divmod(np.asarray(items, np.int64), self.windows)
        clips = np.asarray(self.clips[rows] if self.windows == 1 else self.clips[rows, windows])
        return list(zip(torch.from_numpy(clips), self.targets[rows], strict=True))


def targets_of(table: ClipTable) -> Tensor:
    """float64 (n, tasks), NaN where missing."""
    return torch.from_numpy(np.stack([table.targets(task.name) for task in table.tasks], axis=1))


class EpochOrder(Sampler[int]):
    """Each clip once, by a random one of its ``windows``, in an order that depends on (seed, epoch) alone, so that a
    resumed run sees what an unbroken one would."""

    def __init__(self, n: int, seed: int, windows: int = 1) -> None:
        self.n, self.seed, self.windows, self.epoch = n, seed, windows, 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.n)
        yield from (order * self.windows + rng.integers(self.windows, size=self.n)).tolist()


def loader(decoded: DecodedClips, seed: int, batch_size: int) -> tuple[DataLoader[tuple[Tensor, Tensor]], EpochOrder]:
    """Batches from the stored clips, and their order; no loader processes, since reading is a memcpy."""
    clips = ClipSet(decoded)
    order = EpochOrder(len(decoded), seed, clips.windows)
    return DataLoader(clips, batch_size=batch_size, sampler=order), order
