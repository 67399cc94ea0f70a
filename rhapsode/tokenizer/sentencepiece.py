"""Cutting text exactly as SentencePiece does, where the `tokenizers` library comes only near it.

The library adds the scores of a unigram model in double precision, where SentencePiece rounds to single and so breaks
ties in rows of one character otherwise; and it joins pairs in one fixed order, where SentencePiece joins the leftmost
of pieces with equal scores, as Llama's and Mistral's rows of spaces have. What is done here follows unigram_model.cc
and bpe_model.cc of google/sentencepiece (Kudo and Richardson 2018). A tokenizer.json whose settings have
`rhapsode.sentencepiece` is read in this way.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from rhapsode.base.errors import DamagedError
from rhapsode.tokenizer.encoders import Ids, merges_of
from rhapsode.tokenizer.normalizer import SPACE, CharacterMap, Normalizer

NEVER = -1e10  # the score of what cannot be cut from text: control pieces, and tokens of the other language
UNKNOWN_PENALTY = 10.0
LARGEST_SCORE = 100_000.0  # of a text so far: beyond it, SentencePiece begins again from 0 to keep its sums precise
REMEMBERED = 2**16  # words whose ids are kept
LONGEST_REMEMBERED = 64  # characters

# A row of spaces belongs to the word after it. Where no piece goes on over a space, words can be cut alone.
WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")

Edge = tuple[int, int, float, int | None]  # a piece in a word: start, end, score, and its id, None for the unknown


class PairEncoder:
    """The two neighbours of the best score become one, the leftmost of equals first, until none make a piece.

    Args:
        normalize: what is done to the text first.
        ids: the id of each piece that text can become.
        ranks: the place of each joined piece in the order of scores, best first, equal ones sharing it.
        kept: pieces that users defined: they are found first, and never joined.
        unknown_id: the id of a row of unknown characters.
        byte_ids: the ids of the 256 bytes, which then stand for the unknown.
    """

    def __init__(
        self,
        normalize: Normalizer,
        ids: dict[str, int],
        ranks: dict[str, int],
        *,
        kept: list[str],
        unknown_id: int,
        byte_ids: list[int] | None,
    ) -> None:
        self._normalize, self._ids, self._ranks = normalize, ids, ranks
        self._unknown_id, self._byte_ids = unknown_id, byte_ids
        longest_first = sorted(kept, key=len, reverse=True)
        self._kept = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if kept else None
        self._by_word = ends_at_spaces(ranks)
        self._remembered: dict[str, list[int]] = {}

    def encode(self, text: str) -> Ids:
        normal = self._normalize(text)
        found: list[int] = []
        for index, part in enumerate(self._kept.split(normal) if self._kept else [normal]):
            if index % 2:
                found.append(self._ids[part])
                continue
            for word in WORD.findall(part) if self._by_word else [part]:
                ids = self._remembered.get(word)
                if ids is None:
                    ids = self._ids_of(self._joined(word))
                    if len(word) <= LONGEST_REMEMBERED:
                        if len(self._remembered) >= REMEMBERED:
                            self._remembered.clear()
                        self._remembered[word] = ids
                found += ids
        all_ids = np.array(found, dtype=np.uint32)
        unknown = all_ids == self._unknown_id
        again = np.zeros(len(all_ids), dtype=bool)  # a row of unknown characters is one token
        again[1:] = unknown[1:] & unknown[:-1]
        ids_once: Ids = all_ids[~again]
        return ids_once

    def _ids_of(self, pieces: list[str]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            id = self._ids.get(piece)
            if id is not None:
                ids.append(id)
            elif self._byte_ids is None:
                ids.append(self._unknown_id)
            else:
                ids += [self._byte_ids[byte] for byte in piece.encode("utf-8")]
        return ids

    def _joined(self, word: str) -> list[str]:
        """The characters of `word`, joined."""
        ranks = self._ranks
        pieces: list[str] = list(word)
        before = list(range(-1, len(word) - 1))
        after = [*range(1, len(word)), -1]
        queue: list[tuple[int, int, int, int]] = []  # rank, left, right, and the length they had together
        for left in range(len(word) - 1):
            if (rank := ranks.get(word[left : left + 2])) is not None:
                queue.append((rank, left, left + 1, 2))
        heapify(queue)
        while queue:
            _, left, right, size = heappop(queue)
            if not pieces[left] or not pieces[right] or len(pieces[left]) + len(pieces[right]) != size:
                continue  # one of them has been joined with another
            pieces[left] += pieces[right]
            pieces[right] = ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            for first, second in ((before[left], left), (left, after[left])):
                if first >= 0 and second >= 0:
                    made = pieces[first] + pieces[second]
                    if (rank := ranks.get(made)) is not None:
                        heappush(queue, (rank, first, second, len(made)))
        return [piece for piece in pieces if piece]


class UnigramEncoder:
    """The likeliest row of pieces, found as SentencePiece finds it, to the last bit of its scores.

    Args:
        normalize: what is done to the text first.
        pieces: the id and score of each piece that can be cut from text.
        lowest: the lowest score of a trained piece: an unknown character counts ten less.
        unknown_id: the id of what no piece covers.
        byte_ids: the ids of the 256 bytes, which then stand for the unknown.
        surfaces: the ids that unknown rows of characters have all the same, by their text: Marian's.
    """

    def __init__(
        self,
        normalize: Normalizer,
        pieces: dict[str, tuple[int, float]],
        *,
        lowest: float,
        unknown_id: int,
        byte_ids: list[int] | None,
        surfaces: dict[str, int] | None,
    ) -> None:
        self._normalize, self._pieces = normalize, pieces
        self._unknown_id, self._byte_ids, self._surfaces = unknown_id, byte_ids, surfaces or {}
        self._unknown_score = array("f", [lowest - UNKNOWN_PENALTY])[0]
        self._lengths: dict[str, list[int]] = {}  # of the pieces that begin with these two characters
        for piece in pieces:
            if len(piece) > 1:
                self._lengths.setdefault(piece[:2], []).append(len(piece))
        for start, lengths in self._lengths.items():
            self._lengths[start] = sorted(set(lengths))
        self._by_word = ends_at_spaces(pieces)
        self._remembered: dict[str, list[Edge]] = {}

    def encode(self, text: str) -> Ids:
        found: list[int] = []
        unknown = ""  # a row of unknown characters that may go on
        score = 0.0
        normal = self._normalize(text)
        for word in WORD.findall(normal) if self._by_word else [normal]:
            path, score = self._best(word, score)
            for start, end, _, id in path:
                if id is None:
                    unknown += word[start:end]
                    continue
                if unknown:
                    found += self._ids_of_unknown(unknown)
                    unknown = ""
                found.append(id)
        if unknown:
            found += self._ids_of_unknown(unknown)
        return np.array(found, dtype=np.uint32)

    def _ids_of_unknown(self, row: str) -> list[int]:
        if self._byte_ids is not None:
            return [self._byte_ids[byte] for byte in row.encode("utf-8")]
        return [self._surfaces.get(row, self._unknown_id)]

    def _best(self, word: str, score: float) -> tuple[list[Edge], float]:
        """The best way through `word` after what had `score`, and the score with it."""
        edges = self._remembered.get(word)
        if edges is None:
            edges = self._edges(word)
            if len(word) <= LONGEST_REMEMBERED:
                if len(self._remembered) >= REMEMBERED:
                    self._remembered.clear()
                self._remembered[word] = edges
        best = [score] * (len(word) + 1)
        last: list[Edge | None] = [None] * (len(word) + 1)
        rounded = array("f", [0.0])  # every sum is rounded to single precision, which breaks ties
        may_reset = abs(score) > LARGEST_SCORE / 2 or len(word) > LONGEST_REMEMBERED
        for edge in edges:
            start, end, gain, _ = edge
            if may_reset and abs(best[start]) > LARGEST_SCORE:
                reset = best[start]
                for position in range(start, len(word) + 1):
                    rounded[0] = best[position] - reset
                    best[position] = rounded[0]
            rounded[0] = best[start] + gain
            if last[end] is None or rounded[0] > best[end]:
                best[end], last[end] = rounded[0], edge
        path: list[Edge] = []
        position = len(word)
        while (edge_before := last[position]) is not None:
            path.append(edge_before)
            position = edge_before[0]
        return path[::-1], best[-1]

    def _edges(self, word: str) -> list[Edge]:
        """Every piece in `word`, by its start and then by its length, and the characters that none covers alone."""
        edges: list[Edge] = []
        for start in range(len(word)):
            id, score = self._pieces.get(word[start], (None, self._unknown_score))
            edges.append((start, start + 1, score, id))
            for length in self._lengths.get(word[start : start + 2], ()):
                end = start + length
                if end > len(word):
                    break
                found = self._pieces.get(word[start:end])
                if found is not None:
                    edges.append((start, end, found[1], found[0]))
        return edges


def ends_at_spaces(pieces: Iterable[str]) -> bool:
    """Whether no piece goes on over a space, so that the words of a text can be cut one by one."""
    return not any(SPACE in piece.lstrip(SPACE) for piece in pieces)


def encoder_of(content: dict[str, Any], rules: Any, where: str) -> PairEncoder | UnigramEncoder:
    """The encoder of a tokenizer.json, by the `rhapsode.sentencepiece` of its settings.

    Raises:
        DamagedError: one of the two is not what is written by `rhapsode.tokenizer.formats`.
    """
    model = content["model"]
    try:
        normalize = _normalizer(content, rules, where)
        vocabulary = model["vocab"]
        ids = dict(vocabulary) if model["type"] == "BPE" else {piece: id for id, (piece, _) in enumerate(vocabulary)}
        byte_ids = [ids[f"<0x{byte:02X}>"] for byte in range(256)] if model.get("byte_fallback") else None
        if model["type"] == "BPE":
            return _pair_encoder(content, rules, normalize, ids, byte_ids)
        return _unigram_encoder(content, rules, normalize, ids, byte_ids)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError):
        raise DamagedError("does not go with rhapsode.sentencepiece in its settings", where=where) from None


def _normalizer(content: dict[str, Any], rules: dict[str, Any], where: str) -> Normalizer:
    flags = [rules[name] for name in ("add_dummy_prefix", "remove_extra_whitespaces")]
    if not all(isinstance(flag, bool) for flag in flags):
        raise ValueError
    parts = content["normalizer"].get("normalizers", [content["normalizer"]])
    packed = parts[0].get("precompiled_charsmap")
    character_map = CharacterMap.unpacked(packed, where) if packed else None
    return Normalizer(
        character_map, add_dummy_prefix=flags[0], remove_extra_whitespaces=flags[1], kept=_given(content, special=False)
    )


def _given(content: dict[str, Any], *, special: bool) -> list[str]:
    """The added tokens that are special, or are not: those stand for the pieces that users define."""
    names = [token["content"] for token in content["added_tokens"] if token["special"] is special]
    if "" in names:
        raise ValueError
    return names


def _pair_encoder(
    content: dict[str, Any],
    rules: dict[str, Any],
    normalize: Normalizer,
    ids: dict[str, int],
    byte_ids: list[int] | None,
) -> PairEncoder:
    model = content["model"]
    group = {piece: number for number, pieces in enumerate(rules["equal"]) for piece in pieces}
    ranks: dict[str, int] = {}
    of_group: dict[int, int] = {}
    for left, right in merges_of(model):
        piece = left + right
        if piece not in ranks:
            number = group.get(piece)
            ranks[piece] = len(ranks) if number is None else of_group.setdefault(number, len(ranks))
    kept = _given(content, special=False)
    hidden = {*_given(content, special=True), *(f"<0x{byte:02X}>" for byte in range(256) if byte_ids)}
    of_text = {piece: id for piece, id in ids.items() if piece not in hidden}
    if not of_text.keys() >= set(kept):
        raise ValueError
    return PairEncoder(
        normalize,
        of_text,
        ranks,
        kept=kept,
        unknown_id=ids[model["unk_token"]],
        byte_ids=byte_ids,
    )


def _unigram_encoder(
    content: dict[str, Any],
    rules: dict[str, Any],
    normalize: Normalizer,
    ids: dict[str, int],
    byte_ids: list[int] | None,
) -> UnigramEncoder:
    model = content["model"]
    unknown_id = int(model["unk_id"])
    pieces = {piece: (ids[piece], float(score)) for piece, score in model["vocab"] if score > NEVER}
    unlisted = rules.get("unlisted")
    if unlisted is not None:  # Marian's: pieces that its list of ids lacks, and one list for both languages
        pieces |= {str(piece): (unknown_id, float(score)) for piece, score in unlisted}
    given = {token["content"] for token in content["added_tokens"]}
    return UnigramEncoder(
        normalize,
        pieces,
        lowest=min(score for piece, (_, score) in pieces.items() if piece not in given),
        unknown_id=unknown_id,
        byte_ids=byte_ids,
        surfaces=ids if unlisted is not None else None,
    )
