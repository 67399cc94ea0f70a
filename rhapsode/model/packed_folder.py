"""A model folder with packed weights: a Hugging Face folder as ever, but for its `packed.safetensors`.

    with new_folder(out) as folder:
        save_packed(folder, packed, tokenizer, provenance)
    packed = load_packed(out)

`config.json` says `"quantization_config": {"quant_method": "rhapsode", "bits": 8, "group_size": 32}`, so that other
tools can name what they do not read. For each matrix the file holds `NAME.packed` (U8) and
`NAME.scales` (F16), in the shapes of `PackedMatrix`; everything else lies under its own name (F32). It is mapped into
memory, and nothing of it is copied.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import DamagedError, InputError, shown
from rhapsode.base.files import read_json
from rhapsode.base.progress import Progress
from rhapsode.model.config import ModelConfig
from rhapsode.model.folder import DOES, QUANTIZED, config_values, read_config, save_description
from rhapsode.model.model import weightless
from rhapsode.model.packed import (
    BITS,
    COLUMNS,
    ROWS,
    PackedMatrix,
    PackedModel,
    is_matrix,
    packed_shapes,
    require_packable,
)
from rhapsode.model.tensor_files import TensorFiles, encoded_header
from rhapsode.model.weights import Shapes

if TYPE_CHECKING:
    from rhapsode.tokenizer.tokenizer import Tokenizer

PACKED = "packed.safetensors"
FORMAT, VERSION = "rhapsode-packed", "1"
ALIGNMENT = 64
"""Bytes: a line of a processor's cache."""

NOT_FINITE = 0x7C00
"""The exponent of a number in half precision that is infinite, or none."""


class _Kept(NamedTuple):
    """An array of the file, under its name and in its type there."""

    name: str
    kind: str
    array: npt.NDArray[Any]


def is_packed(folder: Path) -> bool:
    """Whether a model folder is one with packed weights, or was to be one."""
    if (folder / PACKED).exists():
        return True
    values = read_json(folder / "config.json")
    inside = values.get("quantization_config") if isinstance(values, dict) else None
    return isinstance(inside, dict) and inside.get("quant_method") == QUANTIZED


def load_packed(folder: Path) -> PackedModel:
    """The packed weights in a folder, mapped into memory.

    Everything but the packed numbers themselves is checked: any of these stands for a weight.

    Raises:
        InputError: as `read_config`; the file is missing, or of a later version.
        DamagedError: the file is not what it should be, or not what `config.json` asks for.
    """
    path = folder / PACKED
    config, bits = read_config(folder)
    if bits is None:
        raise DamagedError(
            f"says nothing of quantised weights, and there is {PACKED}",
            where=str(folder / "config.json"),
            todo="Copy the whole folder again.",
        )
    require_packable(config, str(folder))
    files = TensorFiles([path], str(path))
    _require_format(files)
    if config.layers > len(files.names):  # else a number in a configuration were enough to build layers for hours
        raise _damaged(files, f"has {len(files.names):,} tensors; config.json asks for {config.layers:,} layers")
    shapes = {name: tuple(parameter.shape) for name, parameter in weightless(config).named_parameters()}
    _require_names(files, shapes)
    matrices: dict[str, PackedMatrix] = {}
    vectors: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        if is_matrix(name):
            matrices[name] = _matrix(files, name, *shape)
        else:
            vectors[name] = _mapped(files, name, "F32", shape)
            if not np.isfinite(vectors[name]).all():
                raise _damaged(files, f"tensor {name!r} has values that are not finite")
    packed = PackedModel(config, matrices, vectors)
    if packed.bits != bits:
        raise _damaged(files, f"has weights of {packed.bits} bits; config.json says {bits}")
    return packed


def _require_format(files: TensorFiles) -> None:
    said = files.metadata()
    if said.get("format") != FORMAT:
        raise _damaged(files, f"does not say that it is {FORMAT!r}")
    if (version := said.get("version")) != VERSION:
        raise InputError(
            f"is of version {shown(version)} of packed weights; version {VERSION} is read",
            where=files.where,
            todo="Install a newer Rhapsode, or quantise the model again.",
        )


def _require_names(files: TensorFiles, shapes: Shapes) -> None:
    wanted = {
        stored for name in shapes for stored in ((f"{name}.packed", f"{name}.scales") if is_matrix(name) else (name,))
    }
    if missing := sorted(wanted - files.names):
        raise _damaged(files, f"tensor {missing[0]!r} is missing{_others(missing)}")
    if added := sorted(files.names - wanted):
        raise _damaged(files, f"tensor {shown(added[0])} is not part of the model{_others(added)}")


def _others(names: Sequence[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""


def _matrix(files: TensorFiles, name: str, rows: int, columns: int) -> PackedMatrix:
    stored = f"{name}.packed"
    shape = files.shape(stored)
    for bits in BITS:
        of_weights, of_scales = packed_shapes(bits, rows, columns)
        if shape == of_weights:
            break
    else:
        asked = " or ".join(str(packed_shapes(bits, rows, columns)[0]) for bits in BITS)
        raise _damaged(files, f"tensor {stored!r} has shape {shown(shape)}; config.json asks for {asked}")
    weights = _mapped(files, stored, "U8", of_weights)
    scales = _mapped(files, f"{name}.scales", "F16", of_scales).view(np.uint16)
    if ((scales & NOT_FINITE) == NOT_FINITE).any():
        raise _damaged(files, f"tensor '{name}.scales' has scales that are not finite")
    beyond = scales[-1].reshape(len(scales[-1]), -1, ROWS)[..., (rows - 1) % ROWS + 1 :]
    if (beyond & 0x7FFF).any():
        raise _damaged(files, f"tensor '{name}.scales' has scales for more than {rows} rows")
    return PackedMatrix(bits, rows, columns, weights, scales)


def _mapped(files: TensorFiles, name: str, kind: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if (found := files.kind(name)) != kind:
        raise _damaged(files, f"tensor {name!r} is of the type {found}, not {kind}")
    if (size := files.shape(name)) != shape:
        raise _damaged(files, f"tensor {name!r} has shape {shown(size)}; config.json asks for {shape}")
    array: npt.NDArray[Any] = files.mapped(name).numpy()
    return array


def _damaged(files: TensorFiles, what: str) -> DamagedError:
    return DamagedError(what, where=files.where, todo="Copy the folder again, or quantise the model again.")


def save_packed(
    folder: Path,
    packed: PackedModel,
    tokenizer: Tokenizer,
    provenance: dict[str, Any],
    *,
    generation: dict[str, Any] | None = None,
    quiet: bool = True,
) -> None:
    """Write a whole folder into an existing, empty one; arguments as `save_model`."""
    write_packed(folder / PACKED, packed, quiet=quiet)
    quantization = {"quant_method": QUANTIZED, "bits": packed.bits, "group_size": COLUMNS}
    values = config_values(packed.config) | {"quantization_config": quantization}
    card = _card(packed.config, packed.bits, provenance)
    save_description(folder, packed.config, values, tokenizer, provenance, card, generation=generation)


def write_packed(path: Path, packed: PackedModel, *, quiet: bool = True) -> None:
    """Write the file of packed weights, with a bar unless `quiet`.

    Raises:
        OSError: it could not be written.
    """
    kept = [_Kept(f"{name}.packed", "U8", matrix.weights) for name, matrix in packed.matrices.items()]
    kept += [_Kept(f"{name}.scales", "F16", matrix.scales) for name, matrix in packed.matrices.items()]
    kept += [_Kept(name, "F32", vector) for name, vector in packed.vectors.items()]
    # The format allows no gaps. What divides into lines of the cache goes first, so all of it begins at one.
    kept.sort(key=lambda one: one.array.nbytes % ALIGNMENT != 0)
    described = ((name, kind, array.shape, array.nbytes) for name, kind, array in kept)
    with Progress("writing", packed.nbytes, "bytes", quiet=quiet) as progress, path.open("wb") as file:
        file.write(encoded_header(described, {"format": FORMAT, "version": VERSION}, ALIGNMENT))
        for _, _, array in kept:
            file.write(np.ascontiguousarray(array).data)
            progress.advance(array.nbytes)


def _card(config: ModelConfig, bits: int, provenance: dict[str, Any]) -> str:
    does, command, _ = DOES[config.kind]
    facts = json.dumps(provenance, indent=2, ensure_ascii=False)
    return (
        "---\nlibrary_name: rhapsode\ntags: [rhapsode]\n---\n\n"
        f"# A {config.family} language model of {config.parameters:,} parameters, quantised by Rhapsode\n\n"
        f"{does} Its weights have {bits} bits. It was made from the model that is named below as its parent, and what\n"
        "is said of the use and licence of that one holds on. What it writes can be wrong.\n"
        "\n"
        f"    {command}\n\n"
        '```python\nimport rhapsode\n\nmodel = rhapsode.load(".")\n'
        'print(model.generate("Once upon a time").text)\n```\n\n'
        "Other tools do not read this folder. For llama.cpp, Ollama and LM Studio, the very same numbers as GGUF:\n\n"
        "    rhapsode export . --format gguf --out model.gguf\n\n"
        f"## Where it comes from\n\n```json\n{facts}\n```\n"
    )
