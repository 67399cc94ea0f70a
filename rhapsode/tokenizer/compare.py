"""How tokenizers do on one text: bytes per token, tokens per word, what they do not know, and how fast they are.

rhapsode tokenizer compare mytokenizer others/tokenizer.json --text mytext.txt
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rhapsode.base.errors import InputError
from rhapsode.tokenizer.sample import evenly_spaced
from rhapsode.tokenizer.tokenizer import Tokenizer

CHARACTERS = 16_000_000
REPETITIONS = 3
REPEATED_FOR_SECONDS = 2.0  # after this no further repetition begins


@dataclass(frozen=True)
class Comparison:
    """How one tokenizer does on a text."""

    kind: str
    vocabulary_size: int
    tokens: int
    bytes_per_token: float
    """Bytes of UTF-8."""
    tokens_per_word: float
    """A word is what stands between white spaces."""
    unknown: int
    """Tokens that stand for something the vocabulary lacks."""
    used: int
    """Entries of the vocabulary that occur."""
    exact: bool
    """Whether decoding gives the text back."""
    megabytes_per_second: float
    """Of text encoded, on all threads: the median of three times, after one that does not count."""


def compare(tokenizers: Sequence[Tokenizer], texts: Iterable[str]) -> list[Comparison]:
    """One row for each tokenizer, on `texts`, or on an evenly spaced sample of more than 16 million characters.

    Raises:
        InputError: there is no text.
    """
    parts = evenly_spaced(texts, CHARACTERS).parts
    size = sum(len(part.encode("utf-8")) for part in parts)
    words = sum(len(part.split()) for part in parts)
    if not size:
        raise InputError("there is no text to compare on")
    return [_comparison(tokenizer, parts, size, words) for tokenizer in tokenizers]


def _comparison(tokenizer: Tokenizer, parts: list[str], size: int, words: int) -> Comparison:
    tokenizer.prepare()
    arrays = tokenizer.encode_batch(parts)
    seconds: list[float] = []
    while len(seconds) < REPETITIONS and sum(seconds) < REPEATED_FOR_SECONDS:
        start = time.perf_counter()
        tokenizer.encode_batch(parts)
        seconds.append(time.perf_counter() - start)
    tokens = sum(map(len, arrays))
    used = np.zeros(tokenizer.vocabulary_size, dtype=bool)
    for ids in arrays:
        used[ids] = True
    return Comparison(
        kind=tokenizer.kind,
        vocabulary_size=tokenizer.vocabulary_size,
        tokens=tokens,
        bytes_per_token=size / max(1, tokens),
        tokens_per_word=tokens / max(1, words),
        unknown=sum(map(tokenizer.unknown_count, arrays)),
        used=int(used.sum()),
        exact=all(tokenizer.decode(ids) == part for ids, part in zip(arrays, parts, strict=True)),
        megabytes_per_second=size / 1e6 / float(np.median(seconds)),
    )
