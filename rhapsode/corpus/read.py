"""Reading texts of every supported kind, for `rhapsode corpus` and every other command that takes TEXT.

`read_pieces` streams, so a document may be larger than memory; `read_documents` gives whole documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rhapsode.corpus.account import Reading, ReadReport, UnreadableTextError
from rhapsode.corpus.decode import check_encoding
from rhapsode.corpus.formats import Piece, pieces_of
from rhapsode.corpus.pairs import aligned
from rhapsode.corpus.unpack import InputFile, Source, find_files, open_file


@dataclass(frozen=True)
class Document:
    """One document: its text (NFC, newlines as \\n), where it came from, how it was encoded."""

    text: str
    source: str
    encoding: str


def read_documents(
    inputs: Sequence[str],
    *,
    text_field: str = "text",
    separator: str | None = None,
    encoding: str | None = None,
    skip_bad: bool = False,
    report: ReadReport | None = None,
) -> Iterator[Document]:
    """The documents in `inputs`, each whole in memory. Arguments and errors are those of `read_pieces`."""
    pieces = read_pieces(
        inputs, text_field=text_field, separator=separator, encoding=encoding, skip_bad=skip_bad, report=report
    )
    parts: list[str] = []
    for piece in pieces:
        parts.append(piece.text)
        if piece.last:
            if piece.dropped is None:
                yield Document("".join(parts), piece.source, piece.encoding)
            parts.clear()


def read_pieces(
    inputs: Sequence[str],
    *,
    text_field: str = "text",
    target: Sequence[str] = (),
    target_field: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    skip_bad: bool = False,
    report: ReadReport | None = None,
    leave_out: Path | None = None,
) -> Iterator[Piece]:
    """The documents in `inputs` piece by piece; see `Piece`. Files are looked for now and read when iterated.

    Args:
        inputs: files, folders, globs, `-` for standard input.
        text_field: the field of JSON lines, the column of CSV and parquet files, that holds the text.
        target: texts whose lines belong to those of `inputs`: each document is a pair of lines.
        target_field: the field or column that holds the other side: each row is a pair. In text files each line is
            one, with a TAB between its sides.
        separator: where it stands in a text file, one document ends and the next begins; `\\n` in it is a newline.
        encoding: the encoding of every text, or None to find it out.
        skip_bad: drop and count what cannot be read, instead of ending with an error.
        report: where to keep account.
        leave_out: a folder that is not read even if it lies in one of `inputs`.

    Raises:
        InputError: an input does not exist.
        UnreadableTextError: a file, member or row is no usable text, and `skip_bad` is false.
    """
    report = ReadReport() if report is None else report
    reading = Reading(
        text_field=text_field,
        target_field=target_field,
        separator=separator.replace("\\n", "\n") if separator else None,
        encoding=check_encoding(encoding) if encoding else None,
        skip_bad=skip_bad,
        report=report,
    )
    left_out = leave_out.resolve() if leave_out else None
    if target:
        pieces, files = aligned(inputs, target, reading, leave_out=left_out)
    else:
        files = find_files(inputs, reading, leave_out=left_out)
        pieces = itertools.chain.from_iterable(_skipping(_pieces_in_file(file, reading), reading) for file in files)
    unknown_size = report.bytes_total is None or any(file.path is None for file in files)
    report.bytes_total = None if unknown_size else (report.bytes_total or 0) + sum(file.size for file in files)
    return pieces


def _pieces_in_file(file: InputFile, reading: Reading) -> Iterator[Piece]:
    for source in open_file(file, reading):
        reading.report.begin_file(source.kind)
        how = reading if source.certain else replace(reading, skip_bad=True)
        yield from _skipping(_pieces_in_source(source, how), how)


def _pieces_in_source(source: Source, reading: Reading) -> Iterator[Piece]:
    """The pieces of one text file, counted, with empty documents marked as dropped."""
    documents, characters, blank = 0, 0, True
    for piece in pieces_of(source, reading):
        characters += len(piece.text)
        blank = blank and (not piece.text or piece.text.isspace())
        if not piece.last:
            yield piece
            continue
        if blank:
            reading.report.drop("empty", piece.source)
            yield piece._replace(dropped="empty")
        else:
            documents += 1
            reading.report.document(source.kind, characters, piece.encoding)
            yield piece
        characters, blank = 0, True
    if source.named and not documents and not reading.skip_bad:
        raise UnreadableTextError("holds no text", reason="empty", where=source.name)


def _skipping(pieces: Iterator[Piece], reading: Reading) -> Iterator[Piece]:
    """`pieces`, up to the first that cannot be read: it ends them, and the document it belongs to, or is raised."""
    unfinished: Piece | None = None
    try:
        for piece in pieces:
            unfinished = None if piece.last else piece
            yield piece
    except UnreadableTextError as error:
        reading.bad(error)
        if unfinished is not None:
            yield unfinished._replace(text="", last=True, dropped=error.reason)
