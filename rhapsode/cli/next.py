"""`rhapsode next MODEL PROMPT`: what a model thinks comes next, drawn as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

if TYPE_CHECKING:
    from rhapsode.inference.language_model import LanguageModel, NextToken

WIDEST_BAR = 30
NARROWEST_BAR = 6
WIDEST_NAME = 24


def next_token(
    model: Path,
    prompt: str,
    *,
    temperature: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (1.0,),
    top: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 10,
    json: bool = False,
    device: str = "auto",
) -> None:
    """Draw the probabilities of the next token at several temperatures.

    A full bar is a probability of 1. Temperature T turns the probability p of each token into p^(1/T), scaled to sum
    to one; 0 leaves only the most likely token.

        rhapsode next runs/mytext "The cat sat on the" --temperature 0.1 1 2

    Parameters
    ----------
    model: Path
        A model folder, a checkpoint, or a run.
    prompt: str
        The text so far.
    temperature: tuple
        One column for each, as in --temperature 0.1 1 2.
    top: int
        Show so many tokens, the most likely ones.
    json: bool
        Print one JSON object instead.
    device: str
        auto, cpu, cuda or mps.
    """
    from dataclasses import asdict
    from json import dumps
    from shlex import quote

    from rhapsode.base.machine import prepare
    from rhapsode.inference.language_model import load

    prepare(device)
    language_model = load(model, device)
    tokens = language_model.next_token(prompt, temperature, top=top)
    others = [
        max(0.0, 1.0 - sum(token.probabilities[column] for token in tokens)) for column in range(len(temperature))
    ]
    if json:
        print(
            dumps(
                {
                    "prompt": prompt,
                    "temperatures": list(temperature),
                    "tokens": [asdict(token) for token in tokens],
                    "others": others,
                }
            )
        )
        return
    rows = [(_name(language_model, token), token.probabilities) for token in tokens]
    rest = language_model.tokenizer.vocabulary_size - len(tokens)
    _draw(rows + ([(f"{rest:,} others", others)] if rest else []), temperature)
    print(f"\nnext: rhapsode generate {quote(str(model))} {quote(prompt)} --temperature {temperature[-1]:g}")


def _name(language_model: LanguageModel, token: NextToken) -> str:
    """A token as a quoted text, or as bytes where it is no whole text."""
    data = language_model.tokenizer.id_to_bytes(token.id)
    return repr(token.text) if token.text.encode("utf-8") == data else repr(data)


def _draw(rows: Sequence[tuple[str, Sequence[float]]], temperatures: Sequence[float]) -> None:
    """A row for each token, a column of bars for each temperature."""
    from rich.table import Table
    from rich.text import Text

    from rhapsode.cli.console import console

    target = console()
    name_width = min(max(len(name) for name, _ in rows), WIDEST_NAME)
    free = (target.width - name_width) // len(temperatures) - len(" 100.0 %  ")
    width = max(NARROWEST_BAR, min(WIDEST_BAR, free))
    table = Table(box=None, pad_edge=False)
    table.add_column("next token", overflow="fold", max_width=WIDEST_NAME)
    for temperature in temperatures:
        table.add_column(f"temperature {temperature:g}", no_wrap=True)
    for name, probabilities in rows:
        table.add_row(Text(name), *(_bar(probability, width) for probability in probabilities))
    target.print(table)


def _bar(probability: float, width: int) -> str:
    """`probability` in percent, and as a bar in eighths of a character; a full bar of `width` characters is 1."""
    from rhapsode.cli.console import bar

    return f"{100 * probability:5.1f} % {bar(probability, width)}"
