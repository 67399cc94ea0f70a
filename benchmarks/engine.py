"""Reading prompts and writing through the engine's step, beside transformers in eager fp32, on the same threads.

    python benchmarks/engine.py [--rounds 5] [--new-tokens 32]

A Llama of 135 million parameters with random weights (30 layers, width 576, 9 heads, 3 key-value heads, feed-forward
1536, vocabulary 49152, tied). In turn: prefill of 512 tokens; writing after a prompt of 128, one text and 32 at once
(ours), one text (transformers). Medians over the rounds; the memory's limit is measured first.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from rhapsode.base.machine import memory_bandwidth, prepare, processor, threads
from rhapsode.inference.kernels.choice import kernel_step, refused
from rhapsode.inference.speed import measure, weight_bytes
from rhapsode.inference.step import TorchStep
from rhapsode.model.decoder import Decoder
from rhapsode.model.families import FAMILIES
from rhapsode.model.folder import save_model
from rhapsode.model.initialization import initialise
from rhapsode.model.model import new_model
from rhapsode.tokenizer.train import train_tokenizer

SIZES = (49152, 576, 30, 9, 3, 64, 1536, 2048)
PROMPT, PREFILL, TEXTS = 128, 512, 32


@torch.inference_mode()
def theirs(model: object, new_tokens: int) -> tuple[float, float]:
    """Tokens read and written in a second, by transformers' own model and cache."""
    from transformers import DynamicCache

    # transformers declares no type for a model that is called.
    noise = torch.Generator().manual_seed(0)
    ids = torch.randint(0, SIZES[0], (1, PREFILL), generator=noise)
    begin = time.perf_counter()
    model(ids, use_cache=True, logits_to_keep=1)  # type: ignore[operator]
    prefill = PREFILL / (time.perf_counter() - begin)
    cache, seconds = DynamicCache(), []
    last = model(ids[:, :PROMPT], past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1)  # type: ignore[operator]
    for _ in range(new_tokens):
        begin = time.perf_counter()
        last = model(last[:, None], past_key_values=cache).logits[:, -1].argmax(-1)  # type: ignore[operator]
        seconds.append(time.perf_counter() - begin)
    return prefill, 1 / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=32)
    a = parser.parse_args()
    on = prepare("cpu")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    ours = new_model(FAMILIES["llama"].config(*SIZES, tied_embeddings=True)).eval()
    assert isinstance(ours, Decoder)
    initialise(ours, 0)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), ours, train_tokenizer(["text"], "byte"), {})
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    limit = memory_bandwidth(on)
    print(f"{processor()}, {threads()} threads, {limit / 1e9:.1f} GB/s; {weight_bytes(ours) / 1e6:.0f} MB of weights")
    why = refused(ours)
    step_for = partial(kernel_step, ours) if why is None else partial(TorchStep, ours)
    print(f"steps by {'kernels' if why is None else f'torch, because {why}'}")
    figures: dict[str, list[float]] = {}
    measured = partial(measure, ours.config, step_for, weights=weight_bytes(ours))
    for _ in range(a.rounds):
        (alone,) = measured((1,), prompt_tokens=PROMPT, new_tokens=a.new_tokens)
        (many,) = measured((TEXTS,), prompt_tokens=PROMPT, new_tokens=a.new_tokens)
        (long,) = measured((1,), prompt_tokens=PREFILL, new_tokens=1)
        prefill, decode = theirs(peer, a.new_tokens)
        for name, value in (
            ("prefill, rhapsode", long.prefill),
            ("prefill, transformers", prefill),
            ("one text, rhapsode", alone.decode),
            ("one text, transformers", decode),
            (f"{TEXTS} texts, rhapsode", many.decode),
        ):
            figures.setdefault(name, []).append(value)
    table = Table(title=f"tokens a second, medians of {a.rounds}")
    for heading in ("", "median", "least", "most"):
        table.add_column(heading, justify="right")
    for name, values in figures.items():
        table.add_row(name, *(f"{value:,.1f}" for value in (statistics.median(values), min(values), max(values))))
    Console().print(table)
    middle = {name: statistics.median(values) for name, values in figures.items()}
    print(f"prefill {middle['prefill, rhapsode'] / middle['prefill, transformers']:.2f} times transformers'")
    print(f"writing {middle['one text, rhapsode'] / middle['one text, transformers']:.2f} times transformers'")
    print(f"{TEXTS} texts at once {middle[f'{TEXTS} texts, rhapsode'] / middle['one text, rhapsode']:.2f} times one")
    print(f"writing reads {middle['one text, rhapsode'] * weight_bytes(ours) / limit:.0%} of the memory's limit")


if __name__ == "__main__":
    main()
