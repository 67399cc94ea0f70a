"""Token by token from a prompt: one loop, with the keys and values of what was read kept.

rhapsode generate runs/mytext "Once upon a time"
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from rhapsode.base.errors import InputError, nearest
from rhapsode.inference.sampling import Sampling, distribution, draw
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.decoder import Decoder
from rhapsode.tokenizer.tokenizer import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length", "context", "end of text"]
"""A stop string or stop token; max_new_tokens; the model's context is full; the model ended the text."""


@dataclass(frozen=True)
class Piece:
    """One more token of one text, and the text that is certain by now."""

    row: int
    """Which of the texts that are written side by side."""
    token: int
    """The id drawn."""
    text: str
    """Whole characters to append; empty while they are incomplete, or may be the beginning of a stop string."""
    finish_reason: FinishReason | None = None
    """Why this is the last piece of its row; None when it is not."""


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


class _Row:
    """One text on its way: its ids so far, and what of it is shown."""

    def __init__(
        self, number: int, prompt: Sequence[int], sampling: Sampling, tokenizer: Tokenizer, end_ids: Collection[int]
    ) -> None:
        self.number, self.sampling, self.end_ids = number, sampling, end_ids
        self.ids, self.prompt_length = list(prompt), len(prompt)
        self.stop_ids = {_token_id(tokenizer, name) for name in sampling.stop_tokens}
        self.stops = StopStrings(sampling.stop)
        self.decoder = StreamDecoder(tokenizer)
        for id in prompt:  # some tokens read otherwise at the beginning of a text
            self.decoder.push(id)
        self.finished = False

    def push(self, token: int, context_length: int) -> Piece:
        self.ids.append(token)
        reason: FinishReason | None = None
        if token in self.end_ids:
            reason = "end of text"
        elif token in self.stop_ids:
            reason = "stop"
        text = "" if reason else self.decoder.push(token)
        if reason is None and len(self.ids) - self.prompt_length == self.sampling.max_new_tokens:
            reason = "length"
        elif reason is None and len(self.ids) > context_length:  # nothing can follow: the last token cannot be read
            reason = "context"
        if reason is not None:
            text += self.decoder.flush()
        shown, stopped = self.stops.push(text)
        if stopped:
            reason = "stop"
        elif reason is not None:
            shown += self.stops.held
        self.finished = reason is not None
        return Piece(self.number, token, shown, reason)


def _token_id(tokenizer: Tokenizer, name: str) -> int:
    id = tokenizer.token_to_id(name)
    if id is None:
        todo = nearest(name, tokenizer.special_tokens) if tokenizer.special_tokens else None
        raise InputError(f"the tokenizer has no token {name!r}", where="stop_tokens", todo=todo)
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


@torch.no_grad()
def stream(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    samplings: Sequence[Sampling],
    end_ids: Collection[int],
) -> Iterator[Piece]:
    """Write several texts from one prompt side by side, one for each of `samplings`, a token at a time.

    A text depends on the prompt and its own sampling, not on the texts beside it (beyond the rounding of fp32 sums).

    Args:
        prompt: ids, at least one, at most the model's context.
        end_ids: ids with which the model ends a text.

    Yields:
        a piece for each unfinished row after each step, rows in order; the last one of a row has its finish reason.

    Raises:
        InputError: no prompt, one longer than the context, or a stop token that the tokenizer does not have.
    """
    context = model.config.context_length
    check_prompt(prompt, context)
    rows = [_Row(number, prompt, sampling, tokenizer, end_ids) for number, sampling in enumerate(samplings)]
    capacity = min(context, len(prompt) + max(sampling.max_new_tokens for sampling in samplings))
    weight = model.embedding.weight
    cache = KeyValueCache(model.config, len(rows), capacity, weight.device, weight.dtype)
    fresh = torch.tensor([prompt] * len(rows), device=weight.device)  # (rows, time)
    while True:
        last = model.hidden(fresh, cache=cache)[:, -1]  # (rows, hidden)
        # A model may have more rows than its tokenizer has tokens: those are never drawn.
        logits = model.head(last)[:, : tokenizer.vocabulary_size].double().cpu().numpy()  # (rows, vocabulary)
        for row, scores in zip(rows, logits, strict=True):
            if not row.finished:
                probabilities = distribution(scores, row.sampling, row.ids)
                yield row.push(draw(probabilities, row.sampling.seed, len(row.ids)), context)
        if all(row.finished for row in rows):
            return
        fresh = torch.tensor([row.ids[-1:] for row in rows], device=weight.device)  # (rows, 1)
