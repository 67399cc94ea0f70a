"""vocab.json with merges.txt: byte-level BPE, as of GPT-2, RoBERTa, BART and Qwen2, and CLIP's with its word ends.

OpenAI named the same two files encoder.json and vocab.bpe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.progress import note
from rhapsode.tokenizer.definition import Part, byte_pairs, definition, sequence
from rhapsode.tokenizer.formats import beside as surroundings
from rhapsode.tokenizer.formats import files
from rhapsode.tokenizer.formats.beside import Beside, Opened
from rhapsode.tokenizer.pre_tokenizers import (
    BYTE_LEVEL,
    PATTERNS,
    byte_characters,
    pattern_that_fits,
    pre_tokenizer_settings,
    split_settings,
)

PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
VERSION = "#version"
END_OF_WORD = "</w>"


@dataclass(frozen=True)
class Style:
    """What a family adds to its vocabulary and merges."""

    pre_tokenizer: str
    """A name in `PATTERNS`, or "clip"."""
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
CLIP = Style(
    "clip",
    {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    composes=True,
)
STYLES = {
    **dict.fromkeys(("gpt2", "opt", "codegen", "whisper", "gptneo", "gptj"), GPT2),
    **dict.fromkeys(("roberta", "bart", "longformer", "led", "mvp"), ROBERTA),
    **dict.fromkeys(("qwen2", "qwen3", "qwen2moe", "qwen3moe"), QWEN2),
    "clip": CLIP,
}

# CLIP's own pattern keeps only what it matches, and puts an end of word on each match.
CLIP_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def find(folder: Path) -> Path | None:
    """The merges of a pair of files in `folder`."""
    pairs = ((folder / vocabulary, folder / merges) for vocabulary, merges in PAIRS)
    return next((merges for vocabulary, merges in pairs if vocabulary.is_file() and merges.is_file()), None)


def recognise(file: Path, data: bytes) -> bool:
    """Whether `data` are merges, or a JSON vocabulary that has its merges beside it."""
    if data.lstrip()[:1] == b"{":
        return _merges_beside(file) is not None
    head = [line.split(b" ") for line in data[:4096].split(b"\n")[:20]]
    pairs = [len(words) == 2 and all(words) for words in head[1:-1]]
    return VERSION.encode() in data[:100] or (len(pairs) >= 10 and all(pairs))


def read(file: Path, data: bytes, beside: Beside) -> Opened:
    """The tokenizer of a pair of files, of which `file` is one.

    Raises:
        InputError: the other file is missing, or how the text is cut is not known.
        DamagedError: one of them is not what it should be.
    """
    if data.lstrip()[:1] == b"{":
        file = _merges_beside(file) or file
        data = files.read_bytes(file)
    where = str(file)
    lines = files.lines(files.as_text(data, where))
    vocabulary_file = _vocabulary_beside(file)
    if vocabulary_file is None:
        raise InputError(
            "the vocabulary of these merges is missing", where=where, todo=f"Put {PAIRS[0][0]} beside it."
        )
    vocabulary_text = files.as_text(files.read_bytes(vocabulary_file), str(vocabulary_file))
    vocabulary = files.vocabulary_of(files.parse_json(vocabulary_text, str(vocabulary_file)), str(vocabulary_file))
    merges = _merges(lines, vocabulary, where)

    style, name = _style(beside, vocabulary, merges, where)
    names, added = surroundings.complete(beside, vocabulary, style.roles)
    unknown = names.get("unk_token") if style is CLIP else None
    _note_missing_bytes(vocabulary, where)
    model = byte_pairs(vocabulary, merges, unknown=unknown, end_of_word=END_OF_WORD if style is CLIP else None)
    content = definition(model, added_tokens=added, **_parts(style, name, beside, names, vocabulary))
    return Opened(content, surroundings.settings_of(beside, names), where)


def _parts(
    style: Style, name: str, beside: Beside, names: Mapping[str, str], vocabulary: Mapping[str, int]
) -> dict[str, Part | None]:
    """What stands around the model in the tokenizer.json."""
    spaced = beside.flag("add_prefix_space", False)
    if style is CLIP:
        spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
        word_end = {"type": "Replace", "pattern": {"String": END_OF_WORD}, "content": " "}
        strip = {"type": "Strip", "content": " ", "start": 0, "stop": 1}
        cut = split_settings(CLIP_PATTERN) | {"behavior": "Removed", "invert": True}
        normalizer = sequence("normalizers", [{"type": "NFC"}, spaces, {"type": "Lowercase"}])
        pre_tokenizer = sequence("pretokenizers", [cut, BYTE_LEVEL])
        decoder = sequence("decoders", [BYTE_LEVEL, word_end, strip])
        enclosed = ("bos_token", "eos_token")
    else:
        normalizer = {"type": "NFC"} if style.composes else None
        pre_tokenizer = pre_tokenizer_settings(name)
        if spaced:
            pre_tokenizer = _with_space(pre_tokenizer)
        decoder = BYTE_LEVEL
        enclosed = ("cls_token", "sep_token")
    around: Part | None = None
    if (style.enclosed or style is CLIP) and all(role in names for role in enclosed):
        first, last = (names[role] for role in enclosed)
        around = {"type": "RobertaProcessing", "sep": [last, vocabulary[last]], "cls": [first, vocabulary[first]]}
        around |= {"trim_offsets": beside.flag("trim_offsets", True), "add_prefix_space": spaced}
    elif not style.enclosed:
        around = surroundings.start_and_end(beside, names, vocabulary, start=False, end=False)
    return {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": around, "decoder": decoder}


def _with_space(settings: Part) -> Part:
    """`settings` with a space put before a text that begins without one."""
    if settings["type"] == "Sequence":  # the space comes before the cuts
        return settings | {"pretokenizers": [BYTE_LEVEL | {"add_prefix_space": True}, *settings["pretokenizers"]]}
    return settings | {"add_prefix_space": True}


def _style(
    beside: Beside, vocabulary: Mapping[str, int], merges: list[tuple[str, str]], where: str
) -> tuple[Style, str]:
    """The style of the family, and the name of the pattern: by the settings, the family, or the vocabulary itself."""
    style = STYLES.get(beside.family)
    if style is None and any(token.endswith(END_OF_WORD) for token in vocabulary):
        style = CLIP
    if style is None and all(token in vocabulary for token in ROBERTA.roles.values()):
        style = ROBERTA
    named = named_pattern(beside)
    if style is not None:
        return style, named or style.pre_tokenizer
    return GPT2, named or pattern_of(_texts(merges), where)


def named_pattern(beside: Beside) -> str | None:
    """The pre-tokeniser that tokenizer_config.json names for Rhapsode.

    Raises:
        InputError: there is none of that name.
    """
    own = beside.settings.get("rhapsode")
    name = own.get("pre_tokenizer") if isinstance(own, dict) else None
    if name is not None and name not in PATTERNS:
        raise InputError(f"there is no pre-tokeniser {name!r}", where=beside.where, todo=_choice())
    return None if name is None else str(name)


def pattern_of(texts: list[str], where: str) -> str:
    """The pre-tokeniser that a vocabulary was made with, as far as its tokens show; what was found is noted.

    Raises:
        InputError: each known one cuts some token of the vocabulary.
    """
    name = pattern_that_fits(texts)
    if name is None:
        raise InputError("no known pre-tokeniser fits the vocabulary", where=where, todo=_choice())
    note(f"{where}: nothing says how text is cut before it is encoded; the tokens fit {name}. {_choice()}")
    return name


def _choice() -> str:
    names = ", ".join(f'"{name}"' for name in PATTERNS)
    return f'tokenizer_config.json can name it: {{"rhapsode": {{"pre_tokenizer": ...}}}}, one of {names}.'


def _texts(merges: list[tuple[str, str]]) -> list[str]:
    """The texts of the tokens that merges make, without those that are parts of characters."""
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    texts = []
    for left, right in merges:
        try:
            texts.append(bytes(byte_of[character] for character in left + right).decode("utf-8"))
        except (KeyError, UnicodeDecodeError):
            continue
    return texts


def _merges(lines: list[str], vocabulary: Mapping[str, int], where: str) -> list[tuple[str, str]]:
    """The pairs of the lines, after the line that names the version."""
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and VERSION in line):
            continue
        words = line.split(" ")
        if len(words) != 2 or not all(words):
            raise DamagedError("is not two parts with a space between them", where=f"{where}:{number}")
        left, right = words
        for part in (left, right, left + right):
            if part not in vocabulary:
                raise DamagedError(f"{part[:60]!r} is not in the vocabulary", where=f"{where}:{number}")
        merges.append((left, right))
    return merges


def _note_missing_bytes(vocabulary: Mapping[str, int], where: str) -> None:
    """Say so when text can hold bytes that have no token: they vanish."""
    missing = sum(character not in vocabulary for character in byte_characters())
    if missing == 256:
        raise InputError("is no byte-level vocabulary", where=where, todo="Open its tokenizer.json.")
    if missing:
        note(f"{where}: {missing} of the 256 bytes have no token: what needs them is left out of a text.")


def _merges_beside(vocabulary: Path) -> Path | None:
    """The merges that belong to a vocabulary: of the usual names, or of the same name with "merges" for "vocab"."""
    names = [merges for name, merges in PAIRS if name == vocabulary.name]
    names.append(vocabulary.stem.replace("vocab", "merges") + ".txt")
    return next((vocabulary.with_name(name) for name in names if vocabulary.with_name(name).is_file()), None)


def _vocabulary_beside(merges: Path) -> Path | None:
    """The vocabulary that belongs to merges."""
    names = [name for name, of_pair in PAIRS if of_pair == merges.name]
    names.append(merges.stem.replace("merges", "vocab") + ".json")
    return next((merges.with_name(name) for name in names if merges.with_name(name).is_file()), None)
