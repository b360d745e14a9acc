"""Decoded clips, or features of them, and encoded targets of one table, as the training loop wants them."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from workbench.data.augment import Augment
from workbench.data.cache import DecodedClips, decode_table
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable
from workbench.data.tasks import target_slices
from workbench.models.backbones import Backbone
from workbench.models.strategies import parse_strategy
from workbench.training.probing.encoding import TRAIN_WINDOWS as TRAIN_WINDOWS
from workbench.training.probing.encoding import wider
from workbench.training.probing.features import Features, features_of, kind_for
from workbench.training.setup import Setup
from workbench.training.task_sampling import task_balanced

log = logging.getLogger(__name__)

FEATURE_VIEWS = 5
"""Views stored per training clip of a frozen backbone where the setup augments: the plain one and four random ones."""


@dataclass(frozen=True)
class Feed:
    """What a run reads: clips, or where the backbone is frozen their features.

    Clips of ``train`` may have more and larger frames than shown (see :mod:`workbench.data.augment`), or several
    windows; its features are of several views. ``val`` is the centre view of each clip, watched during training;
    ``val_views`` and ``test`` are the protocol's."""

    train: DecodedClips | Features
    val: DecodedClips | Features
    val_views: DecodedClips | Features
    test: DecodedClips | Features | None
    protocol: Protocol

    @property
    def encode_seconds(self) -> float:
        """Time that the backbone took to compute the features; 0 without any, or where all of them were stored."""
        parts = {id(part): part for part in (self.train, self.val, self.val_views, self.test)}
        return sum(part.encode_seconds for part in parts.values() if isinstance(part, Features))

    def quarantined(self) -> list[dict[str, str]]:
        """Every clip that was left out, with its reason."""
        read = (self.train, self.val, self.val_views, self.test)
        parts = [part.table.quarantine for part in read if part is not None]
        rows = {row["clip_id"]: row for part in parts for row in part.to_dict("records")}
        return [{key: str(row[key]) for key in ("clip_id", "path", "reason")} for row in rows.values()]


def feed(
    table: ClipTable, setup: Setup, backbone: Backbone, *, workers: int, progress: bool, precision: str = "fp32"
) -> Feed:
    """Decode what a run needs and, where its backbone is frozen, encode it (once; later runs find it in the store).

    The features of train are computed in ``precision``, in which the setup trains; those of val and test in float32, in
    which a run predicts. Tokens that cannot be stored are left to the ordinary way, with a warning. Raises ValueError
    on an empty train or val split.
    """
    _check_splits(table)
    if stored_views(setup):
        try:
            return feature_feed(table, setup, backbone, workers=workers, progress=progress, precision=precision)
        except (MemoryError, OverflowError) as error:
            log.warning("%s: features are not stored, each step encodes its clips: %s", table.info.name, error)
    wanted = protocol_of(setup, backbone)
    one_view = replace(wanted, num_clips=1, num_crops=1, level="clip")

    def decoded(part: ClipTable, how: Protocol, **changes: Any) -> DecodedClips:
        return decode_table(part, **{**how.reading(), **changes}, workers=workers, progress=progress)

    train = decoded(table.train, one_view, **(wider(one_view) if setup.augment else {}))
    val = decoded(table.val, one_view)
    val_views = decoded(table.val, wanted) if wanted.level == "video" else val
    test = decoded(table.test, wanted) if (table.frame.split == "test").any() else None
    return Feed(train, val, val_views, test, replace(wanted, decoder=train.decoder))


def feature_feed(
    table: ClipTable, setup: Setup, backbone: Backbone, *, workers: int, progress: bool, precision: str = "fp32"
) -> Feed:
    """:func:`feed` of a frozen strategy: features throughout, or MemoryError or OverflowError where tokens cannot be
    stored (see :func:`~workbench.training.probing.features.features_of`)."""
    _check_splits(table)
    wanted, views = protocol_of(setup, backbone), stored_views(setup)
    one_view = replace(wanted, num_clips=1, num_crops=1, level="clip")
    kind = kind_for(parse_strategy(setup.strategy).head)

    def encoded(part: ClipTable, how: Protocol, **changes: Any) -> Features:
        return features_of(backbone, part, reading=how, kind=kind, workers=workers, progress=progress, **changes)

    augment = augment_of(setup, backbone, flip=table.info.horizontal_flip, reverse=table.info.time_reversal)
    # Drawn from seed 0 whatever the setup's: the views are part of the data, so that seeds share them.
    train = encoded(table.train, one_view, views=views, augment=augment, precision=precision)
    val = encoded(table.val, one_view)
    val_views = encoded(table.val, wanted) if wanted.level == "video" else val
    test = encoded(table.test, wanted) if (table.frame.split == "test").any() else None
    return Feed(train, val, val_views, test, replace(wanted, decoder=train.decoder))


def _check_splits(table: ClipTable) -> None:
    for split, what in (("train", "train on"), ("val", "watch the training by")):
        if not (table.frame.split == split).any():
            raise ValueError(
                f"{table.info.name!r} has no {split} clips to {what}; split it, for example with "
                "open_clips(..., fractions=(.7, .15, .15)) or workbench.data.splits.split_by_group"
            )


def stored_views(setup: Setup) -> int:
    """How many views per training clip a setup trains on as stored features; 0: it encodes clips at each step.

    That is where the backbone trains, where ``feature_views=0`` says so, and where clips are mixed with each other.
    """
    if not parse_strategy(setup.strategy).frozen or setup.feature_views == 0:
        return 0
    if setup.mixup or setup.cutmix:
        log.info("mixup=%g, cutmix=%g: mixed clips are encoded at each step", setup.mixup, setup.cutmix)
        return 0
    return setup.feature_views or (FEATURE_VIEWS if setup.augment else 1)


def augment_of(setup: Setup, backbone: Backbone, *, flip: bool, reverse: bool) -> Augment:
    """The random views that a setup trains on. ``flip``, ``reverse``: whether the labels survive these."""
    return Augment(
        num_frames=backbone.num_frames, size_px=backbone.size_px, crop_scale=(setup.crop_scale, 1.0),
        flip=flip, reverse=reverse,
        rand_augment=setup.rand_augment, magnitude=setup.magnitude, erasing=setup.erasing,
    )  # fmt: skip


def protocol_of(setup: Setup, backbone: Backbone) -> Protocol:
    """How a run of this setup reads the clips it is scored on."""
    several = setup.test_clips * setup.test_crops > 1
    return Protocol(
        num_frames=backbone.num_frames, size_px=backbone.size_px, sampling=setup.sampling, fit=setup.fit,
        sampling_rate=setup.sampling_rate, fps=setup.fps, short=setup.short,
        resize_px=backbone.resize_px if setup.fit == "crop" else None, decoder=setup.decoder,
        num_clips=setup.test_clips, num_crops=setup.test_crops, level="video" if several else "clip",
    )  # fmt: skip


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


class FeatureSet(Dataset[tuple[Tensor, Tensor]]):
    """(features (D,) or (N, D) in their stored type, targets); item ``i * views + v`` is view ``v`` of clip ``i``."""

    def __init__(self, features: Features) -> None:
        self.features, self.windows = features, features.views
        self.targets = targets_of(features.table)

    def __len__(self) -> int:
        return len(self.features) * self.windows

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        rows, views = np.divmod(np.asarray(items, np.int64), self.windows)
        return list(zip(self.features.take(rows, views), self.targets[rows], strict=True))


def targets_of(table: ClipTable) -> Tensor:
    """float64 (n, columns), NaN where missing: one column per task, K of a multilabel one."""
    columns = [table.targets(task.name).reshape(len(table), task.num_targets) for task in table.tasks]
    return torch.from_numpy(np.concatenate(columns, axis=1))


class EpochOrder(Sampler[int]):
    """The clips of an epoch, each by a random one of its ``windows``, in an order that depends on (seed, epoch) alone,
    so that a resumed run sees what an unbroken one would.

    Each clip once; with ``chances`` (n,), which sum to 1, n of them, clip i ``n * chances[i]`` times, rounded up or
    down by chance.
    """

    def __init__(self, n: int, seed: int, windows: int = 1, chances: np.ndarray | None = None) -> None:
        self.n, self.seed, self.windows, self.epoch = n, seed, windows, 0
        self.chances = chances

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.n)
        if self.chances is not None:  # systematic sampling: one draw, and equal steps through the shuffled clips
            ends = np.cumsum(self.chances[order])
            picks = (np.arange(self.n) + rng.random()) / self.n * ends[-1]
            order = rng.permutation(order[np.searchsorted(ends, picks, side="right")])
        yield from (order * self.windows + rng.integers(self.windows, size=self.n)).tolist()


def loader(
    part: DecodedClips | Features, seed: int, batch_size: int, *, task_sampling: str = "proportional"
) -> tuple[DataLoader[tuple[Tensor, Tensor]], EpochOrder]:
    """Batches from the stored clips or features, and their order; no loader processes, since reading is a memcpy.
    ``task_sampling`` as in :class:`~workbench.training.setup.Setup`."""
    items = FeatureSet(part) if isinstance(part, Features) else ClipSet(part)
    chances = None
    if task_sampling == "balanced":
        columns = target_slices(part.table.tasks).values()
        known = ~torch.isnan(items.targets)
        chances = task_balanced(torch.stack([known[:, where].any(1) for where in columns], dim=1).numpy())
    order = EpochOrder(len(part), seed, items.windows, chances)
    return DataLoader(items, batch_size=batch_size, sampler=order), order
