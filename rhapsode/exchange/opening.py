"""Opening anything: a model folder, a run, a GGUF file, a checkpoint of llama2.c, or a name on the hub.

    opened = open_model("model.gguf")

What a file is follows from its content, whatever it is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from rhapsode.base.errors import DamagedError, InputError, MismatchError
from rhapsode.base.files import read_json
from rhapsode.exchange import gguf_model, hub, llama2c
from rhapsode.exchange.gguf_file import GgufFile
from rhapsode.exchange.opened import Opened
from rhapsode.exchange.recognise import kind_of
from rhapsode.model.config import Kind
from rhapsode.model.folder import load_config, load_model, refuse_pickle, weight_files
from rhapsode.model.model import Model
from rhapsode.model.packed import PackedModel
from rhapsode.model.packed_folder import PACKED, is_packed, load_packed
from rhapsode.model.tensor_files import TensorFiles
from rhapsode.tokenizer.tokenizer import Tokenizer

ADVICE = "Name a model folder, a run, a GGUF file, a checkpoint of llama2.c, or owner/name on the Hugging Face hub."


def open_model(name: Path | str, device: torch.device | str = "cpu", *, tokenizer: Path | None = None) -> Opened:
    """The model that a path or name stands for.

    Args:
        tokenizer: the tokenizer's file or folder, where it is not where its format has it.

    Raises:
        InputError: nothing there, or nothing that can be opened: it is damaged, unknown, pickled, or names code.
        MismatchError: the tokenizer is not the model's.
    """
    path = Path(name)
    if path.is_dir():
        return _open_folder(model_folder(path), device, tokenizer)
    if path.exists():
        return _open_file(path, device, tokenizer)
    if hub.is_name(path.as_posix()):
        found = hub.fetched(path.as_posix())
        return _open_folder(model_folder(found.folder), device, tokenizer, origin=found.origin)
    raise _nothing_at(path)


@dataclass(frozen=True)
class Outline:
    """What can be known of a model without reading its weights."""

    kind: Kind
    """Decoder, encoder or encoder-decoder."""
    weights: int
    """Bytes of memory that its weights will take: in fp32, or packed where they are."""


def outline(name: Path | str) -> Outline:
    """What a path or name stands for, so far as its headers say; errors as `open_model`, for what they show."""
    path = Path(name)
    if path.is_file():
        kind = kind_of(path)
        if kind == "GGUF":
            tensors = GgufFile(path).tensors.values()
            return Outline("decoder", sum(4 * prod(tensor.shape) for tensor in tensors))
        if kind == "llama2.c":
            return Outline("decoder", path.stat().st_size)
        _open_file(path, "cpu", None)  # says why it is not one
    if not path.exists():
        if not hub.is_name(path.as_posix()):
            raise _nothing_at(path)
        path = hub.fetched(path.as_posix()).folder
    folder = model_folder(path)
    if is_packed(folder):
        packed = load_packed(folder)
        return Outline(packed.config.kind, packed.nbytes)
    return Outline(load_config(folder).kind, 4 * TensorFiles(weight_files(folder), str(folder)).numbers)


def model_folder(folder: Path) -> Path:
    """`folder` itself, or the `model` inside it when it is a run.

    Raises:
        InputError: there is no such folder, or no model in it.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder), todo="Name a model folder or a run folder.")
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    files = sorted(path for path in folder.iterdir() if path.is_file())
    inside = [path.name for path in files if kind_of(path) in ("GGUF", "llama2.c")]
    raise InputError(
        "there is no model in this folder (no config.json)",
        where=str(folder),
        todo=f"Name the file in it: {', '.join(inside[:3])}."
        if inside
        else "Name a model folder, or a run that has saved its first model.",
    )


def _nothing_at(path: Path) -> InputError:
    todo = ADVICE
    if hub.NAME.fullmatch(path.as_posix()):
        todo = f"{ADVICE} To have {path.as_posix()!r} from the hub, write {path.as_posix()}@{hub.NEWEST}."
    return InputError("there is no such file or folder", where=str(path), todo=todo)


def _open_file(path: Path, device: torch.device | str, tokenizer: Path | None) -> Opened:
    kind = kind_of(path)
    if kind == "llama2.c":
        return llama2c.open_checkpoint(path, device, tokenizer)
    if kind == "GGUF":
        if tokenizer is not None:
            raise InputError("a GGUF file has its own tokenizer", where=str(path), todo="Leave --tokenizer out.")
        return gguf_model.open_gguf(path, device)
    if kind == "pickle":
        raise refuse_pickle(path)
    if kind in ("JSON", "safetensors"):
        raise InputError("is one file of a model folder", where=str(path), todo=f"Name the folder: {path.parent}.")
    raise InputError("is no model that is known here", where=str(path), todo=ADVICE)


def _open_folder(
    folder: Path, device: torch.device | str, given: Path | None = None, *, origin: str | None = None
) -> Opened:
    # The tokenizer first: it is small, and what is wrong with it is known before the weights are read.
    tokenizer = Tokenizer.load(folder if given is None else given)
    record = folder / "rhapsode.json"
    provenance = _object(record) if record.is_file() else None
    recorded = (provenance or {}).get("tokenizer")
    if isinstance(recorded, dict) and recorded.get("sha256", tokenizer.digest) != tokenizer.digest:
        raise MismatchError(
            "is not the tokenizer that the model was trained with",
            where=tokenizer.where,
            todo=f"Copy the folder again; {record} names its SHA-256.",
        )
    weights: Model | PackedModel
    if is_packed(folder):
        weights, files, format = load_packed(folder), [folder / PACKED], "packed"
    else:
        weights, files, format = load_model(folder, device), weight_files(folder), "Hugging Face"
    file = folder / "generation_config.json"
    generation = _object(file) if file.is_file() else {}
    ends = _end_ids(generation, file) or _end_ids(_object(folder / "config.json"), folder / "config.json")
    read = (folder / "config.json", *files, Path(tokenizer.where))
    return Opened(weights, tokenizer, ends, str(folder), read, format, origin, provenance, generation, device)


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise DamagedError("is not a JSON object", where=str(path))
    return value


def _end_ids(values: dict[str, Any], path: Path) -> tuple[int, ...]:
    """The tokens with which a model ends a text, as a file says."""
    ids = values.get("eos_token_id")
    if ids is None:
        return ()
    ids = ids if isinstance(ids, list) else [ids]
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise DamagedError("eos_token_id must be a token's number, or a list of them", where=str(path))
    return tuple(ids)
