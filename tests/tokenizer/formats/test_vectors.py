"""Ids that others published, with the tokenizers opened from the files that others keep them in."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rhapsode.inference.template import render
from rhapsode.tokenizer.definition import as_text, byte_pairs, definition
from rhapsode.tokenizer.tokenizer import Tokenizer

from ..test_vectors import llama_cpp_cases, tiktoken_cases
from .conftest import Write


@pytest.fixture(scope="module")
def bert(shared_data: Path) -> Tokenizer:
    return Tokenizer.load(shared_data / "tokenizers" / "bert_base_uncased_vocab.txt")


@pytest.fixture(scope="module")
def t5(shared_data: Path) -> Tokenizer:
    return Tokenizer.load(shared_data / "tokenizers" / "t5_base_spiece.model")


def framed(tokenizer: Tokenizer, text: str) -> list[int]:
    front, back = tokenizer.frame
    return [*front, *tokenizer.encode(text), *back]


def hugging_face(shared_data: Path, name: str) -> Any:
    path = shared_data / "tokenizer_vectors" / "hf" / name
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("name", ["bert-base-uncased", "google-bert/bert-base-uncased", "t5-base"])
def test_hugging_face_cases(shared_data: Path, bert: Tokenizer, t5: Tokenizer, name: str) -> None:
    from transformers import PreTrainedTokenizerBase

    tokenizer = t5 if name == "t5-base" else bert
    cases = hugging_face(shared_data, "tokenizer_tests.json")[name]
    assert len(cases) == 18
    for case in cases:
        ids = case["encoded"]["input_ids"]
        assert framed(tokenizer, case["input"]) == ids
        # transformers took the spaces before signs away, and left those around what it skipped.
        tidy: Callable[[str], str] = partial(PreTrainedTokenizerBase.clean_up_tokenization, None)
        with_special = tidy(tokenizer.decode(ids, skip_special=False))
        assert with_special == case["decoded_with_special"]
        assert tidy(tokenizer.decode(ids)).split() == case["decoded_without_special"].split()


@pytest.mark.parametrize("name", ["bert_uncased_encoded.json", "t5_base_encoded.json"])
def test_hugging_face_page(shared_data: Path, bert: Tokenizer, t5: Tokenizer, name: str) -> None:
    tokenizer = t5 if name.startswith("t5") else bert
    case = hugging_face(shared_data, name)
    assert framed(tokenizer, case["text"]) == case["token_ids"]
    assert [tokenizer.id_to_token(id) for id in tokenizer.encode(case["text"])] == case["bpe_tokens"]


def test_hugging_face_whisper(shared_data: Path, write: Write) -> None:
    """The English Whisper has the vocabulary of GPT-2, and tokens of its own after it."""
    case = hugging_face(shared_data, "whisper_tiny_en_encoded.json")
    names = {50257: "<|startoftranscript|>", 50362: "<|notimestamps|>"}
    source = shared_data / "tokenizers" / "gpt2"
    folder = write(
        vocab__json=(source / "encoder.json").read_bytes(),
        merges__txt=(source / "vocab.bpe").read_bytes(),
        tokenizer_config__json={
            "tokenizer_class": "WhisperTokenizer",
            "added_tokens_decoder": {str(id): {"content": name, "special": True} for id, name in names.items()},
        },
    )
    tokenizer = Tokenizer.load(folder)
    assert [50257, 50362, *tokenizer.encode(case["text"]), 50256] == case["token_ids"]
    assert [tokenizer.id_to_token(id) for id in tokenizer.encode(case["text"])] == case["bpe_tokens"]
    assert tokenizer.encode("<|startoftranscript|><|notimestamps|>a", special=True)[:2] == [50257, 50362]


def test_ten_thousand_questions(shared_data: Path, bert: Tokenizer) -> None:
    questions = hugging_face(shared_data, "bert_question_tokens.json.gz")
    ids = hugging_face(shared_data, "bert_question_ids.json.gz")
    assert len(questions) == len(ids) == 10_570
    found = bert.encode_batch([question["original"] for question in questions])
    assert [array.tolist() for array in found] == ids
    for question, expected in zip(questions, ids, strict=True):
        assert [bert.id_to_token(id) for id in expected] == question["wordpiece"]


def test_llama_cpp_bert(shared_data: Path, bert: Tokenizer) -> None:
    for text, ids in llama_cpp_cases(shared_data, "bert-bge"):
        assert bert.encode(text) == ids


def test_llama_cpp_gpt2(shared_data: Path) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "gpt2")
    for text, ids in llama_cpp_cases(shared_data, "gpt-2"):
        assert tokenizer.encode(text) == ids


@pytest.mark.parametrize("name", ["r50k_base", "cl100k_base"])
def test_tiktoken(shared_data: Path, name: str) -> None:
    tokenizer = Tokenizer.load(shared_data / "tokenizers" / f"{name}.tiktoken.gz")
    for text, ids in tiktoken_cases(shared_data, name):
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text


MISTRAL = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240323.model.v3",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
}


def test_mistral_conversations(shared_data: Path, write: Write) -> None:
    """Template and tokenizer end to end: request, text, ids."""
    templates = shared_data / "chat_templates" / "mistral"
    with tarfile.open(templates / "samples.tar.xz") as archive:
        samples = {name: archive.extractfile(name) for name in archive.getnames()}  # folders are None
        content = {name: file.read() for name, file in samples.items() if file is not None}
    tokenizers = {}
    for version, name in MISTRAL.items():
        # Version 1 writes the space before [INST] in its template, so the tokenizer must not put it there.
        config = {"add_prefix_space": version != "v1"}
        model = (shared_data / "tokenizers" / "mistral" / name).read_bytes()
        tokenizers[version] = Tokenizer.load(write(tokenizer__model=model, tokenizer_config__json=config))
    checked = 0
    for path, data in content.items():
        if not path.rpartition("/")[2].startswith("tokens_"):
            continue
        version = path[-len("v1.json") : -len(".json")]
        request = json.loads(content[path.rpartition("/")[0] + "/sample.json"])
        results = [message["content"] for message in request["messages"] if message["role"] == "tool"]
        for message in request["messages"]:
            for call in message.get("tool_calls") or []:  # arguments come as JSON, spaced in any way
                call["function"]["arguments"] = json.dumps(json.loads(call["function"]["arguments"]))
        template = (templates / ("v1_spm.jinja" if version == "v1" else f"{version}.jinja")).read_text(encoding="utf-8")
        text = render(template, request | {"bos_token": "<s>", "eos_token": "</s>"}, path)
        for result in results:  # the ids were made with results as JSON, the templates write them as a string in JSON
            text = text.replace(json.dumps(result), json.dumps(json.loads(result)))
        tokenizer = tokenizers[version]
        assert tokenizer.encode(text, special=True) == json.loads(data)["tokens"], path
        checked += 1
    assert checked == 9


Pair = tuple[str, str]


@pytest.fixture(scope="module")
def subword_nmt(shared_data: Path) -> tuple[list[str], list[Pair], list[str]]:
    """A corpus, the thousand pairs learned from it, and its segmentation by them."""
    folder = shared_data / "tokenizer_vectors" / "subword_nmt"
    corpus, codes, segmented = (
        (folder / name).read_text(encoding="utf-8").split("\n")
        for name in ("corpus.en", "bpe.ref", "corpus.bpe.ref.en")
    )
    pairs = [(left, right) for left, _, right in (code.partition(" ") for code in codes[1:] if code)]
    assert len(pairs) == 1000
    return corpus, pairs, segmented


def test_subword_nmt_segmentation(subword_nmt: tuple[list[str], list[Pair], list[str]]) -> None:
    """The published pairs cut the corpus as published. (@@ stands after every part but the last of a word.)"""
    corpus, pairs, segmented = subword_nmt
    symbols = {symbol for word in " ".join(corpus).split() for symbol in [*word[:-1], word[-1] + "</w>"]}
    symbols |= {symbol for pair in pairs for symbol in (*pair, "".join(pair))}
    vocabulary = {symbol: id for id, symbol in enumerate(sorted(symbols))}
    model = byte_pairs(vocabulary, pairs, end_of_word="</w>")
    tokenizer = Tokenizer(as_text(definition(model, pre_tokenizer={"type": "WhitespaceSplit"})))
    for line, expected in zip(corpus, segmented, strict=True):
        parts = [tokenizer.id_to_token(id) for id in tokenizer.encode(line)]
        shown = [part.removesuffix("</w>") if part.endswith("</w>") else part + "@@" for part in parts]
        assert shown == expected.split()


def learn(corpus: list[str], choose: Callable[[list[Pair]], Pair], steps: int) -> tuple[list[Pair], int]:
    """The pairs that joining the most frequent ones gives, `choose` deciding among equals, and how often it had to."""
    words = [([*word[:-1], word[-1] + "</w>"], count) for word, count in Counter(" ".join(corpus).split()).items()]
    counts: Counter[Pair] = Counter()
    for symbols, count in words:
        for pair in pairwise(symbols):
            counts[pair] += count
    learned: list[Pair] = []
    ties = 0
    for _ in range(steps):
        most = max(counts.values())
        best = [pair for pair, count in counts.items() if count == most]
        ties += len(best) > 1
        left, right = choose(best)
        learned.append((left, right))
        for symbols, count in words:
            if left not in symbols or (left, right) not in pairwise(symbols):
                continue
            for pair in pairwise(symbols):
                counts[pair] -= count
            place = 0
            while place < len(symbols) - 1:
                if symbols[place] == left and symbols[place + 1] == right:
                    symbols[place : place + 2] = [left + right]
                place += 1
            for pair in pairwise(symbols):
                counts[pair] += count
    return learned, ties


def test_subword_nmt_training(subword_nmt: tuple[list[str], list[Pair], list[str]]) -> None:
    """Training gives the published pairs but for ties, which are most of the steps: subword-nmt takes the last pair by
    spelling, the `tokenizers` trainer the first by number, and has no setting for it. So each is held to the rule of
    both: every pair is one of the most frequent at its step."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    corpus, pairs, _ = subword_nmt
    assert learn(corpus, max, 1000) == (pairs, 809)

    library = Library(models.BPE(end_of_word_suffix="</w>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", special_tokens=[], show_progress=False)
    library.train_from_iterator(corpus, trainer)
    trained = [tuple(merge) for merge in json.loads(library.to_str())["model"]["merges"]][:1000]
    order = iter(trained)

    def as_trained(best: list[Pair]) -> Pair:
        pair = next(order)
        assert pair in best
        return pair

    learn(corpus, as_trained, len(trained))
