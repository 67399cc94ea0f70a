"""SentencePiece models: our ids and text are those of the sentencepiece library, whatever the model and the text."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.tokenizer.formats.beside import Beside
from rhapsode.tokenizer.formats.sentencepiece import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Model,
    Piece,
    from_model,
    parse,
)
from rhapsode.tokenizer.tokenizer import StreamDecoder, Tokenizer

from ..texts import any_text, stitched
from .conftest import MODELS, Write

PUBLISHED = {
    "t5": "t5_base_spiece.model",
    "test": "sentencepiece_test.model",
    "mistral-v1": "mistral/tokenizer.model.v1",
    "mistral-v3": "mistral/mistral_instruct_tokenizer_240323.model.v3",
}

# Where normalisers, ties and pieces that users defined make a difference.
_pieces = st.sampled_from(
    [
        *(" ", "  ", "   ", "\t", "\n", "▁", "▁▁", "a", "ab", "ha", "the", "é", "e\u0301", "e\u0301\u0302", "ｱ\u0301"),
        *("ﬁ", "ﷺ", "한", "\u1112\u1161\u11ab", "日本", "🦙", "🏽", "\u200d", "\ufe0f", "\u200b", "0", "00", "1984"),
        *(".", "...", "-", "--", "=", "<s>", "</s>", "<unk>", "<0x0A>", "[INST]", "\x00", "\u00a0", "\u3000", "²", "½"),
        *("Å", "\u0344", "ｶﾞ", "\U0010ffff", "<sep>", "<a>", "<ab>", "b>c", "<ab>c", "<c>", "don't", "\r\n", "\u2028"),
    ]
)
_rows = st.tuples(_pieces, st.integers(1, 80), _pieces, st.integers(0, 40)).map(
    lambda row: row[0] * row[1] + row[2] * row[3]
)
texts = any_text | stitched | st.lists(_pieces, max_size=40).map("".join) | _rows

Pair = tuple[Tokenizer, Any]


@pytest.fixture(scope="module")
def pairs(models: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Each trained model, as we open it and as sentencepiece does."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        (folder / f"{name}.model").write_bytes(model)
    return {
        name: (Tokenizer.load(folder / f"{name}.model"), sentencepiece.SentencePieceProcessor(model_proto=model))
        for name, model in models.items()
    }


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request: pytest.FixtureRequest, shared_data: Path) -> Pair:
    path = shared_data / "tokenizers" / PUBLISHED[request.param]
    return Tokenizer.load(path), sentencepiece.SentencePieceProcessor(str(path))


def assert_same(pair: Pair, text: str) -> None:
    ours, theirs = pair
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    if ours.unknown_count(ids) == 0:  # which sentencepiece writes as two question marks in one
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=150)
@given(text=texts)
def test_any_text_has_the_ids_and_the_text_of_sentencepiece(pairs: dict[str, Pair], name: str, text: str) -> None:
    if name.endswith("-given"):  # spaces that users made pieces stay when sentencepiece decodes
        text = text.replace("▁", "_")
    assert_same(pairs[name], text)


@settings(deadline=None, max_examples=200)
@given(text=texts)
def test_published_models_too(published: Pair, text: str) -> None:
    assert_same(published, text)


@pytest.mark.parametrize("name", ["unigram-plain", "unigram-across", "bpe-plain", "bpe-across"])
def test_a_long_text_has_the_ids_of_sentencepiece(pairs: dict[str, Pair], plays: str, name: str) -> None:
    """So long that sums of scores are begun again, and their rounding decides."""
    ours, theirs = pairs[name]
    assert ours.encode(plays[:300_000]) == theirs.encode(plays[:300_000])


def test_spaces_in_rows_as_long_as_any(shared_data: Path) -> None:
    """Mistral's rows of spaces share one score: the leftmost are joined first."""
    path = shared_data / "tokenizers" / PUBLISHED["mistral-v1"]
    ours, theirs = Tokenizer.load(path), sentencepiece.SentencePieceProcessor(str(path))
    for length in range(200):
        for text in (" " * length, "a" + " " * length + "b", "▁" * length + "é"):
            assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_gives_the_same_ids(pairs: dict[str, Pair], name: str, plays: str, tmp_path: Path) -> None:
    ours, theirs = pairs[name]
    ours.save(tmp_path)
    assert not list(tmp_path.glob("*.model"))
    again = Tokenizer.load(tmp_path)
    for text in (plays[:20_000], "ｱ\u0301 ﬁ e\u0301\u0302 -----------  <sep>ab<ab>the<c> 🦙 \x00"):
        assert again.encode(text) == theirs.encode(text)
    assert (again.digest, again.special_tokens, again.frame) == (ours.digest, ours.special_tokens, ours.frame)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.endswith(("-given", "-control"))])
def test_transformers_reads_what_is_saved(pairs: dict[str, Pair], name: str, plays: str, tmp_path: Path) -> None:
    """Plain text comes to the same ids there. Not with pieces that users defined: the library begins anew after each
    and puts another space there; nor where text names a control piece; nor always in rows of one character."""
    from transformers import AutoTokenizer

    ours, _ = pairs[name]
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    lines = [line for line in plays[:20_000].split("\n") if line and "--" not in line]
    front, back = ours.frame
    for line in lines:
        assert theirs(line)["input_ids"] == [*front, *ours.encode(line), *back], line
    assert (theirs.unk_token_id, theirs.eos_token_id, theirs.bos_token_id) == (0, 2, 1)
    assert len(theirs) == ours.vocabulary_size


def test_control_pieces_are_special_and_never_come_from_text(pairs: dict[str, Pair]) -> None:
    ours, theirs = pairs["bpe-control"]
    assert ours.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "<c>": 4, "the": 5}
    assert (ours.unknown_id, ours.end_of_text_id, ours.padding_id) == (0, 2, 3)
    assert ours.frame == ([1], [])
    text = "the <c> of </s>"
    assert set(ours.encode(text)).isdisjoint(range(1, 6))
    assert ours.encode(text) == theirs.encode(text)
    assert ours.encode("<c>a</s>", special=True) == [4, *theirs.encode("a"), 2]


def test_streams_give_the_whole_text(pairs: dict[str, Pair]) -> None:
    ours, _ = pairs["bpe-bytes"]
    text = "Größe 🦙  and  日本!"
    decoder = StreamDecoder(ours)
    assert "".join(map(decoder.push, ours.encode(text))) + decoder.flush() == text


@pytest.fixture(scope="module")
def t5(shared_data: Path) -> bytes:
    return (shared_data / "tokenizers" / PUBLISHED["t5"]).read_bytes()


@pytest.mark.parametrize(
    "beside",
    [
        {"config__json": {"model_type": "t5"}},
        {"tokenizer_config__json": {"tokenizer_class": "T5Tokenizer", "extra_ids": 100}},
        {
            "tokenizer_config__json": {"tokenizer_class": "T5TokenizerFast"},
            "special_tokens_map__json": {"additional_special_tokens": [f"<extra_id_{n}>" for n in range(100)]},
        },
    ],
)
def test_t5_has_its_sentinels(write: Write, t5: bytes, beside: dict[str, Any]) -> None:
    from transformers import T5Tokenizer

    folder = write(spiece__model=t5, **beside)
    ours, theirs = Tokenizer.load(folder), T5Tokenizer.from_pretrained(folder)
    assert ours.vocabulary_size == len(theirs) == 32_100
    for name in ("<extra_id_0>", "<extra_id_99>", "</s>", "<pad>", "<unk>"):
        assert ours.special_tokens[name] == theirs.convert_tokens_to_ids(name)
    assert ours.frame == ([], [1])
    text = "A <extra_id_0> of text"
    assert [*ours.encode("Studies have shown", special=True), 1] == theirs("Studies have shown")["input_ids"]
    assert ours.encode(text) != ours.encode(text, special=True)
    assert ours.encode(text, special=True).count(32_099) == 1


def test_xlm_roberta_numbers_pieces_as_fairseq_does(write: Write, models: dict[str, bytes], plays: str) -> None:
    from transformers import XLMRobertaTokenizer

    folder = write(
        sentencepiece__bpe__model=models["unigram-plain"],
        tokenizer_config__json={"tokenizer_class": "XLMRobertaTokenizer"},
    )
    ours, theirs = Tokenizer.load(folder), XLMRobertaTokenizer.from_pretrained(folder)
    for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>"):
        assert ours.special_tokens[name] == theirs.convert_tokens_to_ids(name)
    assert ours.mask_id == theirs.mask_token_id == ours.vocabulary_size - 1
    front, back = ours.frame
    for line in plays[:5000].split("\n"):
        assert [*front, *ours.encode(line), *back] == theirs(line)["input_ids"]


def test_start_and_end_follow_the_settings(write: Write, models: dict[str, bytes]) -> None:
    for settings_, frame in (
        ({}, ([1], [])),
        ({"add_bos_token": False, "add_eos_token": True}, ([], [2])),
        ({"add_bos_token": True, "add_eos_token": True}, ([1], [2])),
    ):
        folder = write(tokenizer__model=models["bpe-plain"], tokenizer_config__json=settings_)
        assert Tokenizer.load(folder).frame == frame


def test_added_tokens_beside_a_model(write: Write, models: dict[str, bytes]) -> None:
    size = sentencepiece.SentencePieceProcessor(model_proto=models["bpe-plain"]).get_piece_size()
    folder = write(
        tokenizer__model=models["bpe-plain"],
        added_tokens__json={"<plain>": size, "<turn>": size + 1},
        special_tokens_map__json={"additional_special_tokens": ["<turn>"], "pad_token": {"content": "<turn>"}},
    )
    ours = Tokenizer.load(folder)
    assert ours.vocabulary_size == size + 2
    assert ours.special_tokens["<turn>"] == ours.padding_id == size + 1
    assert size in ours.encode("a<plain>b") and size + 1 not in ours.encode("a<turn>b")


def message(number: int, *values: bytes) -> bytes:
    """Fields of bytes in the wire format."""
    return b"".join(bytes([number << 3 | 2]) + length(value) + value for value in values)


def length(value: bytes) -> bytes:
    number, written = len(value), b""
    while number > 127:
        written += bytes([number & 127 | 128])
        number >>= 7
    return written + bytes([number])


def piece(text: str, score: float = 0.0, type: int = NORMAL) -> bytes:
    return message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([type])


HEAD = message(1, piece("<unk>", type=UNKNOWN), piece("<s>", type=CONTROL), piece("a", -1.0))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (message(1, piece("<unk>", type=UNKNOWN), piece("a"), piece("a")), "stands in it twice"),
        (message(1, piece("a"), piece("b")), "has 0 pieces for the unknown"),
        (message(1, piece("<unk>", type=UNKNOWN), piece("<s>", type=CONTROL)), "no pieces that a text"),
        (message(1, piece("<unk>", type=UNKNOWN), piece("a", float("nan"))), "has the score nan"),
        (message(1, piece("<unk>", type=UNKNOWN), piece("a" * 2000)), "a piece has 2,000 characters"),
        (message(1, piece("<unk>", type=UNKNOWN), piece("a", type=9)), "unknown type 9"),
        (message(1, piece("<0x0A>", type=BYTE)) + HEAD, "pieces for bytes"),
        (HEAD + message(2, b"\x18\x03"), "neither a unigram nor a BPE model"),
        (HEAD + message(2, b"\xc0\x01\x01"), "white space behind words"),
        (HEAD + message(3, b"\x28\x00"), "keeps spaces as they are"),
        (HEAD + message(5, message(2, b"xxxx")), "a map of its own"),
        (HEAD[:-1], "ends in the middle of a field"),
        (HEAD + b"\x0a\xff\xff\xff\xff\x0f", "ends in the middle of a field"),
        (HEAD + b"\xff" * 20, "a number does not end"),
        (HEAD + b"\x0b", "unknown type 3"),
        (HEAD + b"\x00\x00", "has the number 0"),
        (message(1, b"\x0a\x02\xff\xfe"), "not UTF-8"),
        (HEAD + b"\x08\x01", "a number stands where bytes must"),
    ],
)
def test_what_is_no_such_model_is_one_message(data: bytes, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        parse(data, "x.model")
    assert caught.value.where == "x.model" and "\n" not in caught.value.message


def test_pieces_that_a_row_of_pairs_cannot_make_are_refused() -> None:
    unknown, letter = Piece("<unk>", 0.0, UNKNOWN), Piece("a", -3.0)
    for pieces, why in (
        ([unknown, letter, Piece("ab", -1.0)], "has a character that is no piece"),
        ([unknown, letter, Piece("aa", -1.0, UNUSED)], "marked as unused"),
    ):
        with pytest.raises(InputError, match=why):
            from_model(Model(pieces, BPE), Beside(), "x.model")


def test_equal_scores_join_the_leftmost_first() -> None:
    pieces = [Piece("<unk>", 0.0, UNKNOWN), *(Piece(text, -9.0) for text in "▁abc")]
    pieces += [Piece("ab", -1.0), Piece("bc", -1.0), Piece("<x>", 0.0, USER_DEFINED)]
    made = from_model(Model(pieces, BPE, add_dummy_prefix=False), Beside(), "x.model")
    tokenizer = Tokenizer(made.definition, settings=made.settings)
    names = [tokenizer.id_to_token(id) for id in tokenizer.encode("abcbc<x>ab<x")]
    assert names == ["ab", "c", "bc", "<x>", "ab", "<unk>"]


@pytest.mark.parametrize("family", ["CamembertTokenizer", "NllbTokenizer", "AlbertTokenizerFast", "XLNetTokenizer"])
def test_families_with_ids_of_their_own_are_refused(write: Write, models: dict[str, bytes], family: str) -> None:
    settings_ = {"tokenizer_class": family}
    with pytest.raises(InputError, match=r"does not take the ids from this file.*tokenizer\.json"):
        Tokenizer.load(write(spiece__model=models["unigram-plain"], tokenizer_config__json=settings_))


def test_a_name_that_says_too_little_is_refused(write: Write, models: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match="no file says which family it is"):
        Tokenizer.load(write(sentencepiece__bpe__model=models["unigram-plain"]))


@pytest.mark.parametrize("damage", [b"", b"\xff\xff\xff\x7f", b"\x00\x04\x00\x00" + b"\xff" * 1024])
def test_a_damaged_character_map_is_refused(models: dict[str, bytes], damage: bytes) -> None:
    model = parse(models["unigram-plain"], "x.model")
    model.character_map = damage + model.character_map[len(damage) :] if damage else model.character_map[:100]
    made = from_model(model, Beside(), "x.model")
    with pytest.raises(DamagedError, match="character map"):
        Tokenizer(made.definition, settings=made.settings).encode("text é")


def test_settings_that_do_not_go_with_the_definition_are_refused(pairs: dict[str, Pair], tmp_path: Path) -> None:
    ours, _ = pairs["unigram-plain"]
    ours.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    for rules in (3, {}, {"add_dummy_prefix": 1, "remove_extra_whitespaces": True}, []):
        config["rhapsode"]["sentencepiece"] = rules
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(DamagedError, match=r"rhapsode\.sentencepiece"):
            Tokenizer.load(tmp_path)
