"""*.tiktoken: byte-level BPE as the rank of each token, a line of base64 and a number, as OpenAI publishes it.

The merges follow from the ranks. Two things the file does not say: how a text is cut before it is encoded, which the
settings name or the tokens show (`pattern_of`), and special tokens, which only the settings beside it can name.
"""

from __future__ import annotations

import binascii
import re
from pathlib import Path

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.tokenizer.definition import byte_pairs, definition
from rhapsode.tokenizer.formats import beside as surroundings
from rhapsode.tokenizer.formats import files
from rhapsode.tokenizer.formats.beside import Beside, Opened
from rhapsode.tokenizer.formats.byte_pairs import STYLES, named_pattern, pattern_of
from rhapsode.tokenizer.formats.ranks import merges_from_ranks
from rhapsode.tokenizer.pre_tokenizers import BYTE_LEVEL, byte_characters, pre_tokenizer_settings

PATTERN_OF_NAME = "*.tiktoken"
FAMILIES = {"llama": "llama-bpe", "qwen": "qwen2"}
LINE = re.compile(rb"([A-Za-z0-9+/]*={0,2}) ([0-9]{1,9})")
NOTHING = b"="  # how Whisper's files write the empty token, an id that no text has


def find(folder: Path) -> Path | None:
    """The ranks in `folder`.

    Raises:
        InputError: there are several.
    """
    found = sorted(folder.glob(PATTERN_OF_NAME))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"has several rank files: {names}", where=str(folder), todo="Name one of them.")
    return found[0] if found else None


def recognise(file: Path, data: bytes) -> bool:
    """Whether the first line of `data` is a token in base64 and its rank."""
    return LINE.fullmatch(data[:4096].split(b"\n", 1)[0].rstrip(b"\r")) is not None


def read(file: Path, data: bytes, beside: Beside) -> Opened:
    """The tokenizer of a rank file.

    Raises:
        InputError: nothing shows how text is cut.
        DamagedError: it is no rank file.
    """
    where = str(file)
    ranks = _ranks(data, where)
    tokens = sorted(ranks, key=ranks.__getitem__)
    missing = 256 - sum(len(token) == 1 for token in tokens)
    if missing:
        raise DamagedError(f"{missing} of the 256 bytes have no rank", where=where)
    longer = [[token] for token in tokens if len(token) > 1]
    pairs = merges_from_ranks(longer, ranks.keys(), where)

    style = STYLES.get(beside.family)
    name = named_pattern(beside) or FAMILIES.get(beside.family) or (style.pre_tokenizer if style else None)
    if name is None:
        name = pattern_of(_texts(tokens), where)
    written = byte_characters()
    vocabulary = {_written(token, written): ranks[token] for token in tokens}
    names, added = surroundings.complete(beside, vocabulary, style.roles if style else {})
    merges = [(_written(left, written), _written(right, written)) for left, right in pairs]
    model = byte_pairs(vocabulary, merges)
    # tiktoken looks a whole piece up first: that matters for tokens that no joining makes.
    model["ignore_merges"] = len(pairs) < len(longer)
    content = definition(
        model,
        pre_tokenizer=pre_tokenizer_settings(name),
        post_processor=surroundings.start_and_end(beside, names, vocabulary, start=False, end=False),
        decoder=BYTE_LEVEL,
        added_tokens=added,
    )
    return surroundings.opened(content, surroundings.settings_of(beside, names), where)


def _ranks(data: bytes, where: str) -> dict[bytes, int]:
    """The rank of each token."""
    ranks: dict[bytes, int] = {}
    seen: set[int] = set()
    for number, line in enumerate(data.replace(b"\r\n", b"\n").split(b"\n"), 1):
        if not line:
            continue
        match = LINE.fullmatch(line)
        try:
            token = b"" if match is None or match[1] == NOTHING else binascii.a2b_base64(match[1], strict_mode=True)
        except binascii.Error:
            match = None
        if match is None or not match[1]:
            raise DamagedError("is not a token in base64 and its rank", where=f"{where}:{number}")
        rank = int(match[2])
        if token in ranks or rank in seen or rank >= files.LARGEST_VOCABULARY:
            raise DamagedError(
                "a token or a rank stands there for a second time, or is too high", where=f"{where}:{number}"
            )
        ranks[token] = rank
        seen.add(rank)
    return ranks


def _texts(tokens: list[bytes]) -> list[str]:
    """The tokens that are whole characters, as text."""
    texts = []
    for token in tokens:
        try:
            texts.append(token.decode("utf-8"))
        except UnicodeDecodeError:
            continue
    return texts


def _written(token: bytes, characters: list[str]) -> str:
    """A token as it stands in a byte-level vocabulary."""
    return "".join(characters[byte] for byte in token)
