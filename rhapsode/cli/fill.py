"""`rhapsode fill MODEL TEXT`: what an encoder puts into the gaps of a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

if TYPE_CHECKING:
    from rhapsode.inference.reading import Candidate

WIDEST_BAR = 30


def fill(
    model: Path,
    text: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    top: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 5,
    json: bool = False,
    device: str = "auto",
) -> None:
    """Fill the gaps in a text.

    A gap is written as the model's mask token: `<|mask|>` for models made here, `[MASK]` for BERT's, `<mask>` for
    RoBERTa's.
    Each gap is one token, and is filled without knowing what the others are filled with.

        rhapsode fill runs/novels "The <|mask|> sat on the mat."

    Parameters
    ----------
    model: Path
        The folder of an encoder, a checkpoint, or a run.
    text: str
        The text with its gaps; - reads it from standard input.
    top: int
        Show so many candidates for each gap, the most likely ones.
    json: bool
        Print one JSON object instead.
    device: str
        auto, cpu, cuda or mps.
    """
    from dataclasses import asdict
    from json import dumps
    from shlex import join

    from rhapsode.base.machine import prepare
    from rhapsode.cli.lines import texts_of
    from rhapsode.inference.language_model import load

    text = "\n".join(texts_of(["-"])) if text == "-" else text
    prepare(device)
    language_model = load(model, device)
    filling = language_model.fill_mask(text, top=top)
    if json:
        print(dumps({"model": str(model), "text": text} | asdict(filling)))
        return
    print(filling.text)
    for number, candidates in enumerate(filling.gaps, start=1):
        print()
        _show(f"gap {number}" if len(filling.gaps) > 1 else "the gap", candidates)
    print(f"\nnext: {join(['rhapsode', 'embed', str(model), filling.text, 'Another text.'])}")


def _show(name: str, candidates: list[Candidate]) -> None:
    from rich.table import Table
    from rich.text import Text

    from rhapsode.cli.console import bar, console

    table = Table(box=None, pad_edge=False)
    table.add_column(name, overflow="fold")
    table.add_column("probability", no_wrap=True)
    for each in candidates:
        table.add_row(Text(repr(each.text)), f"{100 * each.probability:5.1f} % {bar(each.probability, WIDEST_BAR)}")
    console().print(table)
