"""Ids that others published for their tokenizers: llama.cpp, tiktoken, Hugging Face."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rhapsode.tokenizer.encoders import BytePairEncoder
from rhapsode.tokenizer.pre_tokenizers import PATTERNS
from rhapsode.tokenizer.tokenizer import StreamDecoder, Tokenizer


@pytest.fixture(scope="session")
def cl100k(shared_data: Path) -> dict[bytes, int]:
    """The 100,256 tokens of cl100k: the vocabulary of Llama 3 begins with them, that of Qwen2 with all but numbers."""
    with gzip.open(shared_data / "tokenizers" / "cl100k_base.tiktoken.gz") as file:
        pairs = (line.split() for line in file.read().splitlines())
        return {base64.b64decode(token): int(rank) for token, rank in pairs}


def llama_cpp_cases(shared_data: Path, name: str) -> list[tuple[str, list[int]]]:
    folder = shared_data / "tokenizer_vectors" / "llama_cpp"
    texts = (folder / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    lines = (folder / f"ggml-vocab-{name}.gguf.out").read_text(encoding="utf-8").split("\n")
    cases = [(text, [int(id) for id in line.split()]) for text, line in zip(texts, lines, strict=True)]
    assert len(cases) == 47
    return cases


def both(tokenizer: Tokenizer) -> list[Callable[[str], list[int]]]:
    """By the library, and by tiktoken with the ranks derived from the merges."""
    encoder = tokenizer._pair_encoder
    assert encoder is not None
    return [lambda text: tokenizer._by_library([text])[0].tolist(), lambda text: encoder.encode(text).tolist()]


def test_llama_cpp_gpt2(shared_data: Path, gpt2: Tokenizer) -> None:
    for encode in both(gpt2):
        for text, ids in llama_cpp_cases(shared_data, "gpt-2"):
            assert encode(text) == ids
            assert gpt2.decode(ids) == text


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2"])
def test_llama_cpp_pre_tokenizers(shared_data: Path, cl100k: dict[bytes, int], name: str) -> None:
    """Their whole vocabularies are not here, but the ids below the end of the beginning that is here are certain."""
    tokens = [token for token in cl100k if not (name == "qwen2" and len(token) > 1 and token.isdigit())]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoder = BytePairEncoder(PATTERNS[name], ranks, np.arange(len(ranks), dtype=np.uint32))
    checked = 0
    for text, ids in llama_cpp_cases(shared_data, name):
        if all(id < len(ranks) for id in ids):
            assert encoder.encode(text).tolist() == ids
            checked += 1
    assert checked >= 40


def tiktoken_cases(shared_data: Path, name: str) -> list[tuple[str, list[int]]]:
    plans = (shared_data / "tokenizer_vectors" / "tiktoken" / "test_plans_r50k_cl100k.txt").read_text(encoding="utf-8")
    found = re.findall(r"EncodingName: (\S+)\nSample: (.*)\nEncoded: (\[.*\])", plans)
    cases = [(text, json.loads(ids)) for encoding, text, ids in found if encoding == name]
    assert len(cases) == 64
    return cases


def test_tiktoken_r50k(shared_data: Path, gpt2: Tokenizer) -> None:
    for encode in both(gpt2):
        for text, ids in tiktoken_cases(shared_data, "r50k_base"):
            assert encode(text) == ids
            assert gpt2.decode(ids) == text


def test_tiktoken_cl100k(shared_data: Path, cl100k: dict[bytes, int]) -> None:
    encoder = BytePairEncoder(PATTERNS["llama-bpe"], cl100k, np.arange(len(cl100k), dtype=np.uint32))
    for text, ids in tiktoken_cases(shared_data, "cl100k_base"):
        assert encoder.encode(text).tolist() == ids


def test_hugging_face_gpt2(shared_data: Path, gpt2: Tokenizer) -> None:
    from transformers import PreTrainedTokenizerBase

    folder = shared_data / "tokenizer_vectors" / "hf"
    long = json.loads((folder / "gpt2_encoded_tokens.json").read_text(encoding="utf-8"))
    cases = json.loads((folder / "tokenizer_tests.json").read_text(encoding="utf-8"))["distilgpt2"]
    assert len(cases) == 18
    for encode in both(gpt2):
        assert encode(long["text"]) == long["token_ids"]
        assert gpt2.decode(long["token_ids"]) == long["decoded_text"]
        for case in cases:
            ids = case["encoded"]["input_ids"]
            if set(ids).isdisjoint(gpt2.special_tokens.values()):
                assert encode(case["input"]) == ids
            assert gpt2.encode(case["input"], special=True) == ids
            assert gpt2.decode(ids, skip_special=False) == case["input"]
            # These were written when transformers took the spaces before signs away.
            tidy = partial(PreTrainedTokenizerBase.clean_up_tokenization, None)
            assert tidy(gpt2.decode(ids, skip_special=False)) == case["decoded_with_special"]
            assert tidy(gpt2.decode(ids)) == case["decoded_without_special"]


def test_the_ranks_found_for_gpt2_are_those_of_tiktoken(shared_data: Path, gpt2: Tokenizer) -> None:
    with gzip.open(shared_data / "tokenizers" / "r50k_base.tiktoken.gz") as file:
        published = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, file.read().splitlines())}
    assert {gpt2.id_to_bytes(id): id for id in range(50_256)} == published


def test_gpt2_alone_has_an_end_and_no_padding(gpt2: Tokenizer) -> None:
    assert (gpt2.kind, gpt2.pre_tokenizer, gpt2.vocabulary_size) == ("bpe", "gpt-2", 50257)
    assert gpt2.special_tokens == {"<|endoftext|>": 50256}
    assert (gpt2.end_of_text_id, gpt2.padding_id, gpt2.unknown_id) == (50256, None, None)
    assert gpt2.chat_template is None


OTHERS = {
    "roberta_base_tokenizer": ("</s>", "<pad>", 50265),
    "gpt_neox_20B_tokenizer": ("<|endoftext|>", "<|padding|>", 50277),
}


@pytest.mark.parametrize("name", OTHERS)
def test_tokenizers_of_others(shared_data: Path, tmp_path: Path, plays: str, name: str) -> None:
    end, padding, size = OTHERS[name]
    packed = shared_data / "tokenizers" / f"{name}.json.gz"
    (tmp_path / "tokenizer.json").write_bytes(gzip.decompress(packed.read_bytes()))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (tokenizer.kind, tokenizer.vocabulary_size) == ("bpe", size)
    assert tokenizer.end_of_text_id == tokenizer.token_to_id(end)
    assert tokenizer.padding_id == tokenizer.token_to_id(padding)
    text = plays[:50_000] + f"{end}{padding}    é🦙\n\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids).isdisjoint(tokenizer.special_tokens.values())
    decoder = StreamDecoder(tokenizer)
    assert "".join(map(decoder.push, ids)) + decoder.flush() == text
    tokenizer.prepare()
    assert tokenizer.encode(text) == ids
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").special_tokens == tokenizer.special_tokens


def test_a_tokenizer_with_a_normalizer_is_left_to_the_library(shared_data: Path) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "torchtune_tiny_bpe")
    tokenizer.prepare()
    assert tokenizer._pair_encoder is None
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")


def test_wordpiece_of_others(shared_data: Path) -> None:
    from tokenizers import BertWordPieceTokenizer

    built = BertWordPieceTokenizer(str(shared_data / "tokenizers" / "bert_base_uncased_vocab.txt"), lowercase=True)
    tokenizer = Tokenizer(built.to_str())
    assert (tokenizer.kind, tokenizer.end_of_text_id, tokenizer.padding_id) == ("wordpiece", 102, 0)
    cases = json.loads((shared_data / "tokenizer_vectors" / "hf" / "tokenizer_tests.json").read_text(encoding="utf-8"))
    for case in cases["bert-base-uncased"]:
        ids = case["encoded"]["input_ids"][1:-1]  # without the [CLS] and [SEP] that transformers puts around a text
        if set(ids).isdisjoint(tokenizer.special_tokens.values()):
            assert tokenizer.encode(case["input"]) == ids
    ids = tokenizer.encode("Unaffable [SEP] words")
    assert set(ids).isdisjoint({101, 102, 103})
    decoder = StreamDecoder(tokenizer)
    assert "".join(map(decoder.push, ids)) + decoder.flush() == tokenizer.decode(ids)
    assert b"".join(map(tokenizer.id_to_bytes, tokenizer.encode("unaffable"))) == b"unaffable"
