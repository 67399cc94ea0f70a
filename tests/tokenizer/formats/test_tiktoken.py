"""Rank files: our ids are those of tiktoken, whatever merges were found for its ranks."""

from __future__ import annotations

import base64
import gzip
from functools import cache
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.tokenizer.encoders import merges_of
from rhapsode.tokenizer.pre_tokenizers import PATTERNS
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

from ..texts import any_text, stitched
from .conftest import Write, unpacked

FILES = {
    "r50k_base.tiktoken.gz": "gpt-2",
    "cl100k_base.tiktoken.gz": "llama-bpe",
    "whisper_multilingual.tiktoken.gz": "gpt-2",
    "torchtune_tiny_bpe/tiktoken_small.model": "llama-bpe",
}


def ranks_of(data: bytes) -> dict[bytes, int]:
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, data.splitlines())}


def lines(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


@cache
def opened(path: Path) -> tuple[Tokenizer, tiktoken.Encoding]:
    ranks = ranks_of(unpacked(path) if path.suffix == ".gz" else path.read_bytes())
    pattern = PATTERNS[FILES["/".join(path.parts[-2:]) if path.suffix == ".model" else path.name]]
    return Tokenizer.load(path), tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


@pytest.mark.parametrize("name", FILES)
@settings(deadline=None, max_examples=150)
@given(text=any_text | stitched)
def test_any_text_has_the_ids_of_tiktoken(shared_data: Path, name: str, text: str) -> None:
    ours, theirs = opened(shared_data / "tokenizers" / name)
    assert ours.pre_tokenizer == FILES[name]
    ids = theirs.encode(text, disallowed_special=())
    assert ours._by_library([text])[0].tolist() == ids
    assert ours.encode(text) == ids
    assert ours.decode(ids) == text


def test_the_merges_of_gpt2_are_found_again(shared_data: Path, gpt2: Tokenizer) -> None:
    ours, _ = opened(shared_data / "tokenizers" / "r50k_base.tiktoken.gz")
    assert merges_of(ours.content["model"]) == merges_of(gpt2.content["model"])


def test_every_token_of_cl100k_is_encoded_fast(shared_data: Path, plays: str) -> None:
    ours, theirs = opened(shared_data / "tokenizers" / "cl100k_base.tiktoken.gz")
    ours.prepare()
    assert ours._pair_encoder is not None
    assert ours.encode(plays[:100_000]) == theirs.encode(plays[:100_000])


@pytest.mark.parametrize("name", PATTERNS)
def test_the_pattern_is_found_from_the_tokens(plays: str, write: Write, name: str) -> None:
    """Numbers of a text of numbers show how they were cut; without numbers, any that fits will do."""
    text = plays[:50_000] + "".join(f" {number}{number}" for number in range(100, 3000, 7)) * 3
    trained = train_tokenizer([text], "bpe", 2000, pre_tokenizer=name)
    ranks = {trained.id_to_bytes(id): id for id in range(trained.vocabulary_size - 4)}
    ours = Tokenizer.load(write(some__tiktoken=lines(ranks)))
    assert ours.pre_tokenizer == name
    assert ours.encode(text) == trained.encode(text)


def test_tokens_that_no_joining_makes_are_whole_pieces_only(write: Write) -> None:
    """tiktoken looks a whole piece up before it joins; Llama 3's ranks have such tokens."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"cd": 257, b"abcde": 258}
    config = {"rhapsode": {"pre_tokenizer": "llama-bpe"}}
    ours = Tokenizer.load(write(x__tiktoken=lines(ranks), tokenizer_config__json=config))
    theirs = tiktoken.Encoding("x", pat_str=PATTERNS["llama-bpe"], mergeable_ranks=ranks, special_tokens={})
    for text in ("abcde", "abcdef", " abcde", "xabcde", "ab cd abcde"):
        assert ours.encode(text) == theirs.encode(text)
    assert ours.encode("abcde") == [258]


def test_special_tokens_come_from_the_settings(shared_data: Path, write: Write) -> None:
    ranks = (shared_data / "tokenizers" / "torchtune_tiny_bpe" / "tiktoken_small.model").read_bytes()
    config = {
        "added_tokens_decoder": {
            "2000": {"content": "<|begin_of_text|>", "special": True},
            "2007": {"content": "<|eot_id|>", "special": True},
        },
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "add_bos_token": True,
    }
    ours = Tokenizer.load(write(tokenizer__model=ranks, tokenizer_config__json=config))
    assert ours.special_tokens == {"<|begin_of_text|>": 2000, "<|eot_id|>": 2007}
    assert (ours.frame, ours.end_of_text_id, ours.vocabulary_size) == (([2000], []), 2007, 2008)
    assert ours.encode("a<|eot_id|>", special=True) == [*ours.encode("a"), 2007]


def test_a_token_may_be_empty(shared_data: Path) -> None:
    """Whisper's files end with one, which only keeps an id free."""
    ours, _ = opened(shared_data / "tokenizers" / "whisper_multilingual.tiktoken.gz")
    assert ours.vocabulary_size == 50257
    assert ours.decode([50256]) == "" and ours.id_to_bytes(50256) == b""


BYTES = lines({bytes([byte]): byte for byte in range(256)})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"YQ== 97\n", "255 of the 256 bytes have no rank"),
        (BYTES + b"YQ== 300\n", r":257: a token or a rank stands there for a second time"),
        (BYTES + b"YWI= 97\n", "for a second time"),
        (BYTES + b"YWI= 999999999\n", "too high"),
        (BYTES + b"YWI 300\n", r":257: is not a token in base64"),
        (BYTES + b"YWI= x\n", "is not a token in base64"),
        (BYTES + b"\xff\n", "is not a token in base64"),
        (BYTES + base64.b64encode(b"a" * 20_000) + b" 256\n", "longer than those of any tokenizer"),
    ],
)
def test_what_is_damaged_is_one_message(write: Write, data: bytes, why: str) -> None:
    with pytest.raises(DamagedError, match=why):
        Tokenizer.load(write(x__tiktoken=data))


def test_tokens_of_an_unknown_pattern_are_refused(write: Write) -> None:
    """o200k puts contractions and words together: no pattern here leaves such tokens whole."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"a'": 256, b"a'b": 257}
    with pytest.raises(InputError, match=r"no known pre-tokeniser fits.*tokenizer_config\.json can name it"):
        Tokenizer.load(write(x__tiktoken=lines(ranks)))


def test_a_folder_of_several_asks_which(write: Write) -> None:
    with pytest.raises(InputError, match=r"several rank files: a\.tiktoken, b\.tiktoken"):
        Tokenizer.load(write(a__tiktoken=BYTES, b__tiktoken=BYTES))


def test_packed_files_are_bounded(tmp_path: Path) -> None:
    bomb = tmp_path / "x.tiktoken.gz"
    with gzip.open(bomb, "wb") as file:
        for _ in range(40):
            file.write(bytes(2**20))
    with pytest.raises(InputError, match="more than 32 MB unpacked"):
        Tokenizer.load(bomb)
    bomb.write_bytes(gzip.compress(BYTES)[:-10])
    with pytest.raises(DamagedError, match="cannot be unpacked"):
        Tokenizer.load(bomb)
