"""What kernels compute, in a process of its own, for builds that are chosen before anything is imported.

    python -m tests.inference.kernels.whole OUT.npz products float32

The words are `products`, of matrices alone, which is soon compiled, `bounds`, whether what reaches beyond an array is
seen, or what a cache keeps, for the logits of small models of every form.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rhapsode.inference.kernels.compiled import compiled
from rhapsode.inference.kernels.step import KernelStep
from rhapsode.inference.kernels.vectors import WIDE_LANES, broadcast, has_byte_products, load_floats, store_floats
from rhapsode.model.config import ModelConfig
from rhapsode.model.packed import pack, pack_model

from ..conftest import random_decoder
from .models import CONTEXT, Texts
from .test_products import Matrix, multiplied, vectors

PLAIN = ModelConfig(75, 44, 2, 6, 2, 10, 50, CONTEXT, qk_norm="head", windows=(0, 37), tied_embeddings=False)
CONFIGS = (
    PLAIN,
    ModelConfig(
        33,
        21,
        2,
        3,
        3,
        7,
        13,
        CONTEXT,
        norm="layer",
        norm_bias=True,
        positions="learned",
        query_bias=True,
        output_bias=True,
        gated=False,
        activation="gelu_tanh",
        feed_forward_bias=True,
        head_bias="learned",
    ),
    replace(PLAIN, order="parallel", activation="gelu", qk_norm="all"),
    replace(PLAIN, order="sandwich", activation="relu", embedding_scale=6.0, head_dim=34),
    replace(PLAIN, order="output", hidden_size=64, intermediate_size=96, head_dim=32, vocabulary_size=80),
)


def products() -> dict[str, np.ndarray]:
    """Matrices times vectors."""
    draw = np.random.default_rng(0)
    found = {}
    for bits in (32, 8, 4):
        for rows, columns, tokens in ((1, 1, 1), (13, 70, 9), (64, 32, 4), (40, 161, 6)):
            weights, bias = draw.standard_normal((rows, columns)), draw.standard_normal(rows)
            plain = weights.astype(np.float32)
            matrix = Matrix.of(plain if bits == 32 else pack(plain, bits), bias.astype(np.float32))
            found[f"product {bits} {rows}"] = multiplied(matrix, vectors(draw, tokens, columns), (3, 5))
    return found


def logits(cache_type: str) -> dict[str, np.ndarray]:
    """The logits of texts that are read in pieces."""
    found = {}
    for number, config in enumerate(CONFIGS):
        model = random_decoder(config, number)
        texts = Texts(config.vocabulary_size, [CONTEXT, 40, 1], number)
        for bits in (32, 8, 4):
            source = model if bits == 32 else pack_model(model, bits)
            for threads in (1, 2):
                step = KernelStep(source, texts.count, cache_type=cache_type, threads=threads)  # type: ignore[arg-type]
                pieces = texts.in_pieces(step, number)
                found[f"{cache_type} {number} {bits} {threads}"] = np.concatenate(pieces)
    return found


@compiled
def load_and_store(numbers, at, out, to):
    store_floats(out, to, load_floats(numbers, at) + broadcast(np.float32(1)))


def bounds() -> dict[str, np.ndarray]:
    """Which of some loads and stores of 8 floats out of 16 are refused: by where they begin, those of either kind."""
    numbers = np.zeros(16, np.float32)
    refused = np.zeros((2, 28), bool)
    for place in range(28):
        for kind, (at, to) in enumerate(((place - 10, 0), (0, place - 10))):
            try:
                load_and_store(numbers, at, numbers, to)
            except IndexError:
                refused[kind, place] = True
    return {"refused": refused}


def computed(words: Sequence[str]) -> dict[str, np.ndarray]:
    """All that is asked for."""
    found = {"byte products": np.array(has_byte_products()), "lanes": np.array(WIDE_LANES)}
    for word in words:
        found |= products() if word == "products" else bounds() if word == "bounds" else logits(word)
    return found


def start(out: Path, words: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A process that computes, with variables set."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(out), *words],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONWARNINGS": "error", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], out: Path) -> dict[str, np.ndarray]:
    """What such a process has computed, when it is done."""
    printed, errors = process.communicate(timeout=280)
    assert (process.returncode, printed, errors) == (0, "", "")
    with np.load(out, allow_pickle=False) as found:
        return dict(found)


if __name__ == "__main__":
    np.savez(sys.argv[1], **computed(sys.argv[2:]))  # type: ignore[arg-type]
