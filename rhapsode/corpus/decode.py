"""Bytes to clean text, piece by piece: the encoding found out, newlines as \\n, characters composed (Unicode NFC).

A text may be larger than memory. Every function here holds one block of it.
"""

from __future__ import annotations

import codecs
import io
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from rhapsode.base.errors import InputError
from rhapsode.corpus.account import UnreadableTextError

BLOCK_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 16  # what the encoding of a text that is not UTF-8 is guessed from
LONGEST_LINE = 1 << 25  # characters; rows and pages are held in memory whole
LONGEST_HELD = 1 << 24  # characters

# A longer mark first: the one of UTF-32 begins with the one of UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
WIDE_ENCODINGS = ("utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be")

# Those that texts are met in, each in its widest variant: a guess among all that Python knows would often be a rarity.
# fmt: off
LEGACY_ENCODINGS = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874", "iso8859_2",
    "iso8859_5", "iso8859_7", "koi8_r", "koi8_u", "cp866", "mac_roman", "gb18030", "big5", "cp932", "euc_jp",
    "cp949",
)
# fmt: on
# Western European texts fit several code pages nearly alike. cp1252 is taken when it fits nearly as well as the best.
MESS_ALLOWED, COHERENCE_ALLOWED = 0.02, 0.05


def check_encoding(name: str) -> str:
    """`name` if Python knows it as the name of a text encoding."""
    try:
        " ".encode(name)
    except (LookupError, ValueError):
        raise InputError(f"there is no text encoding {name!r}", todo="Common ones: utf-8, cp1252, cp1251.") from None
    return name


class DecodedText:
    """The text of `stream` as an iterator of pieces, without a byte-order mark, newlines as \\n.

    Pure ASCII needs no decision, so the encoding is found out from the first block that holds more than that. UTF-8 is
    tried first, strictly; charset-normalizer guesses among the others. `encoding` is right once iteration has ended.

    Args:
        where: what errors call this text.
        encoding: use this one and do not guess.

    Raises:
        UnreadableTextError: it is binary, or a byte cannot be decoded: the message has line and offset.
    """

    def __init__(self, stream: BinaryIO, where: str, encoding: str | None = None) -> None:
        self._stream, self._where, self._chosen = stream, where, encoding
        self.encoding = codecs.lookup(encoding or "utf-8").name

    def __iter__(self) -> Iterator[str]:
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        decoder = codecs.getincrementaldecoder(self._chosen)() if self._chosen else None
        offset, line, at_start, at_end = 0, 1, True, False
        while not at_end:
            block = self._stream.read(BLOCK_BYTES)
            at_end = not block
            if decoder is None and not _is_plain(block):
                self.encoding = codecs.lookup(_detect(block, self._where, at_start=offset == 0)).name
                decoder = codecs.getincrementaldecoder(self.encoding)()
            if b"\0" in block and not self.encoding.startswith(("utf-16", "utf-32")):
                raise _binary(self._where)
            try:
                text = decoder.decode(block, at_end) if decoder else block.decode("ascii")
            except UnicodeDecodeError as error:
                raise self._undecodable(error, offset + len(block) - len(error.object), line) from None
            offset += len(block)
            if at_start and text:
                text, at_start = text.removeprefix("\ufeff"), False
            text = newlines.decode(text, at_end)
            line += text.count("\n")
            if text:
                yield text

    def _undecodable(self, error: UnicodeDecodeError, offset: int, line: int) -> UnreadableTextError:
        before = error.object[: error.start].decode(self.encoding, "ignore")
        line += with_newlines(before).count("\n")
        return UnreadableTextError(
            f"byte {offset + error.start:,} (0x{error.object[error.start]:02x}) cannot be decoded as {self.encoding}",
            reason="undecodable",
            where=f"{self._where}:{line}",
            todo="Name the right encoding with --encoding, mend the file, or drop such texts with --skip-bad.",
        )


def composed(pieces: Iterable[str], where: str) -> Iterator[str]:
    """The same text in Unicode normalization form C, in other pieces.

    A piece is held back from the last character that nothing before it can change: composing what stands before such
    a character and what follows it apart gives the same as composing all at once.
    """
    held = ""
    for piece in pieces:
        text = held + piece
        cut = next((at for at in range(len(text) - 1, len(held) - 1, -1) if _begins_anew(text[at])), 0)
        if cut:
            yield compose(text[:cut])
        held = text[cut:]
        if len(held) > LONGEST_HELD:
            raise UnreadableTextError(
                f"holds {LONGEST_HELD:,} characters without a space or a full stop: this is no text",
                reason="no text",
                where=where,
            )
    if held:
        yield compose(held)


def compose(text: str) -> str:
    """`text` in Unicode normalization form C."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def with_newlines(text: str) -> str:
    """`text` with every line end as \\n."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines(pieces: Iterable[str], where: str) -> Iterator[str]:
    """The lines of a text, each with its \\n.

    Raises:
        UnreadableTextError: a line has more than 32 million characters.
    """
    rest, number = "", 0
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            number += 1
            if len(line) > LONGEST_LINE:
                raise too_long(f"{where}:{number}")
            yield line + "\n"
        if len(rest) > LONGEST_LINE:
            raise too_long(f"{where}:{number + 1}")
    if rest:
        yield rest


def whole(pieces: Iterable[str], where: str) -> str:
    """A text in one string.

    Raises:
        UnreadableTextError: it has more than 32 million characters.
    """
    parts, length = [], 0
    for piece in pieces:
        parts.append(piece)
        length += len(piece)
        if length > LONGEST_LINE:
            raise too_long(where)
    return "".join(parts)


def too_long(where: str) -> UnreadableTextError:
    return UnreadableTextError(
        f"one row or page has more than {LONGEST_LINE:,} characters",
        reason="too long",
        where=where,
        todo="Store texts of this size as .txt files, which are read piece by piece, or drop them with --skip-bad.",
    )


def _begins_anew(character: str) -> bool:
    # Nothing below U+0300 joins what stands before it, and no punctuation, space or number does (a test asks
    # Python's Unicode tables). Letters may: the vowels of Hangul and Kirat Rai are letters.
    return character < "\u0300" or unicodedata.category(character)[0] in "PZN"


def _is_plain(block: bytes) -> bool:
    # ESC $ begins Japanese in ISO-2022-JP, whose bytes are all ASCII; ESC ( ends it.
    return block.isascii() and b"\0" not in block and b"\x1b$" not in block


def _detect(block: bytes, where: str, *, at_start: bool) -> str:
    """The encoding of a text, from the first block of it that is not plain ASCII."""
    if at_start:
        for mark, encoding in BYTE_ORDER_MARKS:
            if block.startswith(mark):
                return encoding
    if b"\0" in block:
        guess = _most_likely(block[:SAMPLE_BYTES], WIDE_ENCODINGS) if at_start else None
        if guess is None:
            raise _binary(where)
        return guess
    if b"\x1b$" in block and b"\x1b(" in block and _decodes(block, "iso2022_jp"):
        return "iso2022_jp"
    if _is_meant_as_utf8(block):
        return "utf-8"
    telling = b"\n".join(line for line in block.split(b"\n") if not line.isascii())
    head = block[:1024].rpartition(b"\n")[0]  # where a page declares its encoding
    guess = _most_likely(head + b"\n" + telling[:SAMPLE_BYTES], LEGACY_ENCODINGS)
    if guess is None:
        raise UnreadableTextError(
            "is binary, or text in an unknown encoding",
            reason="binary or unknown encoding",
            where=where,
            todo="Name its encoding with --encoding, leave it out, or drop such texts with --skip-bad.",
        )
    return guess


def _is_meant_as_utf8(block: bytes) -> bool:
    """Whether `block` is UTF-8, or is but for a few damaged bytes: then it is no other encoding either."""
    if _decodes(block, "utf-8"):
        return True
    text = block.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    right = len(text) - len(text.encode("ascii", "ignore")) - wrong
    return right >= 10 * wrong


def _decodes(block: bytes, encoding: str) -> bool:
    """Whether `block` may begin a text in this encoding; its last character may be cut."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(block)
    except UnicodeDecodeError:
        return False
    return True


def _most_likely(sample: bytes, encodings: Sequence[str]) -> str | None:
    from charset_normalizer import from_bytes

    matches = from_bytes(sample, steps=16, chunk_size=2048, cp_isolation=list(encodings), enable_fallback=False)
    best = matches.best()
    if best is None:
        return None
    for match in matches:
        fits = match.chaos <= best.chaos + MESS_ALLOWED and match.coherence >= best.coherence - COHERENCE_ALLOWED
        if fits and "cp1252" in (match.encoding, *match.could_be_from_charset):
            return "cp1252"
    return best.encoding


def _binary(where: str) -> UnreadableTextError:
    return UnreadableTextError("is binary, not text (it holds zero bytes)", reason="binary", where=where)
