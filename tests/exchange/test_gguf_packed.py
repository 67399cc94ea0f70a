"""Packed weights through GGUF: every number is the very same, in every family that has packed weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.cli.main import run
from rhapsode.exchange.doors import export_model
from rhapsode.exchange.gguf_file import GgufFile
from rhapsode.exchange.gguf_model import open_gguf, prepare, write_model, write_packed
from rhapsode.exchange.gguf_packed import TYPES, gguf_blocks, packed_type
from rhapsode.model.decoder import Decoder
from rhapsode.model.packed import PackedModel, pack, pack_model, unpacked, unpacked_model
from rhapsode.model.packed_folder import save_packed
from rhapsode.tokenizer.tokenizer import Tokenizer

from ..model.families import DECODERS
from .shapes import byte_pairs, random_model, shape_of

FAMILIES = [case.family for case in DECODERS if case.family != "qwen3_moe"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_pairs()


def packed_of(family: str, bits: int, *, intermediate_size: int = 64) -> PackedModel:
    model = random_model(replace(shape_of(family), intermediate_size=intermediate_size))
    assert isinstance(model, Decoder)
    return pack_model(model, bits)


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(1, 4), st.sampled_from([8, 4]), st.integers(0, 99)
)
def test_blocks_stand_for_the_same_numbers(rows: list[int], blocks: int, bits: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    matrices = [pack(draw.standard_normal((count, 32 * blocks)).astype(np.float32), bits) for count in rows]
    assert packed_type(matrices) == TYPES[bits]
    theirs = quants.dequantize(gguf_blocks(matrices), GGMLQuantizationType[TYPES[bits]])
    assert np.array_equal(theirs, np.concatenate([unpacked(matrix) for matrix in matrices]))


def test_what_has_no_type() -> None:
    eight, four = (pack(np.ones((8, 32), dtype=np.float32), bits) for bits in (8, 4))
    assert packed_type([eight, four]) is None
    assert packed_type([pack(np.ones((8, 33), dtype=np.float32), 8)]) is None


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_the_one_that_fp32_would_have(
    family: str, bits: int, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The same model written as F32 is the oracle: it goes another way, through torch, and reads no block."""
    packed = packed_of(family, bits)
    prepared = prepare(packed.config, tokenizer)
    plain = unpacked_model(packed)
    written = write_packed(tmp_path / "packed.gguf", packed, prepared)
    write_model(tmp_path / "plain.gguf", plain, prepared, "F32")
    ours, theirs = GgufFile(tmp_path / "packed.gguf"), GgufFile(tmp_path / "plain.gguf")
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert not written.fallbacks
    for name, info in ours.tensors.items():
        assert info.type == ("F32" if len(info.shape) == 1 or "position" in name else TYPES[bits]), name
        assert np.array_equal(ours.tensor(name), theirs.tensor(name)), name
    assert {key: ours.metadata[key] for key in ("general.file_type",)} == {"general.file_type": 7 if bits == 8 else 3}
    back = dict(open_gguf(tmp_path / "packed.gguf").model.named_parameters())
    for name, matrix in packed.matrices.items():
        assert np.array_equal(back[name].detach().numpy(), unpacked(matrix)), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rows_that_are_no_blocks_stay_exact(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    packed = packed_of(family, 4, intermediate_size=48)
    written = write_packed(tmp_path / "packed.gguf", packed, prepare(packed.config, tokenizer))
    assert written.fallbacks == ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    assert {written.types[name] for name in written.fallbacks} == {"F32"}
    back = open_gguf(tmp_path / "packed.gguf").model
    for name, matrix in packed.matrices.items():
        assert np.array_equal(back.get_parameter(name).detach().numpy(), unpacked(matrix)), name


def test_bits_that_differ_where_rows_are_fused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    four, eight = (packed_of("gpt2", bits) for bits in (4, 8))
    name = "stack.blocks.1.attention.key.weight"
    mixed = replace(four, matrices=four.matrices | {name: eight.matrices[name]})
    written = write_packed(tmp_path / "packed.gguf", mixed, prepare(mixed.config, tokenizer))
    assert written.fallbacks == ("blk.1.attn_qkv.weight",)
    back = open_gguf(tmp_path / "packed.gguf").model
    for name, matrix in mixed.matrices.items():
        assert np.array_equal(back.get_parameter(name).detach().numpy(), unpacked(matrix)), name


@pytest.mark.parametrize("bits", [8, 4])
def test_a_folder_is_exported_as_it_is(
    bits: int, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    packed = packed_of("llama", bits)
    save_packed(folder, packed, tokenizer, {"objective": "next token", "parent": {"source": "mytext"}})
    passage = export_model(folder, tmp_path / "same.gguf", format="gguf")
    row = passage.parity.rows[0]
    assert (row.peer, row.largest, row.divergence) == ("rhapsode", 0, 0)
    assert GgufFile(tmp_path / "same.gguf").tensors["token_embd.weight"].type == TYPES[bits]
    export_model(folder, tmp_path / "named.gguf", format="gguf", quantization=TYPES[bits].lower())
    assert (tmp_path / "named.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()
    other = export_model(folder, tmp_path / "other.gguf", format="gguf", quantization="q5_0")
    assert other.parity.rows[0].divergence
    assert GgufFile(tmp_path / "other.gguf").tensors["token_embd.weight"].type == "Q5_0"
    export_model(folder, tmp_path / "f32.gguf", format="gguf", quantization="f32")
    assert GgufFile(tmp_path / "f32.gguf").tensors["token_embd.weight"].type == "F32"
    export_model(folder, tmp_path / "mistral.gguf", format="gguf", family="mistral")
    assert open_gguf(tmp_path / "mistral.gguf").config.context_length == packed.config.context_length
    export_model(folder, tmp_path / "plain", family="mistral")
    assert run(["export", str(folder), "--out", str(tmp_path / "again.gguf"), "--format", "gguf"]) == 0
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()
    assert "0.0e+00" in capsys.readouterr().out


def test_llama_cpp_computes_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Of what was written by rows in another order: the logits of the real llama.cpp, where it is installed."""
    llama_cpp = pytest.importorskip("llama_cpp")
    from rhapsode.exchange.parity import LlamaCpp, Prompt, divergence

    assert llama_cpp
    packed = packed_of("llama", 8)
    write_packed(tmp_path / "packed.gguf", packed, prepare(packed.config, tokenizer))
    prompt = Prompt(tuple(range(20)))
    with torch.no_grad():
        ours = unpacked_model(packed)(torch.tensor([prompt.ids]))[0].double().numpy()
    assert divergence(ours, LlamaCpp(tmp_path / "packed.gguf", 24).logits(prompt)) < 1e-3
