"""`rhapsode embed MODEL TEXT...`: texts as vectors, and how near they are to each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

COMPARED = 12
"""So many texts fit into a table."""
WIDEST_TEXT = 50


def embed(
    model: Path,
    /,
    *texts: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: Path | None = None,
    pooling: Literal["mean", "last", "cls"] = "mean",
    normalise: Annotated[bool, Parameter(negative="--no-normalise")] = True,
    force: bool = False,
    json: bool = False,
    device: str = "auto",
) -> None:
    """Turn texts into vectors.

    With --out they are written to a file; without it a few texts are compared, by the cosine of the angle between
    their vectors: 1 is the same direction.

        rhapsode embed minilm "A cat sleeps." "A kitten is napping." "The bank raised its rates."

        rhapsode embed minilm sentences.txt --out vectors.npy

    Parameters
    ----------
    model: Path
        A model folder, a checkpoint, or a run.
    texts: str
        Texts, or files (gzipped too) with a text on each line. Without any, or for -, lines of standard input.
    out: Path
        The file to write: .npy, an array of one row for each text; or .jsonl, a JSON object for each text.
    pooling: Literal
        What makes one vector of a text's tokens: their mean, the last one's, or the first one's (cls).
    normalise: bool
        Vectors of length one.
    force: bool
        Replace the file in --out.
    json: bool
        Print a JSON object for each text: text, vector.
    device: str
        auto, cpu, cuda or mps.
    """
    from rhapsode.base.errors import InputError
    from rhapsode.base.machine import prepare
    from rhapsode.base.progress import Progress
    from rhapsode.cli.lines import texts_of
    from rhapsode.inference.language_model import load

    if out is not None and out.suffix not in (".npy", ".jsonl"):
        raise InputError("ends in neither .npy nor .jsonl", where=str(out), todo="The ending says what to write.")
    if out is not None and out.exists() and not force:
        todo = "Choose another name, or pass --force to replace it."
        raise InputError("already exists", where=str(out), todo=todo)
    every = list(texts_of(texts))
    if not every:
        raise InputError("there is no text", todo="Name texts, files, or - for standard input.")
    if out is None and not json and not 2 <= len(every) <= COMPARED:
        raise InputError(
            f"{len(every):,} {'text' if len(every) == 1 else 'texts'} cannot be compared in a table",
            todo=f"Name 2 to {COMPARED}, or --out for a file, or --json.",
        )
    prepare(device)
    language_model = load(model, device)
    normalise = normalise or (out is None and not json)  # what is compared is the angle
    with Progress("reading", len(every), "texts") as progress:
        vectors = language_model.embed(every, pooling, normalise=normalise, progress=progress)
    if out is not None:
        _write(out, every, vectors, force)
        print(f"{out}: {len(vectors):,} vectors of {vectors.shape[1]} numbers")
    elif json:
        for line in _json_lines(every, vectors):
            print(line)
    else:
        _compare(every, vectors)


def _write(out: Path, texts: Sequence[str], vectors: npt.NDArray[np.float32], force: bool) -> None:
    import numpy as np

    from rhapsode.base.files import new_file

    with new_file(out, replace=force) as path, path.open("wb") as file:
        if out.suffix == ".npy":
            np.save(file, vectors, allow_pickle=False)
        else:
            file.writelines(f"{line}\n".encode() for line in _json_lines(texts, vectors))


def _json_lines(texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> list[str]:
    from json import dumps

    pairs = zip(texts, vectors, strict=True)
    return [dumps({"text": text, "vector": vector.tolist()}, ensure_ascii=False) for text, vector in pairs]


def _compare(texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
    from rich.table import Table
    from rich.text import Text

    from rhapsode.cli.console import console
    from rhapsode.cli.similar import visible

    table = Table(box=None, pad_edge=False)
    table.add_column("cosine", justify="right")
    table.add_column("")
    for number in range(1, len(texts) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, (text, row) in enumerate(zip(texts, vectors @ vectors.T, strict=True), start=1):
        shown = visible(text if len(text) <= WIDEST_TEXT else text[: WIDEST_TEXT - 1] + "…")
        table.add_row(str(number), Text(shown), *(f"{cosine:.3f}" for cosine in row))
    console().print(table)
