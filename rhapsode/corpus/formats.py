"""One function for each kind of file: from its bytes to the pieces of its documents.

Text files give one document (or several, at a separator), pages one, tables and JSON lines one for each row.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rhapsode.base.errors import InputError
from rhapsode.corpus.account import Reading, UnreadableTextError
from rhapsode.corpus.decode import LONGEST_LINE, DecodedText, compose, composed, lines, too_long, whole, with_newlines
from rhapsode.corpus.markup import visible_text
from rhapsode.corpus.unpack import Source, seekable

ROWS_AT_ONCE = 128
CSV_DELIMITERS = ",;\t"


class Piece(NamedTuple):
    """A piece of a document. Its pieces follow one another; the one marked `last` ends it.

    Attributes:
        source: where the document came from: file, member, line or number.
        encoding: how it was encoded.
        last: whether the document ends here.
        dropped: on the last piece: why the whole document is not to be used, or None.
    """

    text: str
    source: str
    encoding: str
    last: bool = True
    dropped: str | None = None


def pieces_of(source: Source, reading: Reading) -> Iterator[Piece]:
    """The documents in `source`, in pieces of about a megabyte."""
    return _FORMATS[source.kind](source, reading)


def _text(source: Source, reading: Reading) -> Iterator[Piece]:
    decoded = DecodedText(source.stream, source.name, reading.encoding)
    texts = composed(decoded, source.name)
    if reading.separator:
        yield from _separated(texts, compose(reading.separator), source.name, decoded)
        return
    for text in texts:
        yield Piece(text, source.name, decoded.encoding, last=False)
    yield Piece("", source.name, decoded.encoding)


def _separated(texts: Iterable[str], separator: str, name: str, decoded: DecodedText) -> Iterator[Piece]:
    """The documents between the separators; the newline that ends a separator's line belongs to none of them."""
    number, after_separator, has_text = 1, False, False
    held = ""
    for text in texts:
        *ended, held = (held + text).split(separator)
        for document in ended:
            body = document.removeprefix("\n") if after_separator else document
            yield Piece(body, f"{name}#{number}", decoded.encoding)
            number, after_separator, has_text = number + 1, True, False
        # The end of this piece may be the beginning of a separator.
        sure = max(0, len(held) - len(separator) + 1)
        if sure:
            body = held[:sure].removeprefix("\n") if after_separator else held[:sure]
            held, after_separator = held[sure:], False
            if body:
                has_text = True
                yield Piece(body, f"{name}#{number}", decoded.encoding, last=False)
    body = held.removeprefix("\n") if after_separator else held
    if body or has_text or number == 1:
        yield Piece(body, f"{name}#{number}", decoded.encoding)


def _html(source: Source, reading: Reading) -> Iterator[Piece]:
    decoded = DecodedText(source.stream, source.name, reading.encoding)
    text = visible_text(whole(decoded, source.name))
    yield Piece(compose(text), source.name, decoded.encoding)


def _json_lines(source: Source, reading: Reading) -> Iterator[Piece]:
    decoded = DecodedText(source.stream, source.name, reading.encoding)
    for number, line in enumerate(lines(decoded, source.name), start=1):
        if line.isspace():
            continue
        where = f"{source.name}:{number}"
        try:
            text = _field(line, reading.text_field, where)
        except UnreadableTextError as error:
            reading.bad(error)
            continue
        yield Piece(compose(text), where, decoded.encoding)


def _field(line: str, name: str, where: str) -> str:
    """The text in one JSON line; null is no text."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        detail = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise _broken(f"is not JSON ({detail})", where) from None
    if not isinstance(row, dict):
        raise _broken("is not a JSON object", where)
    if name not in row:
        raise _no_field(name, row, where)
    text = row[name]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise _broken(f"the field {name!r} is not text", where)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _broken(f"the field {name!r} holds half of a surrogate pair, which is no character", where) from None
    return with_newlines(text)


def _csv(source: Source, reading: Reading) -> Iterator[Piece]:
    decoded = DecodedText(source.stream, source.name, reading.encoding)
    rest = lines(decoded, source.name)
    first = next(rest, "")
    delimiter = next((sign for sign in CSV_DELIMITERS if reading.text_field in _header(first, sign)), None)
    if delimiter is None:
        raise _no_field(reading.text_field, _header(first, ","), f"{source.name}:1")
    csv.field_size_limit(LONGEST_LINE)
    rows = csv.reader(itertools.chain([first], rest), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        where = f"{source.name}:{rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            reading.bad(_broken(f"is no CSV row ({error})", where))
            continue
        if row is None:
            return
        if header is None:
            header = [name.strip() for name in row]
            column = header.index(reading.text_field)
        elif row and len(row) != len(header):
            reading.bad(_broken(f"has {len(row)} fields where the header has {len(header)}", where))
        elif row:
            yield Piece(compose(row[column]), where, decoded.encoding)


def _header(line: str, delimiter: str) -> list[str]:
    """The names in the first line of a CSV file."""
    return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]


def _parquet(source: Source, reading: Reading) -> Iterator[Piece]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            "parquet files are read by pyarrow, which is not installed",
            where=source.name,
            todo="Install it: pip install 'rhapsode[parquet]'.",
        ) from None
    field = reading.text_field
    try:
        with seekable(source.stream) as stream, parquet.ParquetFile(stream) as file:
            schema = file.schema_arrow
            if field not in schema.names:
                raise _no_field(field, schema.names, source.name)
            if not _holds_text(schema.field(field).type, pyarrow.types):
                raise _broken(f"the column {field!r} is not text but {schema.field(field).type}", source.name)
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[field], use_threads=False):
                for cell in batch.column(0).to_pylist():
                    number += 1
                    where, text = f"{source.name}:{number}", cell or ""
                    if len(text) > LONGEST_LINE:
                        reading.bad(too_long(where))
                    else:
                        yield Piece(compose(with_newlines(text)), where, "utf-8")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        detail = str(error).splitlines()[0].rstrip(".")
        raise UnreadableTextError(
            f"is damaged or no parquet file ({detail})", reason="damaged", where=source.name
        ) from None


def _holds_text(kind: Any, types: Any) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _broken(what: str, where: str) -> UnreadableTextError:
    return UnreadableTextError(what, reason="broken row", where=where)


def _no_field(name: str, fields: Iterable[str], where: str) -> UnreadableTextError:
    there = ", ".join(itertools.islice(map(str, fields), 20)) or "none"
    return UnreadableTextError(
        f"there is no field {name!r} (there are: {there})",
        reason="no such field",
        where=where,
        todo="Name the one that holds the text with --text-field.",
    )


_FORMATS: dict[str, Callable[[Source, Reading], Iterator[Piece]]] = {
    "text": _text,
    "html": _html,
    "jsonl": _json_lines,
    "csv": _csv,
    "parquet": _parquet,
}
