"""Pairs of texts from files whose lines belong together.

rhapsode corpus captions.en --target captions.de --out mypairs
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from rhapsode.base.errors import InputError
from rhapsode.corpus.account import Reading, UnreadableTextError
from rhapsode.corpus.decode import DecodedText, composed, lines
from rhapsode.corpus.formats import Piece
from rhapsode.corpus.sides import as_pair
from rhapsode.corpus.unpack import InputFile, find_files, open_file


def aligned(
    inputs: Sequence[str], targets: Sequence[str], reading: Reading, *, leave_out: Path | None = None
) -> tuple[Iterator[Piece], list[InputFile]]:
    """The pairs of lines of two sets of files, the first of one with the first of the other; and all of the files.

    Raises:
        InputError: there are not as many files on both sides.
    """
    files = find_files(inputs, reading, leave_out=leave_out)
    others = find_files(targets, reading, leave_out=leave_out)
    if len(files) != len(others):
        raise InputError(
            f"there are {len(files)} files of texts and {len(others)} of what belongs to them",
            where="--target",
            todo="Name as many files, in the same order.",
        )
    pieces = (_lines_of_both(file, other, reading) for file, other in zip(files, others, strict=True))
    return itertools.chain.from_iterable(pieces), files + others


def _lines_of_both(file: InputFile, other: InputFile, reading: Reading) -> Iterator[Piece]:
    for first, second in itertools.zip_longest(open_file(file, reading), open_file(other, reading)):
        if first is None or second is None:
            raise UnreadableTextError(
                f"holds another number of files than {other.name}", reason="not aligned", where=file.name
            )
        reading.report.begin_file(first.kind)
        reading.report.begin_file(second.kind)
        decoded = DecodedText(first.stream, first.name, reading.encoding)
        rows = lines(composed(decoded, first.name), first.name)
        decoded_other = DecodedText(second.stream, second.name, reading.encoding)
        others = lines(composed(decoded_other, second.name), second.name)
        for number, (line, line_other) in enumerate(itertools.zip_longest(rows, others), start=1):
            if line is None or line_other is None:
                short = first.name if line is None else second.name
                raise UnreadableTextError(
                    f"ends before line {number:,}, which {second.name if line is None else first.name} has",
                    reason="not aligned",
                    where=short,
                    todo="Both files must have as many lines, each the other's counterpart.",
                )
            text = as_pair(line, line_other)
            where = f"{first.name}:{number}"
            if text:
                reading.report.document(first.kind, len(text), decoded.encoding)
                yield Piece(text, where, decoded.encoding)
            else:
                reading.report.drop("empty", where)
