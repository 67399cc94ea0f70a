"""WordPiece vocabularies: our ids are those of transformers' BertTokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.tokenizer.tokenizer import Tokenizer

from ..texts import any_text, stitched
from .conftest import Write

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "cased": {"do_lower_case": False},
    "accents": {"do_lower_case": True, "strip_accents": False},
    "cased without accents": {"do_lower_case": False, "strip_accents": True},
    "chinese": {"tokenize_chinese_chars": False},
}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """A vocabulary of letters and some words, so that no test needs a published one."""
    characters = [*"abcdefghijklmnopqrstuvwxyzABCßéüñ0123456789.,;:'!?-<|>[]()日本語한ع🦙"]
    words = ["the", "The", "un", "##aff", "##able", "hello", "world", "don", "##ing", "café", "cafe"]
    return [*SPECIAL, *characters, *(f"##{character}" for character in characters), *words]


@pytest.fixture(scope="module", params=SETTINGS)
def pair(
    request: pytest.FixtureRequest, lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Any]:
    import json

    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS[request.param]), encoding="utf-8")
    return Tokenizer.load(folder), BertTokenizer.from_pretrained(folder)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=any_text | stitched)
def test_any_text_has_the_ids_of_transformers(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    for name in SPECIAL:
        text = text.replace(name, "")
    front, back = ours.frame
    assert [*front, *ours.encode(text), *back] == theirs(text)["input_ids"]


def test_special_tokens_and_frame(pair: tuple[Tokenizer, Any], tmp_path: Path) -> None:
    ours, theirs = pair
    ours.save(tmp_path)
    for tokenizer in (ours, Tokenizer.load(tmp_path)):
        assert tokenizer.special_tokens == {name: id for id, name in enumerate(SPECIAL)}
        assert tokenizer.frame == ([theirs.cls_token_id], [theirs.sep_token_id])
        assert tokenizer.mask_id == theirs.mask_token_id
        assert tokenizer.padding_id == theirs.pad_token_id
    assert set(ours.encode("a [MASK] [CLS]")).isdisjoint({2, 3, 4})
    assert ours.encode("a [MASK]", special=True)[-1] == 4


def test_pairs_of_texts_keep_their_frame_in_the_file(pair: tuple[Tokenizer, Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = pair
    ours.save(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved("hello", "the world")["input_ids"] == theirs("hello", "the world")["input_ids"]
    assert saved("hello", "the world")["token_type_ids"] == theirs("hello", "the world")["token_type_ids"]


def test_a_file_of_any_name_is_known_by_its_content(lines: list[str], write: Write) -> None:
    folder = write(words__list="\r\n".join(lines))
    assert Tokenizer.load(folder / "words.list").vocabulary_size == len(lines)


def test_a_token_on_two_lines_has_the_last(lines: list[str], write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(set(lines)) == len(lines)
    tokenizer = Tokenizer.load(write(vocab__txt="\n".join([*lines, "a"])))
    assert tokenizer.encode("a") == [len(lines)]
    assert "1 tokens stand on more than one line" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"vocab__txt": "[PAD]\nhello"}, r"no token for unknown words \(\[UNK\]\)"),
        ({"vocab__txt": ""}, "no token for unknown words"),
        ({"vocab__txt": b"[UNK]\n\xff"}, "not UTF-8"),
        ({"vocab__txt": "[UNK]", "tokenizer_config__json": {"do_lower_case": "yes"}}, "do_lower_case must be true or"),
        ({"vocab__txt": "[UNK]", "tokenizer_config__json": {"do_basic_tokenize": False}}, "a way of its own"),
        ({"vocab__txt": "[UNK]", "tokenizer_config__json": {"tokenizer_class": "BertJapaneseTokenizer"}}, "of its own"),
    ],
)
def test_what_cannot_be_followed_is_refused(write: Write, files: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        Tokenizer.load(write(**files))


def test_names_of_the_settings_count(lines: list[str], write: Write) -> None:
    folder = write(
        vocab__txt="\n".join(["<pad>", "<unk>", "<s>", "</s>", "<mask>", *lines[5:]]),
        special_tokens_map__json={
            "unk_token": "<unk>",
            "cls_token": "<s>",
            "sep_token": {"content": "</s>", "lstrip": False},
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    )
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.frame, tokenizer.mask_id, tokenizer.unknown_id) == (([2], [3]), 4, 1)
    with pytest.raises(DamagedError, match="no token for unknown words"):
        Tokenizer.load(write(vocab__txt="\n".join(lines[5:])))
