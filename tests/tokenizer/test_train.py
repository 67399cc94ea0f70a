from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from rhapsode.base.errors import InputError
from rhapsode.tokenizer.sample import evenly_spaced
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import KINDS, train_tokenizer

TRAIN = """
import sys
from pathlib import Path
from rhapsode.tokenizer.train import KINDS, train_tokenizer
text = Path(sys.argv[1]).read_text(encoding="utf-8")
for kind in KINDS:
    print(train_tokenizer([text[:50_000], text[50_000:150_000]], kind, 700).digest)
"""


def test_the_same_text_gives_the_same_file_on_any_number_of_threads(shakespeare: Path) -> None:
    digests = [
        subprocess.run(
            [sys.executable, "-c", TRAIN, str(shakespeare)],
            env=os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for threads in ("1", "2", "3")
    ]
    assert len(digests[0]) == len(KINDS)
    assert digests[0] == digests[1] == digests[2]


def test_another_text_gives_another_file(plays: str, trained: dict[str, Tokenizer]) -> None:
    for kind in ("bpe", "unigram", "word"):
        assert train_tokenizer([plays[:180_000]], kind, 1000).digest != trained[kind].digest


def test_how_a_text_is_cut_into_documents_at_spaces_changes_nothing(plays: str) -> None:
    text = plays[:100_000]
    cut = text.index(" ", 70_000)
    assert not text[cut - 1].isspace()
    for kind in KINDS:
        assert train_tokenizer([text[:cut], text[cut:]], kind, 600).digest == train_tokenizer([text], kind, 600).digest


@pytest.mark.parametrize("kind", ["word", "bpe", "unigram"])
def test_the_vocabulary_has_the_size_asked_for(kind: str, plays: str) -> None:
    for size in (260, 333, 2000):
        tokenizer = train_tokenizer([plays[:120_000]], kind, size)
        assert tokenizer.vocabulary_size == size
        assert len({tokenizer.id_to_token(id) for id in range(size)}) == size


def test_a_small_text_gives_a_smaller_vocabulary() -> None:
    for kind in ("bpe", "unigram", "word"):
        tokenizer = train_tokenizer(["to be or not to be"], kind, 5000)
        assert tokenizer.vocabulary_size < 300
        assert tokenizer.decode(tokenizer.encode("to be or not")) == "to be or not"


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2"])
def test_numbers_are_cut_as_the_pre_tokenizer_says(name: str) -> None:
    tokenizer = train_tokenizer(["(123456)" * 500], "bpe", 400, pre_tokenizer=name)
    numbers = [tokenizer.decode([id]) for id in tokenizer.encode("123456")]
    assert numbers == {"gpt-2": ["123456"], "llama-bpe": ["123", "456"], "qwen2": list("123456")}[name]
    assert tokenizer.pre_tokenizer == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["text"], "bpee"), r"no tokenizer kind 'bpee'\. Did you mean 'bpe'"),
        ((["text"], "bpe", 259), r"vocabulary size 259: a bpe tokenizer has 260 to"),
        ((["text"], "unigram", 0), "vocabulary size 0"),
        ((["text"], "word", 5), "vocabulary size 5"),
        ((["text"], "character", -1), "vocabulary size -1"),
        ((["text"], "byte", 100), "vocabulary size 100"),
        ((["text"], "bpe", 10**9), "vocabulary size 1000000000"),
        (([], "bpe"), "there is no text"),
        ((["", ""], "character"), "there is no text"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_tokenizer(*arguments)  # type: ignore[arg-type]


def test_an_unknown_pre_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match=r"Did you mean 'qwen2'"):
        train_tokenizer(["text"], "bpe", pre_tokenizer="qwen")


def test_a_sample_is_evenly_spaced_and_bounded() -> None:
    texts = [f"{number:>1000}" for number in range(1000)]
    whole = evenly_spaced(texts, 10**6)
    assert (len(whole.parts), whole.characters, whole.of) == (1000, 10**6, 10**6)
    sample = evenly_spaced(iter(texts), 100_000)
    assert 50_000 <= sample.characters <= 100_000 and sample.of == 10**6
    numbers = [int(part) for part in sample.parts]
    assert numbers[0] == 0
    assert {after - before for before, after in pairwise(numbers)} == {16}


def test_of_much_text_a_sample_is_used_but_no_character_is_missed(plays: str) -> None:
    texts = ["abc " * 1000] * 100 + ["ü"] + ["abc " * 1000] * 100
    tokenizer = train_tokenizer(texts, "character", sample_characters=10_000)
    assert tokenizer.unknown_count(tokenizer.encode("abcü ")) == 0
    recorded = train_tokenizer([plays] * 3, "bpe", 300, sample_characters=10**6).settings["rhapsode"]
    assert recorded["characters_read"] == 3 * len(plays)
    assert 500_000 < recorded["characters_used"] <= 10**6
