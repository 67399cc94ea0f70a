"""Whether what Rhapsode wrote is still what it wrote: `rhapsode verify FOLDER` for a run and for each of its parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from rhapsode.base.errors import DamagedError, InputError, RhapsodeError
from rhapsode.base.files import read_json, sha256_of
from rhapsode.base.settings import read_yaml, validated
from rhapsode.corpus.corpus import Corpus
from rhapsode.model.folder import load_model
from rhapsode.model.packed import PackedModel
from rhapsode.model.packed_folder import is_packed, load_packed
from rhapsode.tokenizer.store import TokenStore
from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.training.checkpoint import (
    MANIFEST,
    OPTIMIZER,
    STATE,
    checkpoint_name,
    checkpoints,
    load_state,
    verify_folder,
)
from rhapsode.training.run_folder import RunFolder
from rhapsode.training.settings import TrainSettings


@dataclass(frozen=True)
class Finding:
    """What became of one part."""

    path: Path
    kind: str
    """What it is: a corpus, tokens, a checkpoint, a model, ..."""
    told: str
    """What was checked, or what is wrong."""
    good: bool


Part = tuple[Path, str, Callable[[Path], str]]
"""Where a part is, what it is, and what checks it: returns what was checked, raises what is wrong."""


def parts_of(folder: Path) -> list[Part]:
    """The parts that `folder` consists of; recognised by any file of theirs, so that a missing manifest is damage.

    Raises:
        InputError: it is nothing that Rhapsode makes.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder))

    def has(*names: str) -> bool:
        return any((folder / name).exists() for name in names)

    if has("run.yaml", "metrics.jsonl"):
        return _run_parts(folder)
    if has("train.txt", "documents.jsonl"):
        return [(folder, "corpus", _check_corpus)]
    if has("tokens.bin"):
        return [(folder, "tokens", _check_tokens)]
    if has("train/tokens.bin", "validation/tokens.bin"):
        return [(folder / split, "tokens", _check_tokens) for split in ("train", "validation")]
    if has("state.json", "optimizer.safetensors"):
        return [(folder, "checkpoint", _check_checkpoint)]
    if has("config.json", "model.safetensors"):
        return [(folder, "model", _check_model)]
    raise InputError(
        "is no run, checkpoint, model, corpus or token store", where=str(folder), todo="Name a folder of these kinds."
    )


def verify(parts: list[Part]) -> Iterator[Finding]:
    """Check one part after the other, reading every byte."""
    for path, kind, check in parts:
        try:
            yield Finding(path, kind, check(path), good=True)
        except RhapsodeError as error:
            where = error.where or str(path)
            inside = where.removeprefix(f"{path}").lstrip("/\\")
            yield Finding(path, kind, f"{inside}: {error.what}" if inside else error.what, good=False)
        except OSError as error:
            yield Finding(path, kind, f"{error.filename or path}: {error.strerror}", good=False)


def _run_parts(folder: Path) -> list[Part]:
    run = RunFolder(folder)
    parts: list[Part] = [(run.settings, "settings", _check_settings), (run.metrics, "records", _check_lines)]
    if run.samples.exists():
        parts.append((run.samples, "records", _check_lines))
    if run.plan.exists():
        parts.append((run.plan, "plan", _check_plan))
    if run.corpus.exists():
        parts.append((run.corpus, "corpus", _check_corpus))
    parts.append((run.tokenizer, "tokenizer", _check_tokenizer))
    parts += [(run.tokens / split, "tokens", _check_tokens) for split in ("train", "validation")]
    parts += [(path, "checkpoint", _check_checkpoint) for path in checkpoints(run.checkpoints)]
    if run.model.exists():
        parts.append((run.model, "model", _check_model))
    return parts


def _check_settings(path: Path) -> str:
    validated(TrainSettings, read_yaml(path), str(path))
    return "every setting is valid"


def _check_plan(path: Path) -> str:
    read_json(path)
    return "is JSON"


def _check_lines(path: Path) -> str:
    """A last line that a kill cut short is no damage: the run writes it again."""
    count = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                json.loads(line)
            except ValueError:
                if line.endswith("\n"):
                    raise DamagedError("is not JSON", where=f"{path}:{number}") from None
                break
            count = number
    return f"{count:,} lines"


def _check_corpus(path: Path) -> str:
    corpus = Corpus.open(path)
    corpus.verify()
    return f"digests of {corpus.count('train') + corpus.count('validation'):,} documents"


def _check_tokenizer(path: Path) -> str:
    return f"{Tokenizer.load(path).vocabulary_size:,} tokens"


def _check_tokens(path: Path) -> str:
    """In a run, the tokens must also be those of its tokenizer and its corpus."""
    run = RunFolder(path.parent.parent)
    store = TokenStore.open(
        path,
        tokenizer=Tokenizer.load(run.tokenizer) if run.exists else None,
        corpus=Corpus.open(run.corpus) if run.exists and run.corpus.exists() else None,
    )
    store.verify()
    return f"digests of {len(store.tokens):,} tokens"


def _check_checkpoint(path: Path) -> str:
    verify_folder(path)
    state, _ = load_state(path)
    _check_weights(path)
    return f"digests and shapes, step {state.step:,}"


def _check_model(path: Path) -> str:
    """Shapes and values; and digests, where a manifest is there or the checkpoint that the model was copied from."""
    _check_weights(path)
    if (path / MANIFEST).exists():
        verify_folder(path)
        return "digests and shapes"
    source = _source_of(path)
    if source is None:
        return "shapes and values; nothing here holds its digests"
    try:
        verify_folder(source)
    except DamagedError:
        return f"shapes and values; {source.name}, which it is a copy of, is damaged"
    copied = {file.name for file in source.iterdir()} - {MANIFEST, OPTIMIZER, STATE}
    for name in sorted(copied | {file.name for file in path.iterdir()}):
        if name not in copied or not (path / name).exists() or sha256_of(path / name) != sha256_of(source / name):
            raise DamagedError(f"is not as in {source.name}, which this is a copy of", where=str(path / name))
    return f"equals {source.name}"


def _source_of(model: Path) -> Path | None:
    """The checkpoint in the same run that a model was copied from, if it is still there."""
    record = model / "rhapsode.json"
    provenance = read_json(record) if record.exists() else None
    step = provenance.get("step") if isinstance(provenance, dict) else None
    source = model.parent / "checkpoints" / checkpoint_name(step) if isinstance(step, int) else None
    return source if source is not None and source.is_dir() else None


def _check_weights(path: Path) -> None:
    tokenizer = Tokenizer.load(path)
    weights = load_packed(path) if is_packed(path) else load_model(path)
    if tokenizer.vocabulary_size > weights.config.vocabulary_size:
        raise DamagedError("its tokenizer has more tokens than the model", where=str(path))
    if isinstance(weights, PackedModel):  # whose values were checked
        return
    for name, parameter in weights.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise DamagedError(f"{name} holds values that are no finite numbers", where=str(path))
