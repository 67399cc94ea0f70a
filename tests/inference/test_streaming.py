"""Whatever text a model writes and wherever it shall stop: the pieces are the text up to there, in whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from rhapsode.inference.engine import Engine
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.speculation import PromptLookup
from rhapsode.inference.step import Reading
from rhapsode.tokenizer.tokenizer import UNKNOWN, Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

CONTEXT = 2048
FRAGMENTS = (
    "é",  # one character, or two
    "e\u0301",
    "ä\u0308\u0323",
    "👩🏽\u200d🚀",
    "👨\u200d👩\u200d👧\u200d👦",
    "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "🇨🇿",
    "שָׁלוֹם",
    "السلام عليكم",
    "\u202eabc\u202c",
    "日本語",
    "नमस्ते",
    "\r\n",
    "\x00",
    "\U0010ffff",
    "aa",
    "aab",
    " the",
)


class Dictated:
    """A step after which nothing can be drawn but a given text's tokens, whatever was drawn before."""

    def __init__(self, prompt: Sequence[int], ids: Sequence[int], vocabulary: int) -> None:
        self.blocks = CONTEXT
        self._whole, self._vocabulary = [*prompt, *ids], vocabulary

    def __call__(self, readings: Sequence[Reading]) -> list[np.ndarray]:
        answers = []
        for reading in readings:
            end = reading.past + len(reading.ids)
            logits = np.zeros((reading.wanted, self._vocabulary), dtype=np.float32)
            for row, place in enumerate(range(end - reading.wanted + 1, end + 1)):
                if place < len(self._whole):  # what would follow a wrong guess is as good as any
                    logits[row, self._whole[place]] = 1000.0
            answers.append(logits)
        return answers


@pytest.fixture(scope="session")
def tokenizers(shakespeare: Path) -> dict[str, Tokenizer]:
    text = shakespeare.read_text(encoding="utf-8")[:20_000] + "".join(FRAGMENTS) * 20
    return {
        kind: train_tokenizer([text], kind, 400 if kind == "bpe" else None) for kind in ("bpe", "byte", "character")
    }


@st.composite
def texts(draw: st.DrawFn, tokenizer: Tokenizer) -> str:
    """Unicode that the tokenizer can spell."""
    if tokenizer.kind == "character":
        spelt = [tokenizer.id_to_bytes(id).decode() for id in range(tokenizer.vocabulary_size)]
        characters = st.sampled_from([each for each in spelt if len(each) == 1 and each != UNKNOWN])
    else:
        characters = st.characters(exclude_categories=["Cs"], exclude_characters=UNKNOWN)
    parts = draw(st.lists(st.text(characters, max_size=4) | st.sampled_from(FRAGMENTS), max_size=12))
    return "".join(parts)


@st.composite
def spellings(draw: st.DrawFn, tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens that stand for a text: as it is encoded, or with some of it byte by byte."""
    if tokenizer.kind == "character":
        return tokenizer.encode(text)
    byte_ids = {tokenizer.id_to_bytes(id): id for id in range(tokenizer.vocabulary_size - 1, -1, -1)}
    ids: list[int] = []
    left = text
    while left:
        size = draw(st.integers(1, len(left)))
        part, left = left[:size], left[size:]
        by_bytes = draw(st.booleans())
        ids += [byte_ids[bytes([byte])] for byte in part.encode()] if by_bytes else tokenizer.encode(part)
    return ids


@st.composite
def stop_strings(draw: st.DrawFn, text: str) -> list[str]:
    """Cut out of a text or out of each other, begun like it and gone on otherwise, or strange to it."""
    stops = draw(st.lists(st.text(min_size=1, max_size=3), max_size=1))
    for _ in range(draw(st.integers(0, 5)) if text else 0):
        first = draw(st.integers(0, len(text) - 1))
        cut = text[first : first + draw(st.integers(1, 8))]
        stops.append(cut + draw(st.sampled_from(["", "", "a", text[0], "\u0301"])))
        if draw(st.booleans()):
            stops.append(cut[1:-1])
    return [stop for stop in stops if stop]


def up_to_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """A text up to the stop string that is complete first, character by character; of two, the longer one."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@pytest.mark.parametrize("kind", ["bpe", "byte", "character"])
@given(data=st.data())
def test_the_pieces_are_the_text_up_to_the_first_stop(
    tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers[kind]
    text = data.draw(texts(tokenizer), label="text")
    ids = data.draw(spellings(tokenizer, text), label="ids")
    assert tokenizer.decode(ids) == text
    prompt = data.draw(texts(tokenizer).map(tokenizer.encode), label="prompt") or tokenizer.encode("a")
    stops = data.draw(stop_strings(text), label="stops")
    most = data.draw(st.just(len(ids) + 1) | st.integers(1, len(ids) + 1), label="most")
    speculation = PromptLookup() if data.draw(st.booleans()) else None
    end = tokenizer.end_of_text_id
    assert end is not None
    step = Dictated(prompt, [*ids, end], tokenizer.vocabulary_size)
    engine = Engine(step, tokenizer, CONTEXT, speculation=speculation)
    sampling = Sampling(temperature=1.0, top_p=1.0, stop=tuple(stops), max_new_tokens=most)
    pieces = list(engine.pieces(engine.submit(prompt, [sampling], {end})))

    whole = tokenizer.decode(ids[:most])  # a character that is cut through at the end is the replacement character
    expected, stopped = up_to_stop(whole, stops)
    event(f"stopped: {stopped}, cut through: {whole.endswith(UNKNOWN)}")
    assert "".join(piece.text for piece in pieces) == expected
    reason = "stop" if stopped else "length" if most <= len(ids) else "end of text"
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [reason]
    assert [piece.token for piece in pieces] == [*ids, end][: len(pieces)]

    shown, characters = "", codecs.getincrementaldecoder("utf-8")()
    written = ""
    for piece in pieces[:-1]:
        shown += piece.text
        written += characters.decode(tokenizer.id_to_bytes(piece.token))
        held = written.removeprefix(shown)
        assert written.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops)  # nothing is held back without need
    assert engine.idle and engine.pool.held == 0


def test_a_stop_that_spans_tokens_never_leaks(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte"]
    ids = tokenizer.encode("go 👩🏽\u200d🚀 on")
    assert tokenizer.end_of_text_id is not None
    engine = Engine(Dictated([1], ids, tokenizer.vocabulary_size), tokenizer, CONTEXT)
    sampling = Sampling(stop=("👩🏽\u200d🚀", "👩🏽\u200d🔬"), max_new_tokens=len(ids))
    pieces = list(engine.pieces(engine.submit([1], [sampling], ())))
    assert [piece.text for piece in pieces if piece.text] == ["g", "o", " "]
    assert pieces[-1].finish_reason == "stop"


def test_of_two_stops_in_a_token_the_one_complete_first_counts(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe"]
    (id,) = tokenizer.encode(" the")
    engine = Engine(Dictated([1], [id], tokenizer.vocabulary_size), tokenizer, CONTEXT)
    (piece,) = engine.pieces(engine.submit([1], [Sampling(stop=(" the", "th", "h"))], ()))
    assert (piece.text, piece.finish_reason) == (" ", "stop")
