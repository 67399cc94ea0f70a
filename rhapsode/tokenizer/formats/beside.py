"""What stands beside a vocabulary: which tokens are special, which were added, and to what family it belongs.

tokenizer_config.json  special_tokens_map.json  added_tokens.json  config.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rhapsode.base.errors import DamagedError, InputError, shown
from rhapsode.base.files import parse_json
from rhapsode.tokenizer.definition import Part, added_token, frame
from rhapsode.tokenizer.formats import files

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# What of tokenizer_config.json still holds when the tokenizer is written as a tokenizer.json.
KEPT = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "clean_up_tokenization_spaces")

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@dataclass(frozen=True)
class Token:
    """A token that the settings name, with its id when they give one."""

    content: str
    id: int | None = None
    special: bool = True
    flags: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Beside:
    """What the files beside a vocabulary say."""

    where: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """tokenizer_config.json, without what names code."""
    family: str = ""
    """As "bert", "t5", "xlmroberta", from the class or model that the files name; empty when none does."""
    roles: Mapping[str, Token | None] = field(default_factory=dict)
    """The token of each role in `ROLES` that the files speak of; None where they say that there is none."""
    added: Sequence[Token] = ()
    """Every other token that the files name."""

    def flag(self, name: str, default: bool) -> bool:
        """The setting `name`, which must be true or false."""
        value = self.settings.get(name)
        if value is not None and not isinstance(value, bool):
            raise InputError(f"{name} must be true or false", where=self.where)
        return default if value is None else value


@dataclass(frozen=True)
class Opened:
    """A tokenizer.json made from other files, and the settings that go with it."""

    definition: str
    settings: dict[str, Any]
    where: str
    """The file or folder it was read from, for messages."""
    target: Opened | None = None
    """How the texts are cut that the model writes, when that is otherwise."""


def opened(content: Part, settings: dict[str, Any], where: str, target: Opened | None = None) -> Opened:
    """A tokenizer.json as it is written: on one line, for indented it would take Python seconds."""
    return Opened(json.dumps(content, ensure_ascii=False), settings, where, target)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`, empty when there is no such file.

    Raises:
        DamagedError: it is none.
    """
    if not file.is_file():
        return {}
    value = parse_json(files.as_text(files.read_bytes(file), str(file)), str(file))
    if not isinstance(value, dict):
        raise DamagedError("is not a JSON object", where=str(file))
    return value


def read_beside(folder: Path) -> Beside:
    """What the files in `folder` say; nothing when there are none.

    Raises:
        DamagedError: one of them is not what it should be.
    """
    settings = read_object(folder / "tokenizer_config.json")
    named = read_object(folder / "special_tokens_map.json")
    # Where the settings list the added tokens they are the newer word; older ones are completed by the map.
    said = named | settings if "added_tokens_decoder" in settings else settings | named
    where = str(folder / "tokenizer_config.json")
    added = [_token(entry, where, _number(id, where)) for id, entry in _items(said, "added_tokens_decoder", where)]
    others = read_object(folder / "added_tokens.json")
    known = {token.content for token in added}
    for content, id in others.items():
        files.require_id(id, content, str(folder / "added_tokens.json"))
        if content not in known:
            added.append(Token(content, id, special=False))
    for name in ("additional_special_tokens", "extra_special_tokens"):
        listed = said.get(name)
        entries = list(listed.values()) if isinstance(listed, dict) else listed or []
        if not isinstance(entries, list):
            raise DamagedError(f"{name} is not a list", where=where)
        added += [_token(entry, where) for entry in entries]
    roles = {role: None if said[role] is None else _token(said[role], where) for role in ROLES if role in said}
    settings.pop("auto_map", None)
    return Beside(where, settings, _family(settings, folder), roles, added)


def complete(
    beside: Beside, vocabulary: dict[str, int], defaults: Mapping[str, str]
) -> tuple[dict[str, str], list[Part]]:
    """The token of each role, and `added_tokens` of a tokenizer.json; tokens new to `vocabulary` are put into it.

    Args:
        vocabulary: the id of each token.
        defaults: the tokens that the family gives these roles, used where the files say nothing and the token exists.

    Raises:
        DamagedError: a token has two ids, or an id two tokens.
    """
    taken = {id: content for content, id in vocabulary.items()}
    following = max(taken, default=-1) + 1
    tokens: dict[str, Part] = {}
    names: dict[str, str] = {}

    def add(token: Token) -> None:
        nonlocal following
        id = vocabulary.get(token.content, following if token.id is None else token.id)
        files.require_id(id, token.content, beside.where)
        if token.id is not None and token.id != id:
            raise DamagedError(f"the token {shown(token.content)} has the id {id}, not {token.id}", where=beside.where)
        if taken.setdefault(id, token.content) != token.content:
            raise DamagedError(
                f"the tokens {shown(taken[id])} and {shown(token.content)} both have the id {id}",
                where=beside.where,
            )
        following = max(following, id + 1)
        vocabulary[token.content] = id
        before = tokens.get(token.content, {})
        flags = token.flags or {flag: before[flag] for flag in FLAGS if flag in before}
        special = token.special or before.get("special", False)
        tokens[token.content] = added_token(token.content, id, special=special, **flags)

    for token in beside.added:
        if token.id is not None:
            add(token)
    for role in ROLES:
        named = beside.roles.get(role)
        if role not in beside.roles and defaults.get(role) in vocabulary:
            named = Token(defaults[role])
        if named is not None:
            add(named)
            names[role] = named.content
    for token in beside.added:
        if token.id is None:  # named, but nowhere given an id: it follows all others, as in transformers
            add(token)
    return names, sorted(tokens.values(), key=lambda token: int(token["id"]))


def settings_of(beside: Beside, names: Mapping[str, str], **rhapsode: Any) -> dict[str, Any]:
    """The tokenizer_config.json that goes with a tokenizer.json made here; `rhapsode` is its part for Rhapsode."""
    kept = {key: beside.settings[key] for key in (*KEPT, "chat_template") if key in beside.settings}
    own = beside.settings.get("rhapsode")
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"} | kept | dict(names)
    if rhapsode or isinstance(own, dict):
        settings["rhapsode"] = (own if isinstance(own, dict) else {}) | rhapsode
    return settings


def start_and_end(
    beside: Beside, names: Mapping[str, str], vocabulary: Mapping[str, int], *, start: bool, end: bool
) -> Part | None:
    """The `post_processor` that puts start and end tokens around a text.

    Args:
        start, end: what holds where the settings have neither `add_bos_token` nor `add_eos_token`.
    """
    if beside.settings.get("add_bos_token") is not None or beside.settings.get("add_eos_token") is not None:
        start, end = beside.flag("add_bos_token", False), beside.flag("add_eos_token", False)
    front = [names["bos_token"]] if start and "bos_token" in names else []
    back = [names["eos_token"]] if end and "eos_token" in names else []
    return frame(front, back, dict(vocabulary), typed=bool(front) and not back)


def _items(settings: dict[str, Any], name: str, where: str) -> list[tuple[str, Any]]:
    value = settings.get(name) or {}
    if not isinstance(value, dict):
        raise DamagedError(f"{name} is not a JSON object", where=where)
    return list(value.items())


def _number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise DamagedError(f"{text[:40]!r} in added_tokens_decoder is no id", where=where)
    return int(text)


def _token(entry: Any, where: str, id: int | None = None) -> Token:
    """A token from its name, or from an object with its name and flags."""
    flags: dict[str, bool] = {}
    special = True
    if isinstance(entry, dict):
        special = entry.get("special", id is None) is True
        flags = {flag: entry[flag] is True for flag in FLAGS if flag in entry}
        entry = entry.get("content")
    if not isinstance(entry, str) or not entry:
        raise DamagedError("a special token in it has no name", where=where)
    return Token(entry, id, special, flags)


def _family(settings: dict[str, Any], folder: Path) -> str:
    """The family that tokenizer_config.json names as a class, or config.json as a model."""
    name = settings.get("tokenizer_class")
    family = name.removesuffix("Fast").removesuffix("Tokenizer").lower() if isinstance(name, str) else ""
    if family in ("", "pretrained", "tokenizersbackend"):
        model = read_object(folder / "config.json").get("model_type")
        family = model.replace("-", "").replace("_", "").lower() if isinstance(model, str) else ""
    return family
