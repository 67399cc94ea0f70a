"""One training step of a model, for each line on standard input; prints its seconds. Run by training_speed.py."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch


def transformers_llama(a: argparse.Namespace) -> Callable[[int], None]:
    """transformers' Llama, eager, with torch's AdamW, as its users train it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=a.vocabulary,
            hidden_size=a.width,
            num_hidden_layers=a.layers,
            num_attention_heads=a.heads,
            intermediate_size=a.intermediate,
            max_position_embeddings=a.context,
            tie_word_embeddings=False,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(number: int) -> None:
        ids = batch(a, number)
        optimizer.zero_grad()
        logits = model(ids[:, :-1]).logits  # (batch, context, vocabulary)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def rhapsode_qwen3(a: argparse.Namespace) -> Callable[[int], None]:
    """Our decoder of the same shape (it norms queries and keys besides), with the same optimizer."""
    from dataclasses import replace

    from rhapsode.base.machine import prepare
    from rhapsode.model.decoder import Decoder
    from rhapsode.model.families.qwen3 import QWEN3
    from rhapsode.model.initialization import initialise
    from rhapsode.training.dropout import ResidualDropout
    from rhapsode.training.gradient import Gradient, MicroBatch, workers_for
    from rhapsode.training.optimizers import Optimizers
    from rhapsode.training.planner import DEFAULTS

    prepare("cpu", torch.get_num_threads())
    model = Decoder(
        QWEN3.config(
            vocabulary_size=a.vocabulary,
            hidden_size=a.width,
            layers=a.layers,
            heads=a.heads,
            kv_heads=a.heads,
            head_dim=a.width // a.heads,
            intermediate_size=a.intermediate,
            context_length=a.context,
            tied_embeddings=False,
        )
    )
    initialise(model, 0)
    rates = {"learning_rate": 1e-3, "embedding_learning_rate": 1e-3, "head_learning_rate": 1e-3}
    optimizers = Optimizers(model, replace(DEFAULTS, optimizer=a.optimizer, **rates))
    workers = workers_for(torch.device("cpu"), compiled=False, threads=torch.get_num_threads())
    gradient = Gradient(model, workers=workers)

    def step(number: int) -> None:
        ids = batch(a, number)
        share = -(-a.batch // workers)
        batches: list[MicroBatch] = [
            (
                (ids[first : first + share, :-1], ids[first : first + share, 1:]),
                ResidualDropout(a.dropout, 0, number, first) if a.dropout else None,
            )
            for first in range(0, a.batch, share)
        ]
        gradient.compute(batches, a.batch * a.context)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step()

    return step


def batch(a: argparse.Namespace, number: int) -> torch.Tensor:
    """Ids (batch, context + 1) drawn for this step."""
    draw = torch.Generator().manual_seed(number)
    return torch.randint(0, a.vocabulary, (a.batch, a.context + 1), generator=draw)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=["transformers_llama", "rhapsode_qwen3"])
    for name in ("width", "layers", "heads", "intermediate", "context", "batch", "vocabulary"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--optimizer", default="adamw")
    a = parser.parse_args()
    torch.set_num_threads(int(__import__("os").environ["OMP_NUM_THREADS"]))
    step = globals()[a.peer](a)
    for number, _ in enumerate(sys.stdin):
        began = time.perf_counter()
        step(number)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
