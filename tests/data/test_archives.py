"""A member is found by its bytes, as Python's tarfile extracts it; nothing leads out of a tar."""

import io
import logging
import os
import tarfile
from pathlib import Path

import pytest

from workbench.data.sources import archives
from workbench.data.sources.archives import Span, locate, members, read_bytes, read_span

CONTENT = {
    "clips/a.mp4": b"alpha" * 300,
    "clips/deep/" + "n" * 150 + ".mp4": b"long name",
    "ünï #1.mp4": b"",
    "b.json": b"{}",
}


def make_tar(path: Path, content: dict[str, bytes] = CONTENT, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in content.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_locate_gives_the_bytes_that_tarfile_extracts(tmp_path: Path, format: int) -> None:
    tar = make_tar(tmp_path / "corpus-000.tar", format=format)
    with tarfile.open(tar) as archive:
        for name, data in CONTENT.items():
            span = locate(tar / name)
            assert span is not None and span.size == len(data)
            assert read_span(span) == archive.extractfile(name).read() == data  # type: ignore[union-attr]
    assert set(members(tar)) == set(CONTENT)


def test_locate_is_none_for_an_ordinary_path(tmp_path: Path) -> None:
    folder = tmp_path / "not-a.tar"  # a folder may be called so
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"plain")
    assert locate(folder / "a.mp4") is None and read_bytes(folder / "a.mp4") == b"plain"
    assert locate(tmp_path / "nowhere.mp4") is None and locate("x.tar") is None and locate("my.target/a.mp4") is None
    inside = make_tar(folder / "x.tar")
    assert read_bytes(inside / "b.json") == b"{}"


def test_locate_names_a_missing_member_tar_and_what_is_no_tar(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "x.tar")
    with pytest.raises(FileNotFoundError, match=r"x\.tar.*no file 'clips/z\.mp4'"):
        locate(tar / "clips" / "z.mp4")
    with pytest.raises(FileNotFoundError, match=r"there is no .*y\.tar"):
        locate(tmp_path / "y.tar" / "a.mp4")
    (tmp_path / "text.tar").write_text("no tar" * 200)
    with pytest.raises(OSError, match="not an uncompressed tar"):
        locate(tmp_path / "text.tar" / "a.mp4")
    with tarfile.open(tmp_path / "zip.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.mp4"))
    with pytest.raises(OSError, match="not an uncompressed tar"):
        locate(tmp_path / "zip.tar" / "a.mp4")


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.mp4", "a/../../b.mp4", "C:x.mp4", "a\\..\\..\\b.mp4"])
def test_members_refuses_names_that_lead_out(tmp_path: Path, name: str) -> None:
    tar = make_tar(tmp_path / "x.tar", {"fine.mp4": b"1", name: b"2"})
    with pytest.raises(ValueError, match="leads out of its folder"):
        members(tar)


def test_members_takes_the_last_of_a_name_follows_hard_links_and_leaves_out_the_rest(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, data in (("./a.mp4", b"old"), ("a.mp4", b"newer")):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
        for name, kind in (("hard.mp4", tarfile.LNKTYPE), ("soft.mp4", tarfile.SYMTYPE), ("d", tarfile.DIRTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "a.mp4" if kind == tarfile.LNKTYPE else "/etc/passwd"
            archive.addfile(header)
    assert set(members(tmp_path / "x.tar")) == {"a.mp4", "hard.mp4"}
    assert read_bytes(tmp_path / "x.tar" / "hard.mp4") == read_bytes(tmp_path / "x.tar" / "a.mp4") == b"newer"


def test_members_of_a_cut_tar_are_those_that_are_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar = make_tar(tmp_path / "x.tar", {"a.mp4": b"a" * 2000, "b.mp4": b"b" * 2000})
    os.truncate(tar, locate(tar / "b.mp4").offset + 1000)  # type: ignore[union-attr]
    with caplog.at_level(logging.WARNING):
        assert set(members(tar)) == {"a.mp4"} and read_bytes(tar / "a.mp4") == b"a" * 2000
    with pytest.raises(FileNotFoundError, match=r"b\.mp4"):
        locate(tar / "b.mp4")


def test_members_reads_a_tar_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = archives._index

    def counted(name: str, size: int) -> dict[str, Span]:
        read.append(name)
        return real(name, size)

    monkeypatch.setattr(archives, "_index", counted)
    tar = make_tar(tmp_path / "x.tar")
    for _ in range(3):
        locate(tar / "b.json")
    assert len(read) == 1
    make_tar(tar, {"other.mp4": b"now other bytes"})
    assert read_bytes(tar / "other.mp4") == b"now other bytes" and len(read) == 2


def test_members_forgets_the_tar_used_longest_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_indices", type(archives._indices)())
    monkeypatch.setattr(archives, "_KEPT_MEMBERS", 2 * len(CONTENT))
    tars = [make_tar(tmp_path / f"{i}.tar") for i in range(3)]
    for tar in (tars[0], tars[1], tars[0], tars[2]):
        members(tar)
    assert list(archives._indices) == [str(tars[0]), str(tars[2])]


def test_read_span_says_when_the_tar_became_shorter(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"12345")
    assert read_span(Span(str(tmp_path / "x.tar"), 1, 3)) == b"234"
    with pytest.raises(OSError, match="2 of 3 bytes"):
        read_span(Span(str(tmp_path / "x.tar"), 3, 3))
