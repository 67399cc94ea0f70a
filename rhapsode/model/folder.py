"""The model folder: what Hugging Face tools, and everything that reads their format, load without our code.

config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json
chat_template.jinja  README.md  rhapsode.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rhapsode.base.errors import DamagedError, InputError, shown
from rhapsode.base.files import read_json, write_atomically, write_json
from rhapsode.base.progress import Progress, note
from rhapsode.model.config import Kind, ModelConfig
from rhapsode.model.families import FAMILIES
from rhapsode.model.families.family import Family
from rhapsode.model.fields import Fields
from rhapsode.model.model import Model, filled
from rhapsode.model.packed import BITS, COLUMNS
from rhapsode.model.tensor_files import TensorFiles, Written, write_tensors
from rhapsode.model.weights import Shapes, Stored, stored_tensors

if TYPE_CHECKING:
    from rhapsode.tokenizer.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
QUANTIZED = "rhapsode"
"""What `quantization_config` calls the weights of `packed_folder`."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_config(folder: Path) -> ModelConfig:
    """The shape described by a model folder's `config.json`; errors as `read_config`."""
    return read_config(folder)[0]


def read_config(folder: Path) -> tuple[ModelConfig, int | None]:
    """The shape described by a model folder's `config.json`, and the bits of weights that `packed_folder` wrote.

    What it says that is not followed is told.

    Raises:
        InputError: no model folder, an unknown architecture, or a setting that is out of range or not supported.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise InputError("is not a model folder", where=str(folder), todo="Name a folder with a config.json in it.")
    values = read_json(path)
    if not isinstance(values, dict):
        raise DamagedError("must hold a JSON object", where=str(path))
    fields = Fields(values, str(path))
    family, has_head = _family(fields)
    bits = _quantization(fields)
    chosen = family.read(fields)
    if not has_head:
        chosen |= {"has_head": False}
    config = family.config(**chosen)
    if code := fields.naming_code():
        note(f"{path}: {', '.join(code)} would run code or choose an implementation; it is not followed.")
    if left := fields.unasked():
        note(f"{path}: nothing is known of {_some(left)}; what it asks for is not done.")
    return config, bits


def _quantization(fields: Fields) -> int | None:
    """The bits of quantised weights, None where they are not."""
    inside = fields.object("quantization_config")
    if inside is None:
        return None
    if inside.any("quant_method") != QUANTIZED:
        raise InputError(
            "the weights are quantised in a way that is not read",
            where=f"{fields.where}, field 'quantization_config'",
            todo="Name a folder with weights that are not quantised, or a GGUF file of the model.",
        )
    bits, size = inside.integer("bits"), inside.integer("group_size")
    if bits not in BITS:
        raise inside.wrong("bits", f"must be {' or '.join(map(str, BITS))}", bits)
    if size != COLUMNS:
        raise inside.wrong("group_size", f"must be {COLUMNS}", size)
    if left := inside.unasked():
        raise InputError(f"nothing is known of {_some(left)}", where=inside.where)
    return bits


def _family(fields: Fields) -> tuple[Family, bool]:
    """The family of a configuration, and whether it is of a model with its head."""
    architectures = fields.any("architectures") or []
    name = fields.any("model_type")
    for family in FAMILIES.values():
        if isinstance(architectures, list) and len(architectures) == 1:
            if architectures[0] in family.architectures:
                return family, True
            if family.headless and architectures[0] == family.headless:
                return family, False
        elif not architectures and name == family.name:
            return family, True
    named = _some(architectures) if isinstance(architectures, list) and architectures else "not named"
    code = "".join(f", and {key} names code to run, which is never done" for key in fields.naming_code()[:1])
    known = ", ".join(family.architectures[0] for family in FAMILIES.values())
    raise InputError(
        f"architecture {named} is unknown{code}",
        where=f"{fields.where}, field 'architectures'",
        todo=f"Known: {known}.",
    )


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a model folder.

    Raises:
        InputError: they are missing, or pickled.
        DamagedError: the index is not one.
    """
    index = folder / INDEX
    if not index.exists():
        single = folder / WEIGHTS
        pickled = [path for path in sorted(folder.iterdir()) if path.suffix in PICKLED] if folder.is_dir() else []
        if not single.exists() and pickled:
            raise refuse_pickle(pickled[0])
        return [single]
    content = read_json(index)
    mapping = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(mapping, dict):
        raise DamagedError("has no weight_map", where=str(index))
    if any(not isinstance(name, str) or Path(name).name != name for name in mapping.values()):
        raise InputError("names a file outside the folder", where=str(index))
    return [folder / name for name in sorted(set(mapping.values()))]


def refuse_pickle(path: Path) -> InputError:
    """What to raise about weights that Python's pickle wrote."""
    return InputError(
        "these weights are pickled: to read them is to run whatever program their author put in, which is never done",
        where=str(path),
        todo="Where you trust the author, convert them once, in a place that holds nothing of value, with "
        "transformers: model.save_pretrained(folder, safe_serialization=True).",
    )


def _open_weights(folder: Path, config: ModelConfig) -> TensorFiles:
    """The files with the weights, which have tensors enough for the layers that the configuration asks for.

    Without that, a number in a configuration would be enough to build layers for hours.
    """
    files = TensorFiles(weight_files(folder), str(folder))
    parts = sum(tower.layers for tower in config.towers)
    if config.experts is not None:
        parts += config.experts.count * len(config.experts.layers)
    if parts > len(files.names):
        raise DamagedError(
            f"config.json asks for {parts:,} layers and experts; there are {len(files.names):,} tensors",
            where=str(folder),
        )
    return files


def _weights(files: TensorFiles, config: ModelConfig, shapes: Shapes) -> Iterator[tuple[str, Tensor]]:
    """Our parameters' names and values, in fp32, each checked against its shape.

    Where a file has fp32 numbers in our layout, a tensor is the file itself, mapped into memory.
    """
    family, names_there = FAMILIES[config.family], files.names
    wanted = stored_tensors(config, shapes)
    names = [_name_in(names_there, stored, family) for stored in wanted]
    for stored, name in zip(wanted, names, strict=True):
        if name is None:
            if stored.layout != "vector":  # a bias of the logits that many files leave out: zero
                raise InputError(f"tensor {stored.name!r} is missing", where=files.where)
        elif (shape := files.shape(name)) != stored.shape:
            raise DamagedError(
                f"tensor {shown(name)} has shape {shown(shape)}; config.json asks for {stored.shape}",
                where=files.where,
            )
    unused = names_there - {name for name in names if name is not None}
    if told := sorted(name for name in unused if not name.endswith(family.unused)):
        note(f"{files.where}: {_some(told)} {'is' if len(told) == 1 else 'are'} not part of the model and not used.")
    for stored, name in zip(wanted, names, strict=True):
        kept = stored.layout not in ("columns", "heads")  # whose parts are no parts of the file
        tensor = torch.zeros(stored.shape) if name is None else files.tensor(name, as_it_is=kept)
        yield from stored.unpack(tensor)


def _name_in(names: set[str], stored: Stored, family: Family) -> str | None:
    """The name under which a file has a tensor: with or without the prefix of whole models, or by an alias."""
    candidates = [stored.name, stored.name.removeprefix(family.prefix), family.prefix + stored.name]
    for ours, theirs in family.aliases:
        candidates += [name.replace(ours, theirs) for name in candidates]
    return next((name for name in candidates if name in names), None)


def _some(names: Sequence[Any]) -> str:
    first = ", ".join(shown(name).strip("'") for name in names[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


def load_model(folder: Path, device: torch.device | str = "cpu") -> Model:
    """The model in a folder, ready to compute, in fp32.

    Raises:
        InputError: as `load_config`; or a file or tensor is missing, or of a type that cannot be read.
        DamagedError: a file is not what it should be, or a tensor has another shape than the configuration says.
    """
    config, bits = read_config(folder)
    if bits is not None:
        raise InputError("its weights are quantised", where=str(folder), todo="Open it with rhapsode.load.")
    files = _open_weights(folder, config)
    return filled(config, lambda shapes: _weights(files, config, shapes), device)


def save_weights(folder: Path, model: Model, *, quiet: bool = True) -> None:
    """Write the weights under the family's names, in shards of at most 5 GB, with a bar unless `quiet`."""
    parameters = dict(model.named_parameters())
    wanted = stored_tensors(model.config, {name: tuple(tensor.shape) for name, tensor in parameters.items()})
    written = [Written(stored.name, stored.shape, partial(stored.pack, parameters)) for stored in wanted]
    total = sum(tensor.size for tensor in written)
    shards: list[list[Written]] = [[]]
    for tensor in written:
        if shards[-1] and sum(before.size for before in shards[-1]) + tensor.size > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    mapping: dict[str, str] = {}
    with Progress("writing", total, "bytes", quiet=quiet) as progress:
        for number, shard in enumerate(shards, start=1):
            file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            write_tensors(folder / file, shard, progress)
            mapping |= dict.fromkeys((tensor.name for tensor in shard), file)
    if len(shards) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": mapping})


def config_values(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that describes a shape, without token ids."""
    family = FAMILIES[config.family]
    architecture = family.architectures[0] if config.has_head else family.headless
    common = {"architectures": [architecture], "model_type": family.name, "torch_dtype": "float32", "use_cache": True}
    return common | {"initializer_range": 0.02} | family.write(config)


def save_model(
    folder: Path,
    model: Model,
    tokenizer: Tokenizer,
    provenance: dict[str, Any],
    *,
    generation: dict[str, Any] | None = None,
    quiet: bool = True,
) -> None:
    """Write a whole model folder into an existing, empty one.

    Args:
        provenance: what `rhapsode.json` and the card say of data, tokenizer, settings, versions and parent.
        generation: the `generation_config.json`, where a model of others came with one.
        quiet: show no bar.
    """
    save_weights(folder, model, quiet=quiet)
    values, card = config_values(model.config), _card(model.config, provenance)
    save_description(folder, model.config, values, tokenizer, provenance, card, generation=generation)


def save_description(
    folder: Path,
    config: ModelConfig,
    values: dict[str, Any],
    tokenizer: Tokenizer,
    provenance: dict[str, Any],
    card: str,
    *,
    generation: dict[str, Any] | None = None,
) -> None:
    """Write what stands beside the weights; arguments as `save_model`.

    Args:
        values: the `config.json`, without token ids.
        card: the `README.md`.
    """
    front, _ = tokenizer.frame
    start = front[0] if len(front) == 1 else None
    ids = {"eos_token_id": tokenizer.end_of_text_id, "pad_token_id": tokenizer.padding_id, "bos_token_id": start}
    write_json(folder / "config.json", ids | values | {key: ids[key] for key in ids if values.get(key) is None})
    write_json(
        folder / "generation_config.json", ids | (_generation(config, ids) if generation is None else generation)
    )
    tokenizer.save(folder)
    write_json(folder / "rhapsode.json", provenance)
    write_atomically(folder / "README.md", card)


def _generation(config: ModelConfig, ids: dict[str, int | None]) -> dict[str, Any]:
    """How others should write text with a model unless told otherwise."""
    if config.kind == "decoder":
        return {"do_sample": True, "temperature": 0.8, "top_p": 0.95}
    if config.kind == "encoder":
        return {}
    return {
        "decoder_start_token_id": config.start_id,
        "forced_eos_token_id": ids["eos_token_id"],
        "bad_words_ids": [[config.start_id]],  # the decoder begins with padding, which is no text
        "num_beams": 5,
        "max_length": config.context_length,
    }


DOES: dict[Kind, tuple[str, str, str]] = {
    "decoder": ("It continues text.", 'rhapsode generate . "Once upon a time"', "AutoModelForCausalLM"),
    "encoder": ("It fills gaps in text.", 'rhapsode fill . "The <|mask|> sat on the mat."', "AutoModelForMaskedLM"),
    "encoder-decoder": ("It turns text into text.", 'rhapsode translate . "A dog."', "AutoModelForSeq2SeqLM"),
}
"""What a kind of model does, a command that shows it, and the class that opens it in transformers."""


def _card(config: ModelConfig, provenance: dict[str, Any]) -> str:
    does, command, theirs = DOES[config.kind]
    theirs = theirs if config.has_head else "AutoModel"
    parent = provenance.get("parent")
    if parent is None:
        made, comes = "trained by Rhapsode", "It was trained on the data named below alone."
    else:
        made = "brought over by Rhapsode"
        comes = "Others made it; what they say of its use and licence holds on."
    facts = json.dumps(provenance, indent=2, ensure_ascii=False)
    return (
        "---\nlibrary_name: transformers\ntags: [rhapsode]\n---\n\n"
        f"# A {config.family} language model of {config.parameters:,} parameters, {made}\n\n"
        f"{does} {comes} What it writes can be wrong.\n"
        "\n"
        f"    {command}\n\n"
        f"```python\nfrom transformers import {theirs}, AutoTokenizer\n\n"
        f'model = {theirs}.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")\n```\n\n'
        f"## Where it comes from\n\n```json\n{facts}\n```\n"
    )
