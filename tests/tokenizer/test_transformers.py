"""What is saved is read by transformers and gives the same ids and the same text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tokenizers import Tokenizer as Library

from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import KINDS

from .texts import stitched

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you?\n"},
    {"role": "assistant", "content": " A rhapsode."},
]
WRITTEN = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho are you?\n<|im_end|>\n"
    "<|im_start|>assistant\n A rhapsode.<|im_end|>\n"
)


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, trained: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Any]:
    """A tokenizer, and what transformers loads from a model folder with it."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp(request.param)
    trained[request.param].save(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}), encoding="utf-8")
    return trained[request.param], AutoTokenizer.from_pretrained(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=stitched)
def test_ids_and_text_are_the_same(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    if any(name in text for name in ours.special_tokens):
        text = text.replace("<|", "< |")  # transformers reads the names of special tokens in a text as these tokens
    ids = ours.encode(text)
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == ours.decode(ids, skip_special=False)


def test_ids_of_any_kind_decode_to_the_same_text(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    ids = list(range(ours.vocabulary_size))
    for skip in (True, False):
        assert theirs.decode(ids, skip_special_tokens=skip) == ours.decode(ids, skip_special=skip)


def test_special_tokens_are_the_same(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert len(theirs) == ours.vocabulary_size
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.end_of_text_id, ours.padding_id)
    assert theirs.convert_tokens_to_ids(list(ours.special_tokens)) == list(ours.special_tokens.values())
    text = "a<|endoftext|><|im_start|>b"
    assert theirs(text)["input_ids"] == ours.encode(text, special=True)


def test_the_chat_template_is_found(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert theirs.apply_chat_template(TURNS, tokenize=False) == WRITTEN
    opened = theirs.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert opened == WRITTEN + "<|im_start|>assistant\n"
    ids = theirs.apply_chat_template(TURNS, tokenize=True, return_dict=False)
    assert ids == ours.encode(WRITTEN, special=True)


def test_the_library_reads_the_file(pair: tuple[Tokenizer, Any], tmp_path: Path) -> None:
    ours, _ = pair
    ours.save(tmp_path)
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n"
    assert library.encode(text, add_special_tokens=False).ids == ours.encode(text)
