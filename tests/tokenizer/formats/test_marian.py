"""Marian's two models and one list of ids: ours are those of transformers' MarianTokenizer, for sources and targets."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings

from rhapsode.base.errors import InputError
from rhapsode.tokenizer.tokenizer import Tokenizer

from .conftest import train
from .test_sentencepiece import texts

GERMAN = [
    "Größe naïve über Straße ß ä ö ü",
    "Ich bin ein kleiner Frosch und heiße Jürgen.",
    "Der Mann geht in das Haus, das schön ist.",
] * 40
CODES = [">>fra<<", ">>deu<<"]


def ids_of(source: bytes, target: bytes) -> dict[str, int]:
    """A vocab.json like those of opus-mt: both sides' pieces in an order of its own, and some pieces missing."""
    pieces: set[str] = set()
    for model in (source, target):
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        pieces |= {processor.id_to_piece(id) for id in range(3, len(processor))}
    draw = random.Random(0)
    order = draw.sample(sorted(pieces), len(pieces) - 60)
    return {name: id for id, name in enumerate(["</s>", "<unk>", *order, *CODES, "<pad>"])}


@pytest.fixture(scope="module")
def folder(plays: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import json

    folder = tmp_path_factory.mktemp("opus")
    english = plays[:60_000].split("\n")
    source, target = train(english, 700), train([*GERMAN, *english[:200]], 300)
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    (folder / "vocab.json").write_text(json.dumps(ids_of(source, target)), encoding="utf-8")
    config = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Tokenizer, Any]:
    import warnings

    from transformers import MarianTokenizer

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
        return Tokenizer.load(folder), MarianTokenizer.from_pretrained(folder, model_max_length=10**6)


@settings(deadline=None, max_examples=300)
@given(text=texts)
def test_any_text_has_the_ids_of_transformers(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    for name in ours.special_tokens:  # transformers reads these names in a text as the tokens
        text = text.replace(name, "")
    assert ours.target is not None
    assert [*ours.encode(text), 0] == theirs(text)["input_ids"]
    targets = theirs(text_target=text)["input_ids"]
    assert [*ours.target.encode(text), 0] == targets
    if ours.unknown_id not in targets:
        assert ours.target.decode(targets) == theirs.decode(targets, skip_special_tokens=True)


def test_an_unknown_letter_that_the_other_language_has(pair: tuple[Tokenizer, Any]) -> None:
    """ "ß" is in no English piece, but it is in the list: MarianTokenizer finds its id by its name."""
    ours, theirs = pair
    assert ours.token_to_id("ß") in ours.encode("a ß b")
    assert [*ours.encode("a ß b"), 0] == theirs("a ß b")["input_ids"]


def test_languages_are_special_tokens(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.special_tokens.keys() == {"</s>", "<unk>", "<pad>", *CODES}
    assert [*ours.encode(">>fra<< the man", special=True), 0] == theirs(">>fra<< the man")["input_ids"]
    assert ours.special_tokens[">>fra<<"] not in ours.encode(">>fra<< the man")


def test_frame_and_ends(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.target is not None and ours.target.target is None
    for tokenizer in (ours, ours.target):
        assert tokenizer.frame == ([], [theirs.eos_token_id])
        assert (tokenizer.end_of_text_id, tokenizer.padding_id) == (theirs.eos_token_id, theirs.pad_token_id)
        assert tokenizer.vocabulary_size == len(theirs)


def test_what_is_saved_has_both_languages(pair: tuple[Tokenizer, Any], plays: str, tmp_path: Path) -> None:
    ours, _ = pair
    ours.save(tmp_path)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert names == ["target/tokenizer.json", "target/tokenizer_config.json", "tokenizer.json", "tokenizer_config.json"]
    again = Tokenizer.load(tmp_path)
    assert ours.target is not None and again.target is not None
    for text in (plays[:20_000], " ".join(GERMAN), "ß ß ------- ｱ\u0301"):
        assert again.encode(text) == ours.encode(text)
        assert again.target.encode(text) == ours.target.encode(text)


def test_any_of_the_three_files_opens_them_all(folder: Path) -> None:
    expected = Tokenizer.load(folder)
    for name in ("source.spm", "target.spm", "vocab.json"):
        assert Tokenizer.load(folder / name).digest == expected.digest


def test_separate_ids_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "opus")
    (tmp_path / "opus" / "tokenizer_config.json").write_text('{"separate_vocabs": true}', encoding="utf-8")
    with pytest.raises(InputError, match="separate_vocabs"):
        Tokenizer.load(tmp_path / "opus")
