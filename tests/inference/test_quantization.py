"""Quantising a model: from every format, with its record and its loss; and what is refused leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import rhapsode
from rhapsode.base.errors import InputError, NotFiniteError
from rhapsode.cli.main import run
from rhapsode.exchange.doors import export_model, import_model
from rhapsode.inference import quantization
from rhapsode.inference.block_pool import blocks_of
from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.inference.quantization import Loss, measured, quantize
from rhapsode.inference.step import TorchStep
from rhapsode.model.config import Experts
from rhapsode.model.decoder import Decoder
from rhapsode.model.families import FAMILIES
from rhapsode.model.folder import save_model
from rhapsode.model.model import new_model
from rhapsode.model.packed import pack_model, unpacked_model
from rhapsode.model.packed_folder import load_packed
from rhapsode.tokenizer.train import train_tokenizer

from .conftest import CONTEXT, random_decoder

TEXT = "Before we proceed any further, hear me speak. " * 4


def step_of(model: Decoder) -> TorchStep:
    """Steps without kernels, which round more than weights, for a window."""
    return TorchStep(model, blocks_of(CONTEXT))


def packed_twin(model: Decoder, bits: int) -> Decoder:
    return unpacked_model(pack_model(model, bits))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_folder(byte_pair_folder: Path, by_byte_pairs: LanguageModel, tmp_path: Path, bits: int) -> None:
    done = quantize(byte_pair_folder, tmp_path / "out", bits, documents=[TEXT])
    model = load(tmp_path / "out", "cpu")
    expected = pack_model(by_byte_pairs.decoder(), bits)
    assert model.packed is not None
    for name, matrix in expected.matrices.items():
        assert np.array_equal(model.packed.matrices[name].weights, matrix.weights)
        assert np.array_equal(model.packed.matrices[name].scales, matrix.scales)
    assert (done.path, done.bits, done.bytes_after) == (tmp_path / "out", bits, expected.nbytes)
    assert done.bytes_before == 4 * by_byte_pairs.config.parameters
    record = json.loads((tmp_path / "out" / "rhapsode.json").read_text(encoding="utf-8"))
    assert record["objective"] == "next token"
    assert record["parent"]["source"] == str(byte_pair_folder)
    assert record["parent"]["sha256"].keys() == {"config.json", "model.safetensors", "tokenizer.json"}
    assert done.loss is not None
    assert record["quantization"] == {
        "bits": bits,
        "measured_on_tokens": done.loss.tokens,
        "perplexity_in_fp32": done.loss.perplexity,
        "perplexity": done.loss.packed_perplexity,
        "kl_divergence_nats": done.loss.divergence,
    }
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (byte_pair_folder / name).read_bytes()
    generations = [
        json.loads((one / "generation_config.json").read_text(encoding="utf-8"))
        for one in (tmp_path / "out", byte_pair_folder)
    ]
    assert generations[0] == generations[1]


def test_the_parent_of_a_parent_stays_known(byte_pair_folder: Path, tmp_path: Path) -> None:
    export_model(byte_pair_folder, tmp_path / "model.gguf", format="gguf", quantization="f16")
    done = quantize(tmp_path / "model.gguf", tmp_path / "from-gguf", 8)
    assert done.loss is None
    record = json.loads((tmp_path / "from-gguf" / "rhapsode.json").read_text(encoding="utf-8"))
    assert record["parent"]["format"] == "GGUF" and "parent" not in record["parent"]
    assert record["quantization"] == {"bits": 8}
    assert rhapsode.load(tmp_path / "from-gguf").generate("Before", max_new_tokens=3).ids
    import_model(tmp_path / "model.gguf", tmp_path / "imported")
    quantize(tmp_path / "imported", tmp_path / "from-imported", 4)
    record = json.loads((tmp_path / "from-imported" / "rhapsode.json").read_text(encoding="utf-8"))
    assert record["parent"]["source"] == str(tmp_path / "imported")
    assert record["parent"]["parent"]["source"] == str(tmp_path / "model.gguf")


@pytest.mark.parametrize("bits", [8, 4])
def test_the_loss_is_what_all_logits_say(
    by_byte_pairs: LanguageModel, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    monkeypatch.setattr(quantization, "LOGITS_AT_ONCE", 5 * by_byte_pairs.config.vocabulary_size)
    tokens = by_byte_pairs.tokenizer.encode(TEXT)[: CONTEXT + 20]
    ours, theirs = by_byte_pairs.decoder(), packed_twin(by_byte_pairs.decoder(), bits)
    found = measured(ours, step_of(theirs), np.array(tokens))
    nats, divergences = [[], []], []
    for start in range(0, len(tokens) - 1, CONTEXT):
        window = tokens[start : start + CONTEXT + 1]
        with torch.no_grad():
            logs = [one(torch.tensor([window[:-1]]))[0].double().log_softmax(-1).numpy() for one in (ours, theirs)]
        for place, token in enumerate(window[1:]):
            for one in (0, 1):
                nats[one].append(-logs[one][place, token])
            divergences.append(float((np.exp(logs[0][place]) * (logs[0][place] - logs[1][place])).sum()))
    assert found.tokens == len(tokens) - 1 == len(divergences)
    assert found.nats == pytest.approx(np.mean(nats[0]), rel=1e-5)
    assert found.packed_nats == pytest.approx(np.mean(nats[1]), rel=1e-5)
    assert found.divergence == pytest.approx(np.mean(divergences), rel=1e-3, abs=1e-7)
    assert found.increase == pytest.approx(found.packed_perplexity / found.perplexity - 1)
    assert found.divergence > 0


def test_no_difference_is_no_loss_and_fewer_bits_lose_more(by_byte_pairs: LanguageModel) -> None:
    tokens, model = np.array(by_byte_pairs.tokenizer.encode(TEXT)), by_byte_pairs.decoder()
    same, eight, four = (
        measured(model, step_of(other), tokens) for other in (model, packed_twin(model, 8), packed_twin(model, 4))
    )
    assert same.divergence == pytest.approx(0, abs=1e-9) and same.packed_nats == pytest.approx(same.nats, rel=1e-6)
    assert 0 < eight.divergence < four.divergence / 20


@pytest.mark.parametrize("bits", [8, 4])
def test_what_the_folder_loses_is_what_its_steps_lose(
    byte_pair_folder: Path, by_byte_pairs: LanguageModel, tmp_path: Path, bits: int
) -> None:
    """Whoever computes them here; and that is about what the rounding of weights alone loses."""
    loss = quantize(byte_pair_folder, tmp_path / "out", bits, documents=[TEXT]).loss
    assert loss is not None
    tokens = quantization._first_tokens(by_byte_pairs.tokenizer, [TEXT])
    again = measured(by_byte_pairs.decoder(), load(tmp_path / "out", "cpu").step(blocks_of(CONTEXT)), tokens)
    assert loss == again
    of_weights = measured(by_byte_pairs.decoder(), step_of(packed_twin(by_byte_pairs.decoder(), bits)), tokens)
    assert loss.packed_nats == pytest.approx(of_weights.packed_nats, rel=0.01)
    assert loss.divergence < 0.01 if bits == 8 else loss.divergence < 2 * of_weights.divergence


def test_no_more_is_measured_than_is_told(by_byte_pairs: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "MEASURED", 10)
    model, asked = by_byte_pairs.decoder(), []

    def documents() -> Iterator[str]:
        for number in range(10):
            asked.append(number)
            yield "to be"

    tokens = quantization._first_tokens(by_byte_pairs.tokenizer, documents())
    assert len(asked) < 10
    assert tokens.tolist().count(by_byte_pairs.tokenizer.end_of_text_id) == len(asked)
    assert measured(model, step_of(model), tokens).tokens == 10


def test_texts_that_are_too_short(byte_pair_folder: Path, tmp_path: Path, by_byte_pairs: LanguageModel) -> None:
    for documents in ([], ["", ""]):
        with pytest.raises(InputError, match="there is no text in what was named"):
            quantize(byte_pair_folder, tmp_path / "out", 8, documents=documents)
    with pytest.raises(InputError, match="a text of 1 tokens is too short"):
        measured(by_byte_pairs.decoder(), step_of(by_byte_pairs.decoder()), np.array([1]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["modernbert", "qwen3_moe"])
def test_what_cannot_be_quantised(tmp_path: Path, family: str) -> None:
    tokenizer = train_tokenizer(["some text"], "byte", model=FAMILIES[family].kind)
    more = {"experts": Experts(2, 1, 8, normalised=True, layers=(0,))} if "moe" in family else {}
    config = FAMILIES[family].config(tokenizer.vocabulary_size, 16, 1, 2, 2, 8, 24, 32, **more)
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", new_model(config), tokenizer, {"objective": "none"})
    with pytest.raises(InputError, match=rf"{tmp_path / 'model'}: .*cannot be quantised|only decoders can be"):
        quantize(tmp_path / "model", tmp_path / "out", 8)
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_what_is_quantised_is_not_quantised_again(byte_pair_folder: Path, tmp_path: Path) -> None:
    quantize(byte_pair_folder, tmp_path / "out", 4)
    with pytest.raises(InputError, match="out: is quantised already"):
        quantize(tmp_path / "out", tmp_path / "again", 8)


def test_nothing_is_replaced_unasked_and_nothing_is_left_half_done(
    byte_pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious", encoding="utf-8")
    with pytest.raises(InputError, match=r"already exists\..*--force"):
        quantize(byte_pair_folder, tmp_path / "out", 8)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("rhapsode.model.packed_folder.encoded_header", full)
        with pytest.raises(OSError, match="No space left"):
            quantize(byte_pair_folder, tmp_path / "out", 8, force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]
    quantize(byte_pair_folder, tmp_path / "out", 8, force=True)
    assert load(tmp_path / "out", "cpu").packed is not None
    assert not (tmp_path / "out" / "mine").exists()


def test_values_that_are_not_finite(tmp_path: Path, by_characters: LanguageModel) -> None:
    model = random_decoder(by_characters.config)
    with torch.no_grad():
        model.stack.blocks[1].feed_forward.down.weight[3, 5] = float("nan")
    save_model(tmp_path, model, by_characters.tokenizer, {"objective": "next token"})
    with pytest.raises(InputError, match=r"feed_forward\.down\.weight': it has values that are not finite"):
        quantize(tmp_path, tmp_path / "out", 8)
    with pytest.raises(NotFiniteError, match="not finite"):
        measured(model, step_of(model), np.arange(9))


def test_the_command_says_what_it_did(
    byte_pair_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    words = ["quantize", str(byte_pair_folder), "--out", str(tmp_path / "out")]
    assert run([*words, "--bits", "8", "--texts", str(tmp_path / "text.txt")]) == 0
    out = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "rhapsode.json").read_text(encoding="utf-8"))["quantization"]
    assert f"{record['perplexity_in_fp32']:.3f}" in out and f"{record['perplexity']:.3f}" in out
    assert f"nats per token, over {record['measured_on_tokens']} tokens" in out
    assert "times smaller" in out
    assert f'next: rhapsode generate {tmp_path / "out"} "Once upon a time"' in out
    assert run([*words, "--bits", "4", "--force"]) == 0
    assert "give some with --texts" in capsys.readouterr().out
    assert min(matrix.bits for matrix in load_packed(tmp_path / "out").matrices.values()) == 4
    for wrong, told in ((["--bits", "5"], "8, 4"), (["--bits", "8"], "already exists"), ([], "--bits")):
        assert run([*words, *wrong]) == 2
        assert told in capsys.readouterr().err


def test_shares_of_a_loss() -> None:
    loss = Loss(10, 1.0, 1.1, 0.2)
    assert loss.perplexity == pytest.approx(2.71828, rel=1e-5)
    assert loss.increase == pytest.approx(0.10517, rel=1e-4)
