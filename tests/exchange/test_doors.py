"""import and export: every family out and in again, what is refused, and what happens when parity fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rhapsode.base.errors import InputError
from rhapsode.base.files import sha256_of
from rhapsode.exchange import doors, gguf_model
from rhapsode.exchange.doors import ParityError, as_family, export_model, import_model
from rhapsode.exchange.opening import open_model
from rhapsode.inference.language_model import load
from rhapsode.model.config import ModelConfig, Rope, YarnScaling
from rhapsode.model.families import FAMILIES
from rhapsode.model.folder import save_model
from rhapsode.tokenizer.tokenizer import Tokenizer

from ..commands.conftest import Rhapsode, rhapsode  # noqa: F401  # a fixture
from .shapes import byte_pairs, random_model, shape_of

TRANSFORMERS = True


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_pairs()


def saved(folder: Path, config: ModelConfig, tokenizer: Tokenizer, **provenance: Any) -> Path:
    folder.mkdir(parents=True)
    save_model(folder, random_model(config), tokenizer, {"objective": "next token", "parent": None, **provenance})
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_a_folder(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Not a bit is lost, and transformers computes the same: logits, and text where the kind writes any."""
    source = saved(tmp_path / "source", shape_of(family), tokenizer)
    passage = export_model(source, tmp_path / "out")
    assert [row.peer for row in passage.parity.rows] == ["rhapsode", "transformers"]
    assert passage.parity.rows[0].largest == 0.0
    assert not passage.parity.faults and not passage.parity.missing
    before, after = open_model(source), open_model(tmp_path / "out")
    assert after.model.config == before.model.config
    theirs = dict(after.model.named_parameters())
    for name, parameter in before.model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    assert after.tokenizer.digest == before.tokenizer.digest


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoder_without_a_head(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", shape_of(family, has_head=False), tokenizer)
    passage = export_model(source, tmp_path / "out")
    assert not passage.parity.faults
    assert not load(tmp_path / "out", "cpu").config.has_head


@pytest.mark.parametrize("quantization", ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_gguf_in_every_type(quantization: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", shape_of("qwen3"), tokenizer)
    passage = export_model(source, tmp_path / "m.gguf", format="gguf", quantization=quantization)
    assert not passage.parity.faults
    again = import_model(tmp_path / "m.gguf", tmp_path / "again")
    assert not again.parity.faults
    assert again.parity.rows[0].largest == 0.0


def test_a_folder_of_shards_in_half_precision(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others publish: bf16, in shards. What comes in is the fp32 of each number."""
    monkeypatch.setattr("rhapsode.model.folder.SHARD_BYTES", 20_000)
    source = saved(tmp_path / "source", shape_of("llama", tied_embeddings=False), tokenizer)
    monkeypatch.undo()
    (source / "rhapsode.json").unlink()
    shards = sorted(source.glob("*.safetensors"))
    assert len(shards) > 3
    halves: dict[str, torch.Tensor] = {}
    for shard in shards:
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(shard).items()}
        save_file(tensors, shard)
        halves |= tensors
    imported = import_model(source, tmp_path / "in").path
    tensors = load_file(imported / "model.safetensors")
    assert tensors.keys() == halves.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, halves[name].float())
    record = json.loads((imported / "rhapsode.json").read_text(encoding="utf-8"))
    assert record["parent"]["source"] == str(source)
    assert record["parent"]["format"] == "Hugging Face"
    for path in (*shards, source / "config.json", source / "tokenizer.json"):
        assert record["parent"]["sha256"][path.name] == sha256_of(path)
    assert "Others made it" in (imported / "README.md").read_text(encoding="utf-8")


def test_rows_beyond_the_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Others fill the embedding up; so does what is imported from them."""
    source = saved(tmp_path / "source", shape_of("llama", rows=300), tokenizer)
    (source / "rhapsode.json").unlink()
    imported = import_model(source, tmp_path / "in").path
    assert load(imported, "cpu").config.vocabulary_size == 300
    export_model(imported, tmp_path / "m.gguf", format="gguf")
    assert load(tmp_path / "m.gguf", "cpu").tokenizer.vocabulary_size == 266


def test_a_model_of_ours_keeps_its_record(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = saved(tmp_path / "run" / "model", shape_of("qwen3"), tokenizer, data={"corpus": "abc"})
    out = export_model(tmp_path / "run", tmp_path / "out").path
    record = json.loads((out / "rhapsode.json").read_text(encoding="utf-8"))
    assert record["data"] == {"corpus": "abc"} and record["parent"] is None
    assert record["copied_from"]["source"] == str(source)
    assert (out / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()


def test_what_ends_a_text_goes_along(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", shape_of("llama"), tokenizer)
    (source / "rhapsode.json").unlink()
    (source / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [9, 10], "do_sample": False, "auto_map": {"X": "evil.X"}}), encoding="utf-8"
    )
    out = import_model(source, tmp_path / "out").path
    values = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    assert values["eos_token_id"] == [9, 10, tokenizer.end_of_text_id]
    assert values["do_sample"] is False and "auto_map" not in values


# --- families ---


def test_one_family_written_as_another(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", shape_of("mistral"), tokenizer)
    passage = export_model(source, tmp_path / "out", family="llama")
    assert not passage.parity.faults
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["model_type"] == "llama"


@pytest.mark.parametrize(
    ("config", "name", "words"),
    [
        (shape_of("qwen3"), "llama", r"a qwen3 like this is no llama: qk_norm would be otherwise.*written as: qwen3\."),
        (shape_of("mistral", windows=(4, 4)), "llama", r"no llama: windows would be otherwise.*written as: mistral\."),
        (shape_of("llama"), "mistral", ""),
        (shape_of("llama", rope=Rope(scaling=YarnScaling(4.0, 8))), "mistral", ""),
        (shape_of("llama", query_bias=True, output_bias=True), "mistral", "query_bias, output_bias would be otherwise"),
        (shape_of("llama"), "bert", "no bert: kind would be otherwise"),
        (shape_of("llama"), "lama", r"there is no family 'lama'.*Did you mean 'llama'"),
    ],
)
def test_families_that_compute_something_else(config: ModelConfig, name: str, words: str) -> None:
    if not words:
        assert as_family(config, name).family == name
        return
    with pytest.raises(InputError, match=words):
        as_family(config, name)


# --- what is refused, before anything is written ---


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("bert", {"format": "gguf"}, "cannot hold the family bert.*nearest: --format hugging-face"),
        ("t5", {"format": "gguf"}, "cannot hold the family t5"),
        ("qwen3", {"format": "gguf", "quantization": "q3"}, "there is no type 'q3'"),
        ("qwen3", {"quantization": "q8_0"}, "Hugging Face folders are written in f32.*--format gguf"),
        ("qwen3", {"family": "llama"}, "is no llama"),
    ],
)
def test_refused(family: str, options: dict[str, Any], words: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", shape_of(family), tokenizer)
    with pytest.raises(InputError, match=words):
        export_model(source, tmp_path / "out", **options)
    assert left(tmp_path) == {"source"}


def test_a_tokenizer_that_gguf_cannot_hold(tmp_path: Path) -> None:
    from rhapsode.tokenizer.train import train_tokenizer

    tokenizer = train_tokenizer(["Some text."], "character")
    source = saved(tmp_path / "source", shape_of("qwen3", rows=tokenizer.vocabulary_size), tokenizer)
    with pytest.raises(InputError, match=r"cannot be written to GGUF.*nearest that llama\.cpp has is byte-level BPE"):
        export_model(source, tmp_path / "m.gguf", format="gguf")
    assert left(tmp_path) == {"source"}


@pytest.mark.parametrize("format", ["hugging-face", "gguf"])
def test_nothing_is_overwritten(format: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source, out = saved(tmp_path / "source", shape_of("qwen3"), tokenizer), tmp_path / "out"
    out.write_text("mine", encoding="utf-8")
    for passage in (lambda: export_model(source, out, format=format), lambda: import_model(source, out)):
        with pytest.raises(InputError, match=r"out: already exists.*--force"):
            passage()
    assert out.read_text(encoding="utf-8") == "mine"
    out.unlink()
    export_model(source, out, format=format)
    export_model(source, out, format=format, force=True)
    assert left(tmp_path) == {"source", "out"}


# --- parity ---


@pytest.mark.parametrize("format", ["hugging-face", "gguf"])
def test_a_failed_parity_keeps_the_door_shut(
    format: Any, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in the wrong order: everything can be read, and computes something else."""
    source = saved(tmp_path / "source", shape_of("llama"), tokenizer)
    if format == "gguf":
        monkeypatch.setattr(gguf_model, "neighbours", lambda rows, heads: rows)
    else:
        pack = doors.save_model

        def spoilt(folder: Path, *arguments: Any, **options: Any) -> None:
            pack(folder, *arguments, **options)
            tensors = load_file(folder / "model.safetensors")
            name = "model.layers.1.mlp.up_proj.weight"
            tensors[name] = tensors[name].flip(0).contiguous()
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

        monkeypatch.setattr(doors, "save_model", spoilt)
    with pytest.raises(
        ParityError, match=r"does not compute what went in: rhapsode: (diverges|logits differ)"
    ) as caught:
        export_model(source, tmp_path / "out", format=format)
    assert caught.value.exit_code == 1
    assert left(tmp_path) == {"source", "out.parity-failed"}
    assert caught.value.where == str(tmp_path / "out.parity-failed")


def test_peers_that_are_not_installed_are_said(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "source", shape_of("llama"), tokenizer)
    monkeypatch.setattr(doors, "installed", lambda name: False)
    assert export_model(source, tmp_path / "out").parity.missing == ("transformers",)
    assert export_model(source, tmp_path / "m.gguf", format="gguf").parity.missing == ("llama-cpp-python",)
    assert import_model(tmp_path / "m.gguf", tmp_path / "in").parity.missing == ("transformers", "llama-cpp-python")


# --- commands ---


def test_the_commands(tokenizer: Tokenizer, tmp_path: Path, rhapsode: Rhapsode) -> None:  # noqa: F811
    saved(tmp_path / "source", shape_of("qwen3"), tokenizer)
    done = rhapsode("export", "source", "--out", "m.gguf", "--format", "gguf", "--type", "q8_0")
    assert done.code == 0, done.err
    assert "compared with" in done.out and "KL divergence" in done.out and "good" in done.out
    assert "m.gguf: " in done.out and "next: rhapsode import m.gguf --out FOLDER" in done.out
    done = rhapsode("import", "m.gguf", "--out", "back")
    assert done.code == 0, done.err
    assert 'next: rhapsode generate back "Once upon a time"' in done.out
    for model in ("source", "m.gguf", "back"):
        assert rhapsode("generate", model, "To be", "--max-new-tokens", "3").code == 0
        assert rhapsode("next", model, "To be").code == 0
    assert rhapsode("export", "source", "--out", "m.gguf", "--format", "gguf").code == 2
    done = rhapsode("export", "source", "--out", "x", "--format", "onnx")
    assert done.code == 2 and "gguf" in done.error


def test_a_failed_parity_on_the_command_line(
    tokenizer: Tokenizer,
    tmp_path: Path,
    rhapsode: Rhapsode,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved(tmp_path / "source", shape_of("llama"), tokenizer)
    monkeypatch.setattr(gguf_model, "neighbours", lambda rows, heads: rows)
    done = rhapsode("export", "source", "--out", "m.gguf", "--format", "gguf")
    assert done.code == 1
    assert "FAILED" in done.out
    assert "m.gguf.parity-failed: what was written does not compute what went in" in done.error


def test_word_vectors_of_a_gguf_file(tokenizer: Tokenizer, tmp_path: Path, rhapsode: Rhapsode) -> None:  # noqa: F811
    saved(tmp_path / "source", shape_of("qwen3"), tokenizer)
    rhapsode("export", "source", "--out", "m.gguf", "--format", "gguf")
    folder, file = (rhapsode("similar", "be", "--model", model, "--json") for model in ("source", "m.gguf"))
    assert json.loads(folder.out)["neighbours"] == json.loads(file.out)["neighbours"]


# --- what is no model ---


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("weights.bin", b"PK\x03\x04 something", "these weights are pickled"),
        ("weights.pt", b"\x80\x02}q\x00.", "these weights are pickled"),
        ("config.json", b'{"model_type": "llama"}', r"is one file of a model folder.*Name the folder"),
        ("model.safetensors", (20).to_bytes(8, "little") + b'{"a": 1}            ', "is one file of a model folder"),
        ("notes.txt", b"Some text, and more of it than a header.", "is no model that is known here"),
        ("empty", b"", "is no model that is known here"),
        ("m.gguf", b"GGUF\x07\x00\x00\x00", "is version 7 of GGUF"),
    ],
)
def test_files_that_are_no_model(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        open_model(tmp_path / name)


def test_a_folder_with_a_file_of_a_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", shape_of("qwen3"), tokenizer)
    (tmp_path / "files").mkdir()
    export_model(source, tmp_path / "files" / "m.bin", format="gguf")
    with pytest.raises(InputError, match=r"no model in this folder.*Name the file in it: m\.bin"):
        open_model(tmp_path / "files")
