"""Packed weights as a language model: open at once, unpacked only for who asks, and the same as what they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import rhapsode
from rhapsode.base.errors import DamagedError, InputError, MismatchError
from rhapsode.exchange.opening import open_model, outline
from rhapsode.inference.chat import Chat
from rhapsode.inference.kernels.choice import SWITCH, refused
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.sampling import Sampling
from rhapsode.model.folder import load_config
from rhapsode.model.packed import pack_model, unpacked, unpacked_model
from rhapsode.model.packed_folder import load_packed, save_packed
from rhapsode.training.verify import parts_of, verify

PROMPT = "Before we proceed any further"


@pytest.fixture(scope="module", params=[8, 4])
def folder(
    request: pytest.FixtureRequest, by_byte_pairs: LanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    packed = pack_model(by_byte_pairs.decoder(), request.param)
    provenance = {"objective": "next token", "parent": {"source": "mytext"}}
    save_packed(folder, packed, by_byte_pairs.tokenizer, provenance)
    return folder


def is_unpacked(model: LanguageModel) -> bool:
    return model._model is not None


def test_opening_unpacks_nothing(folder: Path, by_byte_pairs: LanguageModel) -> None:
    model = rhapsode.load(folder, "cpu")
    assert model.packed is not None
    assert model.config == by_byte_pairs.config == load_config(folder)
    assert model.end_ids == by_byte_pairs.end_ids
    assert model.weight_bytes == model.packed.nbytes == outline(folder).weights
    assert model.weight_bytes < sum(weight.nbytes for weight in by_byte_pairs.model.parameters()) / 2
    model.require_decoder()
    model.encode_prompt(PROMPT)
    for ask in (model.encoder, model.encoder_decoder):
        with pytest.raises(InputError, match="this is a decoder"):
            ask()
    assert not is_unpacked(model)
    assert model.model is model.decoder() is model.model
    assert model.weight_bytes > 3 * model.packed.nbytes


def test_it_is_the_model_that_the_packed_numbers_stand_for(
    folder: Path, by_byte_pairs: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "0")  # kernels bring to 8 bits what the packed numbers are multiplied with, too
    packed = load_packed(folder)
    plain = LanguageModel(unpacked_model(packed), by_byte_pairs.tokenizer, provenance={"parent": "mytext"})
    model = rhapsode.load(folder, "cpu")
    assert model.score(PROMPT) == plain.score(PROMPT)
    assert model.generate(PROMPT, seed=3, max_new_tokens=20) == plain.generate(PROMPT, seed=3, max_new_tokens=20)
    for name, parameter in model.model.named_parameters():
        expected = unpacked(packed.matrices[name]) if name in packed.matrices else packed.vectors[name]
        assert np.array_equal(parameter.detach().numpy(), expected), name


def test_writing_with_kernels_unpacks_nothing(folder: Path) -> None:
    model = rhapsode.load(folder, "cpu")
    assert model.packed is not None
    if refused(model.packed) is not None:
        pytest.skip("kernels cannot be used here")
    for method in (model.generate, model.search):
        method(PROMPT, max_new_tokens=4)
    model.speculate("prompt")
    model.generate(PROMPT, max_new_tokens=4)
    assert list(Chat(model, Sampling(max_new_tokens=4)).say(PROMPT))
    assert not is_unpacked(model)


def test_the_engine_is_kept(folder: Path) -> None:
    model = rhapsode.load(folder, "cpu")
    engine = model.engine()
    assert model.engine() is engine
    model.score(PROMPT)
    assert model.engine() is engine


def test_it_drafts_and_is_drafted_for(folder: Path, by_byte_pairs: LanguageModel) -> None:
    model = rhapsode.load(folder, "cpu")
    expected = model.generate(PROMPT, temperature=0, max_new_tokens=20)
    model.speculate(by_byte_pairs)
    assert model.generate(PROMPT, temperature=0, max_new_tokens=20) == expected


def test_what_is_opened_knows_its_files(folder: Path) -> None:
    opened = open_model(folder)
    assert opened.format == "packed"
    assert {path.name for path in opened.files} == {"config.json", "packed.safetensors", "tokenizer.json"}
    assert opened.model is opened.model
    assert opened.config == opened.model.config
    assert opened.provenance == {"objective": "next token", "parent": {"source": "mytext"}}
    assert torch.equal(opened.model.embedding.weight, rhapsode.load(folder, "cpu").decoder().embedding.weight)


def test_a_run_may_hold_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(folder)
    assert rhapsode.load(tmp_path, "cpu").packed is not None
    assert outline(tmp_path) == outline(folder)


def test_damage_is_told_wherever_it_is_opened(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (finding,) = verify(parts_of(tmp_path))
    assert finding.good and finding.kind == "model"
    weights = tmp_path / "packed.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    for ask in (open_model, outline, rhapsode.load):
        with pytest.raises(DamagedError, match=r"packed\.safetensors: is damaged"):
            ask(tmp_path)
    (finding,) = verify(parts_of(tmp_path))
    assert not finding.good and "packed.safetensors" in finding.told
    weights.write_bytes(data)
    (tmp_path / "rhapsode.json").write_text(json.dumps({"tokenizer": {"sha256": "0" * 64}}), encoding="utf-8")
    with pytest.raises(MismatchError, match="is not the tokenizer that the model was trained with"):
        rhapsode.load(tmp_path)
