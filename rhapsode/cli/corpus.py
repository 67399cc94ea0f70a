"""`rhapsode corpus TEXT... --out FOLDER`: read texts of many formats into one clean corpus, split for validation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from rhapsode.corpus.corpus import Corpus


def corpus(
    *texts: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: Path,
    validation: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    validation_fraction: float = 0.1,
    seed: int = 0,
    licence: str | None = None,
    target: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    validation_target: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    pairs: Annotated[bool, Parameter(negative=())] = False,
    text_field: str = "text",
    target_field: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    skip_bad: Annotated[bool, Parameter(negative=())] = False,
    force: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Read texts of many formats into one clean corpus, split for validation.

    Text becomes UTF-8 in Unicode NFC with newlines as line ends. Documents that occur twice are kept once, empty ones
    are dropped, and the table at the end says what was read, what was dropped and why.

        rhapsode corpus books/ letters.zip --out corpus

    Parameters
    ----------
    texts
        Files, folders, globs, or - for standard input: txt, md, rst, html, jsonl, csv, tsv, parquet, and these inside
        gz, xz, bz2, zst, zip and tar.
    out
        The folder to make.
    validation
        Texts to validate on. Without it, part of TEXT is kept: whole documents, or the end of a single one.
    validation_fraction
        The share of the text that is kept for validation.
    seed
        Another seed keeps other documents.
    licence
        The licence of these texts, recorded with each document.
    target
        Texts whose lines belong to those of TEXT, file by file: each document is a pair of lines.
    validation_target
        What --target is to TEXT, to --validation.
    pairs
        TEXT holds pairs: a TAB is between them in each line, or --text-field and --target-field are one.
    text_field
        The field of JSON lines, or the column of CSV and parquet files, that holds the text.
    target_field
        With --pairs: the field or column that holds the other side; "target" unless given.
    separator
        Where this stands in a text file, one document ends and the next begins, as "<|endoftext|>". \\n is a newline.
    encoding
        The encoding of the texts, if it is found out wrongly.
    skip_bad
        Drop and count what cannot be read, instead of stopping at it.
    force
        Replace the corpus in --out.
    """
    from rhapsode.base.errors import InputError
    from rhapsode.corpus.prepare import prepare_corpus

    if target_field is not None and not pairs:
        raise InputError("is for rows that are pairs", where="--target-field", todo="Say so with --pairs.")
    _refuse_options(texts)
    if not texts:
        raise InputError("there is no TEXT", todo="Name files, folders or globs, or - for standard input.")
    _show(
        prepare_corpus(
            texts,
            out,
            validation=validation,
            validation_fraction=validation_fraction,
            seed=seed,
            licence=licence,
            target=target,
            validation_target=validation_target,
            text_field=text_field,
            target_field=target_field or ("target" if pairs else None),
            separator=separator,
            encoding=encoding,
            skip_bad=skip_bad,
            force=force,
        )
    )


def _refuse_options(texts: tuple[str, ...]) -> None:
    """TEXT may be `-`, so the parser lets everything through that begins with it, misspelt options too."""
    from inspect import signature

    from rhapsode.base.errors import InputError, nearest

    for text in texts:
        if text.startswith("-") and text != "-":
            options = ["--" + name.replace("_", "-") for name in list(signature(corpus).parameters)[1:]]
            raise InputError(f"there is no option {text!r}", todo=nearest(text, options))


def _show(corpus: Corpus) -> None:
    """Print what was read, dropped and written, and what to do next."""
    import shlex

    from rich.console import Console
    from rich.table import Table

    from rhapsode.base.progress import quantity
    from rhapsode.corpus.corpus import SPLITS

    table = Table(box=None, pad_edge=False)
    for heading in ("", "files", "documents", "characters", "size"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    manifest = corpus.manifest
    for kind, read in manifest["read"].items():
        table.add_row(f"read: {kind}", *(f"{read[what]:,}" for what in ("files", "documents", "characters")), "")
    for reason, dropped in manifest["dropped"].items():
        table.add_row(f"dropped: {reason}", "", f"{dropped['count']:,}", "", "")
    for split in SPLITS:
        counts = (f"{corpus.count(split):,}", f"{corpus.characters(split):,}", quantity(corpus.bytes(split), "bytes"))
        table.add_row(f"written: {split}", "", *counts)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    console.print()
    for reason, dropped in manifest["dropped"].items():
        more = dropped["count"] - len(dropped["examples"])
        console.print(f"{reason}: {', '.join(dropped['examples'])}{f' and {more:,} more' if more else ''}")
    console.print(f"fingerprint: {corpus.fingerprint}")
    console.print(f"next: rhapsode train {shlex.quote(str(corpus.folder))}")
