"""`rhapsode export MODEL --out X`: a model for other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from rhapsode.exchange.parity import Parity


def export(
    model: Path,
    /,
    *,
    out: Path,
    format: Literal["hugging-face", "gguf"] = "hugging-face",
    quantization: Annotated[str | None, Parameter(name="--type")] = None,
    family: str | None = None,
    force: bool = False,
) -> None:
    """Write a model for other tools, and check that it computes the same there.

    What was written is read again, by us and by the libraries that will read it where they are installed:
    transformers, llama-cpp-python. What a format cannot hold is refused before anything is written.

        rhapsode export runs/mytext --out mymodel

        rhapsode export runs/mytext --out mytext.gguf --format gguf --type q8_0

    Parameters
    ----------
    model: Path
        A model folder, a run, a GGUF file, a checkpoint of llama2.c, or owner/name on the Hugging Face hub.
    out: Path
        The folder, or the GGUF file, to write.
    format: str
        hugging-face, a folder; or gguf, a file for llama.cpp, Ollama and others.
    quantization: str
        How GGUF stores numbers: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0; f32 unless given, and of a quantised
        model the type that has the very same numbers.
    family: str
        Write it as one of this family, which must compute the same.
    force: bool
        Replace what is there.
    """
    from shlex import quote

    from rhapsode.base.machine import prepare
    from rhapsode.base.progress import quantity
    from rhapsode.exchange.doors import ParityError, export_model

    prepare("cpu")
    try:
        passage = export_model(model, out, format=format, quantization=quantization, family=family, force=force)
    except ParityError as error:
        show(error.parity)
        raise
    show(passage.parity, passage.notices)
    path = passage.path
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()) if file.is_file())
    print(f"\n{path}: {quantity(size, 'bytes')}\nnext: rhapsode import {quote(str(path))} --out FOLDER")


def show(parity: Parity, notices: Sequence[str] = ()) -> None:
    """A row for each that was compared with, and what is to be known."""
    from rich.table import Table
    from rich.text import Text

    from rhapsode.cli.console import console

    table = Table(box=None, pad_edge=False)
    for heading in ("compared with", "largest difference", "KL divergence", "greedy tokens", ""):
        table.add_column(heading, overflow="fold")
    for row in parity.rows:
        table.add_row(
            row.peer,
            "" if row.largest is None else f"{row.largest:.1e}",
            "" if row.divergence is None else f"{row.divergence:.1e} nats",
            "" if row.agreeing is None else f"{row.agreeing} of {row.of} equal",
            Text(f"FAILED: {row.fault}", "bold red") if row.fault else Text("good", "green"),
        )
    for name in parity.missing:
        table.add_row(name, "", "", "", "not installed")
    console().print(table)
    for notice in notices:
        console().print(f"Note: {notice}.")
