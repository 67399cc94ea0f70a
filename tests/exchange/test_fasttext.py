"""The n-grams of fastText, against a second reading of how they are made, one at a time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.exchange.fasttext import ngram_hashes


def one_hash(ngram: str) -> int:
    value = 2166136261
    for byte in ngram.encode():
        value ^= byte if byte < 128 else 0xFFFFFF00 | byte
        value = value * 16777619 % 2**32
    return value


def ngrams(word: str, shortest: int, longest: int) -> list[str]:
    found = [word[i:j] for i in range(len(word)) for j in range(i + 1, len(word) + 1) if shortest <= j - i <= longest]
    return [ngram for ngram in found if len(ngram) > 1] + [sign for sign in word[1:-1] if shortest <= 1 <= longest]


@given(st.lists(st.text(max_size=9), max_size=6), st.integers(0, 4), st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_hashes_of_ngrams(words: list[str], shortest: int, longest: int) -> None:
    bracketed = [f"<{word}>" for word in words]
    owners, hashes = ngram_hashes([word.encode() for word in bracketed], shortest, longest)
    for number, word in enumerate(bracketed):
        assert sorted(hashes[owners == number].tolist()) == sorted(map(one_hash, ngrams(word, shortest, longest)))
