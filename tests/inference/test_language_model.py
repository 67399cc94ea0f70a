"""A loaded model: what it answers, that transformers says the same from the same folder, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rhapsode
from rhapsode.base.errors import DamagedError, InputError, MismatchError
from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.inference.sampling import Sampling
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.folder import save_model
from rhapsode.model.initialization import initialise
from rhapsode.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

CONTEXT = 64


def changed(folder: Path, file: str, **fields: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    values = json.loads((folder / file).read_text(encoding="utf-8"))
    values |= fields
    kept = {name: value for name, value in values.items() if value is not None}
    (folder / file).write_text(json.dumps(kept), encoding="utf-8")


@pytest.fixture
def folder(byte_pair_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(byte_pair_folder, tmp_path / "copy")


def test_greedy_text_of_200_tokens_equals_transformers(shakespeare: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = train_tokenizer([shakespeare.read_text(encoding="utf-8")[:20_000]], "bpe", 400)
    generator = torch.Generator().manual_seed(5)
    model = Decoder(QWEN3.config(tokenizer.vocabulary_size, 48, 2, 4, 2, 12, 96, 256, tied_embeddings=False))
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1.0 + 0.4 * values if parameter.dim() == 1 else values / parameter.shape[1] ** 0.5)
        for name in SPECIAL_TOKENS:
            model.head.weight[tokenizer.special_tokens[name]] = 0.0
    save_model(tmp_path, model, tokenizer, {})
    ours = load(tmp_path, "cpu").generate("What says he?", temperature=0.0, max_new_tokens=200)
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompt = their_tokenizer("What says he?", return_tensors="pt")
    answer = AutoModelForCausalLM.from_pretrained(tmp_path).generate(**prompt, do_sample=False, max_new_tokens=200)
    ids = answer[0, prompt["input_ids"].shape[1] :].tolist()
    assert ours.ids == ids
    assert ours.text == their_tokenizer.decode(ids, skip_special_tokens=True)
    assert (len(ids), ours.finish_reason) == (200, "length")
    assert len(set(ids)) > 5


def test_load_is_public_and_takes_a_run_folder(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mytext"
    run.mkdir(parents=True)
    shutil.copytree(folder, run / "model")
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(rhapsode.load(run).logits(ids), rhapsode.load(str(folder)).logits(ids))


def test_next_token_gives_the_distribution_at_each_temperature(by_byte_pairs: LanguageModel) -> None:
    prompt = "The cat"
    rows = by_byte_pairs.next_token(prompt, (0.1, 1.0, 2.0), top=5)
    logits = by_byte_pairs.logits(torch.tensor([by_byte_pairs.tokenizer.encode(prompt)]))[0, -1].double()
    for column, temperature in enumerate((0.1, 1.0, 2.0)):
        expected = (logits / temperature).softmax(-1)
        assert [row.probabilities[column] for row in rows] == pytest.approx(expected.topk(5).values.tolist())
    assert [row.id for row in rows] == logits.topk(5).indices.tolist()
    everything = by_byte_pairs.next_token(prompt, (0.0, 1.0), top=10_000)
    assert len(everything) == by_byte_pairs.tokenizer.vocabulary_size
    assert sum(row.probabilities[1] for row in everything) == pytest.approx(1.0)
    assert [row.probabilities[0] for row in everything] == [1.0] + [0.0] * (len(everything) - 1)
    with pytest.raises(InputError, match="top must be at least 1"):
        by_byte_pairs.next_token(prompt, top=0)


def test_score_gives_each_token_its_log_probability(by_characters: LanguageModel) -> None:
    text = "the dearth"
    score = by_characters.score(text)
    log_probabilities = by_characters.logits(torch.tensor([score.ids]))[0].log_softmax(-1)
    expected = [log_probabilities[place, id].item() for place, id in enumerate(score.ids[1:])]
    assert score.log_probabilities[0] is None
    assert score.log_probabilities[1:] == pytest.approx(expected, abs=1e-5)
    assert score.nats_per_token == pytest.approx(-sum(expected) / len(expected), abs=1e-5)
    long = by_characters.score("we are accounted poor citizens " * 10)
    assert len(long.ids) == len(long.log_probabilities) == 310
    assert all(value is not None and value < 0 for value in long.log_probabilities[1:])
    with pytest.raises(InputError, match="too short"):
        by_characters.score("e")


def test_an_empty_prompt_begins_a_text(by_characters: LanguageModel) -> None:
    end = by_characters.tokenizer.end_of_text_id
    assert by_characters.encode_prompt("") == [end]
    assert by_characters.generate("", max_new_tokens=3).ids


def test_text_that_names_a_special_token_is_only_text(by_byte_pairs: LanguageModel) -> None:
    ids = by_byte_pairs.encode_prompt("<|endoftext|><|im_end|>")
    assert not set(ids) & set(by_byte_pairs.tokenizer.special_tokens.values())


def test_settings_are_checked_by_name(by_characters: LanguageModel) -> None:
    with pytest.raises(
        InputError, match=r"generation: temprature: there is no such setting. Did you mean 'temperature'"
    ):
        by_characters.generate("e", temprature=0.5)
    with pytest.raises(InputError, match=r"generation: top_p: value 2.0 is out of range"):
        by_characters.generate("e", Sampling(seed=1), top_p=2)
    assert by_characters.generate("e", Sampling(seed=1), max_new_tokens=5) == by_characters.generate(
        "e", seed=1, max_new_tokens=5
    )


@pytest.mark.parametrize("eos", [7, [7, 9]])
def test_end_tokens_of_the_folder_end_a_text(folder: Path, eos: Any) -> None:
    changed(folder, "generation_config.json", eos_token_id=eos)
    model = load(folder, "cpu")
    assert model.end_ids == {model.tokenizer.end_of_text_id, *(eos if isinstance(eos, list) else [eos])}
    changed(folder, "generation_config.json", eos_token_id="7")
    with pytest.raises(DamagedError, match=r"generation_config.json: eos_token_id must be"):
        load(folder, "cpu")


def test_a_tokenizer_of_another_size_is_refused(folder: Path, shakespeare: Path) -> None:
    other = train_tokenizer([shakespeare.read_text(encoding="utf-8")[:20_000]], "bpe", 390)
    other.save(folder)
    with pytest.raises(MismatchError, match="the tokenizer has 390 tokens, the model's vocabulary 400"):
        load(folder, "cpu")
    (folder / "rhapsode.json").unlink()  # made elsewhere, where vocabularies are rounded up: allowed
    assert load(folder, "cpu").generate("e", max_new_tokens=2).ids
    train_tokenizer([shakespeare.read_text(encoding="utf-8")[:20_000]], "bpe", 410).save(folder)
    with pytest.raises(MismatchError, match="the tokenizer has 410 tokens, the model's vocabulary 400"):
        load(folder, "cpu")


def test_another_tokenizer_of_the_same_size_is_refused(
    shakespeare: Path, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    text = shakespeare.read_text(encoding="utf-8")
    right, wrong = (train_tokenizer([part], "bpe", 300) for part in (text[:9000], text[9000:18_000]))
    folder = make_folder(right, tokenizer={"kind": "bpe", "sha256": right.digest})
    assert load(folder, "cpu")
    wrong.save(folder)
    with pytest.raises(MismatchError, match=r"tokenizer.json: is not the tokenizer that the model was trained with"):
        load(folder, "cpu")


def test_a_model_in_memory_needs_no_folder(by_characters: LanguageModel) -> None:
    tokenizer = Tokenizer(by_characters.tokenizer.definition)
    again = LanguageModel(by_characters.model, tokenizer)
    assert again.generate("e", max_new_tokens=5) == by_characters.generate("e", max_new_tokens=5)


def test_folders_without_a_model_are_told_apart(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: there is no such file or folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no model in this folder"):
        load(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer.json: there is no tokenizer here"):
        load(folder)
    with pytest.raises(InputError, match="device 'gpu' is unknown"):
        load(folder, "gpu")


def test_an_untrained_model_scores_like_a_uniform_guess(by_characters: LanguageModel) -> None:
    model = Decoder(by_characters.config)
    initialise(model, 0)
    score = LanguageModel(model, by_characters.tokenizer).score("what authority surfeits on")
    assert score.nats_per_token == pytest.approx(math.log(by_characters.config.vocabulary_size), rel=1e-6)
