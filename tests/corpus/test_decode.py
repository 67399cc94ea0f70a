"""Bytes to clean text: encodings, newlines, composition, in pieces of any size."""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.corpus import decode
from rhapsode.corpus.account import UnreadableTextError
from rhapsode.corpus.decode import DecodedText, check_encoding, compose, composed, lines

# Letters that compose with what stands before them, marks that change places, Hangul in its parts, every line end.
TRICKY = st.sampled_from(
    "eAé\u0301\u0323\u0344\u0f73\u1100\u1161\u11a8가ㄱ\U00016d67\u09c7\u09be\r\n \ufeff\u2028日。𝄞"
)
ANY = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.lists(TRICKY | ANY, max_size=60).map("".join)


class Trickle(io.BytesIO):
    """A stream that gives a few bytes at a time, as a pipe may."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__(data)
        self._size = size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self._size)


def decoded(data: bytes, encoding: str | None = None) -> tuple[str, str]:
    text = DecodedText(io.BytesIO(data), "file", encoding)
    return "".join(text), text.encoding


def cut(text: str, places: list[int]) -> Iterator[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return (text[begin:end] for begin, end in pairwise(edges))


@settings(deadline=None)
@given(TEXTS, st.integers(1, 7))
@example("\r\n\r", 1)
def test_any_text_comes_out_of_utf8_in_small_bites(text: str, size: int) -> None:
    stream = Trickle(text.encode("utf-8"), size)
    out = "".join(composed(DecodedText(stream, "file", "utf-8"), "file"))
    newlines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert out == unicodedata.normalize("NFC", newlines)


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(0, 100), max_size=6))
@example("e\u0301", [1])
@example("\u1100\u1161\u11a8", [1, 2])
def test_composing_pieces_is_composing_the_whole(text: str, places: list[int]) -> None:
    assert "".join(composed(cut(text, places), "file")) == unicodedata.normalize("NFC", text)


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(0, 100), max_size=6))
def test_lines_of_pieces_are_lines_of_the_whole(text: str, places: list[int]) -> None:
    assert "".join(lines(cut(text, places), "file")) == text
    assert [line.rstrip("\n") for line in lines(cut(text, places), "file")] == text.removesuffix("\n").split("\n")[
        : None if text else 0
    ]


def test_no_character_that_begins_anew_joins_what_stands_before_it() -> None:
    second_halves = set()
    for code in range(sys.maxunicode + 1):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            second_halves.add(chr(int(parts[1], 16)))
    second_halves.update(map(chr, [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]))
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if decode._begins_anew(character):
            assert character not in second_halves, hex(code)
            assert not unicodedata.combining(unicodedata.normalize("NFD", character)[0]), hex(code)


def test_endless_marks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "LONGEST_HELD", 1000)
    with pytest.raises(UnreadableTextError, match="this is no text"):
        list(composed(("\u0301" * 100 for _ in range(100)), "file"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_byte_order_marks_decide(encoding: str) -> None:
    text = "Привет, мир\n"
    assert decoded(("\ufeff" + text).encode(encoding)) == (text, encoding)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("“Hello,” he said — it’s fine. The old man’s house stood by the sea.\n", "cp1252"),
        ("El niño comió mañana en el jardín, ¿verdad? Está aquí.\n", "cp1252"),
        ("Привет, мир! Как твои дела сегодня?\n", "cp1251"),
        ("Привет, мир! Как твои дела сегодня?\n", "koi8-r"),
        ("日本語の文章です。これはペンです。\n", "cp932"),
        ("日本語の文章です。これはペンです。\n", "euc_jp"),
        ("日本語の文章です。これはペンです。\n", "iso2022_jp"),
        ("这是一个句子。今天天气很好。\n", "gb18030"),
        ("Καλημέρα κόσμε, τι κάνεις σήμερα;\n", "cp1253"),
        ("Plain words without a mark.\n", "utf-16-le"),
        ("Plain words without a mark.\n", "utf-16-be"),
    ],
)
def test_encodings_are_found_out(text: str, encoding: str) -> None:
    assert decoded((text * 30).encode(encoding)) == (text * 30, encoding)


def test_the_encoding_is_found_in_the_first_block_that_is_not_ascii() -> None:
    plain = "Nothing but plain ASCII for a long while.\n" * 60_000
    late = "Les élèves étaient très fatigués après la fête, où ils avaient mangé des gâteaux à la crème.\n" * 20
    assert len(plain) > 2 * decode.BLOCK_BYTES
    assert decoded((plain + late).encode("cp1252")) == (plain + late, "cp1252")
    assert decoded((plain + late).encode("utf-8")) == (plain + late, "utf-8")


def test_a_damaged_byte_in_utf8_is_an_error_with_its_place_and_not_another_encoding() -> None:
    good = "Größe und Übermut sind schöne Wörter.\r\n".encode()
    before = good * 50_000
    data = before + "größ".encode()[:-1] + b"\xff" + good * 10
    with pytest.raises(UnreadableTextError) as caught:
        decoded(data)
    offset = len(before) + 4
    assert f"byte {offset:,} (0xc3) cannot be decoded as utf-8" in caught.value.message
    assert caught.value.where == "file:50001"


def test_a_text_cut_within_a_character_is_an_error() -> None:
    with pytest.raises(UnreadableTextError, match="file:2: byte 6 "):
        decoded("één\né".encode()[:-1])


@pytest.mark.parametrize("data", [b"\x7fELF\x02\x01\0\0", b"text\n" * 300_000 + b"\0", "é".encode() + b"\0"])
def test_zero_bytes_are_binary(data: bytes) -> None:
    with pytest.raises(UnreadableTextError, match="is binary, not text"):
        decoded(data)


def test_noise_is_binary() -> None:
    noise = bytes(1 + (index * index * 7919 + index * 104729) % 255 for index in range(20_000))
    with pytest.raises(UnreadableTextError, match="is binary, or text in an unknown encoding"):
        decoded(noise)


def test_a_chosen_encoding_is_not_second_guessed() -> None:
    assert decoded("naïve\n".encode("mac_roman"), "mac_roman")[0] == "naïve\n"
    with pytest.raises(UnreadableTextError, match="cannot be decoded as ascii"):
        decoded("naïve\n".encode(), "ascii")


@pytest.mark.parametrize("name", ["uft8", "hex", "rot13", "", "a\0b"])
def test_unknown_encodings_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="there is no text encoding"):
        check_encoding(name)


def test_compose() -> None:
    assert compose("cafe\u0301") == "caf\u00e9"
