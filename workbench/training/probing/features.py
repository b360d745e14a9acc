"""Features of a frozen backbone, computed once per clip and view and kept on disk beside the decoded clips.

They share the store of decoded clips (:mod:`workbench.data.loading.store`): its bound ``$WORKBENCH_CACHE_GB``, its
eviction of what was used longest ago, its checks when read, and its writing of entries whole or not at all, by any
number of processes.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.data.augment import Augment
from workbench.data.cache import reason_of, without
from workbench.data.loading.reading import Reading
from workbench.data.loading.store import Store, entry_bytes
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable
from workbench.models.backbones import Backbone, Tokens
from workbench.models.tml import TML
from workbench.training.probing.encoding import KINDS, Encoder

log = logging.getLogger(__name__)
_again = threading.Lock()  # an encoder streams for one thread at a time


class FeatureArray:
    """Tokens of n clips as a read-only array, float16 (n, V, N, D), read from the store when they are indexed.

    An entry that was evicted or damaged since is encoded again; RuntimeError where that fails, or where the backbone
    has changed since.
    """

    def __init__(self, encoder: Encoder, rows: Sequence[int], keys: Sequence[Sequence[str | None]]) -> None:
        self._encoder, self._store, self._rows, self._keys = encoder, encoder.store, list(rows), keys
        self.shape, self.dtype = (len(self._rows), encoder.stops[-1], *encoder.shapes[0][1:]), encoder.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"FeatureArray {self.shape} {self.dtype.name} in {self._store.folder}"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("features lie on disk: they cannot become an array without a copy")
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> np.ndarray:
        """As NumPy indexes, for a number, a slice or positions of clips, or a pair (clips, views) of equal length."""
        if isinstance(index, tuple) and len(index) == 2:
            return self.take(index[0], index[1])
        if isinstance(index, tuple | type(None) | type(Ellipsis)):
            raise IndexError(f"features[{index!r}]: give positions of clips, or (clips, views); np.asarray reads all")
        rows = np.arange(len(self))[index]
        flat = rows.reshape(-1)
        views = np.arange(self.shape[1])
        found = self.take(np.repeat(flat, len(views)), np.tile(views, len(flat)))
        return found.reshape(*rows.shape, *self.shape[1:])

    def take(self, rows: Any, views: Any) -> np.ndarray:
        """(k, N, D): view ``views[j]`` of clip ``rows[j]``."""
        rows, views = np.atleast_1d(rows), np.atleast_1d(views)
        out = np.empty((len(rows), *self.shape[2:]), self.dtype)
        plain = self._encoder.shapes[0][0]
        entry, held = np.empty((plain, *self.shape[2:]), self.dtype), -1
        for j, (row, view) in enumerate(zip(rows.tolist(), views.tolist(), strict=True)):
            if not 0 <= row < len(self) or not 0 <= view < self.shape[1]:
                raise IndexError(f"view {view} of clip {row} in features of shape {self.shape}")
            if plain == 1:
                self._read(row, view, out[j : j + 1])
            else:  # several plain views lie in one entry
                if row != held:
                    held, _ = row, self._read(row, 0, entry)
                out[j] = entry[view]
        return out

    def _read(self, row: int, part: int, out: np.ndarray) -> np.ndarray:
        key = self._keys[row][part]
        if key is None or self._store.read(key, out.view(np.uint8)) is None:
            with _again:
                self._encoder.check_unchanged()
                ((_, _, found),) = self._encoder.encode({self._rows[row]: [part]})
                self._encoder.close()
            if isinstance(found, Exception):
                raise RuntimeError(f"clip {self._rows[row]} could be decoded before and cannot now") from found
            out[:] = found
            size = entry_bytes(self._encoder.byte_shapes[part])
            if key is not None and self._store.make_room(size) == size:
                _write(self._store, key, found)
        return out


@dataclass(frozen=True)
class Features:
    """``values[i, v]`` are the features of view v of clip ``i`` of ``table``; view 0 is the plain one.

    ``kind="pooled"``: float32 (n, V, D), what a linear probe reads, in memory. ``"tokens"``: float16 (n, V, N, D), what
    a query head reads, a :class:`FeatureArray`. What could not be decoded is in ``table.quarantine``.
    """

    values: np.ndarray | FeatureArray
    table: ClipTable
    kind: str
    grid: tuple[int, int, int]
    reading: Reading
    encode_seconds: float
    """Time the network and the augmentation took in this call; 0 where all was stored."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def views(self) -> int:
        return int(self.values.shape[1])

    @property
    def decoder(self) -> str:
        return self.reading.decoder

    def take(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        """View ``views[j]`` of clip ``rows[j]``: (k, D) or (k, N, D), in the stored type."""
        return torch.from_numpy(self.values[rows, views])


class HeadOnly(nn.Module):
    """A model's head on features of its frozen backbone: (B, D) pooled ones or (B, N, D) tokens -> outputs per task.

    Parameters and their names are the model's own, one level down. Raises ValueError on features of the other kind.
    """

    def __init__(self, model: TML, kind: str, grid: tuple[int, int, int]) -> None:
        super().__init__()
        if kind != (needed := kind_for(model.head_kind)):
            raise ValueError(f"a head of kind {model.head_kind!r} reads {needed!r} features, not {kind!r}")
        self.model, self.kind, self.grid = model, kind, grid

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        values = values.float()
        if self.kind == "pooled":
            return self.model._named(self.model.head(values))
        return self.model.forward_tokens(Tokens(values, self.grid))


def kind_for(head: str) -> str:
    """The features that a head reads."""
    return "pooled" if head == "mean" else "tokens"


def features_of(
    backbone: Backbone,
    table: ClipTable,
    *,
    reading: Protocol | Reading | None = None,
    kind: str = "pooled",
    views: int = 1,
    augment: Augment | None = None,
    seed: int = 0,
    precision: str = "fp32",
    device: str | torch.device | None = None,
    workers: int = 2,
    batch_size: int = 32,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Features:
    """Features of every clip of ``table``, from the store where they are in it, else encoded and stored.

    ``reading``: how clips are read, a protocol or a reading (default: ``num_frames`` uniform frames, centre crop). A
    protocol of several views gives as many per clip. ``kind``: ``pooled``, the backbone's own mean of the tokens, or
    ``tokens``. ``views``: 1, the plain view; more adds ``views - 1`` random ones by ``augment``, drawn for each clip
    from ``seed`` and the view's number alone. ``precision``: ``fp32`` or ``bf16`` (autocast). ``device``: where the
    backbone runs (default: where it is); afterwards it is back.

    Raises ValueError on arguments that do not go together or when no clip is left, MemoryError where tokens do not fit
    into half of ``$WORKBENCH_CACHE_GB``, and OverflowError where they do not fit into float16.
    """
    _check(kind, views, augment, precision)
    how = _reading(backbone, reading)
    if views > 1 and how.views > 1:
        raise ValueError(f"views={views} of a reading that shows {how.views} views already; augment one with 1")
    with _moved(backbone, device):
        encoder = Encoder(
            backbone, table, how, kind=kind, views=views, augment=augment, seed=seed, precision=precision,
            workers=workers, batch_size=batch_size, cache_dir=cache_dir,
        )  # fmt: skip
        try:
            return _collected(encoder, table, progress)
        finally:
            encoder.close()


def _collected(encoder: Encoder, table: ClipTable, progress: bool) -> Features:
    store, rows = encoder.store, range(len(table))
    keys, sizes = encoder.keys(rows), [entry_bytes(shape) for shape in encoder.byte_shapes]
    held: np.ndarray | None = None
    if encoder.kind == "pooled":
        held = np.zeros((len(rows), encoder.stops[-1], *encoder.shapes[0][1:]), encoder.dtype)
    wanted: dict[int, list[int]] = {}
    for row in rows:
        for part, key in enumerate(keys[row]):
            if key is None:
                there = False
            elif held is None:
                there = store.has(key, encoder.byte_shapes[part])
            else:
                there = store.read(key, encoder.place(held[row], part).view(np.uint8)) is not None
            if not there:
                wanted.setdefault(row, []).append(part)
    missing = sum(sizes[part] for parts in wanted.values() for part in parts)
    room = _room(store, missing, len(rows) * sum(sizes), encoder.kind)
    bad: dict[int, str] = {}
    for row, part, found in encoder.encode(wanted, progress=progress):
        if isinstance(found, Exception):
            bad[row] = reason_of(found)
            continue
        if held is not None:
            encoder.place(held[row], part)[:] = found
        if (name := keys[row][part]) is not None and room >= sizes[part] and _write(store, name, found):
            room -= sizes[part]
    kept = [row for row in rows if row not in bad]
    values = FeatureArray(encoder, kept, [keys[row] for row in kept]) if held is None else held[kept]
    grid = encoder.backbone.grid
    return Features(values, without(table, bad), encoder.kind, grid, encoder.reading, encoder.seconds)


def _room(store: Store, missing: int, total: int, kind: str) -> int:
    """Bytes that may be written. Tokens that cannot all be kept would be encoded anew in every epoch: MemoryError."""
    if kind == "tokens" and total > store.limit / 2:
        raise MemoryError(
            f"{total / 1e9:.1f} GB of tokens are more than half of what the store may hold ({store.limit / 1e9:.1f} "
            "GB); raise WORKBENCH_CACHE_GB, or train with feature_views=0, which stores none"
        )
    granted = store.make_room(missing) if missing else 0
    if granted < missing:
        said = (
            f"{store.folder} has no room for {missing / 1e6:.1f} MB of features beside what was used in the last hour"
        )
        if kind == "tokens":
            raise MemoryError(f"{said}; raise WORKBENCH_CACHE_GB, or train with feature_views=0, which stores none")
        log.info("%s: some stay in memory only", said)
    return granted


def _write(store: Store, key: str, found: np.ndarray) -> bool:
    try:
        store.write(key, np.ascontiguousarray(found).view(np.uint8))
    except OSError as error:
        log.warning("features are not stored in %s: %s", store.folder, error)
        return False
    return True


def _check(kind: str, views: int, augment: Augment | None, precision: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision={precision!r} is not one of fp32, bf16")
    if isinstance(views, bool) or not isinstance(views, int) or views < 1:
        raise ValueError(f"views={views!r} must be a whole number of at least 1: the plain view and random ones")
    if views > 1 and augment is None:
        raise ValueError(f"views={views} needs augment, the Augment that draws all but the first")


def _reading(backbone: Backbone, reading: Protocol | Reading | None) -> Reading:
    if isinstance(reading, Reading):
        return reading
    shown = reading or Protocol(
        num_frames=backbone.num_frames, size_px=backbone.size_px, resize_px=backbone.resize_px, decoder="auto"
    )
    return Reading(**shown.reading())


@contextmanager
def _moved(backbone: Backbone, device: str | torch.device | None) -> Iterator[None]:
    before = backbone.device
    try:
        backbone.to(before if device is None else device)
        yield
    finally:
        backbone.to(before)
