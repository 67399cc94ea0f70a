"""`rhapsode bench MODEL`: how fast a model reads and writes on this machine, and what limits it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from rhapsode.inference.cache_type import CacheType

POSITIVE = validators.Number(gte=1, lte=1_000_000)


def bench(
    model: Path,
    *,
    texts: Annotated[tuple[int, ...], Parameter(validator=POSITIVE, consume_multiple=True)] = (1, 8, 32),
    prompt_tokens: Annotated[int | None, Parameter(validator=POSITIVE)] = None,
    new_tokens: Annotated[int, Parameter(validator=POSITIVE)] = 32,
    device: str = "auto",
    cache_type: CacheType = "float32",
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
    cache_type: CacheType
        What keys and values are kept in: float16 takes half the memory, int8 a quarter, on a processor.
    """
    from rich.table import Table

    from rhapsode.base.machine import memory_bandwidth, prepare, processor, threads
    from rhapsode.cli.console import console
    from rhapsode.inference.cache_type import NUMBER_BYTES
    from rhapsode.inference.language_model import load
    from rhapsode.inference.speed import measure, weights_of_step

    on = prepare(device)
    language_model = load(model, device)
    language_model.require_decoder()
    language_model.cache_type = cache_type
    config = language_model.config
    weights, numbers = weights_of_step(language_model)
    prompt = prompt_tokens or max(1, min(512, config.context_length // 2))
    limit = memory_bandwidth(on)
    language_model.step(1)  # for what is compiled, and to know by whom
    print(f"{config.parameters:,} parameters in {numbers}: {weights / 1e6:,.1f} MB read for each step")
    where = f"{processor()}, {threads()} threads" if on.type == "cpu" else str(on)
    print(f"{where}: {limit / 1e9:.1f} GB/s of memory, measured now")
    print(f"steps by {language_model.step_by}\n")
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
    cached = False
    for speed in measure(
        config,
        language_model.step,
        texts,
        weights=weights,
        number_bytes=NUMBER_BYTES[cache_type],
        prompt_tokens=prompt,
        new_tokens=new_tokens,
    ):
        cached = cached or speed.bandwidth > limit
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
    if cached:
        print("\nmore than the limit: the weights stay in the processor's own memory between two steps")
    print(f"\nprompts of {prompt} tokens, {new_tokens} new ones each")
