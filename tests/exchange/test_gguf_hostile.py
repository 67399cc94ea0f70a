"""Spoilt GGUF files: never a crash, a hang, too much memory or a traceback; always one message, or a clean read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhapsode.exchange.gguf_file import GgufFile, Tensor, write_gguf
from rhapsode.exchange.gguf_tokenizer import tokenizer_metadata
from rhapsode.tokenizer.tokenizer import Tokenizer

from . import gguf_bytes, gguf_mutants
from .forked import spoil

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="mutants are read in forked processes")

FAST, ALL = 200, 10_000


def tensors() -> list[Tensor]:
    numbers = np.random.default_rng(0)
    shapes = {"token_embd.weight": (40, 32), "output_norm.weight": (32,), "blk.0.attn_q.weight": (32, 64)}
    made = {name: numbers.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    return [Tensor(name, values.shape, lambda values=values: values) for name, values in made.items()]


@pytest.fixture(scope="module")
def sound(
    tokenizer_of: Callable[[str], Tokenizer],
    vocabulary_file: Callable[[str], GgufFile],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Path:
    """A folder of sound files: small ones of every kind of tokenizer, and real ones where the shared data is there."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "every_type.gguf").write_bytes(gguf_bytes.small())

    def write_trained(name: str, quantization: str) -> None:
        values, _ = tokenizer_metadata(tokenizer_of(name))
        write_gguf(folder / f"{name}.gguf", "llama", values, tensors(), quantization)

    write_trained("byte", "F16")
    write_trained("bpe-llama-bpe", "Q8_0")
    try:
        request.getfixturevalue("shared_data")
    except pytest.skip.Exception:
        return folder
    write_trained("sentencepiece-test", "Q4_0")
    for name in ("gpt-2", "bert-bge", "phi-3"):
        file = vocabulary_file(name)
        (folder / f"{name}.gguf").write_bytes(file.path.read_bytes())
        if name != "gpt-2":
            metadata = shortened(file)
            write_gguf(folder / f"small-{name}.gguf", metadata.pop("general.architecture"), metadata, tensors(), "Q5_1")
    return folder


def shortened(file: GgufFile) -> dict[str, Any]:
    """A file's metadata with its single characters, short ASCII tokens and special ones only: still a vocabulary."""
    metadata = dict(file.metadata)
    tokens = metadata["tokenizer.ggml.tokens"]
    chosen = [n for n, token in enumerate(tokens) if n < 300 or len(token) == 1 or (token.isascii() and len(token) < 4)]
    for key in ("tokens", "scores", "token_type"):
        values = metadata.pop(f"tokenizer.ggml.{key}", None)
        if values is not None:
            kept = [values[n] for n in chosen] if isinstance(values, list) else values[chosen]
            metadata[f"tokenizer.ggml.{key}"] = kept
    for key in ("eos_token_id", "padding_token_id"):
        metadata.pop(f"tokenizer.ggml.{key}", None)
    return metadata


def test_the_sound_files_are_read(sound: Path, tmp_path: Path) -> None:
    for path in sound.glob("*.gguf"):
        (tmp_path / gguf_mutants.NAME).write_bytes(path.read_bytes())
        gguf_mutants.read(tmp_path, 0)


def test_mutants(sound: Path) -> None:
    counts = spoil("gguf_mutants", sound, 0, FAST)
    assert counts["refused"] > FAST / 4 and counts["read"] > FAST / 20


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_mutants(sound: Path) -> None:
    counts = spoil("gguf_mutants", sound, 0, ALL)
    print(json.dumps(counts, indent=2))
