"""How fast a model reads and writes here, and how near that is to what the memory gives.

rhapsode bench runs/mytext
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rhapsode.base.errors import InputError
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.step import Reading, Step
from rhapsode.model.block_cache import BLOCK
from rhapsode.model.config import ModelConfig
from rhapsode.model.decoder import Decoder


@dataclass(frozen=True)
class Speed:
    """What so many texts, written at once, reach."""

    texts: int
    """Written side by side."""
    prefill: float
    """Tokens of prompts read in a second, the prompts one after another."""
    decode: float
    """Tokens written in a second, all texts together; the median step."""
    bytes_read: int
    """In one such step: each weight once, and the keys and values of all texts."""

    @property
    def bandwidth(self) -> float:
        """Bytes read in a second while writing."""
        return self.bytes_read * self.decode / self.texts


def weight_bytes(model: Decoder) -> int:
    """The bytes of all weights that each step reads; of an embedding that is no head it is only a row a token.

    A mixture of experts counts in full, as a large batch reads it.
    """
    sizes = {name: weight.numel() * weight.element_size() for name, weight in model.named_parameters()}
    if not model.config.tied_embeddings:
        del sizes["embedding.weight"]
    return sum(sizes.values())


def weights_of_step(model: LanguageModel) -> tuple[int, str]:
    """The bytes of weights that each step of a model reads, and what its numbers are."""
    if model.packed is None:
        decoder = model.decoder()
        return weight_bytes(decoder), str(decoder.embedding.weight.dtype).removeprefix("torch.")
    packed = model.packed
    size, bits = packed.nbytes, sorted({matrix.bits for matrix in packed.matrices.values()})
    if not packed.config.tied_embeddings:
        size -= packed.matrices["embedding.weight"].nbytes
    return size, f"{' and '.join(map(str, bits))} bits"


def measure(
    config: ModelConfig,
    step_for: Callable[[int], Step],
    batches: Iterable[int],
    *,
    weights: int,
    number_bytes: int = 4,
    prompt_tokens: int,
    new_tokens: int,
) -> Iterator[Speed]:
    """Read prompts of random tokens and write after them, for each number of texts at once.

    Args:
        step_for: the step to measure, with a cache of so many blocks.
        weights: bytes of them that each step reads.
        number_bytes: of a number in the cache.

    Raises:
        InputError: prompt and new tokens exceed the context.
    """
    if prompt_tokens + new_tokens > config.context_length:
        raise InputError(
            f"{prompt_tokens} + {new_tokens} tokens exceed the model's context of {config.context_length}",
            todo="Give fewer with --prompt-tokens and --new-tokens.",
        )
    sizes, noise = config.towers[-1], np.random.default_rng(0)
    per_token = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * number_bytes
    blocks = -(-(prompt_tokens + new_tokens) // BLOCK)  # of a text
    for texts in batches:
        step = step_for(texts * blocks)
        homes = [range(text * blocks, (text + 1) * blocks) for text in range(texts)]
        prompts = noise.integers(0, config.vocabulary_size, (texts, prompt_tokens)).tolist()
        step([Reading(prompts[0], homes[0], 0, 1)])  # once for what is only done the first time
        begin = time.perf_counter()
        last = [step([Reading(ids, home, 0, 1)])[0] for ids, home in zip(prompts, homes, strict=True)]
        reading = time.perf_counter() - begin
        seconds = []
        for past in range(prompt_tokens, prompt_tokens + new_tokens):
            ids = [[int(logits[0].argmax())] for logits in last]
            begin = time.perf_counter()
            last = step([Reading(one, home, past, 1) for one, home in zip(ids, homes, strict=True)])
            seconds.append(time.perf_counter() - begin)
        seen = texts * per_token * (prompt_tokens + new_tokens // 2)
        yield Speed(
            texts=texts,
            prefill=texts * prompt_tokens / reading,
            decode=texts / statistics.median(seconds),
            bytes_read=weights + seen,
        )
