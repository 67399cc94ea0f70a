from __future__ import annotations

import gzip
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from rhapsode.base.errors import InputError, MismatchError
from rhapsode.exchange.gguf_file import GgufFile, Metadata, write_gguf
from rhapsode.exchange.gguf_tokenizer import tokenizer_from_gguf, tokenizer_metadata
from rhapsode.exchange.gguf_vocabulary import CUTS, PRE_TOKENIZERS, TokenType
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

from ..tokenizer.texts import any_text, stitched
from . import llama_cpp
from .conftest import OTHERS, TRAINED

TokenizerOf = Callable[[str], Tokenizer]
Values = dict[str, Any]


def cases(shared_data: Path, name: str) -> list[tuple[str, list[int]]]:
    folder = shared_data / "tokenizer_vectors" / "llama_cpp"
    texts = (folder / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    lines = (folder / f"ggml-vocab-{name}.gguf.out").read_text(encoding="utf-8").split("\n")
    found = [(text, [int(id) for id in line.split()]) for text, line in zip(texts, lines, strict=True)]
    assert len(found) == 47
    return found


@pytest.mark.parametrize("name", ["gpt-2", "bert-bge", "phi-3"])
def test_published_ids(shared_data: Path, vocabulary_file: Callable[[str], GgufFile], name: str) -> None:
    tokenizer = tokenizer_from_gguf(vocabulary_file(name).metadata)
    for text, ids in cases(shared_data, name):
        assert tokenizer.encode(text) == ids
        if name != "bert-bge":  # which drops accents, cases and spaces
            assert tokenizer.decode(ids) == text


def test_published_ids_of_mpt(shared_data: Path, tmp_path: Path) -> None:
    """MPT has the vocabulary of GPT-NeoX: from its tokenizer.json to GGUF, and from there to the ids of llama.cpp."""
    packed = shared_data / "tokenizers" / "gpt_neox_20B_tokenizer.json.gz"
    tokenizer = Tokenizer(gzip.decompress(packed.read_bytes()).decode("utf-8"))
    values, notices = tokenizer_metadata(tokenizer)
    assert [notice for notice in notices if "NFC" in notice] == notices and notices
    write_gguf(tmp_path / "neox.gguf", "mpt", values | {"tokenizer.ggml.pre": "mpt"}, [])
    again = tokenizer_from_gguf(GgufFile(tmp_path / "neox.gguf").metadata)
    for text, ids in cases(shared_data, "mpt"):
        assert again.encode(text) == ids


def test_published_ids_of_t5(shared_data: Path, tokenizer_of: TokenizerOf) -> None:
    values, notices = tokenizer_metadata(tokenizer_of("t5"))
    assert not notices
    tokenizer = tokenizer_from_gguf(Metadata(values, "t5"))
    vectors = json.loads(
        (shared_data / "tokenizer_vectors" / "hf" / "tokenizer_tests.json").read_text(encoding="utf-8")
    )
    end = [tokenizer.end_of_text_id]
    checked = 0
    for case in vectors["t5-base"]:
        ids = case["encoded"]["input_ids"]
        if "</s>" not in case["input"]:
            assert tokenizer.encode(case["input"]) + end == ids
            checked += 1
    assert checked >= 15


@pytest.mark.parametrize("name", TRAINED + OTHERS)
def test_a_round_trip_through_a_file_gives_the_same_tokenizer(
    tokenizer_of: TokenizerOf, tmp_path: Path, name: str
) -> None:
    tokenizer = tokenizer_of(name)
    values, notices = tokenizer_metadata(tokenizer)
    assert not notices
    write_gguf(tmp_path / "m.gguf", "llama", values, [])
    again = tokenizer_from_gguf(GgufFile(tmp_path / "m.gguf").metadata)
    assert (again.kind, again.vocabulary_size) == (tokenizer.kind, tokenizer.vocabulary_size)
    assert again.special_tokens == tokenizer.special_tokens
    assert (again.end_of_text_id, again.padding_id) == (tokenizer.end_of_text_id, tokenizer.padding_id)
    assert (again.unknown_id, again.frame) == (tokenizer.unknown_id, tokenizer.frame)
    assert again.chat_template == tokenizer.chat_template
    assert [again.id_to_token(id) for id in range(again.vocabulary_size)] == [
        tokenizer.id_to_token(id) for id in range(tokenizer.vocabulary_size)
    ]
    # What it writes is what it was read from: nothing is lost at the second door either.
    second, _ = tokenizer_metadata(again)
    assert second.keys() == values.keys()
    for key, value in values.items():
        np.testing.assert_equal(second[key], value)


@pytest.fixture(scope="module")
def through(tokenizer_of: TokenizerOf) -> Callable[[str], tuple[Tokenizer, Values, Tokenizer]]:
    """A tokenizer, its metadata, and the tokenizer made of these."""
    made: dict[str, tuple[Tokenizer, Values, Tokenizer]] = {}

    def get(name: str) -> tuple[Tokenizer, Values, Tokenizer]:
        if name not in made:
            tokenizer = tokenizer_of(name)
            values, _ = tokenizer_metadata(tokenizer)
            made[name] = tokenizer, values, tokenizer_from_gguf(Metadata(values, name))
        return made[name]

    return get


@pytest.mark.parametrize("name", TRAINED + OTHERS)
@settings(deadline=None)
@given(text=any_text | stitched)
def test_a_round_trip_gives_the_same_ids(
    through: Callable[[str], tuple[Tokenizer, Values, Tokenizer]], name: str, text: str
) -> None:
    tokenizer, _, again = through(name)
    ids = tokenizer.encode(text)
    assert again.encode(text) == ids
    assert again.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", [*TRAINED, "gpt2", "mistral-v1", "mistral-v3"])
@settings(deadline=None)
@given(text=any_text | stitched)
def test_llama_cpp_will_cut_as_we_do(
    through: Callable[[str], tuple[Tokenizer, Values, Tokenizer]], name: str, text: str
) -> None:
    tokenizer, values, _ = through(name)
    for word in tokenizer.special_tokens:  # where these stand in a text llama.cpp may join them
        text = text.replace(word, "")
    # Which characters to come are letters depends on the Unicode version of each library.
    text = "".join(character for character in text if unicodedata.category(character) != "Cn")
    assert llama_cpp.ids(values, text) == tokenizer.encode(text)


@settings(deadline=None)
@given(text=st.text(st.characters(max_codepoint=0x24F) | st.sampled_from("日本한ع—…¿“²Ⅷ\u0301\u3000\u200d\ufffd")))
def test_llama_cpp_will_cut_words_as_we_do(
    through: Callable[[str], tuple[Tokenizer, Values, Tokenizer]], text: str
) -> None:
    tokenizer, values, _ = through("bert")
    assert llama_cpp.ids(values, text) == tokenizer.encode(text)


@settings(deadline=None)
@given(text=any_text | stitched)
def test_phi_3_is_cut_as_llama_cpp_does(vocabulary_file: Callable[[str], GgufFile], text: str) -> None:
    metadata, tokenizer = phi_3(vocabulary_file)
    for word in ("</s>", *tokenizer.special_tokens):
        text = text.replace(word, "")
    assert tokenizer.encode(text) == llama_cpp.ids(metadata | {"tokenizer.ggml.add_space_prefix": True}, text)


_phi_3: list[tuple[Values, Tokenizer]] = []


def phi_3(vocabulary_file: Callable[[str], GgufFile]) -> tuple[Values, Tokenizer]:
    if not _phi_3:
        metadata = vocabulary_file("phi-3").metadata
        _phi_3.append((dict(metadata), tokenizer_from_gguf(metadata)))
    return _phi_3[0]


def test_phi_3s_settings(vocabulary_file: Callable[[str], GgufFile]) -> None:
    _, tokenizer = phi_3(vocabulary_file)
    assert tokenizer.vocabulary_size == 32_011  # 53 more fill up its embedding
    assert (tokenizer.end_of_text_id, tokenizer.unknown_id, tokenizer.frame) == (32_000, 0, ([1], []))
    assert tokenizer.chat_template is not None and tokenizer.chat_template.startswith("{{ bos_token }}")
    assert tokenizer.encode("<|user|>\nHi</s>", special=True)[0] == 32_010
    assert tokenizer.encode("a</s>b", special=False)[1] == 2  # a token that its makers want found in any text


def test_what_is_written_of_a_tokenizer_trained_here(tokenizer_of: TokenizerOf) -> None:
    tokenizer = tokenizer_of("bpe-llama-bpe")
    values, _ = tokenizer_metadata(tokenizer, rows=1024)
    end, padding = tokenizer.end_of_text_id, tokenizer.padding_id
    assert values["tokenizer.ggml.model"] == "gpt2" and values["tokenizer.ggml.pre"] == "llama-bpe"
    assert values["tokenizer.ggml.bos_token_id"] == values["tokenizer.ggml.eos_token_id"] == end
    assert values["tokenizer.ggml.padding_token_id"] == padding
    assert values["tokenizer.ggml.eot_token_id"] == tokenizer.special_tokens["<|im_end|>"]
    assert values["tokenizer.ggml.add_bos_token"] is False  # else llama.cpp adds one to texts cut like Llama 3's
    assert values["tokenizer.chat_template"] == tokenizer.chat_template
    types = values["tokenizer.ggml.token_type"]
    assert types.dtype == np.int32 and types.tolist() == [1] * 996 + [3] * 4 + [5] * 24
    assert values["tokenizer.ggml.tokens"][996:1001] == [*tokenizer.special_tokens, "[PAD1000]"]
    assert tokenizer_from_gguf(Metadata(values, "rows")).vocabulary_size == 1000
    with pytest.raises(MismatchError, match="has 1000 tokens, and the model only 999 rows"):
        tokenizer_metadata(tokenizer, rows=999)


def test_bytes_are_pairs_without_merges(tokenizer_of: TokenizerOf, tmp_path: Path) -> None:
    values, _ = tokenizer_metadata(tokenizer_of("byte"))
    assert values["tokenizer.ggml.merges"] == []
    write_gguf(tmp_path / "m.gguf", "llama", values, [])
    again = tokenizer_from_gguf(GgufFile(tmp_path / "m.gguf").metadata)
    assert again.kind == "byte" and again.encode("é\n 🦙") == list("é\n 🦙".encode())


@pytest.mark.parametrize(
    ("kind", "said"), [("character", "character"), ("word", "word"), ("unigram", "unigram on bytes")]
)
def test_what_llama_cpp_does_not_have_is_refused(plays: str, kind: str, said: str) -> None:
    tokenizer = train_tokenizer([plays[:20_000]], kind, 500)
    message = (
        rf"of a kind that llama\.cpp does not have \({said}\)\. The nearest that llama\.cpp has is byte-level BPE\."
    )
    with pytest.raises(InputError, match=message):
        tokenizer_metadata(tokenizer)


NFD = {"type": "NFD"}
PREFIXED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("name", "part", "change", "message"),
    [
        ("bpe-gpt-2", "normalizer", NFD, "changes text before it is cut"),
        ("bpe-gpt-2", "pre_tokenizer", PREFIXED, r"in a way that llama\.cpp has no name for"),
        ("mistral-v1", "normalizer", NFD, r"of a kind that llama\.cpp does not have \(bpe\)"),
        ("mistral-v1", "model", {"ignore_merges": True}, "by rules that"),
        ("mistral-v1", "model", {"unk_token": None}, "has no token for what it does not know"),
        ("bert", "normalizer", {"clean_text": False}, "does not cut text in BERT's way"),
        ("bert", "pre_tokenizer", {"type": "WhitespaceSplit"}, r"BERT's way.*BERT's WordPiece"),
        ("t5", "normalizer", NFD, r"of a kind that llama\.cpp does not have \(unigram\)"),
    ],
)
def test_rules_that_llama_cpp_does_not_have_are_refused(
    tokenizer_of: TokenizerOf, name: str, part: str, change: dict[str, Any], message: str
) -> None:
    content = json.loads(tokenizer_of(name).definition)
    content[part] = change if "type" in change else content[part] | change
    with pytest.raises(InputError, match=message):
        tokenizer_metadata(Tokenizer(json.dumps(content)))


def test_merges_in_another_order_than_their_unions_are_refused(tokenizer_of: TokenizerOf) -> None:
    content = json.loads(tokenizer_of("mistral-v1").definition)
    merges = content["model"]["merges"]
    content["model"]["merges"] = merges[:100] + merges[101:]
    with pytest.raises(InputError, match="joins pieces by more than the order of their unions"):
        tokenizer_metadata(Tokenizer(json.dumps(content)))


def test_whole_pieces_are_written_where_it_makes_no_difference_or_is_said(tokenizer_of: TokenizerOf) -> None:
    content = json.loads(tokenizer_of("bpe-llama-bpe").definition)
    lost = content["model"]["merges"].pop()  # now a token that no merge makes: taken whole or not at all
    values, _ = tokenizer_metadata(Tokenizer(json.dumps(content)))
    assert values["tokenizer.ggml.pre"] == "dbrx"  # the same cut, but joined by merges alone
    content["model"]["ignore_merges"] = True
    whole = Tokenizer(json.dumps(content))
    values, _ = tokenizer_metadata(whole)
    assert values["tokenizer.ggml.pre"] == "llama-bpe"
    assert tokenizer_from_gguf(Metadata(values, "whole")).encode(whole.decode([whole.token_to_id("".join(lost))])) == [
        whole.token_to_id("".join(lost))
    ]
    content = json.loads(tokenizer_of("bpe-qwen2").definition)
    content["model"]["merges"].pop()
    content["model"]["ignore_merges"] = True
    with pytest.raises(InputError, match="takes whole pieces against its merges"):
        tokenizer_metadata(Tokenizer(json.dumps(content)))


def every_split(values: Values) -> list[tuple[str, str]]:
    """The merges that transformers makes of pieces and scores: every way to split a piece, mixed for rows of spaces."""
    scores = dict(zip(values["tokenizer.ggml.tokens"], values["tokenizer.ggml.scores"].tolist(), strict=True))
    ways = [
        (score, cut, len(piece) - cut, piece)
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    ways.sort(key=lambda way: way[:3], reverse=True)
    return [(piece[:cut], piece[cut:]) for _, cut, _, piece in ways]


def test_merges_as_transformers_writes_them(
    tokenizer_of: TokenizerOf, vocabulary_file: Callable[[str], GgufFile]
) -> None:
    for plain in (tokenizer_of("mistral-v1"), phi_3(vocabulary_file)[1]):
        content = json.loads(plain.definition)
        content["model"]["merges"] = every_split(tokenizer_metadata(plain)[0])
        tokenizer = Tokenizer(json.dumps(content), settings={"bos_token": "<s>", "eos_token": "</s>"})
        values, notices = tokenizer_metadata(tokenizer)
        assert not notices
        again = tokenizer_from_gguf(Metadata(values, "again"))
        for text in (*(" " * length for length in range(60)), "a   b\n      c", "To be,  or not", "naïve 日本  🦙"):
            assert again.encode(text) == tokenizer.encode(text) == llama_cpp.ids(values, text) == plain.encode(text)


def test_padding_may_be_the_unknown(through: Callable[[str], tuple[Tokenizer, Values, Tokenizer]]) -> None:
    tokenizer, values, _ = through("mistral-v1")
    again = tokenizer_from_gguf(changed(values, padding_token_id=0))
    assert (again.unknown_id, again.padding_id) == (0, 0)
    assert again.encode("Hello") == tokenizer.encode("Hello")


def test_metaspace_is_written_and_its_difference_said(tokenizer_of: TokenizerOf) -> None:
    plain = tokenizer_of("mistral-v1")
    content = json.loads(plain.definition)
    content["normalizer"] = None
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    content["model"]["merges"] = every_split(tokenizer_metadata(plain)[0])
    tokenizer = Tokenizer(json.dumps(content), settings={"bos_token": "<s>", "eos_token": "</s>"})
    values, notices = tokenizer_metadata(tokenizer)
    assert len(notices) == 1 and "begin with" in notices[0]
    again = tokenizer_from_gguf(Metadata(values, "metaspace"))
    for text in ("To be, or not to be", "naïve 日本  🦙\n"):
        assert again.encode(text) == tokenizer.encode(text) == llama_cpp.ids(values, text) == plain.encode(text)


def pieces(cut: str, text: str) -> list[str]:
    """The pieces of a text by a name in `CUTS`."""
    content = json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": CUTS[cut]})
    return [piece for piece, _ in Library.from_str(content).pre_tokenizer.pre_tokenize_str(text)]


def settled(shared_data: Path, name: str, cut: str) -> tuple[int, int]:
    """How many of the published cases a cut agrees with, and how many it cannot: without a vocabulary.

    A piece has the same ids wherever it stands. Cases in which one piece is new tell its ids; others are checks.
    """
    known: dict[str, list[int]] = {}
    waiting = [(pieces(cut, text), ids) for text, ids in cases(shared_data, name)]
    agreed = contradicted = 0
    while True:
        rest = []
        for parts, ids in waiting:
            new = {part for part in parts if part not in known}
            if len(parts) > len(ids):
                contradicted += 1
            elif not new:
                agreed += [id for part in parts for id in known[part]] == ids
                contradicted += [id for part in parts for id in known[part]] != ids
            elif len(new) == 1 and parts.count(*new) == 1:
                place = parts.index(*new)
                front = [id for part in parts[:place] for id in known[part]]
                back = [id for part in parts[place + 1 :] for id in known[part]]
                if ids[: len(front)] != front or (back and ids[-len(back) :] != back):
                    contradicted += 1
                known[parts[place]] = ids[len(front) : len(ids) - len(back)]
            else:
                rest.append((parts, ids))
        if len(rest) == len(waiting):
            return agreed, contradicted
        waiting = rest


def test_falcons_cut_agrees_with_its_published_ids(shared_data: Path) -> None:
    agreed, contradicted = settled(shared_data, "falcon", "falcon")
    assert agreed >= 3 and contradicted == 0
    assert settled(shared_data, "falcon", "gpt-2")[1] > 0  # so the check can fail


def test_every_pre_tokeniser_name_has_a_cut() -> None:
    assert {pre.cut for pre in PRE_TOKENIZERS.values()} == CUTS.keys()
    for cut in CUTS:
        assert "".join(pieces(cut, "It's 12345 naïve...\n\n x")).count("Ġ") == 3


def changed(values: Values, **changes: Any) -> Metadata:
    named = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return Metadata({key: value for key, value in (values | named).items() if value is not None}, "model.gguf")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("byte", {"model": None}, r"model\.gguf: has no 'tokenizer\.ggml\.model'"),
        ("byte", {"model": "rwkv"}, "is of the kind 'rwkv', which is not known here"),
        ("byte", {"pre": "qwen3"}, r"pre-tokeniser 'qwen3', which is not known here\. Did you mean 'qwen2'\?"),
        ("byte", {"pre": None}, r"has no 'tokenizer\.ggml\.pre'"),
        ("byte", {"tokens": None}, r"has no 'tokenizer\.ggml\.tokens'"),
        ("byte", {"tokens": ["a"] * 260}, "has the token 'a' 260 times"),
        ("byte", {"tokens": [], "token_type": None}, "eos_token_id is 256, and there are 0 tokens|there are 0 tokens"),
        ("byte", {"tokens": np.arange(3)}, "must be an array of strings, and is an array of int64"),
        ("byte", {"token_type": np.ones(3, np.int32)}, "has 260 tokens and 3 types of tokens"),
        ("byte", {"token_type": np.full(260, 7, np.int32)}, "the token 0 is of type 7, which does not exist"),
        ("byte", {"merges": ["ab"]}, "the merge 0, 'ab', is not one of its tokens"),
        ("byte", {"merges": ["a b"]}, "the merge 0, 'a b', is not one of its tokens"),
        ("byte", {"merges": None}, r"has no 'tokenizer\.ggml\.merges'"),
        ("byte", {"eos_token_id": 260}, "eos_token_id is 260, and there are 260 tokens"),
        ("byte", {"eos_token_id": -1}, "eos_token_id is -1, and there are 260 tokens"),
        ("byte", {"eos_token_id": "x"}, "must be an integer, and is str"),
        ("byte", {"add_bos_token": 1}, "must be true or false, and is int"),
        ("sentencepiece-test", {"scores": None}, r"has no 'tokenizer\.ggml\.scores'"),
        ("sentencepiece-test", {"scores": np.zeros(3)}, "has 1000 tokens and 3 scores"),
        ("sentencepiece-test", {"scores": np.full(1000, np.nan)}, "the score of token 0 is nan"),
        ("sentencepiece-test", {"precompiled_charsmap": np.ones(40, np.uint8)}, "character map|normalis"),
        ("mistral-v1", {"scores": np.zeros(32_000)}, "gives all tokens one score"),
        (
            "bert",
            {"unknown_token_id": None, "token_type": np.ones(30_522, np.int32)},
            "has no token for the role unk_token",
        ),
    ],
)
def test_metadata_that_describes_no_tokenizer(
    through: Callable[[str], tuple[Tokenizer, Values, Tokenizer]], name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer_from_gguf(changed(through(name)[1], **changes))


def test_older_files_without_types_and_ids(through: Callable[[str], tuple[Tokenizer, Values, Tokenizer]]) -> None:
    """What llama.cpp assumes when a key is missing."""
    tokenizer, values, _ = through("mistral-v1")
    bare = {key: value for key, value in values.items() if not key.endswith(("_id", "_token", "_prefix"))}
    again = tokenizer_from_gguf(Metadata(bare, "bare"))
    assert (again.unknown_id, again.end_of_text_id, again.frame) == (0, 2, ([1], []))
    assert again.encode("Hello world") == tokenizer.encode("Hello world")


def test_unused_tokens_between_others_keep_their_places(tokenizer_of: TokenizerOf) -> None:
    content = json.loads(tokenizer_of("byte").definition)
    for token in content["added_tokens"]:
        token["id"] += 5
    vocabulary = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    content["model"]["vocab"] = vocabulary
    tokenizer = Tokenizer(json.dumps(content))
    values, _ = tokenizer_metadata(tokenizer)
    assert values["tokenizer.ggml.token_type"].tolist()[256:] == [TokenType.UNUSED] * 5 + [TokenType.CONTROL] * 4
    again = tokenizer_from_gguf(Metadata(values, "gap"))
    assert again.special_tokens == tokenizer.special_tokens
    assert again.encode("é <|endoftext|>") == tokenizer.encode("é <|endoftext|>") == list("é <|endoftext|>".encode())
