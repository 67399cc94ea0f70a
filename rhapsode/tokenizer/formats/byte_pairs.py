"""vocab.json with merges.txt: byte-level BPE, as of GPT-2, RoBERTa, BART and Qwen2.

OpenAI named the same two files encoder.json and vocab.bpe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rhapsode.base.errors import DamagedError, InputError, shown
from rhapsode.base.files import parse_json
from rhapsode.base.progress import note
from rhapsode.tokenizer.definition import Part, byte_pairs, definition
from rhapsode.tokenizer.formats import beside as surroundings
from rhapsode.tokenizer.formats import files
from rhapsode.tokenizer.formats.beside import Beside, Opened
from rhapsode.tokenizer.pre_tokenizers import (
    BYTE_LEVEL,
    PATTERNS,
    byte_characters,
    pattern_that_fits,
    pre_tokenizer_settings,
)

PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
VERSION = "#version"

Merges = list[tuple[str, str]]


@dataclass(frozen=True)
class Style:
    """What a family adds to its vocabulary and merges."""

    pre_tokenizer: str
    """A name in `PATTERNS`."""
    roles: Mapping[str, str] = field(default_factory=dict)
    composes: bool = False
    """Characters and their marks are composed first (NFC)."""
    enclosed: bool = False
    """A text stands between the `cls_token` and the `sep_token`."""


GPT2 = Style("gpt-2", dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"))
ROBERTA = Style(
    "gpt-2",
    {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    enclosed=True,
)
QWEN2 = Style("qwen2", {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, composes=True)
STYLES = {
    **dict.fromkeys(("gpt2", "opt", "codegen", "whisper", "gptneo", "gptj"), GPT2),
    **dict.fromkeys(("roberta", "bart", "longformer", "led", "mvp"), ROBERTA),
    **dict.fromkeys(("qwen2", "qwen3", "qwen2moe", "qwen3moe"), QWEN2),
}


def find(folder: Path) -> Path | None:
    """The merges of a pair of files in `folder`."""
    pairs = ((folder / vocabulary, folder / merges) for vocabulary, merges in PAIRS)
    return next((merges for vocabulary, merges in pairs if vocabulary.is_file() and merges.is_file()), None)


def recognise(file: Path, data: bytes) -> bool:
    """Whether `data` are merges, or a JSON vocabulary that has its merges beside it, or `file` has the usual name."""
    if data.lstrip()[:1] == b"{":
        return merges_beside(file) is not None
    head = [line.split(b" ") for line in data[:4096].split(b"\n")[1:-1]]
    if file.name in [merges for _, merges in PAIRS] or VERSION.encode() in data[:100]:
        return True
    return len(head) >= 10 and all(len(words) == 2 and all(words) for words in head)


def read(file: Path, data: bytes, beside: Beside) -> Opened:
    """The tokenizer of a pair of files, of which `file` is one.

    Raises:
        InputError: the other file is missing, or how the text is cut is not known.
        DamagedError: one of them is not what it should be.
    """
    where, vocabulary, merges = read_pair(file, data)
    if vocabulary is None:
        raise InputError("the vocabulary of these merges is missing", where=where, todo=f"Put {PAIRS[0][0]} beside it.")
    require_parts(merges, vocabulary, where)
    note_missing_bytes(vocabulary, where)
    style = STYLES.get(beside.family)
    if style is None and all(token in vocabulary for token in ROBERTA.roles.values()):
        style = ROBERTA
    name = named_pattern(beside) or (style.pre_tokenizer if style else pattern_of(_texts(merges), where))
    style = style or GPT2
    names, added = surroundings.complete(beside, vocabulary, style.roles)

    spaced = beside.flag("add_prefix_space", False)
    if not style.enclosed:
        around = surroundings.start_and_end(beside, names, vocabulary, start=False, end=False)
    else:
        around = enclosing("cls_token", "sep_token", names, vocabulary, spaced=spaced)
    content = definition(
        byte_pairs(vocabulary, merges),
        normalizer={"type": "NFC"} if style.composes else None,
        pre_tokenizer=_with_space(pre_tokenizer_settings(name)) if spaced else pre_tokenizer_settings(name),
        post_processor=around,
        decoder=BYTE_LEVEL,
        added_tokens=added,
    )
    return surroundings.opened(content, surroundings.settings_of(beside, names), where)


def read_pair(file: Path, data: bytes) -> tuple[str, dict[str, int] | None, Merges]:
    """The name of the merges, the vocabulary (None when it is missing) and the merges, from one file of the pair.

    Raises:
        DamagedError: one of them is not what it should be.
    """
    if data.lstrip()[:1] == b"{":
        file = merges_beside(file) or file
        data = files.read_bytes(file)
    merges = _merges(files.lines(files.as_text(data, str(file))), str(file))
    vocabulary_file = _vocabulary_beside(file)
    if vocabulary_file is None:
        return str(file), None, merges
    where = str(vocabulary_file)
    value = parse_json(files.as_text(files.read_bytes(vocabulary_file), where), where)
    return str(file), files.vocabulary_of(value, where), merges


def require_parts(merges: Merges, vocabulary: Mapping[str, int], where: str) -> None:
    """Refuse merges of what is no token, or to what is none."""
    for left, right in merges:
        for part in (left, right, left + right):
            if part not in vocabulary:
                raise DamagedError(
                    f"merges {shown(left)} and {shown(right)}, but {shown(part)} is no token",
                    where=where,
                )


def note_missing_bytes(vocabulary: Mapping[str, int], where: str) -> None:
    """Say so when text can hold bytes that have no token: they vanish.

    Raises:
        InputError: no byte has one.
    """
    missing = sum(character not in vocabulary for character in byte_characters())
    if missing == 256:
        raise InputError("is no byte-level vocabulary", where=where, todo="Open its tokenizer.json.")
    if missing:
        note(f"{where}: {missing} of the 256 bytes have no token: what needs them is left out of a text.")


def enclosing(
    first: str, last: str, names: Mapping[str, str], vocabulary: Mapping[str, int], *, spaced: bool
) -> Part | None:
    """The `post_processor` that puts the tokens of two roles around a text, and two of the last between a pair."""
    if first not in names or last not in names:
        return None
    start, end = names[first], names[last]
    tokens = {"sep": [end, vocabulary[end]], "cls": [start, vocabulary[start]]}
    return {"type": "RobertaProcessing"} | tokens | {"trim_offsets": True, "add_prefix_space": spaced}


def named_pattern(beside: Beside) -> str | None:
    """The pre-tokeniser that tokenizer_config.json names for Rhapsode.

    Raises:
        InputError: there is none of that name.
    """
    own = beside.settings.get("rhapsode")
    name = own.get("pre_tokenizer") if isinstance(own, dict) else None
    if name is not None and name not in list(PATTERNS):
        raise InputError(f"there is no pre-tokeniser {shown(name)}", where=beside.where, todo=_choice())
    return None if name is None else str(name)


def pattern_of(texts: Sequence[str], where: str) -> str:
    """The pre-tokeniser that a vocabulary was made with, as far as its tokens show; what was found is noted.

    Raises:
        InputError: each known one cuts tokens of the vocabulary.
    """
    name = pattern_that_fits(texts)
    if name is None:
        raise InputError("no known pre-tokeniser fits the vocabulary", where=where, todo=_choice())
    note(f"{where}: nothing says how text is cut before it is encoded; the tokens fit {name}. {_choice()}")
    return name


def _choice() -> str:
    names = ", ".join(f'"{name}"' for name in PATTERNS)
    return f'tokenizer_config.json can name it: {{"rhapsode": {{"pre_tokenizer": ...}}}}, one of {names}.'


def _with_space(settings: Part) -> Part:
    """`settings` with a space put before a text that begins without one."""
    if settings["type"] == "Sequence":  # the space comes before the cuts
        return settings | {"pretokenizers": [BYTE_LEVEL | {"add_prefix_space": True}, *settings["pretokenizers"]]}
    return settings | {"add_prefix_space": True}


def _texts(merges: Merges) -> list[str]:
    """The texts of the tokens that merges make, without those that are parts of characters."""
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    texts = []
    for left, right in merges:
        try:
            texts.append(bytes(byte_of[character] for character in left + right).decode("utf-8"))
        except (KeyError, UnicodeDecodeError):
            continue
    return texts


def _merges(lines: list[str], where: str) -> Merges:
    """The pairs of the lines, after the line that names the version."""
    merges: Merges = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and VERSION in line):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise DamagedError("is not two parts with a space between them", where=f"{where}:{number}")
        merges.append((left, right))
    return merges


def merges_beside(vocabulary: Path) -> Path | None:
    """The merges that belong to a vocabulary: of the usual names, or of the same name with "merges" for "vocab"."""
    names = [merges for name, merges in PAIRS if name == vocabulary.name]
    names.append(vocabulary.stem.replace("vocab", "merges") + ".txt")
    return next((vocabulary.with_name(name) for name in names if vocabulary.with_name(name).is_file()), None)


def _vocabulary_beside(merges: Path) -> Path | None:
    """The vocabulary that belongs to merges."""
    names = [name for name, of_pair in PAIRS if of_pair == merges.name]
    names.append(merges.stem.replace("merges", "vocab") + ".json")
    return next((merges.with_name(name) for name in names if merges.with_name(name).is_file()), None)
