"""Files are known by their bytes, and what became of clips is remembered."""

import hashlib
import logging
import os
import sqlite3
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from workbench.data.clips import ClipDecodeError
from workbench.data.frames import ShortClipError
from workbench.data.loading import contents
from workbench.data.loading.contents import Memory, Verdict, content_id
from workbench.data.loading.guard import ItemCrashError, ItemTimeoutError
from workbench.data.sources.archives import Span


def old_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    os.utime(path, (1e9, 1e9))
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read."""
    names: list[str] = []
    original = contents._hash

    def counted(span: Span) -> str:
        names.append(Path(span.file).name)
        return original(span)

    monkeypatch.setattr(contents, "_hash", counted)
    return names


def test_content_id_is_size_and_sha256_in_a_folder_and_in_a_tar(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000  # more than one read
    a = old_file(tmp_path / "a.mp4", data)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(a, "in/b.mp4")
    assert content_id(a) == f"1280000-{hashlib.sha256(data).hexdigest()}" == content_id(tmp_path / "x.tar/in/b.mp4")
    assert content_id(tmp_path / "none.mp4") == content_id(tmp_path / "x.tar/none.mp4") == content_id(tmp_path)
    assert content_id(tmp_path) == "missing"


def test_memory_reads_a_file_once_until_it_changes(tmp_path: Path, hashed: list[str]) -> None:
    a, b = (old_file(tmp_path / name, b"same") for name in ("a", "b"))
    memory = Memory(tmp_path / "cache")
    first = memory.contents([a, b, tmp_path / "none"])
    assert [c for c, _ in first] == [content_id(a), content_id(a), "missing"]
    hashed.clear()
    assert Memory(tmp_path / "cache").contents([a, b, tmp_path / "none"]) == first and not hashed
    old_file(a, b"diff")
    os.utime(a, (1e9 + 1, 1e9 + 1))
    assert memory.contents([a, b])[0][0] == content_id(a) != first[0][0]
    assert hashed == ["a", "a"]


def test_memory_does_not_trust_a_file_changed_just_now(tmp_path: Path, hashed: list[str]) -> None:
    a = tmp_path / "a"
    a.write_bytes(b"one")
    stat = os.stat(a)
    memory = Memory(tmp_path / "cache")
    before = memory.contents([a])[0]
    a.write_bytes(b"two")  # the same size, and the same time on a coarse clock
    os.utime(a, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert memory.contents([a])[0][0] != before[0]


def test_memory_is_begun_anew_when_damaged_and_done_without_when_unusable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a = old_file(tmp_path / "a", b"abc")
    memory = Memory(tmp_path / "cache")
    memory.remember({"k": Verdict(kind="ok")})
    memory.path.write_bytes(b"no data base at all" * 500)
    with caplog.at_level(logging.WARNING):
        assert memory.contents([a])[0][0] == content_id(a)
    assert "begun anew" in caplog.text
    assert memory.verdicts(["k"]) == {}
    memory.remember({"k": Verdict(kind="ok")})
    assert memory.verdicts(["k"]) == {"k": Verdict(kind="ok")}
    (tmp_path / "file").write_text("")
    unusable = Memory(tmp_path / "file")  # a folder cannot be made there
    assert unusable.contents([a])[0][0] == content_id(a)
    unusable.remember({"k": Verdict(kind="ok")})
    assert unusable.verdicts(["k"]) == {}


def test_verdict_gives_back_the_error_it_was_made_of() -> None:
    for error in (ClipDecodeError("x.mp4", "broken", "mend it"), ShortClipError("too short", "x.mp4")):
        verdict = Verdict.of(error, 5)
        assert verdict is not None and verdict.stands(1000)
        again = verdict.error("x.mp4")
        assert type(again) is type(error) and str(again) == str(error)
    for late in (ItemTimeoutError("took longer than 5 s"), ItemCrashError("died (exit code -11)", -11)):
        verdict = Verdict.of(late, 5)
        assert verdict is not None and verdict.stands(5) and not verdict.stands(6)
        again = verdict.error("x.mp4")
        assert type(again) is type(late) and str(again) == str(late)
    assert Verdict.of(TypeError("a wrong argument"), 5) is None
    for code in (None, 1, -1, -2, -9, -15):  # out of memory, ended with its parent, never started: not the clip's doing
        assert Verdict.of(ItemCrashError("died", code), 5) is None
    assert Verdict(kind="ok").error("x.mp4") is None


def test_memory_survives_many_writers_one_of_them_killed(tmp_path: Path, repo: Path) -> None:
    script = (
        f"import sys, itertools; sys.path[:0] = [{str(repo)!r}]\n"
        "from workbench.data.loading.contents import Memory, Verdict\n"
        "memory = Memory(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "for i in itertools.count() if sys.argv[2] == 'x' else range(40):\n"
        "    memory.remember({f'{sys.argv[2]}{i}-{j}': Verdict(kind='decode', reason='r' * 50) for j in range(20)})\n"
    )

    def start(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name], stdout=subprocess.PIPE, text=True)

    killed, *others = [start(name) for name in ("x", "a", "b")]
    for process in (killed, *others):
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    killed.kill()
    for process in (killed, *others):
        process.communicate(timeout=120)
    keys = [f"{name}{i}-{j}" for name in "ab" for i in range(40) for j in range(20)]
    assert len(Memory(tmp_path).verdicts(keys)) == len(keys)
    base = sqlite3.connect(Memory(tmp_path).path)
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    base.close()


def test_memory_knows_a_tar_member_until_the_tar_changes(tmp_path: Path, hashed: list[str]) -> None:
    a = old_file(tmp_path / "a", b"abc")
    tar_path = tmp_path / "x.tar"
    with tarfile.open(tar_path, "w") as tar:
        tar.add(a, "a")
    os.utime(tar_path, (1e9, 1e9))
    memory, inside = Memory(tmp_path / "cache"), tar_path / "a"
    assert memory.contents([inside])[0][0] == content_id(a)
    hashed.clear()
    assert memory.contents([inside])[0][0] == content_id(a)
    assert hashed == ["a"]  # by content_id itself
    old_file(a, b"other bytes")
    with tarfile.open(tar_path, "w") as tar:
        tar.add(a, "a")
    assert memory.contents([inside])[0][0] == content_id(a)


def test_default_cache_dir_is_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    assert contents.default_cache_dir() == tmp_path
    monkeypatch.delenv("WORKBENCH_CACHE")
    assert contents.default_cache_dir() == Path.home() / ".cache" / "video-transfer-workbench"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps the time of creation there")
def test_memory_sees_another_file_of_the_same_size_and_time_of_modification(tmp_path: Path) -> None:
    a = old_file(tmp_path / "a", b"one")
    memory = Memory(tmp_path / "cache")
    (before, stamp), old = memory.contents([a])[0], os.stat(a)
    time.sleep(0.05)  # a tick of the file system's clock
    os.replace(old_file(tmp_path / "b", b"two"), a)  # as cp -p, rsync -t and tar leave it
    assert os.stat(a).st_mtime_ns == old.st_mtime_ns and os.stat(a).st_size == old.st_size
    after, other = memory.contents([a])[0]
    assert after == content_id(a) != before and other != stamp


def test_memory_takes_a_path_that_cannot_be_read_for_missing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../out.mp4"))  # such tars are refused
    good = old_file(tmp_path / "good", b"good")
    found = Memory(tmp_path / "cache").contents([tmp_path / "x.tar/a.mp4", str(tmp_path / "a\0b"), good])
    assert [identity for identity, _ in found] == ["missing", "missing", content_id(good)]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_memory_knows_files_whose_names_are_no_unicode(tmp_path: Path, hashed: list[str]) -> None:
    odd = old_file(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")), b"odd")
    memory = Memory(tmp_path / "cache")
    first = memory.contents([odd])
    memory.remember({"k": Verdict(kind="decode", reason=f"{odd}: broken")})
    hashed.clear()
    assert memory.contents([odd]) == first == [(content_id(odd), contents.stamp_of(odd))] and hashed == [odd.name]
    assert memory.verdicts(["k"])["k"].reason.endswith("\\udcff.mp4: broken")


def test_memory_that_is_damaged_and_cannot_be_removed_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = old_file(tmp_path / "a", b"abc")
    memory = Memory(tmp_path)
    memory.path.write_bytes(b"no data base at all" * 500)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("a read-only folder")

    monkeypatch.setattr(Path, "unlink", refused)
    assert memory.contents([a])[0][0] == content_id(a)


def test_default_cache_dir_says_what_to_do_where_there_is_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("WORKBENCH_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(RuntimeError, match="set WORKBENCH_CACHE or give a cache_dir"):
        contents.default_cache_dir()
