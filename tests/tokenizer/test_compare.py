from __future__ import annotations

import pytest

from rhapsode.base.errors import InputError
from rhapsode.tokenizer.compare import compare
from rhapsode.tokenizer.tokenizer import Tokenizer


def test_figures_of_a_text_that_can_be_counted_by_hand(trained: dict[str, Tokenizer]) -> None:
    rows = dict(zip(trained, compare(list(trained.values()), ["To be é", "\nno"]), strict=True))
    size, words = len("To be é\nno".encode()), 4
    byte, character = rows["byte"], rows["character"]
    assert (byte.tokens, byte.bytes_per_token, byte.tokens_per_word) == (size, 1.0, size / words)
    assert (byte.unknown, byte.used, byte.exact) == (0, len(set("To be é\nno".encode())), True)
    assert (character.tokens, character.bytes_per_token) == (size - 1, size / (size - 1))
    assert (character.unknown, character.exact) == (1, False)
    assert rows["bpe"].tokens < size and rows["bpe"].exact and rows["unigram"].exact
    assert all(row.megabytes_per_second > 0 for row in rows.values())
    assert [row.kind for row in rows.values()] == list(trained)


def test_larger_pieces_make_fewer_tokens(trained: dict[str, Tokenizer], plays: str) -> None:
    bpe, word, character = compare([trained[kind] for kind in ("bpe", "word", "character")], [plays[:100_000]])
    assert bpe.bytes_per_token > 2 * character.bytes_per_token
    assert word.unknown > 0 and not word.exact
    assert bpe.used > 0.5 * bpe.vocabulary_size


def test_no_text_is_refused(trained: dict[str, Tokenizer]) -> None:
    with pytest.raises(InputError, match="no text"):
        compare([trained["byte"]], [""])
