"""Gaps filled, texts scored and embedded: each against transformers, or against one text at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rhapsode.base.errors import InputError
from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.model.config import StackSizes
from rhapsode.model.families import FAMILIES
from rhapsode.model.folder import save_model
from rhapsode.model.model import new_model
from rhapsode.tokenizer.tokenizer import MASK, Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

CONTEXT = 48
TEXTS = [
    "the gods",
    "You are all resolved rather to die than to famish?",
    "Speak, speak.",
    "a",
    "we are accounted poor",
]


@pytest.fixture(scope="session")
def make_model(shakespeare: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a random model of a family, and a tokenizer for its kind."""

    def make(family: str, **changes: Any) -> Path:
        kind = FAMILIES[family].kind
        text = shakespeare.read_text(encoding="utf-8")[:20_000]
        tokenizer = train_tokenizer([text], "bpe", 400, model=kind)
        more: dict[str, Any] = {}
        if kind == "encoder-decoder":
            more = {"start_id": tokenizer.padding_id, "decoder": StackSizes(2, 4, 4, 8, 64)}
        config = FAMILIES[family].config(tokenizer.vocabulary_size, 32, 2, 4, 4, 8, 64, CONTEXT, **more, **changes)
        model = new_model(config)
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gain = float("norm" in name and name.endswith("weight"))
                parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.3 + gain)
        folder = tmp_path_factory.mktemp(family)
        save_model(folder, model, tokenizer, {"objective": "none"})
        return folder

    return make


@pytest.fixture(scope="session")
def encoder_folder(make_model: Callable[..., Path]) -> Path:
    return make_model("bert")


@pytest.fixture(scope="session")
def encoder(encoder_folder: Path) -> LanguageModel:
    return load(encoder_folder, "cpu")


@pytest.fixture(scope="session")
def translator(make_model: Callable[..., Path]) -> LanguageModel:
    return load(make_model("marian"), "cpu")


def theirs(folder: Path, opener: str) -> tuple[Any, Any]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = getattr(transformers, opener).from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def test_gaps_are_filled_as_transformers_fills_them(encoder_folder: Path, encoder: LanguageModel) -> None:
    model, tokenizer = theirs(encoder_folder, "AutoModelForMaskedLM")
    text = f"You are all {MASK} rather to die{MASK} than to famish"
    filling = encoder.fill_mask(text, top=7)
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
    with torch.no_grad():
        expected = model(**inputs).logits[0, places].softmax(-1).topk(7)
    assert len(filling.gaps) == len(places) == 2
    for gap, ids, numbers in zip(filling.gaps, expected.indices.tolist(), expected.values.tolist(), strict=True):
        assert [candidate.id for candidate in gap] == ids
        assert [candidate.probability for candidate in gap] == pytest.approx(numbers, rel=1e-4)
    first, second = (gap[0].text for gap in filling.gaps)
    assert filling.text == f"You are all{first} rather to die{second} than to famish"


def test_all_candidates_together_are_certain(encoder: LanguageModel) -> None:
    (gap,) = encoder.fill_mask(f"the {MASK}", top=10**6).gaps
    assert sum(candidate.probability for candidate in gap) == pytest.approx(1.0, abs=1e-5)
    assert len({candidate.id for candidate in gap}) == encoder.tokenizer.vocabulary_size


def test_only_gaps_are_named_in_a_text(encoder: LanguageModel) -> None:
    with pytest.raises(InputError, match=r"there is no gap in the text. Write <\|mask\|> where a word is missing"):
        encoder.fill_mask("<|endoftext|> the")
    with pytest.raises(InputError, match=r"the text has \d+ tokens; the model reads 48"):
        encoder.fill_mask(f"{MASK} ha" * 40)
    with pytest.raises(InputError, match="top must be at least 1"):
        encoder.fill_mask(MASK, top=0)


def test_an_encoder_scores_each_token_given_all_others(encoder: LanguageModel) -> None:
    text = "You are all resolved rather to die"
    score = encoder.score(text)
    assert score.ids == encoder.tokenizer.encode(text)
    front, back = encoder.tokenizer.frame
    for place, found in enumerate(score.log_probabilities):
        ids = [*front, *score.ids, *back]
        ids[len(front) + place] = encoder.tokenizer.mask_id
        with torch.no_grad():
            log_p = encoder.encoder()(torch.tensor([ids]))[0, len(front) + place].log_softmax(-1)
        assert found == pytest.approx(log_p[score.ids[place]].item(), abs=1e-4)
    mean = -np.mean([value for value in score.log_probabilities if value is not None])
    assert score.nats_per_token == pytest.approx(mean)
    with pytest.raises(InputError, match="the text is empty"):
        encoder.score("")


def test_scores_do_not_depend_on_how_many_are_computed_at_once(
    encoder: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoder.score(TEXTS[1])
    monkeypatch.setattr("rhapsode.inference.reading.TOKENS_AT_ONCE", 50)
    assert encoder.score(TEXTS[1]).log_probabilities == pytest.approx(whole.log_probabilities, abs=1e-5)


def reference_vectors(model: Any, inputs: Any, pooling: str) -> Any:
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[-1]
    mask = inputs["attention_mask"][:, :, None]
    if pooling == "mean":
        return (hidden * mask).sum(1) / mask.sum(1)
    return hidden[torch.arange(len(hidden)), mask[:, :, 0].sum(1) - 1] if pooling == "last" else hidden[:, 0]


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("normalise", [True, False])
def test_vectors_of_an_encoder_are_those_of_transformers(
    encoder_folder: Path, encoder: LanguageModel, pooling: Any, normalise: bool
) -> None:
    model, tokenizer = theirs(encoder_folder, "AutoModelForMaskedLM")
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True, return_token_type_ids=False)
    expected = reference_vectors(model, inputs, pooling)
    expected = torch.nn.functional.normalize(expected, dim=-1) if normalise else expected
    got = encoder.embed(TEXTS, pooling, normalise=normalise)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_of_a_decoder_are_those_of_transformers(
    byte_pair_folder: Path, by_byte_pairs: LanguageModel, pooling: Any
) -> None:
    model, tokenizer = theirs(byte_pair_folder, "AutoModelForCausalLM")
    tokenizer.padding_side = "right"
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True, return_token_type_ids=False)
    expected = reference_vectors(model, inputs, pooling)
    got = by_byte_pairs.embed(TEXTS, pooling, normalise=False)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_vector_does_not_depend_on_the_texts_beside_it(
    encoder: LanguageModel,
    translator: LanguageModel,
    by_byte_pairs: LanguageModel,
    pooling: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for model in (encoder, translator, by_byte_pairs):
        together = model.embed(TEXTS, pooling)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
        alone = np.concatenate([model.embed([text], pooling) for text in TEXTS])
        np.testing.assert_allclose(together, alone, atol=1e-5)
        assert np.abs(together[0] - together[1]).max() > 0.01
        with monkeypatch.context() as patch:
            patch.setattr("rhapsode.inference.reading.TOKENS_AT_ONCE", 10)
            np.testing.assert_allclose(model.embed(TEXTS, pooling), together, atol=1e-5)
    assert encoder.embed([]).shape == (0, 32)


def test_what_cannot_be_embedded_is_refused(encoder: LanguageModel, by_byte_pairs: LanguageModel) -> None:
    with pytest.raises(InputError, match=r"text 2 has .* tokens; the model reads 48"):
        encoder.embed(["a", "famish" * 40])
    with pytest.raises(InputError, match="pooling 'max' is none of"):
        encoder.embed(["a"], "max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="its first token has seen no other"):
        by_byte_pairs.embed(["a"], "cls")
    with pytest.raises(InputError, match="text 2 is empty"):
        by_byte_pairs.embed(["a", ""])
    with pytest.raises(InputError, match="a list of texts is wanted"):
        encoder.embed("a")


def test_each_kind_is_asked_for_what_it_does(encoder: LanguageModel, translator: LanguageModel) -> None:
    with pytest.raises(InputError, match=r"this is an encoder; only a decoder .* `rhapsode fill`, `rhapsode embed`"):
        encoder.generate("a")
    with pytest.raises(InputError, match=r"this is an encoder-decoder; only an encoder fills gaps.*rhapsode translate"):
        translator.fill_mask(MASK)
    with pytest.raises(InputError, match="this is an encoder; only an encoder-decoder turns one text into another"):
        encoder.translate(["a"])


def test_an_encoder_without_a_head_gives_vectors_only(make_model: Callable[..., Path]) -> None:
    headless = load(make_model("bert", has_head=False), "cpu")
    assert headless.embed(["a"]).shape == (1, 32)
    for asked in (lambda: headless.fill_mask(MASK), lambda: headless.score("a")):
        with pytest.raises(InputError, match="without the head that predicts tokens"):
            asked()


def test_pseudo_likelihood_of_a_uniform_model(encoder: LanguageModel) -> None:
    model = new_model(encoder.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    uniform = LanguageModel(model, Tokenizer(encoder.tokenizer.definition, settings=encoder.tokenizer.settings))
    assert uniform.score("the gods").nats_per_token == pytest.approx(math.log(400), rel=1e-5)
