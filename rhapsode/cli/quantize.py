"""`rhapsode quantize MODEL --bits 8 --out FOLDER`: a model of a quarter or a sixth of the size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from rhapsode.inference.quantization import Quantized


def quantize(
    model: Path,
    /,
    *,
    bits: Literal[8, 4],
    out: Path,
    texts: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    force: bool = False,
) -> None:
    """Make a model of a quarter or a sixth of the size, which runs faster.

    Its weights are rounded to 8 bits, which costs next to nothing, or to 4, which costs a little: the loss is measured
    on text that the model has not seen, and printed. The folder opens at once, without being read.

        rhapsode quantize runs/mytext --bits 8 --out mytext-8bit

        rhapsode quantize smol --bits 4 --out smol-4bit --texts novels/*.txt

    Parameters
    ----------
    model: Path
        A model folder, a run, a GGUF file, a checkpoint of llama2.c, or owner/name on the Hugging Face hub.
    bits: int
        8 or 4; every 32 weights have a scale besides, and with 4 bits a minimum.
    out: Path
        The folder to write.
    texts: str
        Files, folders, globs, or a corpus, on which the loss is measured; of a run its validation data, unless given.
        At most 20,000 tokens of them are read.
    force: bool
        Replace what is there.
    """
    from shlex import quote

    from rhapsode.base.machine import prepare
    from rhapsode.cli.evaluate import UNSAID, documents
    from rhapsode.inference import quantization

    prepare("cpu")
    read = documents(texts, UNSAID) if texts else None
    done = quantization.quantize(model, out, bits, documents=read, force=force)
    _show(done)
    print(f'\n{out}\nnext: rhapsode generate {quote(str(out))} "Once upon a time"')


def _show(done: Quantized) -> None:
    from rich.table import Table

    from rhapsode.base.progress import quantity
    from rhapsode.cli.console import console

    table = Table(box=None, pad_edge=False)
    for heading in ("", "fp32", f"{done.bits} bits", ""):
        table.add_column(heading, justify="left" if heading == "" else "right")
    before, after = (quantity(size, "bytes") for size in (done.bytes_before, done.bytes_after))
    table.add_row("weights", before, after, f"{done.bytes_before / done.bytes_after:.1f} times smaller")
    if done.loss is not None:
        loss = done.loss
        table.add_row("perplexity", f"{loss.perplexity:.3f}", f"{loss.packed_perplexity:.3f}", f"{loss.increase:+.2%}")
        table.add_row("KL divergence", "", f"{loss.divergence:.1e}", f"nats per token, over {loss.tokens:,} tokens")
    console().print(table)
    if done.loss is None:
        print("\nWhat that costs was not measured, for there was no text: give some with --texts.")
