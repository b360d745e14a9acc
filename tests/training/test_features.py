"""What a frozen backbone says of a clip is computed once, kept whole, and is what it would say again."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.data.augment import Augment
from workbench.data.cache import decode_table
from workbench.data.loading import store as store_module
from workbench.data.protocol import Protocol
from workbench.data.tables import ClipTable
from workbench.models.adapters import is_inserted
from workbench.models.backbones import Backbone, load_backbone
from workbench.models.strategies import apply_strategy
from workbench.models.tml import TML
from workbench.training.probing import encoding
from workbench.training.probing.features import FeatureArray, HeadOnly, features_of

PLAIN = Protocol(num_frames=8, size_px=32)
AUGMENT = Augment(num_frames=8, size_px=32)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store_module, "_checked", {})
    monkeypatch.setattr(store_module, "_maps", {})
    return tmp_path / "cache"


@pytest.fixture
def backbone(tiny_checkpoint: str) -> Backbone:
    return load_backbone(tiny_checkpoint)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that go through the backbone."""
    sizes: list[int] = []
    batch = encoding.Encoder._batch

    def counted(self: Any, clips: torch.Tensor) -> np.ndarray:
        sizes.append(len(clips))
        return batch(self, clips)

    monkeypatch.setattr(encoding.Encoder, "_batch", counted)
    return sizes


def made(backbone: Backbone, table: ClipTable, **options: Any) -> Any:
    return features_of(backbone, table, **({"workers": 1, "progress": False} | options))


def test_features_of_are_what_the_backbone_says(backbone: Backbone, tiny_table: ClipTable, encoded: list[int]) -> None:
    clips = np.asarray(decode_table(tiny_table, **PLAIN.reading(), workers=1, progress=False).clips)
    with torch.inference_mode():
        tokens = backbone(backbone.prepare(clips)).tokens
        pooled = backbone.pool(tokens)
    found = made(backbone, tiny_table, reading=PLAIN)
    assert found.values.shape == (32, 1, 48) and found.values.dtype == np.float32
    assert np.allclose(found.values[:, 0], pooled, atol=1e-5)
    assert sum(encoded) == 32 and found.encode_seconds > 0
    mine = made(backbone, tiny_table, reading=PLAIN, kind="tokens")
    assert mine.values.shape == (32, 1, 32, 48) and mine.grid == (2, 4, 4)
    assert np.allclose(np.asarray(mine.values)[:, 0], tokens, rtol=2**-11, atol=1e-5)  # half of float16's last bit


def test_features_of_finds_what_was_encoded_to_the_bit(
    backbone: Backbone, tiny_table: ClipTable, encoded: list[int]
) -> None:
    options: dict[str, Any] = {"views": 3, "augment": AUGMENT}
    first = made(backbone, tiny_table.train, **options)
    assert sum(encoded) == 16 * 3
    encoded.clear()
    again = made(backbone, tiny_table.train, **options)
    assert not encoded and again.encode_seconds == 0
    assert np.array_equal(first.values, again.values)
    # Another table with some of the clips in another order, more views, and the plain view alone.
    part = made(backbone, tiny_table.train[[5, 2]], **options)
    assert not encoded and np.array_equal(part.values, first.values[[5, 2]])
    plain = made(backbone, tiny_table.train)
    assert not encoded and np.array_equal(plain.values[:, 0], first.values[:, 0])
    more = made(backbone, tiny_table.train, views=4, augment=AUGMENT)
    assert sum(encoded) == 16 and np.array_equal(more.values[:, :3], first.values)


def test_features_of_a_view_do_not_depend_on_the_clips_beside_it(backbone: Backbone, tiny_table: ClipTable) -> None:
    options: dict[str, Any] = {"views": 2, "augment": AUGMENT}
    one = made(backbone, tiny_table.train[[7]], cache_dir=os.environ["WORKBENCH_CACHE"] + "1", **options)
    many = made(backbone, tiny_table.train, cache_dir=os.environ["WORKBENCH_CACHE"] + "2", **options)
    assert np.allclose(one.values[0], many.values[7], atol=1e-5)
    assert np.abs(many.values[:, 1] - many.values[:, 0]).max() > 1e-2  # an augmented view is another one


def test_features_of_draw_a_view_for_each_clip(backbone: Backbone, tiny_table: ClipTable) -> None:
    twice = pd.concat([tiny_table.train.frame.head(1)] * 2).assign(clip_id=["a", "b"], end_seconds=[1.0, 1.001])
    found = made(backbone, tiny_table._with(twice), views=2, augment=AUGMENT).values
    assert np.array_equal(found[0, 0], found[1, 0])  # the same frames
    assert np.abs(found[0, 1] - found[1, 1]).max() > 1e-3  # in another crop


@pytest.mark.parametrize(
    "change",
    [
        {"reading": replace(PLAIN, sampling="single")}, {"precision": "bf16"}, {"kind": "tokens"},
        {"views": 2, "augment": AUGMENT, "seed": 1},
        {"views": 2, "augment": Augment(num_frames=8, size_px=32, color=0.1)},
    ],
)  # fmt: skip
def test_features_of_are_encoded_again_for_anything_that_changes_them(
    backbone: Backbone, tiny_table: ClipTable, encoded: list[int], change: dict[str, Any]
) -> None:
    table = tiny_table.test
    made(backbone, table, views=2, augment=AUGMENT, reading=PLAIN)
    encoded.clear()
    options: dict[str, Any] = {"reading": PLAIN} | change
    made(backbone, table, **options)
    assert sum(encoded) == 8  # the augmented views, or the plain ones: each change here concerns one of both


def test_features_of_another_backbone_or_version_are_others(
    backbone: Backbone, tiny_table: ClipTable, encoded: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tiny_table.test
    before = made(backbone, table).values
    with torch.no_grad():
        next(backbone.parameters()).mul_(1.5)
    encoded.clear()
    after = made(backbone, table).values
    assert sum(encoded) == 8 and np.abs(after - before).max() > 1e-3
    monkeypatch.setattr(encoding, "VERSION", 999)
    made(backbone, table)
    assert sum(encoded) == 16


@pytest.mark.parametrize("strategy", ["lora:2", "adapter:4"])
def test_features_of_a_backbone_with_modules_put_in_are_others(
    tiny_checkpoint: str, tiny_table: ClipTable, encoded: list[int], strategy: str
) -> None:
    table, model = tiny_table.test, TML(load_backbone(tiny_checkpoint), tiny_table.tasks)
    plain = made(model.backbone, table).values
    apply_strategy(model, strategy)
    seen = [plain]
    for turn in range(2):
        chance = torch.Generator().manual_seed(turn)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if is_inserted(name):
                    parameter.normal_(generator=chance)
        encoded.clear()
        seen.append(made(model.backbone, table).values)
        assert sum(encoded) == 8 and np.abs(seen[-1] - seen[-2]).max() > 1e-3


def test_features_of_the_same_weights_in_another_architecture_are_others(
    tiny_checkpoint: str, tiny_table: ClipTable, encoded: list[int], tmp_path: Path
) -> None:
    table, folder = tiny_table.test, tmp_path / "other"
    before = made(load_backbone(tiny_checkpoint), table).values
    shutil.copytree(tiny_checkpoint, folder)
    encoded.clear()
    assert np.array_equal(made(load_backbone(str(folder)), table).values, before) and not encoded
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 1}))
    after = made(load_backbone(str(folder)), table).values
    assert sum(encoded) == 8 and np.abs(after - before).max() > 5e-5


def test_features_of_a_changed_file_are_encoded_again(
    backbone: Backbone, tiny_table: ClipTable, encoded: list[int], tmp_path: Path
) -> None:
    root = tmp_path / "clips"
    shutil.copytree(tiny_table.root, root)
    copied = ClipTable(tiny_table.frame, tiny_table.tasks, root=root, info=tiny_table.info).test
    before = made(backbone, tiny_table.test).values
    encoded.clear()
    assert np.array_equal(made(backbone, copied).values, before) and not encoded  # found by content, not by path
    shutil.copy(root / "24.mp4", root / "25.mp4")
    after = made(backbone, copied).values
    assert not encoded and np.array_equal(after[1], before[0])  # that content is known too
    (root / "25.mp4").write_bytes(b"")
    gone = made(backbone, copied)
    assert len(gone) == 7 == len(gone.values) and list(gone.table.quarantine.path) == ["25.mp4"]
    assert np.array_equal(gone.values, before[[0, 2, 3, 4, 5, 6, 7]])


def test_features_of_a_protocol_with_several_views_has_all_of_them(backbone: Backbone, tiny_table: ClipTable) -> None:
    several = Protocol(num_frames=8, size_px=32, sampling="dense", num_clips=2, num_crops=3, level="video")
    found = made(backbone, tiny_table.test, reading=several)
    assert found.values.shape == (8, 6, 48)
    clips = np.asarray(decode_table(tiny_table.test, **several.reading(), workers=1, progress=False).clips)
    with torch.inference_mode():
        expected = backbone.pool(backbone(backbone.prepare(clips.reshape(48, *clips.shape[2:]))).tokens)
    assert np.allclose(found.values, expected.view(8, 6, 48), atol=1e-5)
    tokens = made(backbone, tiny_table.test, reading=several, kind="tokens").values
    assert tokens.shape == (8, 6, 32, 48)
    whole = np.asarray(tokens)
    assert np.array_equal(tokens.take([3, 0], [5, 2]), whole[[3, 0], [5, 2]])
    assert np.array_equal(tokens[-1], whole[-1]) and np.array_equal(tokens[2:5], whole[2:5])
    assert np.array_equal(tokens[np.array([4, 1])], whole[[4, 1]])
    with torch.inference_mode():
        pooled = backbone.pool(torch.from_numpy(whole).float().flatten(0, 1)).view(8, 6, 48)
    assert np.allclose(pooled, found.values, atol=1e-2)
    with pytest.raises(ValueError, match="shows 6 views already"):
        made(backbone, tiny_table.test, reading=several, views=2, augment=AUGMENT)


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_feature_array_encodes_again_what_was_lost_or_damaged(
    backbone: Backbone, tiny_table: ClipTable, encoded: list[int], damage: str, own_store: Path
) -> None:
    found = made(backbone, tiny_table.test, kind="tokens", views=2, augment=AUGMENT)
    assert isinstance(found.values, FeatureArray)
    whole = np.asarray(found.values)
    entries = [p for p in own_store.rglob("*.clip") if p.stat().st_size == 32 * 48 * 2 + 64]
    assert len(entries) == 16
    for path in entries:
        if damage == "gone":
            path.unlink()
            continue
        raw = bytearray(path.read_bytes())
        raw[-5] ^= 1
        path.write_bytes(raw[:-1] if damage == "cut" else raw)
    store_module._checked.clear()
    store_module._maps.clear()
    encoded.clear()
    assert np.array_equal(np.asarray(found.values), whole) and sum(encoded) == 16
    assert np.array_equal(np.asarray(found.values), whole) and sum(encoded) == 16  # and was stored again


def test_feature_array_does_not_fill_its_gaps_from_other_weights(
    backbone: Backbone, tiny_table: ClipTable, own_store: Path
) -> None:
    found = made(backbone, tiny_table.test, kind="tokens")
    for path in own_store.rglob("*.clip"):
        if path.stat().st_size == 32 * 48 * 2 + 64:
            path.unlink()
    store_module._checked.clear()
    store_module._maps.clear()
    with torch.no_grad():
        next(backbone.parameters()).mul_(1.5)
    with pytest.raises(RuntimeError, match="have changed since"):
        np.asarray(found.values)


def test_features_of_pooled_need_no_store_but_tokens_do(
    backbone: Backbone, tiny_table: ClipTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = made(backbone, tiny_table.test).values
    monkeypatch.setenv("WORKBENCH_CACHE_GB", "0")
    monkeypatch.setenv("WORKBENCH_CACHE", os.environ["WORKBENCH_CACHE"] + "-other")
    assert np.array_equal(made(backbone, tiny_table.test).values, stored)
    with pytest.raises(MemoryError, match="more than half of what the store may hold .0.0 GB.*feature_views=0"):
        made(backbone, tiny_table.test, kind="tokens")


def test_features_of_tokens_beyond_float16_are_refused(backbone: Backbone, tiny_table: ClipTable) -> None:
    with torch.no_grad():
        for parameter in backbone.blocks[-1].parameters():
            parameter.mul_(1e6)
    with pytest.raises(OverflowError, match="tokens features of .* beyond float16; train with feature_views=0"):
        made(backbone, tiny_table.test, kind="tokens")


def test_features_of_says_what_does_not_go_together(backbone: Backbone, tiny_table: ClipTable) -> None:
    for options, message in [
        ({"kind": "mean"}, "kind='mean' is not one of pooled, tokens"),
        ({"precision": "fp16"}, "precision='fp16' is not one of fp32, bf16"),
        ({"views": 0}, "views=0 must be a whole number of at least 1"),
        ({"views": 3}, "views=3 needs augment"),
    ]:
        with pytest.raises(ValueError, match=message):
            made(backbone, tiny_table, **options)


def test_head_only_equals_the_model_on_clips(tiny_checkpoint: str, tiny_table: ClipTable) -> None:
    clips = decode_table(tiny_table.test, **PLAIN.reading(), workers=1, progress=False).clips
    for head, kind in (("mean", "pooled"), ("query", "tokens")):
        model = TML(load_backbone(tiny_checkpoint), tiny_table.tasks, head=head).eval()
        found = made(model.backbone, tiny_table.test, kind=kind, reading=PLAIN)
        with torch.inference_mode():
            expected = model(model.backbone.prepare(clips[:]))
            said = HeadOnly(model, kind, found.grid)(torch.from_numpy(np.asarray(found.values)).flatten(0, 1))
        for task in tiny_table.tasks:
            # Tokens lose what float16 does not hold.
            assert torch.allclose(said[task.name], expected[task.name], atol=1e-5 if kind == "pooled" else 2e-3)
        with pytest.raises(ValueError, match="reads"):
            HeadOnly(model, "tokens" if kind == "pooled" else "pooled", found.grid)


SCRIPT = """
import os, signal, sys
from workbench.data.loading.store import Store
from workbench.data.tables import ClipTable
from workbench.models.backbones import load_backbone
from workbench.training.probing.features import features_of

if __name__ == "__main__":
    checkpoint, table, die_after = sys.argv[1], sys.argv[2], int(sys.argv[3])
    written, write = [0], Store.write

    def counted(self, key, clip):
        if clip.ndim < 5:  # features, not clips
            written[0] += 1
            if written[0] > die_after:
                os.kill(os.getpid(), signal.SIGKILL)
        return write(self, key, clip)

    Store.write = counted
    features_of(load_backbone(checkpoint), ClipTable.load(table, allow_outside_root=True), workers=1, batch_size=4,
                progress=False)
"""


def test_features_of_survive_a_kill(
    tiny_checkpoint: str, backbone: Backbone, tiny_table: ClipTable, encoded: list[int], tmp_path: Path
) -> None:
    reference = made(backbone, tiny_table.test, cache_dir=tmp_path / "reference").values
    absolute = tiny_table.frame.assign(path=[str(p) for p in tiny_table.files()])
    tiny_table._with(absolute, allow_outside_root=True).test.save(tmp_path / "table")
    script = tmp_path / "encode.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), tiny_checkpoint, str(tmp_path / "table"), "5"]
    assert subprocess.run(command, timeout=300, check=False).returncode == -signal.SIGKILL
    encoded.clear()
    found = made(backbone, tiny_table.test)
    assert sum(encoded) == 3  # five were kept
    assert np.allclose(found.values, reference, atol=1e-6)


def test_features_of_a_full_store_stay_right(
    backbone: Backbone, tiny_table: ClipTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reference = made(backbone, tiny_table.test).values
    monkeypatch.setenv("WORKBENCH_CACHE", os.environ["WORKBENCH_CACHE"] + "-small")
    monkeypatch.setenv("WORKBENCH_CACHE_GB", str(3 * 256 / 1e9))
    with caplog.at_level(logging.INFO):
        assert np.array_equal(made(backbone, tiny_table.test).values, reference)
    assert "no room" in caplog.text
