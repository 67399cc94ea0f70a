"""`rhapsode bench MODEL`: how fast a model reads and writes on this machine, and what limits it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

POSITIVE = validators.Number(gte=1, lte=1_000_000)


def bench(
    model: Path,
    *,
    texts: Annotated[tuple[int, ...], Parameter(validator=POSITIVE, consume_multiple=True)] = (1, 8, 32),
    prompt_tokens: Annotated[int | None, Parameter(validator=POSITIVE)] = None,
    new_tokens: Annotated[int, Parameter(validator=POSITIVE)] = 32,
    device: str = "auto",
) -> None:
    """Measure how fast a model reads and writes on this machine, and how near that is to its limit.

    Writing one token reads every weight once: on a processor the memory is the limit, and texts written at once share
    the reading. The prompts are random tokens, and the most likely token is written.

        rhapsode bench runs/mytext --texts 1 4 16

    Parameters
    ----------
    model: Path
        A model folder, a checkpoint, a run, a GGUF file, or owner/name on the Hugging Face hub.
    texts: int
        Texts written at once; one row for each number.
    prompt_tokens: int
        Of each prompt; 512, or half of a shorter context, unless given.
    new_tokens: int
        Written after each prompt.
    device: str
        auto, cpu, cuda or mps.
    """
    from rich.table import Table

    from rhapsode.base.machine import memory_bandwidth, prepare, processor, threads
    from rhapsode.cli.console import console
    from rhapsode.inference.language_model import load
    from rhapsode.inference.speed import measure, weight_bytes

    on = prepare(device)
    decoder = load(model, device).decoder()
    config, weight = decoder.config, decoder.embedding.weight
    prompt = prompt_tokens or max(1, min(512, config.context_length // 2))
    limit = memory_bandwidth(on)
    type_ = str(weight.dtype).removeprefix("torch.")
    print(f"{config.parameters:,} parameters in {type_}: {weight_bytes(decoder) / 1e6:,.1f} MB read for each step")
    where = f"{processor()}, {threads()} threads" if on.type == "cpu" else str(on)
    print(f"{where}: {limit / 1e9:.1f} GB/s of memory, measured now; steps by torch\n")
    table = Table(box=None, pad_edge=False)
    for heading in (
        "texts at once",
        "prompt tokens/s",
        "new tokens/s",
        "of each text",
        "MB a step",
        "GB/s",
        "of limit",
    ):
        table.add_column(heading, justify="right")
    for speed in measure(decoder, texts, prompt_tokens=prompt, new_tokens=new_tokens):
        table.add_row(
            str(speed.texts),
            f"{speed.prefill:,.0f}",
            f"{speed.decode:,.1f}",
            f"{speed.decode / speed.texts:,.1f}",
            f"{speed.bytes_read / 1e6:,.1f}",
            f"{speed.bandwidth / 1e9:.1f}",
            f"{speed.bandwidth / limit:.0%}",
        )
    console().print(table)
    print(f"\nprompts of {prompt} tokens, {new_tokens} new ones each")
