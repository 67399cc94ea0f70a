"""Models through GGUF: every family that llama.cpp knows, there and back, and what llama.cpp computes of it."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhapsode.base.errors import InputError
from rhapsode.exchange import gguf_file
from rhapsode.exchange.gguf_architectures import HELD, metadata_for
from rhapsode.exchange.gguf_file import GgufFile, write_gguf
from rhapsode.exchange.gguf_model import held_tensors, open_gguf, prepare, write_model
from rhapsode.model.config import Experts, Llama3Scaling, ModelConfig, Rope, StackSizes, YarnScaling
from rhapsode.model.families import FAMILIES
from rhapsode.model.positions import rotary_frequencies
from rhapsode.model.weights import stored_tensors
from rhapsode.tokenizer.tokenizer import Tokenizer

from ..model.families import DECODERS, Case
from ..model.test_families import ours_of, reference
from .llama_cpp_model import LlamaCpp
from .shapes import byte_pairs, random_model, shape_of

EXAMPLES = settings(deadline=None, max_examples=settings().max_examples // 10)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_pairs()


def written_as(config: ModelConfig, rows: int) -> dict[str, Any]:
    """What changes of a random configuration so that GGUF can hold it: what llama.cpp has in its code."""
    changes: dict[str, Any] = {"vocabulary_size": rows}
    scaling = config.rope.scaling
    if isinstance(scaling, YarnScaling):
        changes["rope"] = Rope(config.rope.theta, scaling=YarnScaling(scaling.factor, scaling.original_context))
    if config.family in ("qwen3", "qwen3_moe", "gemma3_text", "olmo2"):
        changes |= {"query_bias": False, "output_bias": False}
    if config.family == "gpt2":
        changes |= {"activation": "gelu_tanh", "attention_scale": None}
    if config.family == "gpt_neox":
        changes |= {"activation": "gelu"}
    if config.family == "qwen3_moe":
        assert config.experts is not None
        layers = tuple(range(config.layers))
        changes["experts"] = vars(config.experts) | {"layers": layers, "normalised": True}
        changes["experts"] = type(config.experts)(**changes["experts"])
    if config.family == "gemma3_text":
        changes |= {
            "windows": (7,) * config.layers,
            "local_rope": Rope(10_000.0),
            "attention_scale": config.head_dim**-0.5,
        }
    return vars(config) | changes


@pytest.mark.parametrize("case", DECODERS, ids=str)
@EXAMPLES
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_there_and_back(case: Case, data: st.DataObject, seed: int, tokenizer: Tokenizer) -> None:
    """Random shapes of each family, as far as llama.cpp computes them: it computes our logits, and they come back."""
    config = ours_of(reference(case, data.draw(case.draw()), 0)).config
    values = {key: value for key, value in written_as(config, tokenizer.vocabulary_size).items() if key != "towers"}
    model = random_model(ModelConfig(**values), seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_model(path, model, prepare(model.config, tokenizer), "F32")
        back, theirs = open_gguf(path).model, LlamaCpp(GgufFile(path))
        context = back.config.context_length
        assert context == min([model.config.context_length, *filter(None, back_windows(model.config))])
        ids = torch.randint(
            tokenizer.vocabulary_size, (1, min(context, 24)), generator=torch.Generator().manual_seed(seed)
        )
        with torch.no_grad():
            ours = model(ids)
            torch.testing.assert_close(back(ids), ours, atol=2e-5, rtol=1e-5)
        expected = torch.from_numpy(theirs.logits(ids[0].tolist())).float()
        torch.testing.assert_close(ours[0], expected, atol=1e-4, rtol=1e-4)


def back_windows(config: ModelConfig) -> tuple[int, ...]:
    """Windows that shorten the context, because llama.cpp has none for the family."""
    return () if config.family == "gemma3_text" else config.windows


@pytest.mark.parametrize("case", DECODERS, ids=str)
def test_names_are_those_of_the_name_map(case: Case) -> None:
    """The `gguf` package maps names of Hugging Face's files; ours, mapped twice, are the same."""
    from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
    from gguf.tensor_mapping import get_tensor_name_map

    config = shape_of(case.family)
    architecture = metadata_for(config)[0]
    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = get_tensor_name_map(MODEL_ARCH(arch), config.layers)
    model = random_model(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    theirs = set()
    for stored in stored_tensors(config, shapes):
        name = re.sub(r"experts\.\d+\.", "experts.", stored.name)  # the converter stacks them first
        theirs.add(names.get_name(name, try_suffixes=(".weight", ".bias")))
    assert {held.name for held in held_tensors(architecture, config, shapes)} == theirs


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("original", [4, 8, 64, 8192])
def test_llama_3_scaling_goes_through_factors(tmp_path: Path, tokenizer: Tokenizer, family: str, original: int) -> None:
    rope = Rope(500_000.0, scaling=Llama3Scaling(8.0, 1.0, 4.0, original))
    config = FAMILIES[family].config(266, 32, 2, 2, 1, 64, 48, 24, rope=rope)
    model = random_model(config)
    write_model(tmp_path / "m.gguf", model, prepare(config, tokenizer), "F32")
    file = GgufFile(tmp_path / "m.gguf")
    assert file.tensor("rope_freqs.weight").shape == (32,)
    back = open_gguf(tmp_path / "m.gguf").model
    torch.testing.assert_close(rotary_frequencies(back.config.rope, 64)[0], rotary_frequencies(rope, 64)[0])
    ids = torch.arange(24)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[0], torch.from_numpy(LlamaCpp(file).logits(list(range(24)))).float())


def test_factors_of_other_kinds_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = shape_of("llama")
    prepared = prepare(config, tokenizer)
    odd = np.array([1.0, 1.1, 1.7, 1.9], dtype=np.float32)
    write_model(tmp_path / "m.gguf", random_model(config), replace(prepared, factors=odd), "F32")
    with pytest.raises(InputError, match="divides rotary frequencies by factors that are not Llama 3's"):
        open_gguf(tmp_path / "m.gguf")


REFUSED = [
    ("gpt2", {"activation": "relu"}, "llama.cpp computes gpt2 with activation gelu_tanh, not relu"),
    ("gpt2", {"attention_scale": 1.0}, "attention_scale None, not 1.0"),
    ("gpt_neox", {"activation": "gelu_tanh"}, "activation gelu, not gelu_tanh"),
    ("qwen3", {"query_bias": True, "output_bias": True}, "query_bias False, not True; output_bias False, not True"),
    ("olmo2", {"query_bias": True, "output_bias": True}, "query_bias False, not True"),
    ("llama", {"rope": Rope(scaling=YarnScaling(4.0, 4096, beta_fast=2.0))}, "beta_fast=32.0"),
    ("llama", {"rope": Rope(scaling=YarnScaling(4.0, 8, attention_factor=1.5))}, "attention_factor=None"),
    ("qwen2", {"rope": Rope(scaling=Llama3Scaling(8.0, 1.0, 4.0, 8))}, "rope Rope"),
    ("qwen3_moe", {"experts": Experts(3, 2, 20, False, (0, 1))}, "normalised=True"),
    ("qwen3_moe", {"experts": Experts(3, 2, 20, True, (1,))}, r"layers=\(0, 1\)"),
    ("gemma3_text", {"windows": (4, 0)}, r"windows \(4, 4\), not \(4, 0\)"),
    ("gemma3_text", {"windows": ()}, "sliding_window is missing"),
    ("gemma3_text", {"local_rope": Rope(20_000.0)}, "local_rope Rope"),
    ("gemma3_text", {"attention_scale": 0.1}, "attention_scale 0.35"),
]


@pytest.mark.parametrize(("family", "fields", "words"), REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(family: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(
        InputError, match=f"GGUF cannot hold this {family}: .*{words}.*The nearest: --format hugging-face"
    ):
        metadata_for(shape_of(family, **fields))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(HELD)))
def test_families_that_it_does_not_hold(family: str) -> None:
    """Encoders and encoder-decoders, named with what is held."""
    decoder = StackSizes(2, 4, 4, 8, 48) if FAMILIES[family].kind == "encoder-decoder" else None
    config = FAMILIES[family].config(270, 32, 2, 4, 4, 8, 48, 24, decoder=decoder)
    with pytest.raises(InputError, match=f"cannot hold the family {family}.*gpt2, gpt_neox, llama.*hugging-face"):
        metadata_for(config)


def test_every_decoder_is_held() -> None:
    assert set(HELD) == {name for name, family in FAMILIES.items() if family.kind == "decoder"}


@pytest.mark.parametrize(("quantization", "largest"), [("F16", 1e-3), ("Q8_0", 0.02), ("Q4_0", 0.4)])
def test_quantised(tmp_path: Path, tokenizer: Tokenizer, quantization: str, largest: float) -> None:
    """Within the error of the type; what llama.cpp's converter leaves in fp32 is exact."""
    model = random_model(shape_of("qwen3_moe"))
    written = write_model(tmp_path / "m.gguf", model, prepare(model.config, tokenizer), quantization)
    assert written.types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert written.types["token_embd.weight"] == quantization
    back = dict(open_gguf(tmp_path / "m.gguf").model.named_parameters())
    for name, parameter in model.named_parameters():
        difference = float((back[name] - parameter).detach().abs().max())
        assert difference <= largest * float(parameter.detach().abs().max()), name
        assert difference > 0 or parameter.dim() == 1 or name.endswith("router.weight")


def test_what_is_written_to_the_weights_stays_in_memory(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(shape_of("qwen3"))
    write_model(tmp_path / "m.gguf", model, prepare(model.config, tokenizer), "F32")
    before = (tmp_path / "m.gguf").read_bytes()
    with torch.no_grad():
        for parameter in open_gguf(tmp_path / "m.gguf").model.parameters():
            parameter.zero_()
    assert (tmp_path / "m.gguf").read_bytes() == before


def changed(path: Path, architecture: str, changes: dict[str, Any], without: str = "") -> None:
    """Write a file anew with other metadata (`...` removes a key), and without a tensor."""
    file = GgufFile(path)
    metadata = {key: value for key, value in (dict(file.metadata) | changes).items() if value is not ...}
    for key in ("general.architecture", "general.file_type", "general.quantization_version"):
        metadata.pop(key, None)
    tensors = [
        gguf_file.Tensor(name, info.shape, lambda name=name: np.array(file.tensor(name)))
        for name, info in file.tensors.items()
        if name != without
    ]
    write_gguf(path.with_name("changed.gguf"), architecture, metadata, tensors)


WRONG = [
    ({"llama.block_count": ...}, "", "block_count is missing"),
    ({"llama.block_count": 2**31}, "", "block_count must be between 1 and 1024"),
    ({"llama.block_count": 1000}, "", "has 20 tensors for 1000 layers"),
    ({"llama.block_count": 3}, "", "has no tensor 'blk.2.attn_q.weight'"),
    ({"llama.attention.head_count": 0}, "", "attention.head_count must be between 1"),
    ({"llama.attention.head_count": 3}, "", r"heads \(3\) must be a multiple"),
    ({"llama.attention.head_count_kv": np.array([2, 2])}, "", "head_count_kv must be a whole number"),
    ({"llama.attention.value_length": 4}, "", "value_length = 4 is not supported"),
    ({"llama.feed_forward_length": 47}, "", r"has the shape \(48, 32\); its metadata ask for \(47, 32\)"),
    ({"llama.rope.scaling.type": "longrope"}, "", "rope.scaling.type must be one of none, linear, yarn"),
    ({"llama.rope.scaling.factor": -1.0}, "", "rope.scaling.factor must be a positive number"),
    ({"llama.rope.freq_base": 0.5}, "", "rotary positions cannot have base 0.5"),
    ({"llama.expert_count": 8}, "", "expert_count = 8 is not supported"),
    ({}, "token_embd.weight", "has no embedding, 'token_embd.weight'"),
    ({}, "blk.1.ffn_up.weight", "has no tensor 'blk.1.ffn_up.weight'"),
]


@pytest.mark.parametrize(("changes", "without", "words"), WRONG)
def test_files_that_contradict_themselves(
    tmp_path: Path, tokenizer: Tokenizer, changes: dict[str, Any], without: str, words: str
) -> None:
    model = random_model(shape_of("llama"))
    write_model(tmp_path / "m.gguf", model, prepare(model.config, tokenizer), "F32")
    changed(tmp_path / "m.gguf", "llama", changes, without)
    with pytest.raises(InputError, match=words):
        open_gguf(tmp_path / "changed.gguf")


def test_other_architectures_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = random_model(shape_of("llama"))
    write_model(tmp_path / "m.gguf", model, prepare(model.config, tokenizer), "F32")
    changed(tmp_path / "m.gguf", "mamba", {})
    with pytest.raises(InputError, match=r"architecture 'mamba', which is not known here\. Known: gpt2, gptneox"):
        open_gguf(tmp_path / "changed.gguf")


def test_what_is_not_followed_is_told(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model(shape_of("llama"))
    write_model(tmp_path / "m.gguf", model, prepare(model.config, tokenizer), "F32")
    changed(tmp_path / "m.gguf", "llama", {"llama.logit_scale": 2.0})
    open_gguf(tmp_path / "changed.gguf")
    assert "nothing is known of logit_scale; what it asks for is not done" in capsys.readouterr().err


def test_tokens_that_end_a_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The tokenizer's end of text, and two more; the rest is told."""
    model = random_model(shape_of("llama"))
    end = tokenizer.end_of_text_id
    assert end is not None
    turn = tokenizer.special_tokens["<|im_end|>"]
    prepared = prepare(model.config, tokenizer, (end, 7, 9))
    write_model(tmp_path / "m.gguf", model, prepared, "F32")
    assert set(open_gguf(tmp_path / "m.gguf").end_ids) == {end, turn, 7}
    assert any("will not stop at 9" in notice for notice in prepared.notices)
