"""Encoders and encoder-decoders: they train, go on with the same bits, and open in transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rhapsode
from rhapsode.base.errors import InputError
from rhapsode.model.initialization import initialise
from rhapsode.model.model import new_model
from rhapsode.training.checkpoint import checkpoints
from rhapsode.training.optimizers import Optimizers
from rhapsode.training.planner import DEFAULTS
from rhapsode.training.run import train
from rhapsode.training.settings import TrainSettings
from rhapsode.training.shapes import NEW_FAMILIES, shape
from rhapsode.training.timing import nonsense

from ..measurements import short_measurements

TINY = TrainSettings(
    hidden_size=16,
    layers=1,
    heads=2,
    context_length=24,
    batch_size=6,
    micro_batch_size=2,
    steps=9,
    threads=2,
    dropout=0.1,
    checkpoint_interval=2,
    keep_checkpoints=9,
    tokenizer="character",
)
KINDS: dict[str, TrainSettings] = {
    "masked tokens": replace(TINY, kind="encoder"),
    "span corruption": replace(TINY, kind="encoder-decoder"),
    "parallel text": TINY,
}


@pytest.fixture(scope="module", autouse=True)
def soon() -> Iterator[None]:
    with short_measurements():
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, shakespeare: Path) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    text = shakespeare.read_text(encoding="utf-8")[:8000]
    (folder / "scenes.txt").write_text(text, encoding="utf-8")
    lines = [line[:20] for line in text.splitlines() if line]
    (folder / "pairs.txt").write_text("".join(f"{line}\t{line.upper()}\n" for line in lines), encoding="utf-8")
    return folder


def begin(texts: Path, run: Path, objective: str, **changed: Any) -> None:
    settings = replace(KINDS[objective], **changed)
    if objective == "parallel text":
        train([str(texts / "pairs.txt")], settings, out=run, target_field="target")
    else:
        train([str(texts / "scenes.txt")], settings, out=run)


@pytest.fixture(scope="module", params=KINDS)
def done(request: pytest.FixtureRequest, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    run = tmp_path_factory.mktemp("kinds") / "run"
    begin(texts, run, request.param)
    return request.param, run


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_it_says_what_it_was_trained_to_do(done: tuple[str, Path]) -> None:
    objective, run = done
    model = rhapsode.load(run, device="cpu")
    assert model.provenance is not None
    assert model.provenance["objective"] == objective
    assert model.config.kind == ("encoder" if objective == "masked tokens" else "encoder-decoder")
    assert all("accuracy" in record for record in records(run, "validation"))
    assert (run / "samples.jsonl").stat().st_size > 0


def test_it_learns(done: tuple[str, Path]) -> None:
    losses = [record["loss"] for record in records(done[1], "validation")]
    assert losses[-1] < losses[0]


def test_a_run_cut_short_ends_with_the_same_bits(done: tuple[str, Path], tmp_path: Path) -> None:
    """What a kill leaves behind is what is on disk at some step: here, all but the last checkpoints are lost."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(done[1], run)
    shutil.rmtree(run / "model")
    for folder in checkpoints(run / "checkpoints")[2:]:
        shutil.rmtree(folder)
    train([], out=run, resume=True)
    for name in ("model/model.safetensors", "checkpoints/step-00000009/optimizer.safetensors"):
        then, now = load_file(done[1] / name), load_file(run / name)
        assert then.keys() == now.keys()
        for key, tensor in then.items():
            assert torch.equal(tensor, now[key]), key


def test_transformers_opens_it_and_computes_the_same(done: tuple[str, Path]) -> None:
    from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    objective, run = done
    ours = rhapsode.load(run, device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer.pad_token_id == ours.tokenizer.padding_id
    before, after = ours.tokenizer.frame
    text = "First Citizen"
    assert tokenizer(text)["input_ids"] == [*before, *ours.tokenizer.encode(text), *after]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        if objective == "masked tokens":
            assert tokenizer.mask_token_id == ours.tokenizer.mask_id
            theirs = AutoModelForMaskedLM.from_pretrained(run / "model").eval()
            torch.testing.assert_close(ours.model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
            return
        theirs = AutoModelForSeq2SeqLM.from_pretrained(run / "model").eval()
        written = torch.tensor([[ours.config.start_id, 5, 6, 7]])
        expected = theirs(ids, decoder_input_ids=written).logits
        torch.testing.assert_close(ours.model(written, ours.model.encode(ids)), expected, atol=1e-5, rtol=1e-5)
        greedy = theirs.generate(ids, num_beams=1, do_sample=False, max_new_tokens=8)[0]
        assert greedy[0] == ours.config.start_id


def test_micro_batches_add_up_to_the_batch(texts: Path, tmp_path: Path, done: tuple[str, Path]) -> None:
    objective, run = done
    begin(texts, tmp_path / "run", objective, micro_batch_size=6)
    ours = [record["loss"] for record in records(tmp_path / "run", "train")]
    assert ours == pytest.approx([record["loss"] for record in records(run, "train")], rel=1e-4)


def test_the_mean_of_the_last_checkpoints(texts: Path, tmp_path: Path) -> None:
    begin(texts, tmp_path / "run", "parallel text", average_checkpoints=3, keep_checkpoints=1)
    last = [load_file(folder / "model.safetensors") for folder in checkpoints(tmp_path / "run" / "checkpoints")[-3:]]
    assert len(last) == 3
    for key, tensor in load_file(tmp_path / "run" / "model" / "model.safetensors").items():
        mean = torch.stack([weights[key].double() for weights in last]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, atol=1e-6, rtol=1e-5)


def test_pairs_are_for_encoder_decoders(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--kind: pairs of texts do not train a decoder"):
        begin(texts, tmp_path / "run", "parallel text", kind="decoder")
    with pytest.raises(InputError, match="--family: a new encoder cannot be of the family 'gpt2'"):
        begin(texts, tmp_path / "run", "masked tokens", family="gpt2")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NEW_FAMILIES.items() for name in names])
def test_new_models_of_every_family(kind: Any, name: str) -> None:
    """Each starts near the loss of a uniform guess, and each learned parameter is in one optimizer group and moves."""
    settings = replace(
        DEFAULTS,
        kind=kind,
        family=name,
        hidden_size=64,
        layers=2,
        context_length=32,
        tied_embeddings=True,
        learning_rate=0.01,
        embedding_learning_rate=0.01,
        head_learning_rate=0.01,
        adam_beta2=0.95,
    )
    config = shape(settings, 300, start_id=299 if kind == "encoder-decoder" else None)
    model = new_model(config)
    initialise(model, 0)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == config.parameters
    tensors = nonsense(config, 4, 32, 16)
    anything = torch.randint(300, tensors[-1].shape, generator=torch.Generator().manual_seed(0))
    tensors = (*tensors[:-1], torch.where(tensors[-1] >= 0, anything, -1))
    counted = int((tensors[-1] >= 0).sum())
    loss = model.loss(*tensors) / counted
    above = 2.0 if name == "marian" else 0.6  # the tied embedding of the paper: a token answers itself at first
    assert loss.item() == pytest.approx(torch.tensor(300.0).log().item(), abs=above)
    optimizers = Optimizers(model, settings)
    grouped = [p for part in optimizers.parts for group in part.param_groups for p in group["params"]]
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in learned}
    assert len(grouped) == len(learned)
    for _ in range(12):
        model.zero_grad()
        loss = model.loss(*tensors) / counted
        loss.backward()
        optimizers.step()
    assert loss.item() < 4.5


@pytest.mark.parametrize(
    ("family", "changed", "words"),
    [
        ("gpt2", {"kv_heads": 1}, "the family gpt2 cannot have kv_heads 1; with the other sizes it is 2"),
        ("gpt2", {"head_dim": 16}, "the family gpt2 cannot have head_dim 16; with the other sizes it is 32"),
    ],
)
def test_sizes_that_a_family_cannot_have_are_refused(family: str, changed: dict[str, int], words: str) -> None:
    settings = replace(DEFAULTS, hidden_size=64, layers=1, heads=2, context_length=8, tied_embeddings=True)
    with pytest.raises(InputError, match=words):
        shape(replace(settings, family=family, **changed), 50)
