"""An entry is whole, right and bounded, or it is not there."""

import hashlib
import logging
import os
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from workbench.data.loading import store as store_module
from workbench.data.loading.store import HEADER_BYTES, Store, entry_bytes, limit_bytes

KEY = "ab" * 32
OTHER = "cd" * 32


@pytest.fixture
def clip() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No entry has been checked yet."""
    monkeypatch.setattr(store_module, "_checked", {})
    monkeypatch.setattr(store_module, "_maps", {})


def aged(store: Store, key: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(store.path(key), (then, then))


def test_read_returns_what_was_written_bit_for_bit(tmp_path: Path, clip: np.ndarray) -> None:
    store = Store(tmp_path)
    assert store.read(KEY) is None and not store.has(KEY)
    assert store.write(KEY, clip[:, ::-1]) == entry_bytes(clip.shape) == os.path.getsize(store.path(KEY))
    np.testing.assert_array_equal(store.read(KEY), clip[:, ::-1])
    out = np.zeros_like(clip)
    assert store.read(KEY, out) is out
    np.testing.assert_array_equal(out, clip[:, ::-1])
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [f"{KEY}.clip"]


def test_write_lays_an_entry_out_as_documented(tmp_path: Path, clip: np.ndarray) -> None:
    store = Store(tmp_path)
    store.write(KEY, clip)
    raw = Path(store.path(KEY)).read_bytes()
    sizes = [2, 3, 8, 8, 3, 0, 0, 0]
    start, end = b"VTWCLIP1" + bytes.fromhex(KEY)[:16], b"".join(n.to_bytes(4, "little") for n in [5, *sizes])
    crc = zlib.crc32(start + bytes(4) + end + clip.tobytes())
    assert raw == start + crc.to_bytes(4, "little") + end + clip.tobytes()


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "longer", "header cut", "flip", "flip in sizes", "zeros", "swapped"]
)
def test_read_removes_a_damaged_entry_and_never_returns_it(
    tmp_path: Path, clip: np.ndarray, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    store.write(KEY, clip)
    path = Path(store.path(KEY))
    raw = bytearray(path.read_bytes())
    if damage.startswith("flip"):
        at = HEADER_BYTES + 100 if damage == "flip" else 33
        raw[at] ^= 1
    elif damage == "swapped":  # another clip's entry, moved here
        store.write(OTHER, clip + 1)
        raw = bytearray(Path(store.path(OTHER)).read_bytes())
    else:
        raw = {
            "empty": bytearray(), "cut": raw[:-1], "longer": raw + b"x", "header cut": raw[:40],
            "zeros": bytearray(len(raw)),
        }[damage]  # fmt: skip
    path.write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        assert store.read(KEY, np.empty_like(clip)) is None
    assert "damaged" in caplog.text and not path.exists()
    store.write(KEY, clip)
    np.testing.assert_array_equal(store.read(KEY), clip)


def test_read_checks_the_size_always_and_the_sum_once_per_process_and_file(
    tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[bytes] = []
    crc = store_module._crc

    def counted(header: bytes, frames: np.ndarray) -> int:
        sums.append(header)
        return crc(header, frames)

    monkeypatch.setattr(store_module, "_crc", counted)
    store = Store(tmp_path)
    store.write(KEY, clip)
    sums.clear()
    for _ in range(3):
        assert np.array_equal(Store(tmp_path).read(KEY), clip)
    assert len(sums) == 1
    old = Path(store.path(KEY))
    old.rename(tmp_path / "kept")  # keeps its inode taken
    store.write(KEY, clip)
    sums.clear()
    store.read(KEY)
    assert len(sums) == 1
    with open(store.path(KEY), "ab") as file:
        file.write(b"x")
    assert store.read(KEY) is None


def test_read_refuses_an_array_that_the_clip_does_not_fit(tmp_path: Path, clip: np.ndarray) -> None:
    store = Store(tmp_path)
    store.write(KEY, clip)
    for out in (
        np.empty((2, 3, 8, 8, 4), np.uint8),
        clip.astype(np.int8),
        np.empty((*clip.shape, 2), np.uint8)[..., 0],
    ):
        with pytest.raises(ValueError, match=r"this clip is C-contiguous uint8 \(2, 3, 8, 8, 3\)"):
            store.read(KEY, out)
    with pytest.raises(ValueError, match="uint8"):
        store.write(KEY, clip.astype(float))


def test_has_compares_the_size(tmp_path: Path, clip: np.ndarray) -> None:
    store = Store(tmp_path)
    store.write(KEY, clip)
    assert store.has(KEY, clip.shape) and not store.has(KEY, (2, 3, 8, 8, 4))
    with open(store.path(KEY), "r+b") as file:
        file.truncate(HEADER_BYTES + 5)
    assert store.has(KEY) and not store.has(KEY, clip.shape)


def test_make_room_evicts_the_least_recently_used_and_spares_the_last_hour(tmp_path: Path, clip: np.ndarray) -> None:
    size = entry_bytes(clip.shape)
    store = Store(tmp_path, limit=5 * size)
    keys = [f"{i:02x}" * 32 for i in range(5)]
    for i, key in enumerate(keys):
        store.write(key, clip)
        aged(store, key, 3 * 3600 - 60 * i)
    store.read(keys[0])  # used just now
    assert store.make_room(2 * size) == 2 * size
    assert [store.has(k) for k in keys] == [True, False, False, True, True]  # has() counts as a use
    assert store.make_room(4 * size) == 2 * size
    assert [store.has(k) for k in keys] == [True, False, False, True, True]
    for key in keys[3:]:
        aged(store, key, 2 * 3600)
    assert store.make_room(99 * size) == 4 * size
    assert [store.has(k) for k in keys] == [True, False, False, False, False]


def test_make_room_sweeps_what_killed_processes_left_a_day_ago(tmp_path: Path, clip: np.ndarray) -> None:
    store = Store(tmp_path, limit=10**6)
    store.write(KEY, clip)
    shelf = Path(store.path(KEY)).parent
    for name, age in (("old", 2 * 86400), ("new", 60)):
        part = shelf / f".{KEY}.{name}.part"
        part.write_bytes(bytes(1000))
        os.utime(part, (time.time() - age,) * 2)
    assert store.make_room(10**7) == 10**6 - entry_bytes(clip.shape) - 1000
    assert sorted(p.name for p in shelf.iterdir()) == [f".{KEY}.new.part", f"{KEY}.clip"]


def test_write_that_fails_leaves_nothing(tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        Store(tmp_path).write(KEY, clip)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_limit_bytes_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_CACHE_GB", raising=False)
    assert limit_bytes() == 20_000_000_000
    monkeypatch.setenv("WORKBENCH_CACHE_GB", "0.5")
    assert limit_bytes() == 500_000_000
    for odd in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("WORKBENCH_CACHE_GB", odd)
        with pytest.raises(ValueError, match="WORKBENCH_CACHE_GB"):
            limit_bytes()


def test_read_remembers_a_bounded_number_of_checked_entries(
    tmp_path: Path, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_checked", {})
    monkeypatch.setattr(store_module, "_maps", {})
    monkeypatch.setattr(store_module, "_CHECKED_ENTRIES", 3)
    store = Store(tmp_path)
    for i in range(8):
        key = f"{i:064x}"
        store.write(key, clip)
        np.testing.assert_array_equal(store.read(key), clip)
        assert len(store_module._checked) <= 3


def test_read_keeps_what_is_read_again_mapped_and_sees_every_change(tmp_path, monkeypatch) -> None:
    store, key = Store(tmp_path), hashlib.sha256(b"mapped").hexdigest()
    clip = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3)).astype(np.uint8)
    store.write(key, clip)
    path, before = store.path(key), store_module._mapped_bytes
    for times in range(4):  # read, read and mapped, copied from the map twice
        assert np.array_equal(store.read(key), clip)
        assert (path in store_module._maps) == (times > 0)
    assert store_module._mapped_bytes == before + entry_bytes(clip.shape)
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "_fill", None)  # a mapped entry is not read from the file again
        out = np.zeros_like(clip)
        assert store.read(key, out) is out and (out == clip).all()
        out[:] = 0  # the copy is the caller's own
        assert np.array_equal(store.read(key), clip)
        with pytest.raises(ValueError, match="C-contiguous uint8"):
            store.read(key, np.zeros((1, 4), np.uint8))
    store.write(key, 255 - clip)  # another file under the same name
    assert np.array_equal(store.read(key), 255 - clip)
    assert np.array_equal(store.read(key), 255 - clip)
    with open(path, "r+b") as file:
        file.truncate(100)
    assert store.read(key) is None
    assert store.read(key) is None and store_module._mapped_bytes == before


def test_read_maps_no_more_than_its_share(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path)
    clip = np.zeros((1, 4, 8, 8, 3), np.uint8)
    keys = [hashlib.sha256(bytes([i])).hexdigest() for i in range(5)]
    for key in keys:
        store.write(key, clip)
    monkeypatch.setattr(store_module, "_MAPPED_BYTES", store_module._mapped_bytes + 2 * entry_bytes(clip.shape))
    for _ in range(3):
        assert all(np.array_equal(store.read(key), clip) for key in keys)
    assert [store.path(key) in store_module._maps for key in keys] == [True, True, False, False, False]
