"""Which form a folder or a file is, and what the settings beside it add."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.tokenizer.tokenizer import Tokenizer

from .conftest import Write
from .test_byte_pairs import files_of

WORDS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n"


def test_the_order_of_preference(write: Write, trained: dict[str, Tokenizer], models: dict[str, bytes]) -> None:
    """Each form is taken when those before it are gone."""
    vocabulary, merges = files_of(trained["bpe"], "<|endoftext|>")
    small = b"".join(b"%s %d\n" % (__import__("base64").b64encode(bytes([byte])), byte) for byte in range(256))
    folder = write(
        tokenizer__json=trained["byte"].definition,
        vocab__json=vocabulary,
        merges__txt=merges,
        vocab__txt=WORDS,
        tokenizer__model=models["unigram-plain"],
        x__tiktoken=small,
        tokenizer_config__json={"rhapsode": {"pre_tokenizer": "qwen2"}},
    )
    kinds = []
    for name in ("tokenizer.json", "merges.txt", "vocab.txt", "tokenizer.model", "x.tiktoken"):
        tokenizer = Tokenizer.load(folder)
        kinds.append((tokenizer.kind, tokenizer.vocabulary_size))
        (folder / name).unlink()
    size = models_size(models["unigram-plain"])
    assert kinds == [("byte", 260), ("bpe", len(vocabulary)), ("wordpiece", 7), ("unigram", size), ("byte", 256)]
    with pytest.raises(InputError, match="there is no tokenizer here"):
        Tokenizer.load(folder)


def models_size(model: bytes) -> int:
    import sentencepiece

    return len(sentencepiece.SentencePieceProcessor(model_proto=model))


def test_a_tokenizer_model_may_hold_ranks(write: Write, models: dict[str, bytes]) -> None:
    import base64

    ranks = b"".join(base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
    config = {"rhapsode": {"pre_tokenizer": "llama-bpe"}}
    assert Tokenizer.load(write(tokenizer__model=ranks, tokenizer_config__json=config)).kind == "byte"
    assert Tokenizer.load(write(tokenizer__model=models["bpe-plain"])).kind == "bpe"


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 50, b"hello world\n", b"{}", b"\x89PNG\r\n", b'{"a": 1}', b"a b\nc d\n"]
)
def test_what_is_none_of_them_is_one_message(write: Write, data: bytes) -> None:
    with pytest.raises(DamagedError, match="no tokenizer that can be opened") as caught:
        Tokenizer.load(write(some__file=data) / "some.file")
    assert "vocab.txt" in caught.value.message and "\n" not in caught.value.message


def test_a_packed_tokenizer_json_opens(trained: dict[str, Tokenizer], write: Write) -> None:
    import gzip

    packed = gzip.compress(trained["bpe"].definition.encode("utf-8"))
    assert Tokenizer.load(write(mine__json__gz=packed) / "mine.json.gz").digest == trained["bpe"].digest


@pytest.mark.parametrize(
    "beside",
    [
        {"added_tokens__json": {"<new>": 7}, "special_tokens_map__json": {"additional_special_tokens": ["<new>"]}},
        {"tokenizer_config__json": {"added_tokens_decoder": {"7": {"content": "<new>", "special": True}}}},
        {"tokenizer_config__json": {"additional_special_tokens": ["<new>"]}},
        {"tokenizer_config__json": {"extra_special_tokens": {"image_token": "<new>"}}},
        {"special_tokens_map__json": {"bos_token": {"content": "<new>", "lstrip": True}}},
    ],
)
def test_added_special_tokens_are_those_of_transformers(write: Write, beside: dict[str, Any], tmp_path: Path) -> None:
    from transformers import BertTokenizer

    folder = write(vocab__txt=WORDS, **beside)
    ours, theirs = Tokenizer.load(folder), BertTokenizer.from_pretrained(folder)
    assert ours.special_tokens["<new>"] == theirs.convert_tokens_to_ids("<new>") == 7
    assert ours.vocabulary_size == len(theirs) == 8
    assert 7 not in ours.encode("a <new> b")
    assert ours.encode("a<new>b", special=True) == [5, 7, 6]
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").special_tokens == ours.special_tokens


def test_added_tokens_that_are_not_special_are_found_in_text(write: Write) -> None:
    from transformers import BertTokenizer

    folder = write(vocab__txt=WORDS, added_tokens__json={"<new>": 7})
    ours, theirs = Tokenizer.load(folder), BertTokenizer.from_pretrained(folder)
    assert ours.encode("a<new>b") == theirs("a<new>b", add_special_tokens=False)["input_ids"] == [5, 7, 6]


@pytest.mark.parametrize(
    ("beside", "why"),
    [
        ({"added_tokens__json": {"a": 9}}, "'a' has the id 5, not 9"),
        ({"added_tokens__json": {"<new>": 5}}, "'a' and '<new>' both have the id 5"),
        ({"added_tokens__json": {"<new>": 2**32}}, "4294967296 is no id"),
        ({"added_tokens__json": []}, "not a JSON object"),
        ({"tokenizer_config__json": "["}, "is not JSON"),
        ({"tokenizer_config__json": "[" * 100_000}, "is not JSON"),
        ({"tokenizer_config__json": '{"model_max_length": ' + "9" * 5000 + "}"}, "a number in it is too long"),
        ({"tokenizer_config__json": {"added_tokens_decoder": {"x": "a"}}}, "'x' in added_tokens_decoder is no id"),
        (
            {"tokenizer_config__json": {"added_tokens_decoder": []}, "special_tokens_map__json": {"unk_token": 3}},
            "name",
        ),
        ({"tokenizer_config__json": {"additional_special_tokens": 3}}, "additional_special_tokens is not a list"),
        ({"tokenizer_config__json": {"mask_token": {"content": ""}}}, "a special token in it has no name"),
        ({"tokenizer_config__json": '{"mask_token": "\\ud83e"}'}, "half a character"),
    ],
)
def test_settings_that_are_wrong_are_one_message(write: Write, beside: dict[str, Any], why: str) -> None:
    with pytest.raises(DamagedError, match=why) as caught:
        Tokenizer.load(write(vocab__txt=WORDS, **beside))
    assert "\n" not in caught.value.message


def test_a_role_may_be_none(write: Write) -> None:
    folder = write(vocab__txt=WORDS, tokenizer_config__json={"mask_token": None, "pad_token": None})
    tokenizer = Tokenizer.load(folder)
    assert "[MASK]" not in tokenizer.special_tokens and tokenizer.mask_id is None and tokenizer.padding_id is None


def test_what_still_holds_of_the_settings_is_kept(write: Write, tmp_path: Path) -> None:
    config = {
        "model_max_length": 77,
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]},
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": False,
        "chat_template": "{{ messages }}",
    }
    tokenizer = Tokenizer.load(write(vocab__txt=WORDS, tokenizer_config__json=config))
    assert tokenizer.chat_template == "{{ messages }}"
    tokenizer.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved["model_max_length"] == 77 and saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not saved.keys() & {"auto_map", "do_lower_case", "chat_template"}
