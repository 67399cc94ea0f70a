"""Folders, globs and archives: what is found, what is left out, and the bounds."""

from __future__ import annotations

import gzip
import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from rhapsode.base.errors import InputError
from rhapsode.corpus import unpack
from rhapsode.corpus.account import ReadReport, UnreadableTextError
from rhapsode.corpus.read import read_documents


def texts(*inputs: object, report: ReadReport | None = None, skip_bad: bool = False) -> list[str]:
    names = [str(text) for text in inputs]
    return [document.text for document in read_documents(names, report=report, skip_bad=skip_bad)]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "z/z.txt",
        "a/z.md",
        "a/b.txt",
        "c.txt",
        "a.txt",
        ".hidden.txt",
        ".git/x.txt",
        "d.png",
        "README",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "program").write_bytes(b"\x7fELF\0\0")
    report = ReadReport()
    assert texts(tmp_path, report=report) == ["README", "a.txt", "b.txt", "c.txt", "a/b.txt", "a/z.md", "z/z.txt"]
    assert {reason: entry.count for reason, entry in report.dropped.items()} == {
        "hidden": 1,
        "unknown kind": 1,
        "binary": 1,
    }
    assert report.dropped["unknown kind"].examples == [str(tmp_path / "d.png")]


def test_a_named_file_of_unknown_kind_is_text(tmp_path: Path) -> None:
    (tmp_path / "notes.xyz").write_text("words")
    (tmp_path / "notes.xyz.gz").write_bytes(gzip.compress(b"packed words"))
    assert texts(tmp_path / "notes.xyz", tmp_path / "notes.xyz.gz") == ["words", "packed words"]
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(UnreadableTextError, match=r"picture\.png: is binary, not text"):
        texts(tmp_path / "picture.png")


def test_globs(tmp_path: Path) -> None:
    for name in ("b1.txt", "b2.txt", "c.txt", "deep/b3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path / "b*.txt") == ["b1.txt", "b2.txt"]
    assert texts(tmp_path / "**" / "b*.txt") == ["b1.txt", "b2.txt", "deep/b3.txt"]
    with pytest.raises(InputError, match="no file matches"):
        texts(tmp_path / "x*.txt")
    (tmp_path / "odd[1].txt").write_text("a name that looks like a glob")
    assert texts(tmp_path / "odd[1].txt") == ["a name that looks like a glob"]


@pytest.mark.parametrize("name", ["", "no.txt", "no/such/file.txt", "file.txt/inner"])
def test_missing_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.txt").write_text("x")
    with pytest.raises(InputError, match=r"does not exist|cannot be read \(Not a directory\)"):
        texts(name)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_file_names_that_are_no_unicode(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("words")
    assert [document.source for document in read_documents([str(tmp_path)])] == [f"{tmp_path}/caf\\udce9.txt"]


def test_links_and_devices_in_a_tar_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, link in (
            ("../../escape.txt", tarfile.REGTYPE, ""),
            ("link.txt", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.txt", tarfile.LNKTYPE, "../../escape.txt"),
            ("device.txt", tarfile.CHRTYPE, ""),
            ("pipe.txt", tarfile.FIFOTYPE, ""),
            ("folder", tarfile.DIRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = 5 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"words"))
    report = ReadReport()
    assert texts(path, report=report) == ["words"]
    assert report.dropped["link or device"].count == 4
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.tar"]
    assert not (tmp_path.parent.parent / "escape.txt").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
def test_broken_links_and_pipes_in_a_folder_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.txt")
    report = ReadReport()
    assert texts(tmp_path, report=report) == ["words"]
    assert report.dropped["link or device"].count == 2


def test_one_bad_member_does_not_cost_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.txt", "one")
        archive.writestr("2.txt", b"\0binary")
        archive.writestr("3.zip", b"no zip at all")
        archive.writestr("4.txt.gz", gzip.compress(b"cut" * 1000)[:-4])
        archive.writestr("5.txt", "five")
    with pytest.raises(UnreadableTextError, match=r"a\.zip/2\.txt: is binary"):
        texts(path)
    report = ReadReport()
    assert texts(path, report=report, skip_bad=True) == ["one", "five"]
    assert report.dropped["binary"].count == 1
    assert report.dropped["damaged"].count == 2


def test_a_changed_byte_in_a_zip_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.txt", "one and only")
    path.write_bytes(path.read_bytes().replace(b"one and only", b"one and 0nly"))
    with pytest.raises(UnreadableTextError, match=r"a\.zip/1\.txt: cannot be unpacked \(Bad CRC-32"):
        texts(path)


def test_encrypted_members(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.txt", "secret")
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the member's own header, then the one in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UnreadableTextError, match=r"a\.zip/1\.txt: cannot be unpacked \(it is encrypted\)"):
        texts(path)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "EXPANSION_ALWAYS_ALLOWED", 1 << 20)
    bomb = gzip.compress(b"boom\n" * 4_000_000)
    (tmp_path / "a.txt.gz").write_bytes(bomb)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"boom\n" * 4_000_000)
    (tmp_path / "twice.txt.gz.gz").write_bytes(gzip.compress(bomb))
    for path in tmp_path.iterdir():
        with pytest.raises(UnreadableTextError, match=r"unpacks to more than [0-9,]+ bytes"):
            texts(path)
        assert texts(path, skip_bad=True) == []


def test_packing_has_a_greatest_depth(tmp_path: Path) -> None:
    data, name = b"words", "a.txt"
    for depth in range(7):
        (tmp_path / name).write_bytes(data)
        if depth <= unpack.DEEPEST_NESTING:
            assert texts(tmp_path / name) == ["words"]
        else:
            with pytest.raises(UnreadableTextError, match="is packed more than 5 times over"):
                texts(tmp_path / name)
        data, name = gzip.compress(data), f"{name}.gz"


def test_archives_have_a_greatest_number_of_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MOST_MEMBERS", 3)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(4):
            archive.writestr(f"{number}.txt", "x")
    with pytest.raises(UnreadableTextError, match="has more than 3 members"):
        texts(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that fails when read")
def test_a_file_that_fails_while_it_is_read() -> None:
    with pytest.raises(UnreadableTextError, match="/proc/self/mem: cannot be read"):
        texts("/proc/self/mem")
