"""The model folder: what is saved is what is loaded, and what is missing, damaged or unsafe is named."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.model.config import Rope
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.folder import load_config, load_model, save_model
from rhapsode.tokenizer.train import train_tokenizer

CONFIG = QWEN3.config(40, 24, 2, 4, 2, 8, 32, 16, tied_embeddings=False)
FILES = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "README.md",
    "rhapsode.json",
}

Save = Callable[[Path, Decoder], None]
MakeDecoder = Callable[..., Decoder]


@pytest.fixture
def folder(tmp_path: Path, make_decoder: MakeDecoder, save: Save) -> Path:
    save(tmp_path, make_decoder(CONFIG))
    return tmp_path


def change(folder: Path, **fields: Any) -> None:
    """Set fields of config.json; `...` removes one."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}), encoding="utf-8")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 2000, 1])
def test_saved_is_loaded(
    *,
    tmp_path: Path,
    make_decoder: MakeDecoder,
    save: Save,
    monkeypatch: pytest.MonkeyPatch,
    tied: bool,
    shard_bytes: int,
) -> None:
    monkeypatch.setattr("rhapsode.model.folder.SHARD_BYTES", shard_bytes)
    config = QWEN3.config(40, 24, 2, 4, 2, 8, 32, 16, rope=Rope(500.0), norm_epsilon=1e-5, tied_embeddings=tied)
    model = make_decoder(config)
    save(tmp_path, model)
    loaded = load_model(tmp_path)
    assert loaded.config == config
    assert not loaded.training
    theirs = dict(loaded.named_parameters())
    assert [name for name, _ in model.named_parameters()] == list(theirs)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    if shard_bytes > 10**6:
        assert shards == ["model.safetensors"]
    else:
        assert len(shards) > 3
        assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
        assert index["metadata"]["total_size"] == 4 * config.parameters
        assert set(index["weight_map"].values()) == set(shards)


def test_transformers_loads_shards(
    tmp_path: Path, make_decoder: MakeDecoder, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    monkeypatch.setattr("rhapsode.model.folder.SHARD_BYTES", 4000)
    model = make_decoder(CONFIG)
    save(tmp_path, model)
    ids = torch.arange(16)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
        torch.testing.assert_close(model(ids), theirs, atol=1e-4, rtol=0)


def test_a_whole_folder_has_every_file_and_no_pickle(tmp_path: Path, make_decoder: MakeDecoder) -> None:
    tokenizer = train_tokenizer(["Some text of the user."], "character")
    config = QWEN3.config(tokenizer.vocabulary_size, 24, 1, 4, 2, 8, 32, 16)
    save_model(tmp_path, make_decoder(config), tokenizer, {"objective": "next token", "data": {"corpus": "abc"}})
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert json.loads((tmp_path / "rhapsode.json").read_text(encoding="utf-8"))["data"] == {"corpus": "abc"}
    generation = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == tokenizer.end_of_text_id
    assert generation["pad_token_id"] == tokenizer.padding_id != tokenizer.end_of_text_id


def test_loading_does_not_import_torch_s_compiler(folder: Path) -> None:
    """Which takes two seconds, for nothing."""
    program = (
        "import sys, pathlib; from rhapsode.model.folder import load_model; load_model(pathlib.Path(sys.argv[1])); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, folder], check=True)


@pytest.mark.parametrize("cut", [0.0, 0.01, 0.5, -1])
def test_truncated_weights(folder: Path, cut: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))] if cut >= 0 else data[:-1])
    with pytest.raises(DamagedError, match=r"model\.safetensors: is damaged"):
        load_model(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: the file with the weights does not exist"):
        load_model(folder)


def test_a_missing_shard(
    tmp_path: Path, make_decoder: MakeDecoder, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhapsode.model.folder.SHARD_BYTES", 4000)
    save(tmp_path, make_decoder(CONFIG))
    next(tmp_path.glob("model-00002-of-*")).unlink()
    with pytest.raises(InputError, match=r"model-00002-of-\d+\.safetensors: the file with the weights does not exist"):
        load_model(tmp_path)


@pytest.mark.parametrize("tensor", ["model.layers.1.self_attn.k_norm.weight", "lm_head.weight"])
def test_a_missing_tensor(folder: Path, tensor: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[tensor]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=f"tensor '{tensor}' is missing"):
        load_model(folder)


def test_a_mis_shaped_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(32, 23)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DamagedError, match=r"up_proj\.weight' has shape \(32, 23\); config\.json asks for \(32, 24\)"):
        load_model(folder)


def test_weights_in_half_precision_are_computed_in_full(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "model.safetensors")
    model = load_model(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = tensors["model.norm.weight"].bfloat16().float()
    assert torch.equal(model.stack.final_norm.weight, expected)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architecture MambaForCausalLM is unknown.*Known: GPT2LMHeadModel"),
        ({"architectures": ["A", "B"]}, "architecture A, B is unknown"),
        ({"architectures": ..., "model_type": "mamba"}, "architecture not named is unknown"),
        ({"architectures": ["Evil"], "auto_map": {"AutoModel": "evil.Model"}}, "auto_map names code to run"),
        ({"hidden_act": "gelu"}, "hidden_act must be one of silu, swish, not 'gelu'"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false, not 'yes'"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "rope_scaling: type must be one of default, linear"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: factor is missing"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "rope_parameters: low_freq_factor is missing"),
        ({"rope_parameters": []}, "rope_parameters must be an object"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types must all be full_attention"),
        ({"hidden_size": "24"}, "hidden_size must be a whole number, not '24'"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number, not True"),
        ({"num_key_value_heads": 3}, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive number, not 0"),
        ({"rope_theta": "big"}, "rope_theta must be a positive number, not 'big'"),
        ({"vocab_size": 0}, "vocab_size must be between 1 and .* not 0"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers must be between 1 and 1024, not 10000000"),
    ],
)
def test_a_configuration_that_cannot_be_used(folder: Path, fields: dict[str, Any], words: str) -> None:
    change(folder, **fields)
    with pytest.raises(InputError, match=words):
        load_config(folder)


def test_a_configuration_that_is_no_object(folder: Path) -> None:
    (folder / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(DamagedError, match=r"config\.json: must hold a JSON object"):
        load_config(folder)
    (folder / "config.json").write_text('{\n  "architectures": [,]\n}', encoding="utf-8")
    with pytest.raises(DamagedError, match=r"config\.json:2:\d+: is not JSON"):
        load_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: the file does not exist"):
        load_config(folder)
    with pytest.raises(InputError, match="is not a model folder"):
        load_config(folder / "config.json")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/part.safetensors", 7, ["a"]])
def test_an_index_may_not_name_files_elsewhere(folder: Path, name: Any) -> None:
    index = folder / "model.safetensors.index.json"
    weight_map = {"lm_head.weight": "model.safetensors", "model.norm.weight": name}
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    with pytest.raises(InputError, match="names a file outside the folder"):
        load_model(folder)


@pytest.mark.parametrize("content", ["[]", '{"weight_map": 3}', "{}"])
def test_a_damaged_index(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(DamagedError, match="has no weight_map"):
        load_model(folder)


class Bomb:
    """Unpickling this leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_never_read(folder: Path) -> None:
    went_off = folder / "went-off"
    bomb = pickle.dumps(Bomb(went_off))
    (folder / "pytorch_model.bin").write_bytes(bomb)  # beside the weights: of no interest
    load_model(folder)
    (folder / "model.safetensors").write_bytes(bomb)  # in their place: damaged
    with pytest.raises(DamagedError):
        load_model(folder)
    (folder / "model.safetensors").unlink()  # alone: refused, with the reason and the way out
    with pytest.raises(InputError, match=r"pytorch_model\.bin: these weights are pickled.*safe_serialization"):
        load_model(folder)
    assert not went_off.exists()
    pickle.loads(bomb)  # the test can fail: the bomb works
    assert went_off.exists()
