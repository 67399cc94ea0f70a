"""A text that is being written: its tokens so far, what of it may be shown, and why it ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rhapsode.base.errors import InputError, nearest
from rhapsode.inference.matching import Matcher
from rhapsode.inference.sampling import Sampling, distribution, draw
from rhapsode.tokenizer.tokenizer import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length", "context", "end of text"]
"""A stop string or stop token, or a text held to a form is complete; max_new_tokens; the model's context is full; the
model ended the text."""


@dataclass(frozen=True)
class Likelihood:
    """How likely a token was, as the model has it before any step of sampling."""

    log_probability: float
    """ln p of the token."""
    likeliest: tuple[tuple[int, float], ...]
    """The most likely tokens and their ln p, as many as were asked for, the most likely first."""


@dataclass(frozen=True)
class Piece:
    """One more token of one text, and the text that is certain by now."""

    row: int
    """Which of the texts that were asked for together."""
    token: int
    """The id drawn."""
    text: str
    """Whole characters to append; empty while they are incomplete, or may be the beginning of a stop string."""
    finish_reason: FinishReason | None = None
    """Why this is the last piece of its row; None when it is not."""
    likelihood: Likelihood | None = None
    """How likely the token was; None unless it was asked for."""
    logits: np.ndarray | None = field(default=None, compare=False)
    """(vocabulary,), what the token was drawn from; None unless it was asked for."""
    before: tuple[int, ...] = ()
    """The ids before `token`, where a whole text comes at once; else none."""

    @property
    def ids(self) -> tuple[int, ...]:
        """All of its tokens."""
        return (*self.before, self.token)


class StopStrings:
    """Lets text through until it holds one of `stops`, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string is complete; nothing after it is ever shown.

        The stop that is complete first counts, so that the result does not depend on where tokens begin and end.
        """
        self.held += text
        found = [(start + len(stop), start) for stop in self.stops if (start := self.held.find(stop)) >= 0]
        if found:
            return self.held[: min(found)[1]], True
        beginnings = (stop[:size] for stop in self.stops for size in range(1, len(stop)))
        kept = max((len(beginning) for beginning in beginnings if self.held.endswith(beginning)), default=0)
        shown = self.held[: len(self.held) - kept]
        self.held = self.held[len(shown) :]
        return shown, False


class Text:
    """One text on its way.

    Args:
        row: its number among those that were asked for together.
        prompt: ids, at least one, at most the context.
        end_ids: ids with which the model ends a text.
        context_length: tokens that the model can read.
        matcher: says what the text may be; None for anything.

    Attributes:
        ids: the prompt and what was written.
        finish_reason: why it ended; None while it has not.

    Raises:
        InputError: no prompt, one longer than the context, or a token that the tokenizer does not have.
    """

    def __init__(
        self,
        row: int,
        prompt: Sequence[int],
        sampling: Sampling,
        tokenizer: Tokenizer,
        end_ids: Collection[int],
        context_length: int,
        matcher: Matcher | None = None,
    ) -> None:
        check_prompt(prompt, context_length)
        self.row, self.sampling, self.end_ids, self.context_length = row, sampling, end_ids, context_length
        self.ids, self.prompt_length = list(prompt), len(prompt)
        # A model may have more rows than its tokenizer has tokens: those are never drawn.
        self.vocabulary_size = tokenizer.vocabulary_size
        self.stop_ids = {_token_id(tokenizer, name, "stop_tokens") for name in sampling.stop_tokens}
        banned = [_token_id(tokenizer, name, "banned_tokens") for name in sampling.banned_tokens]
        self.matcher = matcher
        self._not_banned: np.ndarray | None = None
        if banned:
            self._not_banned = np.ones(self.vocabulary_size, dtype=bool)
            self._not_banned[banned] = False
        self.stops = StopStrings(sampling.stop)
        shown = [_token_id(tokenizer, name, "shown_tokens") for name in sampling.shown_tokens]
        self.decoder = StreamDecoder(tokenizer, shown=shown)
        for id in prompt:  # some tokens read otherwise at the beginning of a text
            self.decoder.push(id)
        self.finish_reason: FinishReason | None = None

    @property
    def forks(self) -> int:
        """Others that may come to go on from it, each on its own: none, as in a search."""
        return 0

    @property
    def longest(self) -> int:
        """Tokens it can come to have, of which the last need not be read."""
        return min(self.context_length + 1, self.prompt_length + self.sampling.max_new_tokens)

    def draw(self, logits: np.ndarray, ids: Sequence[int] | None = None) -> int:
        """The token after `ids`, given its logits (rows, at least the vocabulary).

        Args:
            ids: those of the text, unless given: a guess, of which nobody knows whether it may stand there.
        """
        allowed = self.allowed() if ids is None else self._not_banned
        ids = self.ids if ids is None else ids
        probabilities = distribution(
            logits[: self.vocabulary_size],
            self.sampling,
            ids,
            prompt_length=self.prompt_length,
            allowed=allowed,
        )
        if self.sampling.temperature == 0.0:  # all of it is on one token
            return int(probabilities.argmax())
        return draw(probabilities, self.sampling.seed, len(ids))

    def allowed(self) -> np.ndarray | None:
        """Which tokens may come next, (vocabulary,) of bool; None for all."""
        if self.matcher is None:
            return self._not_banned
        possible = self.matcher.allowed(self.vocabulary_size)
        return possible if self._not_banned is None else possible & self._not_banned

    def fork(self) -> Text:
        """The same text once more, to go on otherwise."""
        other = copy(self)
        other.ids, other.decoder, other.stops = list(self.ids), self.decoder.fork(), copy(self.stops)
        other.matcher = None if self.matcher is None else self.matcher.fork()
        return other

    def push(self, token: int) -> Piece:
        """Append a token that was drawn."""
        self.ids.append(token)
        reason: FinishReason | None = None
        if token in self.end_ids:
            reason = "end of text"
        elif token in self.stop_ids:
            reason = "stop"
        elif self.matcher is not None:
            self.matcher.push(token)
            reason = "stop" if self.matcher.complete else None
        ended = token in self.end_ids or token in self.stop_ids
        text = "" if ended else self.decoder.push(token)
        if reason is None and len(self.ids) - self.prompt_length == self.sampling.max_new_tokens:
            reason = "length"
        elif reason is None and len(self.ids) > self.context_length:  # the last token cannot be read
            reason = "context"
        if reason is not None:
            text += self.decoder.flush()
        shown, stopped = self.stops.push(text)
        if stopped:
            reason = "stop"
        elif reason is not None:
            shown += self.stops.held
        self.finish_reason = reason
        return Piece(self.row, token, shown, reason)


def _token_id(tokenizer: Tokenizer, name: str, where: str) -> int:
    id = tokenizer.token_to_id(name)
    if id is None:
        todo = nearest(name, tokenizer.special_tokens) if tokenizer.special_tokens else None
        raise InputError(f"the tokenizer has no token {name!r}", where=where, todo=todo)
    return id


def check_prompt(prompt: Sequence[int], context_length: int) -> None:
    """Refuse a prompt that the model cannot read.

    Raises:
        InputError: it is empty, or longer than the context.
    """
    if not prompt:
        raise InputError("there is no prompt", todo="Give at least one character.")
    if len(prompt) > context_length:
        raise InputError(
            f"the prompt has {len(prompt)} tokens; the model's context has {context_length}",
            todo="Shorten the prompt, or use a model with a longer context.",
        )
