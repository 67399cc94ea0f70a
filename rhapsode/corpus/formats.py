"""One function for each kind of file: from its bytes to the pieces of its documents.

Text files give one document (or several, at a separator), pages one, tables and JSON lines one for each row.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from rhapsode.base.errors import InputError
from rhapsode.corpus.account import Reading, UnreadableTextError
from rhapsode.corpus.decode import LONGEST_LINE, DecodedText, compose, composed, lines, too_long, whole, with_newlines
from rhapsode.corpus.markup import visible_text
from rhapsode.corpus.sides import BETWEEN, as_pair
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


def _document(texts: Sequence[str]) -> str:
    """The document of a row: its text, or the pair that its two texts make."""
    return compose(texts[0]) if len(texts) == 1 else as_pair(*map(compose, texts))


def _text(source: Source, reading: Reading) -> Iterator[Piece]:
    if reading.target_field is not None:
        yield from _tabbed(source, reading)
        return
    decoded = DecodedText(source.stream, source.name, reading.encoding)
    texts = composed(decoded, source.name)
    if reading.separator:
        yield from _separated(texts, compose(reading.separator), source.name, decoded)
        return
    for text in texts:
        yield Piece(text, source.name, decoded.encoding, last=False)
    yield Piece("", source.name, decoded.encoding)


def _tabbed(source: Source, reading: Reading) -> Iterator[Piece]:
    """Pairs, each a line with a TAB between its sides; further columns are counted as dropped."""
    decoded = DecodedText(source.stream, source.name, reading.encoding)
    for number, line in enumerate(lines(composed(decoded, source.name), source.name), start=1):
        where = f"{source.name}:{number}"
        first, between, rest = line.partition(BETWEEN)
        second, more, _ = rest.partition(BETWEEN)
        if not between and first.strip():
            reading.bad(_broken("has no TAB, so it is no pair", where))
            continue
        if more:
            reading.report.drop("columns after the second", where)
        yield Piece(as_pair(first, second), where, decoded.encoding)


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
            texts = _fields(line, reading.fields, where)
        except UnreadableTextError as error:
            reading.bad(error)
            continue
        yield Piece(_document(texts), where, decoded.encoding)


def _fields(line: str, names: Sequence[str], where: str) -> list[str]:
    """The texts in one JSON line; null is no text."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        detail = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise _broken(f"is not JSON ({detail})", where) from None
    if not isinstance(row, dict):
        raise _broken("is not a JSON object", where)
    return [_field(row, name, where) for name in names]


def _field(row: dict[str, Any], name: str, where: str) -> str:
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
    wanted = set(reading.fields)
    delimiter = next((sign for sign in CSV_DELIMITERS if wanted <= set(_header(first, sign))), None)
    if delimiter is None:
        there = max((_header(first, sign) for sign in CSV_DELIMITERS), key=len)
        missing = next(name for name in reading.fields if name not in there)
        raise _no_field(missing, there, f"{source.name}:1")
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
            columns = [header.index(name) for name in reading.fields]
        elif row and len(row) != len(header):
            reading.bad(_broken(f"has {len(row)} fields where the header has {len(header)}", where))
        elif row:
            yield Piece(_document([row[column] for column in columns]), where, decoded.encoding)


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
    try:
        with seekable(source.stream) as stream, parquet.ParquetFile(stream) as file:
            schema = file.schema_arrow
            for field in reading.fields:
                if field not in schema.names:
                    raise _no_field(field, schema.names, source.name)
                if not _holds_text(schema.field(field).type, pyarrow.types):
                    raise _broken(f"the column {field!r} is not text but {schema.field(field).type}", source.name)
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=reading.fields, use_threads=False):
                columns = [batch.column(field).to_pylist() for field in reading.fields]
                for cells in zip(*columns, strict=True):
                    number += 1
                    where, texts = f"{source.name}:{number}", [with_newlines(cell or "") for cell in cells]
                    if max(map(len, texts)) > LONGEST_LINE:
                        reading.bad(too_long(where))
                    else:
                        yield Piece(_document(texts), where, "utf-8")
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
        todo="Name the one that holds the text with --text-field (and the other side of pairs with --target-field).",
    )


_FORMATS: dict[str, Callable[[Source, Reading], Iterator[Piece]]] = {
    "text": _text,
    "html": _html,
    "jsonl": _json_lines,
    "csv": _csv,
    "parquet": _parquet,
}
