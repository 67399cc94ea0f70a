"""A search that is on its way in the engine: its beams, the blocks they can need, and what is found in the end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields

import numpy as np
import torch

from rhapsode.base.errors import InputError
from rhapsode.inference.beams import Beams, BeamSearch, Hypothesis
from rhapsode.inference.block_pool import blocks_of, blocks_of_forks
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.text import FinishReason, Piece, Text, check_prompt

FOLLOWED = ("banned_tokens", "json_schema", "regex", "grammar", "choice", "stop", "stop_tokens", "shown_tokens", "seed")
"""Fields of `Sampling` that hold for a search too. Of any seed the text is the same."""


def check_search(sampling: Sampling) -> None:
    """Refuse settings that a search does not follow.

    Raises:
        InputError: one of them is not as if nothing had been said.
    """
    for field in fields(Sampling):
        if field.name not in FOLLOWED and getattr(sampling, field.name) != getattr(Sampling(), field.name):
            raise InputError("is for texts that are drawn; a search takes the most likely ones", where=field.name)


class Search:
    """A search for the most likely texts after one prompt; what `Text` is for a text that is drawn.

    Args:
        prompt: ids, at least one, at most the context.
        end_ids: ids with which the model ends a text.
        context_length: tokens that the model can read.
        vocabulary: only tokens below this are written.
        text: a text that has not begun: what is written after the prompt, and where it ends; None for nothing but ids.
        count: hypotheses to give; None for as many as there are beams.

    Attributes:
        ids: the prompt.
        hypotheses: what was found, the best first; empty until the search ends.
        finish_reason: why the best one ended; None until the search ends.

    Raises:
        InputError: no prompt, one longer than the context, a token that there is not, settings that contradict each
            other, or more texts asked for than there are beams.
    """

    row = 0

    def __init__(
        self,
        prompt: Sequence[int],
        search: BeamSearch,
        end_ids: Collection[int],
        context_length: int,
        vocabulary: int,
        text: Text | None = None,
        count: int | None = None,
    ) -> None:
        check_prompt(prompt, context_length)
        self.ids, self.prompt_length, self.forks = list(prompt), len(prompt), search.beams - 1
        self._count = search.beams if count is None else count
        if not 1 <= self._count <= search.beams:
            raise InputError(f"{search.beams} beams find no {self._count} texts", where="count", todo="Use more beams.")
        guided = text is not None and (bool(text.stops.stops) or text.allowed() is not None)
        if guided and search.min_new_tokens:
            todo = "Leave it out, or stop strings, bans, and what the text is held to."
            raise InputError("cannot be kept where more is said of the text", where="min_new_tokens", todo=todo)
        ends = {*end_ids, *(() if text is None else text.stop_ids)}
        room = context_length - len(prompt) + 1  # the last token that is written need not be read
        most_new = min(room, search.max_new_tokens or room)
        self.longest = len(prompt) + most_new
        self._most_new, self._end_ids, self._text = search.max_new_tokens, end_ids, text
        self._beams = Beams(search, torch.tensor([self.ids]), most_new, ends, vocabulary, text if guided else None)
        self.hypotheses: list[Hypothesis] = []
        self.finish_reason: FinishReason | None = None

    @property
    def blocks(self) -> int:
        """Blocks that all of its beams can need."""
        capacity = self.longest - 1
        return blocks_of(capacity) + blocks_of_forks(self.prompt_length, capacity, self.forks)

    def go_on(self, logits: np.ndarray) -> list[tuple[int, int]]:
        """Which beams go on with which tokens, for logits (beams, at least the vocabulary); none when it ends.

        Raises:
            NotFiniteError: the model computes values that are not numbers.
            RhapsodeError: the text has become too complicated to follow.
        """
        going = self._beams.go_on(torch.from_numpy(logits))
        if going is None:
            self.hypotheses = self._beams.finished[0][: self._count]
            self.finish_reason = self.reason(self.hypotheses[0])
            return []
        rows, tokens = going
        return list(zip(rows.tolist(), tokens.tolist(), strict=True))

    def reason(self, hypothesis: Hypothesis) -> FinishReason:
        """Why a hypothesis ends."""
        if hypothesis.ended:
            return "end of text" if hypothesis.ids[-1] in self._end_ids else "stop"
        if len(hypothesis.ids) == self._most_new:
            return "length"
        return "context" if self.prompt_length + len(hypothesis.ids) == self.longest else "stop"

    def pieces(self) -> list[Piece]:
        """Each text that was found, in one piece; none where nothing at all may follow the prompt."""
        pieces = []
        for row, hypothesis in enumerate(each for each in self.hypotheses if each.ids):
            shown = "" if self._text is None else _shown(self._text.fork(), hypothesis.ids)
            *before, last = hypothesis.ids
            pieces.append(Piece(row, last, shown, self.reason(hypothesis), before=tuple(before)))
        return pieces


def _shown(text: Text, ids: Sequence[int]) -> str:
    """What a text comes to show when it goes on with these tokens."""
    return "".join([text.push(id).text for id in ids])
