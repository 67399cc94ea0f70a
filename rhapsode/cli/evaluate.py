"""`rhapsode evaluate MODEL TEXT...`: how well a model predicts a text, or does the tasks of the evaluation harness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators

if TYPE_CHECKING:
    from rhapsode.inference.language_model import LanguageModel

TOKENS_AT_ONCE = 4096
"""Tokens that are predicted side by side."""

UNSAID: dict[str, Any] = {"text_field": "text", "separator": None, "encoding": None, "skip_bad": False}
"""How texts are read unless something else is said."""


def evaluate(
    model: Path,
    /,
    *texts: Annotated[str, Parameter(allow_leading_hyphen=True)],
    stride: int | None = None,
    context: int | None = None,
    json: bool = False,
    text_field: str = UNSAID["text_field"],
    separator: str | None = UNSAID["separator"],
    encoding: str | None = UNSAID["encoding"],
    skip_bad: bool = UNSAID["skip_bad"],
    tasks: str | None = None,
    limit: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    include_path: Path | None = None,
    device: str = "auto",
) -> None:
    """Measure perplexity and bits per byte on a text, or do tasks of the EleutherAI evaluation harness.

    The text is read in windows of the model's context that overlap, so that each token is predicted once, from at
    least context - stride tokens before it. Bits per byte compare models of different tokenizers; nats per token and
    perplexity do not.

        rhapsode evaluate runs/mytext other.txt

        rhapsode evaluate runs/mytext --tasks arc_easy,lambada_openai --limit 100

    Parameters
    ----------
    model: Path
        A model folder, a checkpoint, or a run.
    texts: str
        Files, folders, globs, or - for standard input; or a corpus made by `rhapsode corpus`: its validation part.
    stride: int
        Tokens from one window to the next; half the context unless given. As large as the context: no overlap.
    context: int
        Tokens in a window, or read for a task; the model's context unless given.
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
    tasks: str
        Tasks instead of texts, by the harness's names, with commas between. Most fetch their data from the network.
    limit: int
        Do only so many questions of each task.
    include_path: Path
        A folder with more tasks (YAML). They may name Python code, which is run: only a folder that you trust.
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

    reading = {"text_field": text_field, "separator": separator, "encoding": encoding, "skip_bad": skip_bad}
    if tasks is not None:
        given = {"TEXT": texts != (), "--stride": stride is not None}
        given |= {f"--{name.replace('_', '-')}": value != UNSAID[name] for name, value in reading.items()}
        _refuse(given, "is about texts, not about tasks", "Leave it out, or --tasks.")
        _do_tasks(model, tasks, context, limit, include_path, device, json)
        return
    _refuse(
        {"--limit": limit is not None, "--include-path": include_path is not None}, "is about --tasks", "Give both."
    )
    if not texts:
        raise InputError("there is no TEXT", todo="Name files, folders or globs, or - for standard input.")
    prepare(device)
    language_model = load(model, device)
    tokens, facts = _tokens(language_model, documents(texts, reading))
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


def _refuse(given: dict[str, bool], why: str, todo: str) -> None:
    """Refuse what says nothing here, instead of ignoring it."""
    from rhapsode.base.errors import InputError

    for name, is_given in given.items():
        if is_given:
            raise InputError(why, where=name, todo=todo)


def _do_tasks(
    model: Path, tasks: str, context: int | None, limit: int | None, include_path: Path | None, device: str, json: bool
) -> None:
    from json import dumps

    from rhapsode.base.errors import InputError
    from rhapsode.base.machine import prepare

    try:
        from rhapsode.inference.harness import HarnessModel, run_tasks
    except ImportError as error:
        raise InputError(
            f"tasks are those of the evaluation harness, which is not installed whole ({error})",
            todo="Install it: pip install 'rhapsode[harness]'.",
        ) from None
    names = [name for name in map(str.strip, tasks.split(",")) if name]
    if not names:
        raise InputError("there is no task", where="--tasks", todo="As in: --tasks arc_easy,lambada_openai")
    prepare(device)
    results = run_tasks(HarnessModel(model, device, context), names, limit=limit, include_path=include_path)
    if json:
        print(dumps({"model": str(model)} | {key: results[key] for key in ("results", "versions", "n-shot")}))
        return
    _show_tasks(results)


def documents(texts: Sequence[str], reading: dict[str, Any]) -> Iterator[str]:
    """What texts on a command line stand for; of a corpus it is the validation part."""
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


def _show_tasks(results: dict[str, Any]) -> None:
    from rich.table import Table

    from rhapsode.cli.console import console

    table = Table(box=None, pad_edge=False)
    for heading in ("task", "version", "examples shown", "questions", "filter", "metric", "value", "standard error"):
        table.add_column(heading, justify="left" if heading in ("task", "filter", "metric") else "right")
    for task, found in results["results"].items():
        of_task = (found["alias"], results["versions"].get(task, ""), results["n-shot"].get(task, ""))
        row = [*map(str, of_task), str(found.get("sample_len", ""))]
        for key, value in found.items():
            metric, comma, name = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = found.get(f"{metric}_stderr,{name}")
                table.add_row(
                    *row, name, metric, *(f"{n:,.4f}" if isinstance(n, float) else "" for n in (value, error))
                )
                row = [""] * len(row)
    console().print(table)
