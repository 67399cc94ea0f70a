"""`rhapsode evaluate MODEL TEXT...`: how well a model predicts a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from rhapsode.inference.language_model import LanguageModel

TOKENS_AT_ONCE = 4096
"""Tokens that are predicted side by side."""


def evaluate(
    model: Path,
    /,
    *texts: Annotated[str, Parameter(allow_leading_hyphen=True)],
    stride: int | None = None,
    context: int | None = None,
    json: bool = False,
    text_field: str = "text",
    separator: str | None = None,
    encoding: str | None = None,
    skip_bad: bool = False,
    device: str = "auto",
) -> None:
    """Measure perplexity and bits per byte on a text.

    The text is read in windows of the model's context that overlap, so that each token is predicted once, from at
    least context - stride tokens before it. Bits per byte compare models of different tokenizers; nats per token and
    perplexity do not.

        rhapsode evaluate runs/mytext other.txt

    Parameters
    ----------
    model: Path
        A model folder, a checkpoint, or a run.
    texts: str
        Files, folders, globs, or - for standard input; or a corpus made by `rhapsode corpus`: its validation part.
    stride: int
        Tokens from one window to the next; half the context unless given. As large as the context: no overlap.
    context: int
        Tokens in a window; the model's context unless given.
    json: bool
        Print one JSON object instead.
    text_field: str
        The field of JSON lines, or the column of CSV and parquet files, that holds the text.
    separator: str
        Where this stands in a text file, one document ends and the next begins.
    encoding: str
        The encoding of the texts, if it is found out wrongly.
    skip_bad: bool
        Leave out what cannot be read, instead of stopping at it.
    device: str
        auto, cpu, cuda or mps.
    """
    from dataclasses import asdict
    from json import dumps

    from rhapsode.base.errors import InputError, NotFiniteError
    from rhapsode.base.machine import prepare
    from rhapsode.base.progress import Progress
    from rhapsode.inference import evaluation
    from rhapsode.inference.language_model import load

    if not texts:
        raise InputError("there is no TEXT", todo="Name files, folders or globs, or - for standard input.")
    prepare(device)
    language_model = load(model, device)
    reading = {"text_field": text_field, "separator": separator, "encoding": encoding, "skip_bad": skip_bad}
    tokens, facts = _tokens(language_model, _documents(texts, reading))
    context = language_model.config.context_length if context is None else context
    stride = max(1, context // 2) if stride is None else stride
    with Progress("evaluating", max(0, len(tokens) - 1), "tokens") as progress:
        result = evaluation.evaluate(
            language_model.decoder(),
            tokens,
            context=context,
            stride=stride,
            bytes_of_text=facts["bytes"],
            batch=max(1, TOKENS_AT_ONCE // max(1, context)),
            progress=progress,
        )
    if result.nats_per_token != result.nats_per_token:
        raise NotFiniteError("the model computes values that are not finite", where=str(model))
    facts |= {"context": context, "stride": stride}
    if json:
        print(dumps({"model": str(model)} | asdict(result) | facts))
    else:
        _show(asdict(result) | facts)


def _documents(texts: Sequence[str], reading: dict[str, Any]) -> Iterator[str]:
    from rhapsode.corpus.corpus import Corpus
    from rhapsode.corpus.read import read_documents

    if len(texts) == 1 and Corpus.is_corpus(Path(texts[0])):
        yield from Corpus.open(Path(texts[0])).documents("validation")
    else:
        yield from (document.text for document in read_documents(texts, **reading))


def _tokens(language_model: LanguageModel, documents: Iterator[str]) -> tuple[Any, dict[str, int]]:
    """The tokens of all documents, each followed by an end of text as in training, and counts of what was read."""
    import numpy as np

    from rhapsode.base.errors import InputError
    from rhapsode.base.progress import Progress

    tokenizer = language_model.tokenizer
    end = np.array([] if tokenizer.end_of_text_id is None else [tokenizer.end_of_text_id], dtype=np.uint32)
    facts = {"documents": 0, "bytes": 0, "unknown": 0}
    parts = []
    with Progress("reading", None, "bytes") as progress:
        for text in documents:
            (ids,) = tokenizer.encode_batch([text])
            parts += [ids.astype(np.uint32), end]
            size = len(text.encode("utf-8"))
            facts["documents"] += 1
            facts["bytes"] += size
            facts["unknown"] += tokenizer.unknown_count(ids)
            progress.advance(size)
    if not facts["bytes"]:
        raise InputError("there is no text in what was named", todo="Name texts that are not empty.")
    return np.concatenate(parts), facts


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from rhapsode.base.progress import quantity
    from rhapsode.cli.console import console

    table = Table(box=None, pad_edge=False, show_header=False)
    documents = "1 document" if facts["documents"] == 1 else f"{facts['documents']:,} documents"
    table.add_row("text", f"{quantity(facts['bytes'], 'bytes')}, {documents}")
    table.add_row("tokens predicted", f"{facts['tokens']:,}")
    table.add_row("windows", f"{facts['context']:,} tokens, one every {facts['stride']:,}")
    table.add_row("nats per token", f"{facts['nats_per_token']:.4f}")
    table.add_row("perplexity", f"{facts['perplexity']:.3f}")
    table.add_row("bits per byte", f"{facts['bits_per_byte']:.4f}")
    console().print(table)
    if facts["unknown"]:
        print(
            f"\n{facts['unknown']:,} tokens stand for something that the vocabulary lacks. They are easy to predict: "
            "these figures flatter the model."
        )
