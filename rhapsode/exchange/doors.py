"""Models in and out, each passage checked when it happens.

    rhapsode import SOURCE --out FOLDER
    rhapsode export MODEL --out FILE --format gguf --type q8_0

What a target cannot hold is refused before anything is written. What was written is read again and compared; if it
computes something else, it is kept under a name that says so, and the door stays shut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import rhapsode
from rhapsode.base.errors import InputError, RhapsodeError, nearest
from rhapsode.base.files import new_file, new_folder, remove
from rhapsode.base.progress import Progress
from rhapsode.exchange import gguf_file, gguf_model
from rhapsode.exchange.opened import Opened
from rhapsode.exchange.opening import open_model
from rhapsode.exchange.parity import (
    SAME,
    TOLERANCES,
    LlamaCpp,
    Ours,
    Parity,
    Peer,
    Tolerance,
    Transformers,
    check,
    installed,
)
from rhapsode.model.config import ModelConfig
from rhapsode.model.families import FAMILIES
from rhapsode.model.fields import Fields
from rhapsode.model.folder import config_values, save_model

Format = Literal["hugging-face", "gguf"]

BLOCK = 2**20  # bytes


@dataclass(frozen=True)
class Passage:
    """A model that went through a door.

    Args:
        path: what was written.
        parity: how it compares with what went in.
        notices: what is to be known of it, a sentence each.
    """

    path: Path
    parity: Parity
    notices: tuple[str, ...] = ()


class ParityError(RhapsodeError):
    """What was written computes something else (exit code 1). It is kept under another name.

    Args:
        parity: the table.
    """

    def __init__(self, path: Path, parity: Parity) -> None:
        self.parity = parity
        super().__init__(
            f"what was written does not compute what went in: {'; '.join(parity.faults)}",
            where=str(path),
            todo="It is kept for a look; do not use it.",
        )


def import_model(source: Path | str, out: Path, *, tokenizer: Path | None = None, force: bool = False) -> Passage:
    """Write a model of any format, or of the hub, as a model folder, in fp32.

    Args:
        source: whatever `open_model` opens.
        out: the folder, which must not be there.
        tokenizer: the tokenizer's file or folder, where it is not where its format has it.
        force: replace what is there.

    Raises:
        InputError: as `open_model`; or `out` is there.
        ParityError: what was written computes something else.
    """
    require_free(out, force)
    return _write_folder(open_model(source, tokenizer=tokenizer), out, force)


def export_model(
    model: Path | str,
    out: Path,
    *,
    format: Format = "hugging-face",
    quantization: str = "F32",
    family: str | None = None,
    force: bool = False,
) -> Passage:
    """Write a model for other tools.

    Args:
        model: whatever `open_model` opens.
        out: a folder, or for GGUF a file, which must not be there.
        quantization: how GGUF stores numbers: a name in `gguf_file.QUANTIZATIONS`. Folders are written in fp32.
        family: write it as one of another family that computes the same.
        force: replace what is there.

    Raises:
        InputError: as `open_model`; `out` is there; or the format cannot hold the model or its tokenizer.
        ParityError: what was written computes something else.
    """
    require_free(out, force)
    quantization = quantization.upper()
    if quantization not in gguf_file.QUANTIZATIONS:
        raise InputError(
            f"there is no type {quantization.lower()!r}",
            where="--type",
            todo=nearest(quantization.lower(), map(str.lower, gguf_file.QUANTIZATIONS)),
        )
    if format == "hugging-face" and quantization != "F32":
        raise InputError("Hugging Face folders are written in f32", where="--type", todo="Add --format gguf.")
    opened = open_model(model)
    if family is not None:
        opened.model.config = as_family(opened.model.config, family)
    if format == "hugging-face":
        return _write_folder(opened, out, force)
    return _write_gguf(opened, out, quantization, force)


def as_family(config: ModelConfig, name: str) -> ModelConfig:
    """A shape as one of another family, where that computes the same.

    Raises:
        InputError: there is no such family, or it computes something else; the message says what differs.
    """
    if name not in FAMILIES:
        raise InputError(f"there is no family {name!r}", where="--family", todo=nearest(name, FAMILIES))
    other, differing = _seen_as(config, name)
    if differing:
        near = [one for one in FAMILIES if not _seen_as(config, one)[1]]
        raise InputError(
            f"a {config.family} like this is no {name}: {', '.join(differing)} would be otherwise",
            where="--family",
            todo=f"It can be written as: {', '.join(near)}.",
        )
    return other


def _seen_as(config: ModelConfig, name: str) -> tuple[ModelConfig, list[str]]:
    """The shape that a family reads from its own configuration of this one, and the fields in which the two differ."""
    family = FAMILIES[name]
    if family.kind != config.kind:
        return config, ["kind"]
    try:
        values = config_values(replace(config, family=name))
        other = family.config(**family.read(Fields(values, name)))
    except (InputError, ValueError, AssertionError) as error:
        return config, [str(error) or "its parts"]
    names = [field.name for field in fields(ModelConfig) if field.name not in ("family", "has_head")]
    other = replace(other, has_head=config.has_head)
    return other, [name for name in names if getattr(other, name) != getattr(config, name)]


def _write_folder(opened: Opened, out: Path, force: bool) -> Passage:
    """Write a model folder and check it."""
    model, provenance = opened.model, _provenance(opened)
    context = model.config.context_length
    with new_folder(out, replace=force) as folder:
        save_model(folder, model, opened.tokenizer, provenance, generation=generation_of(opened), quiet=False)
        peers: list[tuple[str, Callable[[], Peer], Tolerance]] = [
            ("rhapsode", lambda: Ours(open_model(folder).model), SAME)
        ]
        missing = []
        if installed("transformers"):
            peers.append(("transformers", partial(Transformers, folder, model), SAME))
        else:
            missing.append("transformers")
        if opened.format == "GGUF":
            if installed("llama_cpp"):
                source = partial(LlamaCpp, opened.files[0], context)
                peers.append(("llama.cpp, of what came in", source, TOLERANCES["F16"]))
            else:
                missing.append("llama-cpp-python")
        parity = check(model, opened.tokenizer, peers, context=context, missing=missing)
        _require_parity(parity, folder, out)
    return Passage(out, parity)


def _write_gguf(opened: Opened, out: Path, quantization: str, force: bool) -> Passage:
    """Write a GGUF file and check it."""
    model = opened.model
    prepared = gguf_model.prepare(model.config, opened.tokenizer, opened.end_ids, _name_of(opened))
    tolerance = TOLERANCES[quantization]
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_file(out, replace=force) as file:
        written = gguf_model.write_model(file, model, prepared, quantization)
        notices = [*prepared.notices]
        if written.fallbacks:
            shown = ", ".join(written.fallbacks[:3]) + (", ..." if len(written.fallbacks) > 3 else "")
            notices.append(f"{len(written.fallbacks)} tensors are f16, for their rows are no blocks of 32: {shown}")
        context = prepared.context_length
        peers: list[tuple[str, Callable[[], Peer], Tolerance]] = [
            ("rhapsode", lambda: Ours(open_model(file).model), tolerance)
        ]
        missing = []
        if installed("llama_cpp"):
            # Which computes activations by tables of 16 bits, and sums in other orders.
            theirs = Tolerance(max(tolerance.divergence, TOLERANCES["F16"].divergence))
            peers.append(("llama.cpp", partial(LlamaCpp, file, context), theirs))
        else:
            missing.append("llama-cpp-python")
        parity = check(model, opened.tokenizer, peers, context=context, missing=missing)
        _require_parity(parity, file, out)
    return Passage(out, parity, tuple(notices))


def require_free(out: Path, force: bool) -> None:
    """Refuse to begin long work whose result has no place."""
    if out.exists() and not force:
        raise InputError("already exists", where=str(out), todo="Choose another name, or pass --force to replace it.")


def _require_parity(parity: Parity, written: Path, out: Path) -> None:
    if parity.faults:
        kept = out.with_name(f"{out.name}.parity-failed")
        remove(kept)
        written.rename(kept)
        raise ParityError(kept, parity)


def _name_of(opened: Opened) -> str:
    """What to call a model."""
    if opened.origin is not None:
        return opened.origin.partition("@")[0]
    path = Path(opened.where).resolve()
    return path.parent.name if path.name == "model" else path.stem if path.is_file() else path.name


def generation_of(opened: Opened) -> dict[str, Any]:
    """The generation_config.json of a model that came with one, or with more than one token that ends a text."""
    values = {key: value for key, value in opened.generation.items() if key not in ("auto_map", "_from_model_config")}
    if opened.provenance is not None and values:
        return values
    end = opened.tokenizer.end_of_text_id
    ends = list(dict.fromkeys([*opened.end_ids, *([] if end is None else [end])]))
    return values | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})


def _provenance(opened: Opened) -> dict[str, Any]:
    """What the new folder says of where it comes from. A model's own record goes on with it."""
    if opened.provenance is not None:
        return opened.provenance | {"copied_from": source_of(opened)}
    tokenizer = {"kind": opened.tokenizer.kind, "sha256": opened.tokenizer.digest}
    return {"made_by": f"rhapsode {rhapsode.__version__}", "parent": source_of(opened), "tokenizer": tokenizer}


def source_of(opened: Opened) -> dict[str, Any]:
    """What a record says of the model that another was made from; its files are digested for it."""
    return {"source": opened.origin or opened.where, "format": opened.format, "sha256": _digests(opened.files)}


def _digests(files: tuple[Path, ...]) -> dict[str, str]:
    """The SHA-256 of each file, with a bar."""
    found: dict[str, str] = {}
    with Progress("digesting", sum(file.stat().st_size for file in files), "bytes") as progress:
        for path in files:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    progress.advance(len(block))
            found[path.name] = digest.hexdigest()
    return found
