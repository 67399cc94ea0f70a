"""Folders of packed weights: what is saved is mapped, and whatever is wrong with one is said in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.gpt2 import GPT2
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.folder import load_config, load_model, save_model
from rhapsode.model.packed import PackedModel, pack_model, unpacked, unpacked_model
from rhapsode.model.packed_folder import is_packed, load_packed, save_packed
from rhapsode.tokenizer.train import train_tokenizer

MakeDecoder = Callable[..., Decoder]
Arrays = dict[str, npt.NDArray[Any]]

CONFIG = QWEN3.config(40, 24, 2, 4, 2, 8, 36, 16, tied_embeddings=False)
METADATA = {"format": "rhapsode-packed", "version": "1"}
DOWN = "stack.blocks.1.feed_forward.down.weight"


def saved(folder: Path, packed: PackedModel) -> Path:
    tokenizer = train_tokenizer(["Some text of the user."], "character")
    folder.mkdir(exist_ok=True)
    save_packed(folder, packed, tokenizer, {"parent": {"source": "runs/mytext"}})
    return folder


@pytest.fixture(params=[8, 4])
def folder(request: pytest.FixtureRequest, tmp_path: Path, make_decoder: MakeDecoder) -> Path:
    return saved(tmp_path, pack_model(make_decoder(CONFIG), request.param))


def change(folder: Path, **fields: Any) -> None:
    """Set fields of config.json; `...` removes one."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}), encoding="utf-8")


def write_again(folder: Path, change: Callable[[Arrays], Any], metadata: dict[str, str] = METADATA) -> None:
    """The file of packed weights with other arrays in it."""
    path = folder / "packed.safetensors"
    arrays = {name: tensor.numpy().copy() for name, tensor in load_file(path).items()}
    change(arrays)
    save_file(arrays, path, metadata=metadata)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [QWEN3, GPT2])
def test_saved_is_loaded(tmp_path: Path, make_decoder: MakeDecoder, family: Any, bits: int, tied: bool) -> None:
    packed = pack_model(make_decoder(family.config(41, 24, 2, 4, 4, 6, 36, 16, tied_embeddings=tied)), bits)
    folder = saved(tmp_path, packed)
    assert is_packed(folder)
    loaded = load_packed(folder)
    assert loaded.config == packed.config
    assert list(loaded.matrices) == list(packed.matrices) and list(loaded.vectors) == list(packed.vectors)
    assert loaded.nbytes == packed.nbytes
    for name, matrix in packed.matrices.items():
        theirs = loaded.matrices[name]
        assert (theirs.bits, theirs.rows, theirs.columns) == (bits, matrix.rows, matrix.columns)
        assert theirs.weights.dtype == np.uint8 and np.array_equal(theirs.weights, matrix.weights)
        assert theirs.scales.dtype == np.uint16 and np.array_equal(theirs.scales, matrix.scales)
        assert theirs.weights.flags.c_contiguous and theirs.scales.flags.c_contiguous
    for name, vector in packed.vectors.items():
        assert loaded.vectors[name].dtype == np.float32 and np.array_equal(loaded.vectors[name], vector)


def test_the_model_computes_with_what_the_packed_numbers_stand_for(folder: Path, make_decoder: MakeDecoder) -> None:
    packed = load_packed(folder)
    model, expected = unpacked_model(packed), make_decoder(CONFIG)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            if name in packed.matrices:
                parameter.copy_(torch.from_numpy(unpacked(packed.matrices[name])))
        ids = torch.arange(16)[None]
        assert torch.equal(model(ids), expected(ids))
        for parameter in model.parameters():  # none of it is the file
            parameter.zero_()
    assert np.array_equal(
        load_packed(folder).vectors["stack.final_norm.weight"], expected.stack.final_norm.weight.detach()
    )
    assert not model.training


def test_bits_may_differ_from_matrix_to_matrix(tmp_path: Path, make_decoder: MakeDecoder) -> None:
    eight, four = (pack_model(make_decoder(CONFIG), bits) for bits in (8, 4))
    folder = saved(tmp_path, replace(four, matrices=four.matrices | {"head.weight": eight.matrices["head.weight"]}))
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]["bits"] == 4
    assert {name: matrix.bits for name, matrix in load_packed(folder).matrices.items() if matrix.bits == 8} == {
        "head.weight": 8
    }


def test_the_file_is_mapped_and_its_weights_begin_at_lines_of_the_cache(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "packed.safetensors"
    packed = load_packed(folder)
    data = bytearray(path.read_bytes())
    weights = packed.matrices[DOWN].weights
    place = data.index(weights.tobytes())
    assert place % 64 == 0 and weights.ctypes.data % 64 == 0
    for matrix in packed.matrices.values():
        assert matrix.weights.ctypes.data % 64 == 0 and matrix.scales.ctypes.data % 16 == 0
    before = int(weights[0, 0, 0, 0])
    with path.open("r+b") as file:  # what changes in the file changes in the array: it is no copy
        file.seek(place)
        file.write(bytes([before ^ 1]))
    assert int(weights[0, 0, 0, 0]) == before ^ 1
    assert capsys.readouterr().err == ""


def test_the_rest_of_the_folder_is_that_of_any_model(folder: Path, tmp_path: Path, make_decoder: MakeDecoder) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tokenizer = train_tokenizer(["Some text of the user."], "character")
    save_model(other, make_decoder(CONFIG), tokenizer, {"parent": {"source": "runs/mytext"}})
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names == {path.name for path in other.iterdir()} - {"model.safetensors"} | {"packed.safetensors"}
    for name in names - {"config.json", "README.md", "packed.safetensors"}:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    ours, theirs = (json.loads((one / "config.json").read_text(encoding="utf-8")) for one in (folder, other))
    bits = min(matrix.bits for matrix in load_packed(folder).matrices.values())
    assert ours.pop("quantization_config") == {"quant_method": "rhapsode", "bits": bits, "group_size": 32}
    assert ours == theirs
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "rhapsode export . --format gguf" in card and "runs/mytext" in card and f"{bits} bits" in card


def test_transformers_refuses_the_folder(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_what_reads_plain_weights_says_what_these_are(folder: Path) -> None:
    assert load_config(folder) == CONFIG
    with pytest.raises(InputError, match=r"its weights are quantised\. Open it with rhapsode\.load"):
        load_model(folder)


def damage(folder: Path) -> str:
    with pytest.raises(DamagedError) as caught:
        load_packed(folder)
    assert str(folder) in caught.value.message and caught.value.todo
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("cut", [0.0, 0.01, 0.5, -1])
def test_a_file_that_is_cut_short(folder: Path, cut: float) -> None:
    path = folder / "packed.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))] if cut >= 0 else data[:-1])
    assert "packed.safetensors: is damaged" in damage(folder)


def test_any_change_of_the_header_is_refused_or_harmless(folder: Path) -> None:
    path = folder / "packed.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    draw = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        for place in draw.integers(0, end, draw.integers(1, 4)):
            changed[place] = draw.choice([ord("0"), ord("9"), ord("}"), 0, 255, changed[place] ^ 1])
        path.write_bytes(changed)
        try:
            load_packed(folder)
        except InputError as error:  # whatever else is raised is a fault
            assert "\n" not in error.message
            refused += 1
    assert refused > 200


def test_a_missing_file(folder: Path) -> None:
    (folder / "packed.safetensors").unlink()
    assert is_packed(folder)
    with pytest.raises(InputError, match=r"packed\.safetensors: the file with the weights does not exist"):
        load_packed(folder)


def test_a_configuration_that_knows_nothing_of_it(folder: Path) -> None:
    change(folder, quantization_config=...)
    assert is_packed(folder)
    assert "config.json: says nothing of quantised weights, and there is packed.safetensors" in damage(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quant_method": "awq"}, "the weights are quantised in a way that is not read"),
        ({"quant_method": ...}, "the weights are quantised in a way that is not read"),
        ({"bits": 5}, "bits must be 8 or 4, not 5"),
        ({"bits": "8"}, "bits must be a whole number, not '8'"),
        ({"bits": ...}, "bits is missing"),
        ({"group_size": 64}, "group_size must be 32, not 64"),
        ({"desc_act": False}, "nothing is known of desc_act"),
    ],
)
def test_other_ways_to_quantise_are_refused(folder: Path, fields: dict[str, Any], words: str) -> None:
    ours = {"quant_method": "rhapsode", "bits": 8, "group_size": 32} | fields
    change(folder, quantization_config={key: value for key, value in ours.items() if value is not ...})
    with pytest.raises(InputError, match=rf"config\.json.*{words}"):
        load_packed(folder)


def test_a_configuration_of_another_model(folder: Path) -> None:
    change(folder, num_hidden_layers=1)
    assert "tensor 'stack.blocks.1." in damage(folder)
    change(folder, num_hidden_layers=900)
    assert "config.json asks for 900 layers" in damage(folder)
    change(folder, num_hidden_layers=2, intermediate_size=72)
    assert "config.json asks for" in damage(folder)


def test_bits_that_are_not_those_of_the_weights(folder: Path) -> None:
    there = load_packed(folder).matrices[DOWN].bits
    other = 12 - there
    change(folder, quantization_config={"quant_method": "rhapsode", "bits": other, "group_size": 32})
    assert f"has weights of {there} bits; config.json says {other}" in damage(folder)


@pytest.mark.parametrize("name", [f"{DOWN}.packed", f"{DOWN}.scales", "stack.final_norm.weight"])
def test_tensors_that_are_missing_or_too_many(folder: Path, name: str) -> None:
    write_again(folder, lambda arrays: arrays.pop(name))
    assert f"tensor '{name}' is missing" in damage(folder)
    write_again(folder, lambda arrays: arrays.update({"more": np.zeros(1)}))
    assert f"tensor '{name}' is missing" in damage(folder)


def test_tensors_that_no_one_knows(folder: Path) -> None:
    write_again(folder, lambda arrays: arrays.update({"more": np.zeros(1), "much": np.zeros(1)}))
    assert "tensor 'more' is not part of the model, and 1 more" in damage(folder)


@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [
        (f"{DOWN}.packed", np.int8, "of the type I8, not U8"),
        (f"{DOWN}.scales", np.float32, "of the type F32, not F16"),
        ("stack.final_norm.weight", np.float16, "of the type F16, not F32"),
    ],
)
def test_tensors_of_other_types(folder: Path, name: str, dtype: type, kind: str) -> None:
    write_again(folder, lambda arrays: arrays.update({name: arrays[name].astype(dtype)}))
    assert f"tensor '{name}' is {kind}" in damage(folder)


@pytest.mark.parametrize("name", [f"{DOWN}.packed", f"{DOWN}.scales", "stack.final_norm.weight"])
def test_tensors_of_other_shapes(folder: Path, name: str) -> None:
    write_again(folder, lambda arrays: arrays.update({name: arrays[name][:-1]}))
    assert f"tensor '{name}' has shape" in damage(folder)
    write_again(folder, lambda arrays: arrays.update({name: np.zeros((3, 1), dtype=arrays[name].dtype)}))
    assert f"tensor '{name}' has shape (3, 1); config.json asks for" in damage(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "what"), [(f"{DOWN}.scales", "scales"), ("stack.final_norm.weight", "values")])
def test_numbers_that_are_not_finite(folder: Path, name: str, what: str, value: float) -> None:
    write_again(folder, lambda arrays: np.put(arrays[name], -1, value))
    assert f"tensor '{name}' has {what} that are not finite" in damage(folder)


def test_scales_for_rows_that_are_none(tmp_path: Path, make_decoder: MakeDecoder) -> None:
    folder = saved(tmp_path, pack_model(make_decoder(replace(CONFIG, vocabulary_size=42)), 8))
    write_again(folder, lambda arrays: np.put(arrays["head.weight.scales"], -1, 1.0))
    assert "'head.weight.scales' has scales for more than 42 rows" in damage(folder)


def test_formats_and_versions_that_are_not_read(folder: Path) -> None:
    write_again(folder, lambda arrays: None, {"format": "pt"})
    assert "does not say that it is 'rhapsode-packed'" in damage(folder)
    write_again(folder, lambda arrays: None, METADATA | {"version": "2"})
    with pytest.raises(InputError, match="is of version '2' of packed weights; version 1 is read"):
        load_packed(folder)


def test_experts_are_refused(folder: Path) -> None:
    change(
        folder,
        architectures=["Qwen3MoeForCausalLM"],
        model_type="qwen3_moe",
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )
    with pytest.raises(InputError, match="a mixture of experts cannot be quantised"):
        load_packed(folder)
