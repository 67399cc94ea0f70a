"""The fast encoder gives the ids of the `tokenizers` library, whatever the vocabulary and the text."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from rhapsode.tokenizer.encoders import BytePairEncoder, byte_pair_ranks
from rhapsode.tokenizer.pre_tokenizers import LONG_RUN, PATTERNS, byte_characters, has_long_run, safe_parts
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

from .texts import any_text, stitched


@pytest.fixture(scope="module")
def vocabularies(plays: str) -> list[Tokenizer]:
    """Byte-level BPE with every pre-tokeniser, small and larger, of English and of a mixture of scripts."""
    mixture = (
        "Größe naïve Ελληνικά русский язык 日本語のテキスト 한국어 हिन्दी 🦙🏽‍♀️ don't 1984 x == y;\n\n\tdef f(x):\r\n"
        * 50
    )
    return [
        train_tokenizer([text], "bpe", size, pre_tokenizer=name)
        for name in PATTERNS
        for text, size in ((plays[:200_000], 3000), (mixture, 600), (plays[:50_000], 300))
    ]


def both_ways(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """The ids by tiktoken and by the library."""
    tokenizer.prepare()
    assert tokenizer._pair_encoder is not None
    return tokenizer.encode(text), tokenizer._by_library([text])[0].tolist()


@settings(max_examples=300)
@given(text=any_text | stitched, index=st.integers(0, 8))
def test_any_text_has_the_ids_of_the_library(vocabularies: list[Tokenizer], text: str, index: int) -> None:
    fast, library = both_ways(vocabularies[index], text)
    assert fast == library
    assert vocabularies[index].decode(fast) == text


def test_real_text_has_the_ids_of_the_library(vocabularies: list[Tokenizer], plays: str) -> None:
    for tokenizer in vocabularies:
        fast, library = both_ways(tokenizer, plays[:150_000])
        assert fast == library


EVERYTHING = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


@pytest.mark.parametrize("character_class", [r"\p{L}", r"\p{N}", r"\s"])
def test_both_engines_know_the_same_characters(character_class: str) -> None:
    """tiktoken and the library have Unicode tables of their own; the patterns stand on these three classes."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    tiktoken = BytePairEncoder(character_class, ranks, np.arange(256, dtype=np.uint32))
    library = pre_tokenizers.Split(Regex(f"{character_class}+"), "removed", invert=True)
    for start in range(0, len(EVERYTHING), 2**16):
        text = "".join(EVERYTHING[start : start + 2**16])
        matched = "".join(match for match, _ in library.pre_tokenize_str(text))
        assert bytes(tiktoken.encode(text).tolist()).decode("utf-8") == matched


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
def test_every_character_is_cut_alike(name: str) -> None:
    tokenizer = train_tokenizer(["a'sb'llc 12 ab !? don't " * 20], "bpe", 330, pre_tokenizer=name)
    for form in ("a{}b 1{}2", "'{}x'l{} ?{}!"):
        text = " ".join(form.replace("{}", character) for character in EVERYTHING)
        for start in range(0, len(text), 1_000_000):
            fast, library = both_ways(tokenizer, text[start : start + 1_000_000])
            assert fast == library


LETTERS = "ab"


@st.composite
def merge_lists(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Merges in any order over two letters and the space: most of them no training would give."""
    tokens, merges = [*LETTERS, "Ġ"], []
    for _ in range(draw(st.integers(1, 10))):
        pair = (draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens)))
        if pair not in merges and len(pair[0] + pair[1]) < 12:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    return merges


def byte_pairs(merges: list[tuple[str, str]], *, reverse_ids: bool = False) -> Tokenizer:
    tokens = [*byte_characters(), *dict.fromkeys(left + right for left, right in merges)]
    ids: Any = reversed(range(len(tokens))) if reverse_ids else range(len(tokens))
    definition = json.loads(train_tokenizer(["a"], "bpe", pre_tokenizer="gpt-2").definition)
    definition["added_tokens"] = []
    definition["model"] |= {"vocab": dict(zip(tokens, ids, strict=True)), "merges": merges}
    return Tokenizer(json.dumps(definition))


@settings(max_examples=200)
@given(
    merges=merge_lists(), texts=st.lists(st.text(LETTERS + " ", max_size=30), max_size=20), reverse_ids=st.booleans()
)
@example(merges=[("a", "b"), ("b", "a"), ("ab", "a")], texts=["aba"], reverse_ids=False)
def test_merges_that_pass_the_check_agree_on_every_text(
    merges: list[tuple[str, str]], texts: list[str], reverse_ids: bool
) -> None:
    tokenizer = byte_pairs(merges, reverse_ids=reverse_ids)
    found = byte_pair_ranks(tokenizer.content["model"]["vocab"], merges)
    assume(found is not None)
    assert found is not None
    encoder = BytePairEncoder(PATTERNS["gpt-2"], *found)
    for text in texts:
        assert encoder.encode(text).tolist() == tokenizer._by_library([text])[0].tolist()


def test_merges_that_tiktoken_would_read_otherwise_are_left_to_the_library() -> None:
    # The library cannot make "abb" of a + bb, for "ab" joins first; tiktoken joins whatever gives a token.
    merges = [("a", "b"), ("b", "b"), ("a", "bb")]
    tokenizer = byte_pairs(merges)
    assert byte_pair_ranks(tokenizer.content["model"]["vocab"], merges) is None
    tokenizer.prepare()
    assert tokenizer._pair_encoder is None
    assert tokenizer.encode("abb abbb") == tokenizer._by_library(["abb abbb"])[0].tolist()
    assert byte_pair_ranks({"a": 0}, []) is None  # bytes are missing


def test_ids_need_not_be_in_the_order_of_the_merges() -> None:
    tokenizer = byte_pairs([("a", "b"), ("ab", "ab")], reverse_ids=True)
    fast, library = both_ways(tokenizer, "ababab b")
    assert fast == library
    assert fast[0] == tokenizer.token_to_id("abab") == 0


@settings(max_examples=200)
@given(text=stitched, data=st.data())
def test_parts_encoded_alone_are_the_whole(
    trained: dict[str, Tokenizer], vocabularies: list[Tokenizer], text: str, data: st.DataObject
) -> None:
    text = data.draw(st.sampled_from([text, f" a{text} b{text}  c{text}\n d"]))
    tokenizer = data.draw(st.sampled_from([*trained.values(), *vocabularies]))
    parts = cut_everywhere(text)
    assert "".join(parts) == text
    alone = [id for part in parts for id in tokenizer._by_library([part])[0].tolist()]
    assert alone == tokenizer._by_library([text])[0].tolist()


def cut_everywhere(text: str) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rhapsode.tokenizer.pre_tokenizers.PART", 1)
        return list(safe_parts([text]))


@settings(max_examples=50)
@given(data=st.data())
def test_the_size_of_the_pieces_changes_no_part_and_no_id(plays: str, trained: dict[str, Tokenizer], data: Any) -> None:
    text = plays[: data.draw(st.integers(0, 400_000))]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    parts = list(safe_parts(pieces))
    assert "".join(parts) == text
    assert all(2**16 <= len(part) < 2**16 + 2000 for part in parts[:-1])
    tokenizer = trained["bpe"]
    assert np.array_equal(np.concatenate(tokenizer.encode_parts(parts)), tokenizer.encode_batch([text])[0])


LONG = 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        "a" * LONG,
        " " * LONG + "x",
        "\n" * LONG,
        "ab" * (LONG // 2),
        "!" * LONG,
        "1" * LONG,
        "\u3000" * (LONG // 3),
        "日本" * (LONG // 6),
    ],
    ids=["letters", "spaces", "newlines", "pairs", "signs", "digits", "wide spaces", "no spaces"],
)
def test_a_megabyte_without_an_end_takes_seconds(vocabularies: list[Tokenizer], text: str) -> None:
    tokenizer = vocabularies[6]
    tokenizer.prepare()
    start = time.perf_counter()
    ids = tokenizer.encode_batch([text])[0]
    assert time.perf_counter() - start < 20
    assert tokenizer.decode(ids) == text
    assert np.array_equal(ids, tokenizer._by_library([text])[0])


@given(
    before=st.text("ab \n", max_size=300),
    run=st.sampled_from([" ", "x", "\n", "\u3000", "é"]),
    offset=st.integers(0, 9000),
)
def test_no_long_run_is_overlooked(before: str, run: str, offset: int) -> None:
    assert has_long_run("a b\n" * (offset // 4) + before + run * LONG_RUN + " end")


def test_ordinary_text_has_no_long_run(plays: str) -> None:
    assert not has_long_run(plays)


def test_gpt2_and_others_take_the_fast_way(shared_data: Path, gpt2: Tokenizer, plays: str) -> None:
    fast, library = both_ways(gpt2, plays[:300_000])
    assert fast == library
