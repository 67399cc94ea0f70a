from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.tokenizer.tokenizer import SPECIAL_TOKENS, UNKNOWN, StreamDecoder, Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

from .texts import any_text, stitched

BYTE_LEVEL = ("byte", "bpe", "unigram")
NAMES = "".join(SPECIAL_TOKENS)


def test_special_tokens_come_last_and_padding_is_not_the_end(tokenizer: Tokenizer) -> None:
    first = tokenizer.vocabulary_size - 4
    assert list(tokenizer.special_tokens.items()) == [(name, first + n) for n, name in enumerate(SPECIAL_TOKENS)]
    assert (tokenizer.end_of_text_id, tokenizer.padding_id) == (first, first + 1)


def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, plays: str) -> None:
    special = set(tokenizer.special_tokens.values())
    text = f"{NAMES} a{NAMES}\n<|endoftext|> <|im_end|>"
    assert special.isdisjoint(tokenizer.encode(text))
    tokenizer.prepare()
    assert special.isdisjoint(tokenizer.encode(text))
    assert tokenizer.encode("<|endoftext|>", special=True) == [tokenizer.end_of_text_id]
    turn = tokenizer.encode("<|im_start|>user<|im_end|>", special=True)
    assert (turn[0], turn[-1]) == (tokenizer.special_tokens["<|im_start|>"], tokenizer.special_tokens["<|im_end|>"])
    assert turn[1:-1] == tokenizer.encode("user")


def test_a_training_text_full_of_their_names_does_not_teach_them(plays: str) -> None:
    text = NAMES * 200 + plays[:20_000] + (" " + " ".join(SPECIAL_TOKENS)) * 200
    for kind in ("bpe", "unigram", "word", "character"):
        tokenizer = train_tokenizer([text], kind, 1000)
        assert set(tokenizer.special_tokens.values()).isdisjoint(tokenizer.encode(text)), kind
        assert tokenizer.decode(tokenizer.encode(NAMES)) == NAMES or kind == "word"


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@given(text=any_text | stitched)
def test_byte_level_kinds_give_any_text_back(trained: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = trained[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.id_to_bytes, ids)) == text.encode("utf-8")
    assert tokenizer.unknown_count(ids) == 0


@pytest.mark.parametrize("kind", ["byte", "bpe", "unigram", "character"])
def test_the_training_text_comes_back(trained: dict[str, Tokenizer], kind: str, plays: str) -> None:
    ids = trained[kind].encode(plays)
    assert trained[kind].decode(ids) == plays
    assert trained[kind].unknown_count(ids) == 0


def test_byte_ids_are_the_bytes(trained: dict[str, Tokenizer]) -> None:
    assert trained["byte"].encode("é\n 🦙") == list("é\n 🦙".encode())


def test_characters_are_sorted_and_unknown_ones_are_counted(trained: dict[str, Tokenizer], plays: str) -> None:
    tokenizer, known = trained["character"], sorted(set(plays))
    assert [tokenizer.id_to_token(id) for id in range(len(known))] == known
    assert tokenizer.vocabulary_size == len(known) + 1 + len(SPECIAL_TOKENS)
    ids = tokenizer.encode("  Né\n🦙\U0010ffff")
    assert tokenizer.unknown_count(ids) == 3
    assert tokenizer.decode(ids) == f"  N{UNKNOWN}\n{UNKNOWN}{UNKNOWN}"


def test_the_most_frequent_characters_stay() -> None:
    tokenizer = train_tokenizer(["aaaabbbccd"], "character", 4 + 1 + 2)
    assert tokenizer.unknown_count(tokenizer.encode("abcd")) == 2
    assert tokenizer.unknown_count(tokenizer.encode("ab")) == 0


def test_words_come_back_with_their_spaces() -> None:
    text = 'The cat  sat,\n\n\ton "the" mat_1.  \r\n Œuvre naïve d\'été — 日本 42!\n'
    tokenizer = train_tokenizer([text * 3], "word")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("The cat") == [tokenizer.token_to_id("The"), tokenizer.token_to_id(" cat")]
    ids = tokenizer.encode("The dog sat")
    assert (len(ids), tokenizer.unknown_count(ids)) == (3, 1)
    assert tokenizer.decode(ids) == f"The{UNKNOWN} sat"


@given(text=stitched)
def test_the_table_of_characters_gives_the_ids_of_the_library(trained: dict[str, Tokenizer], text: str) -> None:
    for kind in ("character", "byte"):
        assert trained[kind].encode(text) == trained[kind]._by_library([text])[0].tolist()


@given(texts=st.lists(stitched, max_size=5))
def test_a_batch_is_encoded_like_its_texts(trained: dict[str, Tokenizer], texts: list[str]) -> None:
    for tokenizer in trained.values():
        assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [tokenizer.encode(text) for text in texts]


@given(data=st.data())
def test_streams_give_whole_characters_and_the_whole_text(trained: dict[str, Tokenizer], data: st.DataObject) -> None:
    tokenizer = trained[data.draw(st.sampled_from(sorted(trained)))]
    anything = st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=40)
    ids = data.draw(stitched.map(tokenizer.encode) | anything)
    skip = data.draw(st.booleans())
    decoder = StreamDecoder(tokenizer, skip_special=skip)
    pieces = [decoder.push(id) for id in ids]
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids, skip_special=skip)


@given(data=st.data())
def test_a_stream_that_forks_gives_what_two_streams_would(trained: dict[str, Tokenizer], data: st.DataObject) -> None:
    tokenizer = trained[data.draw(st.sampled_from(sorted(trained)))]
    anything = st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=20)
    before, first, second = (data.draw(stitched.map(tokenizer.encode) | anything) for _ in range(3))
    decoder = StreamDecoder(tokenizer, shown=[*tokenizer.special_tokens.values()][:1])
    alone = copy.deepcopy(decoder, {id(tokenizer): tokenizer})
    begun = "".join(map(decoder.push, before))
    fork = decoder.fork()
    assert "".join(map(alone.push, before)) == begun
    forked = "".join(map(fork.push, first)) + fork.flush()
    assert forked == "".join(map(alone.push, first)) + alone.flush()
    whole = StreamDecoder(tokenizer, shown=[*tokenizer.special_tokens.values()][:1])
    expected = "".join(map(whole.push, [*before, *second])) + whole.flush()
    assert begun + "".join(map(decoder.push, second)) + decoder.flush() == expected


def test_a_stream_holds_a_character_back_until_its_last_byte(trained: dict[str, Tokenizer]) -> None:
    decoder = StreamDecoder(trained["byte"])
    assert [decoder.push(byte) for byte in "a🦙".encode()] == ["a", "", "", "", "🦙"]
    assert decoder.push(0xF0) == "" and decoder.flush() == UNKNOWN


def test_it_is_saved_and_loaded_as_it_is(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    Tokenizer.load(tmp_path / "a").save(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    loaded = Tokenizer.load(tmp_path / "b")
    assert (loaded.digest, loaded.kind) == (tokenizer.digest, tokenizer.kind)
    assert (loaded.end_of_text_id, loaded.padding_id) == (tokenizer.end_of_text_id, tokenizer.padding_id)
    config = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["rhapsode"]["pre_tokenizer"] == {"bpe": "qwen2", "unigram": "gpt-2"}.get(tokenizer.kind)


def test_settings_that_name_code_are_not_saved(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    trained["byte"].save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "model_max_length": 77}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    Tokenizer.load(tmp_path).save(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in saved and saved["model_max_length"] == 77


def test_padding_that_others_make_equal_to_the_end_is_none(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    trained["byte"].save(tmp_path)
    config = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.end_of_text_id == loaded.special_tokens["<|im_end|>"]
    assert loaded.padding_id is None


def test_ids_that_are_no_tokens_are_refused(tokenizer: Tokenizer) -> None:
    for id in (-1, tokenizer.vocabulary_size, 2**40):
        with pytest.raises(InputError, match=rf"there is no token {id}\. The ids go from 0 to"):
            tokenizer.decode([0, id])
        with pytest.raises(InputError, match="there is no token"):
            tokenizer.id_to_bytes(id)
    assert tokenizer.decode(np.zeros(0, dtype=np.uint32)) == ""


def test_half_characters_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"half a character, U\+D83E"):
        tokenizer.encode("a\ud83e")
    with pytest.raises(InputError, match=r"half a character"):
        train_tokenizer(["a\ud83e"], tokenizer.kind)


def test_a_word_that_others_made_special_is_unknown_in_text(trained: dict[str, Tokenizer]) -> None:
    definition = json.loads(trained["word"].definition)
    special = definition["added_tokens"][0] | {"id": 7, "content": trained["word"].id_to_token(7)}
    definition["added_tokens"] = [special]
    tokenizer = Tokenizer(json.dumps(definition))
    ids = tokenizer.encode(f"{special['content']}{special['content']}")
    assert tokenizer.unknown_count(ids) == len(ids) > 0


@pytest.mark.parametrize(
    ("kind", "part", "change"),
    [
        ("byte", "pre_tokenizer", {"add_prefix_space": True}),
        ("byte", "model", {"end_of_word_suffix": "</w>"}),
        ("bpe", "model", {"continuing_subword_prefix": "##"}),
        ("character", "model", {"fuse_unk": True}),
        ("character", "pre_tokenizer", {"type": "WhitespaceSplit"}),
        ("character", "normalizer", {"type": "Lowercase"}),
        ("bpe", "normalizer", {"type": "NFC"}),
        ("byte", "normalizer", {"type": "Prepend", "prepend": "x"}),
    ],
)
def test_rules_of_others_are_left_to_the_library(
    trained: dict[str, Tokenizer], kind: str, part: str, change: dict[str, object]
) -> None:
    definition = json.loads(trained[kind].definition)
    definition[part] = (definition[part] or {}) | change
    if part == "model" and kind == "bpe":
        definition["model"]["merges"] = []
    text = "To be, or NOT\n to be e\u0301 ééé " * 9000
    tokenizer = Tokenizer(json.dumps(definition))
    library = Library.from_str(json.dumps(definition))
    tokenizer.prepare()
    assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) != trained[kind].encode(text) or kind == "bpe"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ('{"model": ', "tokenizer.json:1:11: is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has no `model`"),
        ('{"version": "1.0"}', "has no `model`"),
        ('{"model": {"type": "Magic"}}', "is not a tokenizer"),
        ('{"model": {"type": "BPE", "vocab": 3}}', "is not a tokenizer"),
        ("\xff", "is not UTF-8"),
    ],
)
def test_a_broken_definition_is_one_message(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DamagedError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in caught.value.message


def test_a_truncated_definition_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for share in (0.0, 0.01, 0.5, 0.999):
        text = tokenizer.definition.rstrip()
        (tmp_path / "tokenizer.json").write_text(text[: int(share * len(text))], encoding="utf-8")
        with pytest.raises(DamagedError):
            Tokenizer.load(tmp_path)


def test_a_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.json"):
        with pytest.raises(InputError, match="rhapsode tokenizer train"):
            Tokenizer.load(path)


def test_a_broken_settings_file_is_refused(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    trained["byte"].save(tmp_path)
    for content in ("{", "[]", '{"a": ' + "[" * 100_000, '{"eos_token": "\\ud83e"}', '{"a": ' + "9" * 5000 + "}"):
        (tmp_path / "tokenizer_config.json").write_text(content, encoding="utf-8")
        with pytest.raises(DamagedError, match=r"tokenizer_config\.json"):
            Tokenizer.load(tmp_path)


def test_nothing_belongs_around_our_own_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.frame == ([], [])
    assert tokenizer.mask_id is None and tokenizer.target is None


@pytest.mark.parametrize(
    ("flags", "frame"),
    [
        ({"add_bos_token": True}, ([258], [])),
        ({"add_bos_token": False, "add_eos_token": True}, ([], [256])),
        ({"add_bos_token": True, "add_eos_token": True}, ([258], [256])),
        ({"add_bos_token": None}, ([], [])),
    ],
)
def test_settings_say_what_belongs_around_a_text(
    trained: dict[str, Tokenizer], flags: dict[str, object], frame: tuple[list[int], list[int]]
) -> None:
    roles = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "mask_token": "<|im_end|>"}
    tokenizer = Tokenizer(trained["byte"].definition, settings=roles | flags)
    assert tokenizer.frame == frame
    assert tokenizer.mask_id == 259


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ({"type": "Precompiled"}, "character map"),
        ({"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "character map"),
        ({"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "?"}]}, "character map"),
        ({"type": "Replace", "pattern": {"Regex": "(" * 2000 + "a" + ")" * 2200}, "content": ""}, "4,201 characters"),
    ],
)
def test_what_the_library_would_not_survive_is_kept_from_it(
    trained: dict[str, Tokenizer], part: dict[str, object], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    definition = json.loads(trained["byte"].definition) | {"normalizer": part}
    with pytest.raises(DamagedError, match=why):
        Tokenizer(json.dumps(definition))
    assert "panicked" not in capfd.readouterr().err


def test_a_panic_of_the_library_is_one_message(trained: dict[str, Tokenizer]) -> None:
    """Oniguruma gives up after ten million steps, and the library panics."""
    cut = {"type": "Split", "pattern": {"Regex": "(a|aa)+(b|bb)*!!"}, "behavior": "Isolated", "invert": False}
    definition = json.loads(trained["bpe"].definition) | {"pre_tokenizer": cut}
    tokenizer = Tokenizer(json.dumps(definition))
    with pytest.raises(InputError, match="the tokenizer fails"):
        tokenizer.encode("a" * 60 + "!")


@settings(deadline=None)
@given(position=st.floats(0, 1), replacement=st.sampled_from(["null", "3", '""', "{}", "[]", "x"]))
def test_a_damaged_definition_never_breaks_loose(
    trained: dict[str, Tokenizer], position: float, replacement: str
) -> None:
    definition = trained["byte"].definition
    lines = definition.splitlines()
    index = int(position * (len(lines) - 1))
    key, colon, _ = lines[index].partition(": ")
    lines[index] = f"{key}{colon}{replacement}" + ("," if lines[index].endswith(",") else "")
    try:
        tokenizer = Tokenizer("\n".join(lines))
        tokenizer.decode(tokenizer.encode("Hello é <|endoftext|>"))
    except InputError:
        pass
