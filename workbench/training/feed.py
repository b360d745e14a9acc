"""Decoded clips and encoded targets of one table, as the training loop wants them."""

from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Feed:
    """``train`` may hold more and larger frames than shown (see :mod:`workbench.data.augment`); ``val`` and ``test``
    are exactly the protocol's."""

    train: DecodedClips
    val: DecodedClips
    test: DecodedClips | None
    protocol: Protocol

    def quarantined(self) -> list[dict[str, str]]:
        """Every clip that was left out, with its reason."""
        parts = [part.table.quarantine for part in (self.train, self.val, self.test) if part is not None]
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
    T, size = backbone.num_frames, backbone.size_px
    many = setup.augment and setup.sampling != "single"

    def decoded(part: ClipTable, num_frames: int, size_px: int) -> DecodedClips:
        return decode_table(
            part, num_frames=num_frames, size_px=size_px, fit=setup.fit, sampling=setup.sampling, decoder=setup.decoder,
            workers=workers, progress=progress,
        )  # fmt: skip

    train = decoded(table.train, T * OVERSAMPLE if many else T, round(size * MARGIN) if setup.augment else size)
    val = decoded(table.val, T, size)
    test = decoded(table.test, T, size) if (table.frame.split == "test").any() else None
    protocol = Protocol(
        num_frames=T, size_px=size, sampling=setup.sampling, fit=setup.fit, decoder=train.decoder, split="test"
    )
    return Feed(train, val, test, protocol)


class ClipSet(Dataset[tuple[Tensor, Tensor]]):
    """(clip uint8 (T, H, W, C), targets float64 (tasks,) with NaN where missing)."""

    def __init__(self, decoded: DecodedClips) -> None:
        self.clips = decoded.clips
        self.targets = targets_of(decoded.table)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(np.array(self.clips[i])), self.targets[i]


def targets_of(table: ClipTable) -> Tensor:
    """float64 (n, tasks), NaN where missing."""
    return torch.from_numpy(np.stack([table.targets(task.name) for task in table.tasks], axis=1))


class EpochOrder(Sampler[int]):
    """A shuffle that depends on (seed, epoch) alone, so that a resumed run sees what an unbroken one would."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.epoch = n, seed, 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng([self.seed, self.epoch]).permutation(self.n).tolist()


def loader(decoded: DecodedClips, order: EpochOrder, batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches from the memory map; no loader processes, since reading is a memcpy."""
    return DataLoader(ClipSet(decoded), batch_size=batch_size, sampler=order)
