"""The model folder: what Hugging Face tools, and everything that reads their format, load without our code.

config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json
chat_template.jinja  README.md  rhapsode.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.files import read_json, write_atomically, write_json
from rhapsode.base.progress import note
from rhapsode.model.config import ModelConfig
from rhapsode.model.encoder_decoder import EncoderDecoder
from rhapsode.model.families import FAMILIES
from rhapsode.model.families.family import Family
from rhapsode.model.fields import Fields
from rhapsode.model.model import Model, new_model
from rhapsode.model.weights import Stored, stored_tensors

if TYPE_CHECKING:
    from rhapsode.tokenizer.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_config(folder: Path) -> ModelConfig:
    """The shape described by a model folder's `config.json`. What it says that is not followed is told.

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
    chosen = family.read(fields)
    if not has_head:
        chosen |= {"has_head": False}
    config = family.config(**chosen)
    if code := fields.naming_code():
        note(f"{path}: {', '.join(code)} would run code or choose an implementation; it is not followed.")
    if left := fields.unasked():
        note(f"{path}: nothing is known of {', '.join(left)}; what it asks for is not done.")
    return config


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
    shown = ", ".join(map(str, architectures)) if isinstance(architectures, list) and architectures else "not named"
    code = "".join(f", and {key} names code to run, which is never done" for key in fields.naming_code()[:1])
    known = ", ".join(family.architectures[0] for family in FAMILIES.values())
    raise InputError(
        f"architecture {shown} is unknown{code}",
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


class _WeightFiles:
    """The tensors of a folder, by name, mapped and not read."""

    def __init__(self, folder: Path, held: ExitStack) -> None:
        self.folder = folder
        self._files: dict[str, tuple[Path, Any]] = {}
        for path in weight_files(folder):
            if not path.is_file():
                raise InputError("the file with the weights does not exist", where=str(path))
            with _damage(path):
                file = held.enter_context(safe_open(str(path), framework="pt"))
                for name in file.keys():  # noqa: SIM118  # not a dict
                    self._files[name] = (path, file)

    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        path, file = self._files[name]
        with _damage(path):
            return tuple(file.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        path, file = self._files[name]
        with _damage(path):
            tensor: Tensor = file.get_tensor(name)
        if not tensor.is_floating_point():
            raise InputError(f"tensor {name!r} is of type {tensor.dtype}, not of floating point", where=str(path))
        return tensor


class _damage:  # noqa: N801  # a context manager, used as a function
    """Whatever the library says of a broken file, as our error."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, SafetensorError | OSError | ValueError | RuntimeError | KeyError | TypeError):
            raise DamagedError(
                f"is damaged ({error})", where=str(self.path), todo="Copy or download it again."
            ) from None


def load_weights(folder: Path, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Our parameters' names and values, in fp32, from a model folder, each checked against the shape.

    Where a file has fp32 numbers in our layout, a tensor is the file itself, mapped into memory.

    Raises:
        InputError: a file or tensor is missing.
        DamagedError: a file is truncated, or a tensor has another shape than the configuration says.
    """
    family = FAMILIES[config.family]
    with torch.device("meta"):
        shapes = {name: tuple(parameter.shape) for name, parameter in new_model(config).named_parameters()}
    with ExitStack() as held:
        files = _WeightFiles(folder, held)
        wanted = stored_tensors(config, shapes)
        names = [_name_in(files.names(), stored, family) for stored in wanted]
        for stored, name in zip(wanted, names, strict=True):
            if name is None:
                if stored.layout != "vector":  # a bias of the logits that many files leave out: zero
                    raise InputError(f"tensor {stored.name!r} is missing", where=str(folder))
            elif (shape := files.shape(name)) != stored.shape:
                raise DamagedError(
                    f"tensor {name!r} has shape {shape}; config.json asks for {stored.shape}", where=str(folder)
                )
        unused = files.names() - {name for name in names if name is not None}
        if told := sorted(name for name in unused if not name.endswith(family.unused)):
            note(f"{folder}: {_some(told)} {'is' if len(told) == 1 else 'are'} not part of the model and not used.")
        for stored, name in zip(wanted, names, strict=True):
            tensor = torch.zeros(stored.shape) if name is None else files.tensor(name).to(torch.float32)
            yield from stored.unpack(tensor)


def _name_in(names: set[str], stored: Stored, family: Family) -> str | None:
    """The name under which a file has a tensor: with or without the prefix of whole models, or by an alias."""
    candidates = [stored.name, stored.name.removeprefix(family.prefix), family.prefix + stored.name]
    for ours, theirs in family.aliases:
        candidates += [name.replace(ours, theirs) for name in candidates]
    return next((name for name in candidates if name in names), None)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"


def load_model(folder: Path, device: torch.device | str = "cpu") -> Model:
    """The model in a folder, ready to compute, in fp32.

    Raises:
        InputError: as `load_config` and `load_weights`.
    """
    config = load_config(folder)
    return filled(config, load_weights(folder, config), device)


def filled(config: ModelConfig, weights: Iterator[tuple[str, Tensor]], device: torch.device | str = "cpu") -> Model:
    """A model of this shape that takes its weights over, without a copy where they are on the device already."""
    with torch.device("meta"):
        model = new_model(config)
    for name, tensor in weights:
        module, _, leaf = name.rpartition(".")
        owner = model.get_submodule(module)
        learned = owner.get_parameter(leaf).requires_grad
        setattr(owner, leaf, nn.Parameter(tensor.to(device), requires_grad=learned))
    # Setting a parameter undoes the sharing of it.
    if isinstance(model, EncoderDecoder) and config.shared_embeddings:
        model.decoder_embedding = model.embedding
    if config.has_head and config.tied_embeddings:
        last = model.decoder_embedding if isinstance(model, EncoderDecoder) else model.embedding
        model.head.weight = last.weight
    return model.eval()


def save_weights(folder: Path, model: Model) -> None:
    """Write the weights under the family's names, in shards of at most 5 GB."""
    parameters = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    wanted = stored_tensors(model.config, {name: tuple(tensor.shape) for name, tensor in parameters.items()})
    shards: list[list[Stored]] = [[]]
    filled_bytes = 0
    for stored in wanted:
        size = sum(parameters[part].nbytes for part in stored.parts)
        if filled_bytes and filled_bytes + size > SHARD_BYTES:
            shards.append([])
            filled_bytes = 0
        shards[-1].append(stored)
        filled_bytes += size
    mapping: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {stored.name: stored.pack(parameters).contiguous() for stored in shard}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        mapping |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = sum(parameters[part].nbytes for stored in wanted for part in stored.parts)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": mapping})


def config_values(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that describes a shape, without token ids."""
    family = FAMILIES[config.family]
    architecture = family.architectures[0] if config.has_head else family.headless
    common = {"architectures": [architecture], "model_type": family.name, "torch_dtype": "float32", "use_cache": True}
    return common | {"initializer_range": 0.02} | family.write(config)


def save_model(folder: Path, model: Model, tokenizer: Tokenizer, provenance: dict[str, Any]) -> None:
    """Write a whole model folder into an existing, empty one.

    Args:
        provenance: what `rhapsode.json` and the card say of data, tokenizer, settings, versions and parent.
    """
    ids = {"eos_token_id": tokenizer.end_of_text_id, "pad_token_id": tokenizer.padding_id, "bos_token_id": None}
    values = config_values(model.config)
    write_json(folder / "config.json", ids | values | {key: ids[key] for key in ids if values.get(key) is None})
    write_json(folder / "generation_config.json", ids | {"do_sample": True, "temperature": 0.8, "top_p": 0.95})
    save_weights(folder, model)
    tokenizer.save(folder)
    write_json(folder / "rhapsode.json", provenance)
    write_atomically(folder / "README.md", _card(model.config, provenance))


def _card(config: ModelConfig, provenance: dict[str, Any]) -> str:
    facts = json.dumps(provenance, indent=2, ensure_ascii=False)
    return (
        "---\nlibrary_name: transformers\ntags: [rhapsode]\n---\n\n"
        f"# A {config.family} language model of {config.parameters:,} parameters, trained by Rhapsode\n\n"
        "It continues text. It was trained on the data named below alone. What it writes can be wrong.\n"
        "\n"
        '    rhapsode generate . "Once upon a time"\n\n'
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")\n```\n\n'
        f"## Where it comes from\n\n```json\n{facts}\n```\n"
    )
