"""Run a frozen backbone over the clips of a table, each view once: what is encoded, and under what name it is kept.

An entry is one clip's plain view(s), or one augmented view of it. Its name changes with all that its numbers depend on:
the backbone's weights, configuration and preprocessing, LoRA and adapters in it, the precision it ran in, the code's
version, the bytes of the clip's file and its times, how it is read, and for an augmented view the settings, the seed
and the view's number. So tables, parts of tables, tasks and setups share entries, and no view of a clip depends on the
clips beside it. Devices and ways to compute attention share them too: these differ by rounding.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.data.augment import MARGIN, OVERSAMPLE, Augment
from workbench.data.loading.loader import Loader
from workbench.data.loading.reading import Reading
from workbench.data.loading.store import Store
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable
from workbench.models.adapters import BeforeBlock
from workbench.models.backbones import Backbone

VERSION = 1
"""Raise it when the same inputs give other numbers."""
KINDS = ("pooled", "tokens")
DTYPES = {"pooled": "<f4", "tokens": "<f2"}
"""How features lie on disk. Pooled features are few and stay exact; tokens are many (256 times as many for nano) and
are kept to the eleven bits of float16."""
_NOT_FEATURES = (
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "output_attentions", "output_hidden_states",
    "problem_type", "return_dict", "torch_dtype", "transformers_version",
)  # fmt: skip
TRAIN_WINDOWS = 4
"""Windows stored per training clip where ``dense`` or ``fps`` sampling shows a part of it: from the first that fits to
the last; each epoch, or each augmented view, sees a random one, so that nothing is decoded again."""


def wider(shown: Protocol | Reading) -> dict[str, Any]:
    """What is read of a clip to draw augmented views from, beyond what is shown: neighbouring frames, other windows, a
    margin for the crop. Arguments of :class:`~workbench.data.loading.reading.Reading` that change."""
    if shown.size_px is None:
        raise ValueError("size_px=None: augmented views need a size")
    larger: dict[str, Any] = {"size_px": round(shown.size_px * MARGIN), "resize_px": None}
    if shown.sampling == "uniform" and shown.short != "error":
        return larger | {"num_frames": shown.num_frames * OVERSAMPLE}
    return larger | ({"num_clips": TRAIN_WINDOWS} if shown.sampling in ("dense", "fps") else {})


class Encoder:
    """``backbone`` over the clips of ``table`` as ``reading`` shows them: part 0 of a clip is its plain view(s), parts
    1 to ``views - 1`` are augmented ones. Each has an entry of its own."""

    def __init__(
        self,
        backbone: Backbone,
        table: ClipTable,
        reading: Reading,
        *,
        kind: str,
        views: int,
        augment: Augment | None,
        seed: int,
        precision: str,
        workers: int,
        batch_size: int,
        cache_dir: str | Path | None,
    ) -> None:
        self.backbone, self.reading, self.kind, self.precision = backbone, reading, kind, precision
        self.augment, self.seed, self.batch_size, self.seconds = augment, seed, batch_size, 0.0
        self.loaders = [Loader(table, reading, workers=workers, cache_dir=cache_dir)]
        if views > 1:
            wide = replace(reading, **wider(reading))
            self.loaders.append(Loader(table, wide, workers=workers, cache_dir=cache_dir))
        self.parts, self.dtype = views, np.dtype(DTYPES[kind])
        one = (backbone.hidden_size,) if kind == "pooled" else (math.prod(backbone.grid), backbone.hidden_size)
        self.shapes = [(reading.views, *one)] + [(1, *one)] * (views - 1)
        """Of each part's entry."""
        self._identity = identity(backbone)
        steps = repr(backbone.preprocessing)
        self._name = [VERSION, version("transformers"), self._identity, backbone.family, steps, kind, precision]

    @property
    def store(self) -> Store:
        """The decoded clips' own."""
        store = self.loaders[0].store
        assert store is not None  # a loader made without cache=False has one
        return store

    @property
    def byte_shapes(self) -> list[tuple[int, ...]]:
        """Of each part's entry as the uint8 array that the store keeps."""
        return [(*shape[:-1], shape[-1] * self.dtype.itemsize) for shape in self.shapes]

    @property
    def stops(self) -> list[int]:
        """Where each part ends among a clip's views; the last is their number."""
        return np.cumsum([shape[0] for shape in self.shapes]).tolist()

    def place(self, clip: np.ndarray, part: int) -> np.ndarray:
        """The part's views in ``clip``, an array of all views of one clip."""
        stop = self.shapes[0][0] + part
        return clip[stop - self.shapes[part][0] : stop]

    def keys(self, rows: Sequence[int]) -> list[list[str | None]]:
        """Names of each row's entries, one per part; None where there is no file."""
        keys: list[list[str | None]] = [[] for _ in rows]
        for part in range(self.parts):
            view = [] if part == 0 or self.augment is None else [asdict(self.augment), self.seed, part]
            start = hashlib.sha256(json.dumps([*self._name, self.dtype.str, *view], sort_keys=True).encode())
            for row, (clip, _) in zip(keys, self._loader(part).keys(rows), strict=True):
                digest = start.copy()
                digest.update((clip or "").encode())
                row.append(digest.hexdigest() if clip else None)
        return keys

    def encode(
        self, wanted: Mapping[int, Sequence[int]], *, progress: bool = False
    ) -> Iterator[tuple[int, int, np.ndarray | Exception]]:
        """(row, part, features) for the parts wanted of each row, or (row, part, why the clip cannot be decoded)."""
        for i, loader in enumerate(self.loaders):
            parts = {row: [p for p in some if (p > 0) == bool(i)] for row, some in wanted.items()}
            rows = [row for row, some in parts.items() if some]
            queue: list[tuple[int, int, Tensor]] = []
            title = f"encoding {'augmented' if i else 'plain'} views" if progress and rows else None
            with closing(loader.stream(rows, progress=title)) as stream:
                for row, key, clip in stream:
                    if isinstance(clip, Exception):
                        yield row, parts[row][0], clip
                        continue
                    assert clip is not None  # delivered
                    queue += [(row, part, self._shown(clip, part, key or str(row))) for part in parts[row]]
                    if sum(len(views) for _, _, views in queue) >= self.batch_size:
                        yield from self._through(queue)
                        queue = []
            yield from self._through(queue)

    def check_unchanged(self) -> None:
        """Raises RuntimeError where the backbone is no longer the one that the entries are named after."""
        if identity(self.backbone) != self._identity:
            raise RuntimeError(
                f"the weights of {self.backbone.source} have changed since these features were computed, and some are "
                "no longer stored; ask features_of again for those of the backbone as it is now"
            )

    def close(self) -> None:
        """End the decoding processes."""
        for loader in self.loaders:
            loader.close()

    def _loader(self, part: int) -> Loader:
        return self.loaders[min(part, 1)]

    def _shown(self, clip: np.ndarray, part: int, key: str) -> Tensor:
        """uint8 (V, T, S, S, 3) of the plain views, or (1, T, S, S, 3) of an augmented one, drawn for this clip."""
        if part == 0:
            return torch.from_numpy(clip)
        assert self.augment is not None  # checked by features_of
        began = time.perf_counter()
        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {part} {key}".encode()).digest()[:7], "little")
        chance = torch.Generator().manual_seed(seed)
        window = int(torch.randint(len(clip), (), generator=chance))
        view = self.augment(torch.from_numpy(clip[window : window + 1]).to(self.backbone.device), chance)
        self.seconds += time.perf_counter() - began
        return view

    def _through(self, queue: list[tuple[int, int, Tensor]]) -> Iterator[tuple[int, int, np.ndarray]]:
        """The backbone on some views, at most about a batch at a time."""
        if not queue:
            return
        began = time.perf_counter()
        views = torch.cat([views.to(self.backbone.device) for _, _, views in queue])
        found = np.concatenate([self._batch(some) for some in views.split(self.batch_size)])
        self.seconds += time.perf_counter() - began
        start = 0
        for row, part, shown in queue:
            yield row, part, found[start : start + len(shown)]
            start += len(shown)

    @torch.inference_mode()
    def _batch(self, clips: Tensor) -> np.ndarray:
        """uint8 (B, T, S, S, 3) -> (B, D) or (B, N, D). Raises OverflowError beyond what the stored type holds."""
        backbone, was_training = self.backbone, self.backbone.training
        backbone.eval()
        try:
            with torch.autocast(clips.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                tokens = backbone(backbone.prepare(clips)).tokens
                found = (backbone.pool(tokens) if self.kind == "pooled" else tokens).float()
        finally:
            backbone.train(was_training)
        largest = float(found.abs().max())
        if not largest <= float(np.finfo(self.dtype).max):  # NaN too
            raise OverflowError(
                f"{self.kind} features of {backbone.source} reach {largest:g}, beyond {self.dtype.name}; "
                "train with feature_views=0, which stores none"
            )
        return found.cpu().numpy().astype(self.dtype)


def identity(backbone: Backbone) -> str:
    """Hex digits that change with anything in ``backbone`` that its features depend on: weights, configuration, and
    what a strategy put into it, which its own fingerprint leaves out."""
    config = {key: value for key, value in backbone.config.to_dict().items() if key not in _NOT_FEATURES}
    digest = hashlib.sha256(f"{backbone.fingerprint()} {json.dumps(config, sort_keys=True, default=str)}".encode())
    put_in = {name: value for name, value in backbone.state_dict().items() if ".lora_" in name}
    for i, block in enumerate(backbone.blocks):
        hooks = [hook for hook in block._forward_pre_hooks.values() if isinstance(hook, BeforeBlock)]
        put_in |= {f"{i} {j} {n}": v for j, hook in enumerate(hooks) for n, v in hook.adapter.state_dict().items()}
    for name, value in sorted(put_in.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
