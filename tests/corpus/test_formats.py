"""Every kind of file, alone and in every packing, gives the same documents."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from rhapsode.corpus.account import ReadReport, UnreadableTextError
from rhapsode.corpus.decode import DecodedText
from rhapsode.corpus.formats import _separated
from rhapsode.corpus.markup import visible_text
from rhapsode.corpus.read import read_documents

ROWS = ["Once upon a time.\nThe end.", 'Café, "quoted", naïve; Größe', "第三の文書\n", "tab\there"]


def as_jsonl(rows: list[str]) -> bytes:
    return "".join(json.dumps({"id": number, "text": row}) + "\n" for number, row in enumerate(rows)).encode()


def as_csv(rows: list[str], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["id", "text"])
    writer.writerows(enumerate(rows))
    return out.getvalue().encode()


def as_parquet(rows: list[str]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.table({"id": range(len(rows)), "text": rows}), out, row_group_size=2)
    return out.getvalue()


def as_html(rows: list[str]) -> bytes:
    return f"<html><head><title>no</title></head><body><p>{rows[0]}</p></body></html>".encode()


KINDS: dict[str, tuple[Callable[[list[str]], bytes], list[str]]] = {
    "txt": (lambda rows: rows[1].encode(), ROWS[1:2]),
    "md": (lambda rows: rows[2].encode(), ROWS[2:3]),
    "html": (as_html, ["Once upon a time. The end.\n"]),
    "jsonl": (as_jsonl, ROWS),
    "csv": (as_csv, ROWS),
    "tsv": (lambda rows: as_csv(rows, "\t"), ROWS),
    "parquet": (as_parquet, ROWS),
}


def in_tar(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(f"./folder/{name}")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def in_zip(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"folder/{name}", data)
    return out.getvalue()


def in_zstandard(data: bytes) -> bytes:
    half = len(data) // 2  # two frames
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))


PACKINGS: dict[str, Callable[[str, bytes], bytes]] = {
    "{}": lambda name, data: data,
    "{}.gz": lambda name, data: gzip.compress(data),
    "{}.xz": lambda name, data: lzma.compress(data),
    "{}.bz2": lambda name, data: bz2.compress(data),
    "{}.zst": lambda name, data: in_zstandard(data),
    "a.zip": in_zip,
    "a.tar": in_tar,
    "a.tar.gz": lambda name, data: gzip.compress(in_tar(name, data)),
    "a.TGZ": lambda name, data: gzip.compress(in_tar(name, data)),
    "a.txz": lambda name, data: lzma.compress(in_tar(name, data)),
    "a.tar.bz2": lambda name, data: bz2.compress(in_tar(name, data)),
    "a.tar.zst": lambda name, data: in_zstandard(in_tar(name, data)),
    "b.tar": lambda name, data: in_tar("inner.zip", in_zip(f"{name}.gz", gzip.compress(data))),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_every_packing(tmp_path: Path, kind: str, packing: str) -> None:
    make, expected = KINDS[kind]
    name = f"file.{kind}"
    path = tmp_path / packing.format(name)
    path.write_bytes(PACKINGS[packing](name, make(ROWS)))
    report = ReadReport()
    documents = list(read_documents([str(path)], report=report))
    assert [document.text for document in documents] == expected
    assert all(document.source.startswith(str(path)) for document in documents)
    assert sum(entry.documents for entry in report.read.values()) == len(expected)
    assert not report.dropped
    assert report.bytes_read >= path.stat().st_size == report.bytes_total


@pytest.mark.parametrize("packing", [name for name in PACKINGS if name not in ("{}", "a.tar", "b.tar")])
@pytest.mark.parametrize("part", [0.5, 0.999])
def test_a_cut_off_file_is_never_taken_for_a_whole_one(tmp_path: Path, packing: str, part: float) -> None:
    path = tmp_path / packing.format("file.jsonl")
    whole = PACKINGS[packing]("file.jsonl", as_jsonl([f"document {number * 7919} of many" for number in range(3000)]))
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(UnreadableTextError, match=r"cannot be unpacked \(.+\)\."):
        list(read_documents([str(path)]))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst", ".zip", ".tar", ".tar.gz", ".parquet"])
def test_files_that_are_not_what_their_name_says(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"file.txt{suffix}"
    path.write_bytes(b"just text, and no archive at all\n" * 50)
    with pytest.raises(UnreadableTextError, match=r"cannot be unpacked|no parquet file"):
        list(read_documents([str(path)]))


@settings(deadline=None)
@given(st.text(alphabet="ab<>\n", max_size=40), st.sampled_from(["<>", "<a>", "<", "a\nb"]), st.integers(1, 5))
def test_separators_are_found_wherever_pieces_end(text: str, separator: str, size: int) -> None:
    pieces = [text[begin : begin + size] for begin in range(0, len(text), size)]
    found, parts = [], []
    for piece in _separated(pieces, separator, "file", DecodedText(io.BytesIO(), "file")):
        parts.append(piece.text)
        if piece.last:
            found.append("".join(parts))
            parts.clear()
    first, *others = text.split(separator)
    expected = [first, *(document.removeprefix("\n") for document in others)]
    if others and expected[-1] == "":
        expected.pop()
    assert found == expected
    assert not parts


def test_separated_documents_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("One.\n<|endoftext|>\nTwo\nlines.\n<|endoftext|>\n\n<|endoftext|>\nThree.\n<|endoftext|>\n")
    report = ReadReport()
    documents = list(read_documents([str(path)], separator="<|endoftext|>", report=report))
    assert [document.text for document in documents] == ["One.\n", "Two\nlines.\n", "Three.\n"]
    assert [document.source for document in documents] == [f"{path}#1", f"{path}#2", f"{path}#4"]
    assert report.dropped["empty"].count == 1
    assert next(read_documents([str(path)], separator=r"\n<|endoftext|>\n")).text == "One."


def test_bad_rows_are_told_with_their_line_or_counted(tmp_path: Path) -> None:
    bad = {
        "jsonl": (b'{"text": "one"}\n\n{"text": "two\n{"text": "three"}\n[1]\n{"text": 4}\n', ":3: is not JSON"),
        "csv": (b'id,text\n1,one\n2,"two" x\n3,three\n4\n5,6,7\n', ":3: is no CSV row"),
    }
    for kind, (data, told) in bad.items():
        path = tmp_path / f"rows.{kind}"
        path.write_bytes(data)
        with pytest.raises(UnreadableTextError) as caught:
            list(read_documents([str(path)]))
        assert caught.value.message.startswith(f"{path}{told}")
        report = ReadReport()
        documents = list(read_documents([str(path)], skip_bad=True, report=report))
        assert [document.text for document in documents] == ["one", "three"]
        assert report.dropped["broken row"].count == 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"text": "half \\ud83d"}', "half of a surrogate pair"),
        (b'{"content": "x", "id": 3}', "there is no field 'text' (there are: content, id)"),
        (b'{"text": ["x"]}', "the field 'text' is not text"),
        (b'"text"', "is not a JSON object"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "is not JSON"),
    ],
)
def test_json_lines_without_text(tmp_path: Path, line: bytes, told: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(UnreadableTextError) as caught:
        list(read_documents([str(path)]))
    assert caught.value.message.startswith(f"{path}:2: ")
    assert told in caught.value.message


def test_null_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "x"}\n')
    parquet.write_table(pyarrow.table({"text": [None, "y"]}), tmp_path / "b.parquet")
    report = ReadReport()
    assert [document.text for document in read_documents([str(tmp_path)], report=report)] == ["x", "y"]
    assert report.dropped["empty"].count == 2


def test_a_quote_that_is_never_closed_is_told_at_the_row_where_it_opens(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('id,text\n1,"fine\nand long"\n2,"never closed\n3,x\n4,y\n')
    with pytest.raises(UnreadableTextError, match=r"rows\.csv:4: is no CSV row"):
        list(read_documents([str(path)]))


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_and_columns(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(as_csv(ROWS, delimiter).replace(b"text", b" body "))
    assert [document.text for document in read_documents([str(path)], text_field="body")] == ROWS
    with pytest.raises(UnreadableTextError, match="there is no field 'text'"):
        list(read_documents([str(path)]))


def test_parquet_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = {
        "large": pyarrow.array(ROWS, pyarrow.large_string()),
        "repeated": pyarrow.array(ROWS).dictionary_encode(),
        "number": pyarrow.array([1, 2, 3, 4]),
    }
    parquet.write_table(pyarrow.table(columns), path)
    for name in ("large", "repeated"):
        documents = list(read_documents([str(path)], text_field=name))
        assert [document.text for document in documents] == ROWS
        assert documents[2].source == f"{path}:3"
    with pytest.raises(UnreadableTextError, match="the column 'number' is not text but int64"):
        list(read_documents([str(path)], text_field="number"))
    with pytest.raises(UnreadableTextError, match=r"there is no field 'text' \(there are: large, repeated, number\)"):
        list(read_documents([str(path)]))


def test_line_ends_and_composition_within_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "cafe\\u0301\\r\\nnext\\rlast"}\n')
    (tmp_path / "b.csv").write_bytes('text\r\n"cafe\u0301\r\nnext\rlast"\r\n'.encode())
    parquet.write_table(pyarrow.table({"text": ["cafe\u0301\r\nnext\rlast"]}), tmp_path / "c.parquet")
    assert [document.text for document in read_documents([str(tmp_path)])] == ["caf\u00e9\nnext\nlast"] * 3


def test_rows_have_a_greatest_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("decode", "formats"):
        monkeypatch.setattr(f"rhapsode.corpus.{module}.LONGEST_LINE", 2000)
    parquet.write_table(pyarrow.table({"text": ["x" * 2001]}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(["x" * 2001]))
    (tmp_path / "a.html").write_text("<p>" + "x" * 2001)
    (tmp_path / "a.csv").write_text("text\n" + "x" * 2001 + "\n")
    for path in tmp_path.iterdir():
        with pytest.raises(UnreadableTextError, match=r"more than 2,000 characters|field larger than field limit"):
            list(read_documents([str(path)]))


PAGE = """<!doctype html><html><head><title>not shown</title><style>p { color: red }</style></head><body>
<!-- a comment --><h1>The   Head
line</h1><p>One <b>bold</b>ness, <i> two</i> spaces<br>after a break<script>if (x < y) alert()</script>
<pre>  kept
    as is</pre><div hidden>hidden</div><div style="DISPLAY : none">hidden too</div>
<ul><li>first<li>second</ul><table><tr><td>1<td>2<tr><td>3<td>4</table>
<template>no</template><noscript>no</noscript>&lt;p&gt; &amp; &eacute;&nbsp;<p>The end"""


def test_the_visible_text_of_a_page() -> None:
    assert visible_text(PAGE).split("\n") == [
        "The Head line",
        "One boldness, two spaces",
        "after a break",
        "  kept",
        "    as is",
        "first",
        "second",
        "1\t2",
        "3\t4",
        "<p> & é\xa0",
        "The end",
        "",
    ]


def test_pages_nest_deeper_than_the_stack() -> None:
    assert visible_text("<b><div>" * 3000 + "deep") == "deep\n"


@settings(deadline=None)
@given(st.text(alphabet="<>/ab \n&;\"'=p!-", max_size=60))
def test_any_markup_is_read(page: str) -> None:
    text = visible_text(page)
    assert not text or text.endswith("\n")


def test_pages_declare_their_encoding(tmp_path: Path) -> None:
    words = "Příliš žluťoučký kůň úpěl ďábelské ódy."
    page = f'<html><head><meta charset="iso-8859-2"></head>\n<body><p>{words}</p></body></html>'
    (tmp_path / "page.html").write_bytes(page.encode("iso-8859-2"))
    assert [document.text for document in read_documents([str(tmp_path)])] == [words + "\n"]
