"""The model folder: what Hugging Face tools, and everything that reads their format, load without our code.

config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json
chat_template.jinja  README.md  rhapsode.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.files import read_json, write_atomically, write_json
from rhapsode.model.config import DecoderConfig
from rhapsode.model.decoder import Decoder
from rhapsode.model.families import FAMILIES

if TYPE_CHECKING:
    from rhapsode.tokenizer.tokenizer import Tokenizer

CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000


def load_config(folder: Path) -> DecoderConfig:
    """The shape described by a model folder's `config.json`.

    Raises:
        InputError: no model folder, an unknown architecture, a setting that names code, or one out of range.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise InputError("is not a model folder", where=str(folder), todo="Name a folder with a config.json in it.")
    values = read_json(path)
    if not isinstance(values, dict):
        raise DamagedError("must hold a JSON object", where=str(path))
    for key in CODE_KEYS:
        if key in values:
            raise InputError(
                "names code to run, which is never done here",
                where=f"{path}, field {key!r}",
                todo="If you trust the model and it is of a supported family, remove the field.",
            )
    architectures = values.get("architectures") or []
    for family in FAMILIES.values():
        if architectures == [family.ARCHITECTURE]:
            config: DecoderConfig = family.read_config(values, str(path))
            return config
    known = ", ".join(family.ARCHITECTURE for family in FAMILIES.values())
    raise InputError(
        f"architecture {', '.join(map(str, architectures)) or 'not named'} is unknown",
        where=f"{path}, field 'architectures'",
        todo=f"Known: {known}.",
    )


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.exists():
        return [folder / WEIGHTS]
    content = read_json(index)
    mapping = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(mapping, dict):
        raise DamagedError("has no weight_map", where=str(index))
    if any(not isinstance(name, str) or Path(name).name != name for name in mapping.values()):
        raise InputError("names a file outside the folder", where=str(index))
    return [folder / name for name in sorted(set(mapping.values()))]


def load_weights(folder: Path, config: DecoderConfig) -> dict[str, torch.Tensor]:
    """Our parameter names -> the tensors in a model folder, checked against the shape.

    Raises:
        InputError: a file or tensor is missing.
        DamagedError: a file is truncated, or a tensor has another shape than the configuration says.
    """
    wanted = {theirs: ours for ours, theirs in FAMILIES[config.family].tensor_names(config).items()}
    with torch.device("meta"):
        shapes = {name: tuple(parameter.shape) for name, parameter in Decoder(config).named_parameters()}
    found: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder):
        if not path.is_file():
            raise InputError("the file with the weights does not exist", where=str(path))
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # not a dict
                    if name in wanted:
                        found[wanted[name]] = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise DamagedError(f"is damaged ({error})", where=str(path), todo="Copy or download it again.") from None
    for theirs, ours in wanted.items():
        if ours not in found:
            raise InputError(f"tensor {theirs!r} is missing", where=str(folder))
        if tuple(found[ours].shape) != shapes[ours]:
            raise DamagedError(
                f"tensor {theirs!r} has shape {tuple(found[ours].shape)}; config.json asks for {shapes[ours]}",
                where=str(folder),
            )
    return found


def load_model(folder: Path, device: torch.device | str = "cpu") -> Decoder:
    """The model in a folder, ready to compute, in fp32.

    Raises:
        InputError: as `load_config` and `load_weights`.
    """
    config = load_config(folder)
    weights = load_weights(folder, config)
    with torch.device("meta"):
        model = Decoder(config)
    model.to_empty(device=device)
    if config.tied_embeddings:
        model.head.weight = model.embedding.weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model.eval()


def save_weights(folder: Path, model: Decoder) -> None:
    """Write the weights under the family's names, in shards of at most 5 GB."""
    names = FAMILIES[model.config.family].tensor_names(model.config)
    tensors = {
        names[ours]: parameter.detach().cpu().contiguous()
        for ours, parameter in model.named_parameters()
    }  # fmt: skip
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if filled and filled + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        return
    mapping: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        mapping |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": mapping})


def save_model(folder: Path, model: Decoder, tokenizer: Tokenizer, provenance: dict[str, Any]) -> None:
    """Write a whole model folder into an existing, empty one.

    Args:
        provenance: what `rhapsode.json` and the card say of data, tokenizer, settings, versions and parent.
    """
    config = FAMILIES[model.config.family].write_config(model.config)
    ids = {"eos_token_id": tokenizer.end_of_text_id, "pad_token_id": tokenizer.padding_id, "bos_token_id": None}
    write_json(folder / "config.json", config | ids)
    write_json(folder / "generation_config.json", ids | {"do_sample": True, "temperature": 0.8, "top_p": 0.95})
    save_weights(folder, model)
    tokenizer.save(folder)
    write_json(folder / "rhapsode.json", provenance)
    write_atomically(folder / "README.md", _card(model.config, provenance))


def _card(config: DecoderConfig, provenance: dict[str, Any]) -> str:
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
