"""The fast ways from text to ids: a table for characters, the bytes themselves, tiktoken for byte-level pairs.

Each encoder gives exactly the ids that the `tokenizers` library gives from the same tokenizer.json, only sooner;
`Tokenizer` chooses one when it can be used and the library when none can.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rhapsode.tokenizer.pre_tokenizers import byte_characters

Ids = npt.NDArray[np.uint32]
Piece = TypeVar("Piece", str, bytes)
NO_RANK = 2**62
MOST_WORK = 30_000_000  # pairs looked up to check merges: seconds; published vocabularies need a sixth of it


class CharacterEncoder:
    """One id per Unicode character, looked up in a table.

    Args:
        vocabulary: the id of each character.
        unknown_id: the id of every other character.
    """

    def __init__(self, vocabulary: dict[str, int], unknown_id: int) -> None:
        known = {ord(character): id for character, id in vocabulary.items() if len(character) == 1}
        self._table = np.full(max(known, default=0) + 2, unknown_id, dtype=np.uint32)
        for code_point, id in known.items():
            self._table[code_point] = id

    def encode(self, text: str) -> Ids:
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        # The last entry of the table stands for every code point beyond it: it is unknown.
        ids: Ids = self._table[np.minimum(code_points, len(self._table) - 1)]
        return ids


class ByteEncoder:
    """One id per byte of the UTF-8 text. Args: vocabulary: the id of each byte's printable character."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        self._table = np.array([vocabulary[character] for character in byte_characters()], dtype=np.uint32)

    def encode(self, text: str) -> Ids:
        return self._table[np.frombuffer(text.encode("utf-8"), dtype=np.uint8)]


class BytePairEncoder:
    """Byte-level pairs through tiktoken.

    tiktoken joins two neighbours when the joined bytes are a token, `tokenizers` when the pair is one of its merges;
    `byte_pair_ranks` checks that this comes to the same.

    Args:
        pattern: the pre-tokeniser's regular expression.
        ranks: bytes of each token, in the order in which they merge.
        ids: the id of each rank.
    """

    def __init__(self, pattern: str, ranks: dict[bytes, int], ids: Ids) -> None:
        import tiktoken

        # tiktoken searches the text for special tokens even when there are none, and is slow at finding nothing:
        # one that is never allowed keeps it fast and changes no id.
        never = {"<|never|>": len(ranks)}
        self._encoding = tiktoken.Encoding("rhapsode", pat_str=pattern, mergeable_ranks=ranks, special_tokens=never)
        self._ids = None if np.array_equal(ids, np.arange(len(ids))) else ids

    def encode(self, text: str) -> Ids:
        ranks: Ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        return ranks if self._ids is None else self._ids[ranks]


def byte_pair_ranks(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tuple[dict[bytes, int], Ids] | None:
    """The ranks and ids that make `BytePairEncoder` equal to the merges, or None when nothing does.

    Why the check is enough: both ways start from the bytes and join the pair of lowest rank first, the leftmost of
    equals. Say they agree up to the step where tiktoken joins x and y to a token t. No join has crossed the ends of t,
    so inside them everything went as it would have gone with t alone and only the ranks below t's. The check is that
    this leaves exactly the pair that the merges name for t: so x and y are that pair, and `tokenizers` joins them too.
    """
    characters = byte_characters()
    byte_of = {character: byte for byte, character in enumerate(characters)}
    if any(character not in vocabulary for character in characters):
        return None
    if takes_long([left + right for left, right in merges]):
        return None
    ranks = {bytes([byte]): byte for byte in range(256)}
    ids = [vocabulary[character] for character in characters]
    for left, right in merges:
        if not (left + right in vocabulary and all(character in byte_of for character in left + right)):
            return None
        first, second = (bytes(byte_of[character] for character in part) for part in (left, right))
        if first + second in ranks:  # merged earlier from another pair: this one never meets
            continue
        if joined(first + second, ranks) != [first, second]:
            return None
        ranks[first + second] = len(ids)
        ids.append(vocabulary[left + right])
    return ranks, np.array(ids, dtype=np.uint32)


def takes_long(tokens: Iterable[str | bytes]) -> bool:
    """Whether joining the units of each of `tokens` would take minutes, as it can only for those of a hostile file."""
    return sum(len(token) ** 2 for token in tokens) > 2 * MOST_WORK


def joined(token: Piece, ranks: dict[Piece, int]) -> list[Piece]:
    """The bytes or characters of `token` joined by the ranks so far, lowest first, leftmost of equals."""
    parts = [token[index : index + 1] for index in range(len(token))]
    candidates = [ranks.get(left + right, NO_RANK) for left, right in pairwise(parts)]
    while candidates and (lowest := min(candidates)) != NO_RANK:
        index = candidates.index(lowest)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
        del candidates[index]
        for neighbour in (index - 1, index):
            if 0 <= neighbour < len(candidates):
                candidates[neighbour] = ranks.get(parts[neighbour] + parts[neighbour + 1], NO_RANK)
    return parts


def merges_of(model: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE `model` part of a tokenizer.json, in the older form ("a b") or the newer (["a", "b"])."""
    pairs = (tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
    return [(left, right) for left, right in pairs]
