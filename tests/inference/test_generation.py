"""Generation: the same text however it is cut into steps and batches, whole characters, and every reason to stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.inference.engine import Engine
from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.inference.sampling import Sampling, distribution, draw
from rhapsode.inference.step import TorchStep
from rhapsode.inference.text import StopStrings
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.tokenizer.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

CONTEXT = 64


@pytest.fixture(scope="module")
def endless(byte_pair_folder: Path, make_folder: Callable[..., Path]) -> LanguageModel:
    """A model that hardly ever draws a special token."""
    return load(make_folder(Tokenizer.load(byte_pair_folder), never=SPECIAL_TOKENS), "cpu")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_equals_reading_everything_again_for_every_token(endless: LanguageModel, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, max_new_tokens=30, repetition_penalty=1.1, seed=3)
    ids = endless.tokenizer.encode("Before we")
    for _ in range(30):
        logits = endless.logits(torch.tensor([ids]))[0, -1].double().numpy()
        ids.append(draw(distribution(logits, sampling, ids), 3, len(ids)))
    assert endless.generate("Before we", sampling).ids == ids[-30:]


def test_the_same_seed_gives_the_same_text_whatever_stands_beside_it(endless: LanguageModel) -> None:
    samplings = [Sampling(temperature=1.0, seed=seed, max_new_tokens=20 + seed) for seed in range(4)]
    together = endless.generate_several("You are", samplings)
    for sampling, text in zip(samplings, together, strict=True):
        assert endless.generate("You are", sampling) == text
        assert len(text.ids) == sampling.max_new_tokens
    assert len({text.text for text in together}) == 4


def test_pieces_join_to_the_decoded_text_in_whole_characters(by_byte_pairs: LanguageModel) -> None:
    tokenizer = by_byte_pairs.tokenizer
    for seed in range(5):
        sampling = Sampling(temperature=1.5, top_p=1.0, seed=seed)
        prompt = tokenizer.encode("Good 🦙")
        pieces = list(by_byte_pairs.stream_ids(prompt, [sampling]))
        ids = [piece.token for piece in pieces]
        assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids)
        assert [piece.finish_reason is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_character_of_several_tokens_comes_at_once() -> None:
    tokenizer = train_tokenizer(["plain text"], "byte")
    written = tokenizer.encode("日é")  # five tokens
    model = Scripted(tokenizer, written)
    assert [piece.text for piece in model.pieces(max_new_tokens=5)] == ["", "", "日", "", "é"]
    cut = model.pieces(max_new_tokens=4)  # the last character stays incomplete
    assert [piece.text for piece in cut] == ["", "", "日", "\N{REPLACEMENT CHARACTER}"]


def test_a_continuation_keeps_its_leading_space_in_every_kind(shakespeare: Path) -> None:
    text = shakespeare.read_text(encoding="utf-8")[:20_000]
    for kind in ("character", "word", "byte", "bpe", "unigram"):
        tokenizer = train_tokenizer([text], kind, 400 if kind in ("bpe", "unigram") else None)
        whole = "you are all resolved rather to die than to famish"
        prompt = tokenizer.encode(whole[:7])
        rest = tokenizer.encode(whole)[len(prompt) :]
        pieces = Scripted(tokenizer, rest, prompt).pieces(max_new_tokens=len(rest))
        assert "".join(piece.text for piece in pieces) == tokenizer.decode(prompt + rest)[7:], kind
        assert pieces[0].text.startswith(" "), kind


def test_a_continuation_keeps_its_leading_space_with_tokenizers_of_others() -> None:
    """In the manner of SentencePiece, a token's space is dropped at the beginning of a text, and only there."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    vocabulary = {"▁The": 0, "▁cat": 1, "▁sat": 2, "s": 3, "?": 4}
    library = Library(models.WordLevel(vocabulary, unk_token="?"))
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    library.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer = Tokenizer(library.to_str())
    pieces = Scripted(tokenizer, [1, 3, 2, 5], prompt=tokenizer.encode("The")).pieces()
    assert [piece.text for piece in pieces] == [" cat", "s", " sat", ""]


class Scripted:
    """A real decoder whose head is made to say `script` after `prompt`, token for token."""

    def __init__(self, tokenizer: Tokenizer, script: list[int], prompt: list[int] | None = None) -> None:
        self.tokenizer, self.script = tokenizer, script
        self.prompt = prompt if prompt is not None else tokenizer.encode("plain")
        self.model = Decoder(QWEN3.config(tokenizer.vocabulary_size, 8, 1, 1, 1, 8, 8, 256, tied_embeddings=False))

    def pieces(self, **fields: Any) -> list[Any]:
        steps = iter(self.script)

        def head(hidden: torch.Tensor) -> torch.Tensor:
            said = torch.zeros(len(hidden), self.tokenizer.vocabulary_size)
            said[:, next(steps)] = 10.0
            return said

        self.model.head.forward = head  # type: ignore[method-assign]
        end_ids = {self.tokenizer.end_of_text_id}
        sampling = Sampling(**{"temperature": 0.0, **fields})
        engine = Engine(TorchStep(self.model, blocks=8), self.tokenizer, context_length=256)
        return list(engine.pieces(engine.submit(self.prompt, [sampling], end_ids)))

    def text_and_reason(self, **fields: Any) -> tuple[str, str]:
        pieces = self.pieces(**fields)
        return "".join(piece.text for piece in pieces), pieces[-1].finish_reason


@pytest.fixture(scope="module")
def hello() -> Scripted:
    tokenizer = train_tokenizer(["Hello, world! plain"], "character")
    return Scripted(tokenizer, [*tokenizer.encode("Hello, world!"), tokenizer.special_tokens[END_OF_TEXT]])


def test_every_reason_to_stop(hello: Scripted) -> None:
    assert hello.text_and_reason() == ("Hello, world!", "end of text")
    assert hello.text_and_reason(max_new_tokens=5) == ("Hello", "length")
    assert hello.text_and_reason(stop=("wor",)) == ("Hello, ", "stop")
    assert hello.text_and_reason(stop_tokens=("w",)) == ("Hello, ", "stop")
    assert hello.text_and_reason(stop=("worm", "d?", "x")) == ("Hello, world!", "end of text")
    assert hello.text_and_reason(stop=("o, w", "lo"), max_new_tokens=4) == ("Hell", "length")
    assert hello.text_and_reason(stop=("lo",), max_new_tokens=5) == ("Hel", "stop")


def test_what_may_begin_a_stop_string_is_held_back(hello: Scripted) -> None:
    shown = [piece.text for piece in hello.pieces(stop=("llx", "orl!"))]
    assert shown == ["H", "e", "", "", "ll", "o,", " ", "w", "", "", "", "orld", "!", ""]


def test_generation_fills_the_context_and_says_so(endless: LanguageModel) -> None:
    prompt = "Speak"
    result = endless.generate(prompt, max_new_tokens=1000)
    assert result.finish_reason == "context"
    # The last token that is drawn need not be read again.
    assert len(endless.tokenizer.encode(prompt)) + len(result.ids) == CONTEXT + 1


def test_a_prompt_as_long_as_the_context_is_read_and_a_longer_one_refused(by_characters: LanguageModel) -> None:
    result = by_characters.generate("e" * CONTEXT)
    assert (len(result.ids), result.finish_reason) in [(1, "context"), (1, "end of text")]
    with pytest.raises(InputError, match="the prompt has 65 tokens; the model's context has 64"):
        by_characters.generate("e" * (CONTEXT + 1))


def test_tokens_beyond_the_tokenizer_are_never_drawn(by_characters: LanguageModel) -> None:
    """Published models round their vocabulary up; the rows without a token must stay silent."""
    config = dataclasses.replace(by_characters.config, vocabulary_size=by_characters.config.vocabulary_size + 9)
    model = Decoder(config)
    model.head.weight.data[-9:] = torch.randn(9, 32)
    padded = LanguageModel(model, by_characters.tokenizer)
    result = padded.generate("e", temperature=5.0, top_p=1.0, max_new_tokens=60)
    assert max(result.ids) < by_characters.tokenizer.vocabulary_size


def test_an_unknown_stop_token_is_named(by_characters: LanguageModel) -> None:
    with pytest.raises(InputError, match=r"no token '<\|endoftxt\|>'. Did you mean '<\|endoftext\|>'"):
        by_characters.generate("e", stop_tokens=("<|endoftxt|>",))


def test_generation_leaves_no_trace_in_training(by_characters: LanguageModel) -> None:
    model = Decoder(by_characters.config)
    LanguageModel(model, by_characters.tokenizer).generate("e", max_new_tokens=3)
    ids = torch.tensor([[1, 2, 3]])
    model.loss(ids, ids).backward()
    assert model.embedding.weight.grad is not None


def reference(text: str, stops: list[str]) -> str:
    """Character by character: the text before the first stop string to be complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@settings(max_examples=300)
@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(chunks: list[str], stops: list[str]) -> None:
    stopping, shown = StopStrings(stops), ""
    for chunk in chunks:
        text, stopped = stopping.push(chunk)
        shown += text
        assert not any(stop in shown for stop in stops)
        if stopped:
            break
    else:
        shown += stopping.held
    assert shown == reference("".join(chunks), stops)
