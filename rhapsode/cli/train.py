"""`rhapsode train TEXT...`: a language model of texts, within the minutes given."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from rhapsode.base.settings import given, overridden, read_yaml, validated
from rhapsode.training.settings import TrainSettings

if TYPE_CHECKING:
    from rhapsode.training.planner import Plan
    from rhapsode.training.run import TrainResult

CHOICES = Group.create_ordered(
    "Choices", help="Each is made for this machine, text and time, unless you fix it here or in --config."
)
READING = Group.create_ordered("Reading the texts", help="As for `rhapsode corpus`; not for a corpus that it prepared.")


@dataclass(frozen=True)
class Reading:
    """How the texts are read, where it differs from what `prepare_corpus` does by itself."""

    validation: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True)] = None
    """Texts to validate on; part of the texts is kept for it unless given."""
    validation_fraction: float | None = None
    """The share of the text that is kept for validation; 0.1 unless given."""
    target: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True)] = None
    """Texts whose lines belong to those of the texts: an encoder-decoder learns to turn each line into the other."""
    validation_target: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True)] = None
    """What --target is to the texts, to those of --validation."""
    pairs: Annotated[bool | None, Parameter(negative="")] = None
    """The texts hold pairs: a TAB is between them in each line, or --text-field and --target-field are one."""
    text_field: str | None = None
    """The field of JSON lines, or the column of CSV and parquet files, that holds the text."""
    target_field: str | None = None
    """With --pairs: the field that holds the other side; target unless given."""
    separator: str | None = None
    """Where this stands in a text file, one document ends and the next begins."""
    encoding: str | None = None
    """The encoding of the texts, if it is found out wrongly."""
    licence: str | None = None
    """The licence of the texts, recorded with each document."""
    skip_bad: Annotated[bool | None, Parameter(negative="")] = None
    """Drop and count what cannot be read, instead of stopping at it."""


def train(
    *texts: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: Path | None = None,
    config: Path | None = None,
    dry_run: bool = False,
    resume: bool = False,
    force: bool = False,
    settings: Annotated[TrainSettings | None, Parameter(name="*", group=CHOICES, negative=None)] = None,
    reading: Annotated[Reading | None, Parameter(name="*", group=READING)] = None,
) -> None:
    """Train a language model on texts, within the minutes you give it.

    Measures this machine and the text, chooses tokenizer, size and schedule, says why, and trains. The run can be
    interrupted at any moment and goes on with --resume.

        rhapsode train mytext.txt --minutes 10

        rhapsode train --resume --out runs/mytext

    Parameters
    ----------
    texts: str
        Files, folders, globs, a corpus made by `rhapsode corpus`, or - for standard input.
    out: Path
        The run folder; runs/NAME after the first text unless given.
    config: Path
        A YAML file of the choices below; flags are stronger.
    dry_run: bool
        Print the plan and its reasons, and stop.
    resume: bool
        Go on with the run in --out.
    force: bool
        Replace the run in --out.
    """
    started = time.time()
    chosen = validated(TrainSettings, read_yaml(config) if config else {}, str(config))
    if settings is not None:
        chosen = overridden(chosen, validated(TrainSettings, given(settings), "flags"))

    from rhapsode.training import run

    result = run.train(
        texts,
        chosen,
        out=out,
        resume=resume,
        force=force,
        dry_run=dry_run,
        started=started,
        show_plan=show_plan,
        **reading_arguments(given(reading) if reading else {}),
    )
    if dry_run:
        print(f"\nNothing was trained. Without --dry-run the run would be in {result.run}.")
    else:
        show_result(result)


def reading_arguments(chosen: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `prepare_corpus` that flags stand for.

    Raises:
        InputError: --target-field without --pairs.
    """
    from rhapsode.base.errors import InputError

    arguments = dict(chosen)
    if arguments.pop("pairs", False):
        return {"target_field": "target"} | arguments
    if "target_field" in arguments:
        raise InputError("is for rows that are pairs", where="--target-field", todo="Say so with --pairs.")
    return arguments


def show_plan(plan: Plan) -> None:
    """Print what was chosen and why."""
    from rich.table import Table
    from rich.text import Text

    from rhapsode.cli.console import console

    table = Table(box=None, pad_edge=False, show_header=False)
    for choice in plan.choices:
        table.add_row(Text(choice.name, "dim"), Text(choice.value, "bold"), Text(choice.reason))
    console().print(plan.summary, table, "", sep="\n")


def show_result(result: TrainResult) -> None:
    """Write the report, print where everything is and what to type next; exit as the signal asks that ended the run."""
    from rhapsode.base.progress import note
    from rhapsode.report.report import next_commands, write_report

    try:
        page: Any = write_report(result.run)
    except OSError as error:  # a full disk must not make the training look lost
        note(f"The report could not be written ({error.strerror}).")
        page = f"(write it with: rhapsode report {result.run})"
    print(f"\nRun     {result.run}\nModel   {result.run / 'model'}\nReport  {page}\n\nNext:")
    for _, command in next_commands(result.run):
        print(f"  {command}")
    if result.reason.startswith("SIG"):
        raise SystemExit(128 + signal.Signals[result.reason])
