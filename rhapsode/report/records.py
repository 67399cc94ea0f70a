"""Everything a run wrote down, read back: also from a run that is going on, or that was killed while it wrote."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rhapsode.base.errors import InputError
from rhapsode.base.files import read_json
from rhapsode.base.settings import read_yaml

TRAIN_COLUMNS = (
    "step",
    "tokens",
    "seconds",
    "loss",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "peak_share",
)
VALIDATION_COLUMNS = ("step", "tokens", "seconds", "loss", "bits_per_byte", "accuracy")
DOCUMENTS_READ = 10_000
LOG_LINES = 60
LARGEST_LOG_READ = 100_000  # bytes from its end


class Series:
    """Columns of numbers, one row a step, in the order of the steps; what is missing or not finite is NaN."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = {name: array("d") for name in columns}

    def __len__(self) -> int:
        return len(self.columns["step"])

    def __getitem__(self, name: str) -> array[float]:
        return self.columns[name]

    def append(self, record: dict[str, Any]) -> None:
        for name, column in self.columns.items():
            column.append(number(record.get(name)))


@dataclass
class Records:
    """What one run folder holds. Fields whose file is missing or unreadable are empty, and `problems` says so."""

    run: Path
    settings: dict[str, Any] = field(default_factory=dict)
    """run.yaml: every resolved setting."""
    plan: dict[str, Any] = field(default_factory=dict)
    """plan.json: what the planner chose and why."""
    corpus: dict[str, Any] = field(default_factory=dict)
    """The manifest of the corpus."""
    starts: list[dict[str, Any]] = field(default_factory=list)
    """One record for each time the run was started or resumed."""
    train: Series = field(default_factory=lambda: Series(TRAIN_COLUMNS))
    validation: Series = field(default_factory=lambda: Series(VALIDATION_COLUMNS))
    documents: list[dict[str, Any]] = field(default_factory=list)
    """The first documents of the corpus: source, bytes, licence, split."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Warnings, and how the run ended each time it did."""
    end: dict[str, Any] | None = None
    """The end of the last start, or None while it runs or when it was killed."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    """The last lines of the log."""
    problems: list[str] = field(default_factory=list)
    """What could not be read."""


def number(value: object) -> float:
    """`value` as a float; NaN when it is not a finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return math.nan


def read_records(run: Path) -> Records:
    """The records of the run folder `run`.

    Raises:
        InputError: it is not a run folder.
    """
    if not (run / "metrics.jsonl").is_file():
        what = "is not a run folder (it has no metrics.jsonl)" if run.is_dir() else "the folder does not exist"
        raise InputError(what, where=str(run), todo="`rhapsode train` makes run folders, by default under runs/.")
    records = Records(run)
    _read_metrics(records)
    corpus = _corpus_folder(records)
    records.settings = _mapping(run / "run.yaml", read_yaml, records)
    records.plan = _mapping(run / "plan.json", read_json, records)
    records.corpus = _mapping(corpus / "manifest.json", read_json, records)
    records.documents = list(islice(_json_lines(corpus / "documents.jsonl", records), DOCUMENTS_READ))
    records.samples = [
        sample
        for sample in _json_lines(run / "samples.jsonl", records)
        if isinstance(sample.get("text"), str) and math.isfinite(number(sample.get("step")))
    ]
    records.log = _last_lines(run / "log.txt")
    return records


def _corpus_folder(records: Records) -> Path:
    """The run's own corpus, or the prepared one that it was started with."""
    own = records.run / "corpus"
    elsewhere = records.starts[-1].get("corpus") if records.starts else None
    return Path(elsewhere) if isinstance(elsewhere, str) and not own.exists() else own


def _mapping(path: Path, read: Callable[[Path], Any], records: Records) -> dict[str, Any]:
    """The names and values in a file; nothing, and a word to `problems`, when it is not there in full."""
    if not path.exists():
        return {}
    try:
        value = read(path)
    except InputError as error:
        records.problems.append(error.message)
        return {}
    if not isinstance(value, dict):
        records.problems.append(f"{path}: does not hold names and values.")
        return {}
    return value


def _read_metrics(records: Records) -> None:
    for record in _json_lines(records.run / "metrics.jsonl", records):
        kind = record.get("kind")
        if kind == "start":
            records.starts.append(record)
            records.end = None
            resumed_from = number(record.get("resumed_from"))
            if not math.isnan(resumed_from):
                records.events.append({"kind": "resumed", "step": resumed_from})
        elif kind == "train":
            records.train.append(record)
        elif kind == "validation":
            records.validation.append(record)
        elif kind in ("warning", "end"):
            records.events.append(record)
            records.end = record if kind == "end" else records.end


def _json_lines(path: Path, records: Records) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines. A last line cut short is nothing to speak of; other damage is counted."""
    if not path.exists():
        return
    damaged = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                damaged += line.endswith("\n")
                continue
            if isinstance(value, dict):
                yield value
            else:
                damaged += 1
    if damaged:
        records.problems.append(f"{path}: {damaged} lines are not JSON objects and were left out.")


def _last_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LARGEST_LOG_READ))
        return file.read().decode("utf-8", errors="replace").splitlines()[-LOG_LINES:]
