"""Beam search: the most likely text, as far as looking at a few beginnings at a time can find it.

    rhapsode translate runs/german "A dog runs." --beams 5

At each step the `beams` best beginnings of a text are continued by every token, and the best continuations go on. The
score of a text is sum ln p(token) / length^length_penalty. One beam is greedy search: always the most likely token.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

import torch
from torch import Tensor

from rhapsode.base.errors import InputError, NotFiniteError
from rhapsode.base.settings import Range
from rhapsode.inference.padding import padded
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.decoder import Decoder
from rhapsode.model.encoder_decoder import EncoderDecoder

UNREAD = -1
"""Stands for padding where tokens written are compared: no token is like it."""


@dataclass(frozen=True)
class BeamSearch:
    """How the most likely text is searched for, and when the search ends.

    Raises:
        InputError: a value is out of range.
    """

    beams: Annotated[int, Range(1, 1000)] = 1
    """Beginnings of each text that go on side by side; 1 always takes the most likely token."""
    length_penalty: float = 1.0
    """A text's log probability is divided by its length to this power: above 0 longer texts win, below 0 shorter."""
    early_stopping: Literal[False, True, "never"] = False
    """When the search for a text ends, once as many as there are beams are finished. True: at once. False: when the
    best unfinished one, if it ended now, would be no better than the worst of them. "never": when it could be no
    better at whatever length."""
    max_new_tokens: Annotated[int | None, Range(1)] = None
    """Longest text to write, its end included; None for all that the context holds."""
    min_new_tokens: Annotated[int, Range(0)] = 0
    """Texts do not end before they have so many tokens."""
    no_repeat_ngram_size: Annotated[int, Range(0)] = 0
    """So many tokens in a row never come twice in a text, the prompt included; 0 for no such rule."""
    forced_first_id: Annotated[int | None, Range(0)] = None
    """The token with which every text begins, when it is not the search that decides."""
    forced_last_ids: Annotated[tuple[int, ...], Range(0)] = ()
    """The tokens with which a text ends that reaches its greatest length."""
    forbidden_ids: Annotated[tuple[int, ...], Range(0)] = ()
    """Tokens that are never written, those that end a text aside."""
    renormalise: bool = False
    """Whether probabilities add up to one again after tokens were forbidden."""

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(BeamSearch, include_extras=True).items():
            value: Any = getattr(self, name)
            for limit in getattr(annotation, "__metadata__", ()):
                numbers = value if isinstance(value, tuple) else () if value is None else (value,)
                if any(number not in limit for number in numbers):
                    raise InputError(f"value {value} is out of range ({limit})", where=name)
        if not math.isfinite(self.length_penalty):
            raise InputError(f"value {self.length_penalty} is not a finite number", where="length_penalty")
        if self.early_stopping not in (False, True, "never"):
            raise InputError(f"value {self.early_stopping!r} is none of: false, true, never", where="early_stopping")

    def worth(self, log_probability: Tensor, length: int) -> Tensor:
        """The scores of texts of one length with these log probabilities."""
        worth: Tensor = log_probability / float(length) ** self.length_penalty
        return worth


@dataclass(frozen=True)
class Hypothesis:
    """A text that a search has found."""

    ids: list[int]
    """The tokens written, one that ended the text included."""
    score: float
    """The sum of ln p of these tokens, divided by their number to the power of the length penalty."""
    ended: bool
    """Whether the model ended it; else it has the greatest length."""


@torch.no_grad()
def beam_search(
    model: Decoder | EncoderDecoder,
    texts: Sequence[Sequence[int]],
    search: BeamSearch,
    end_ids: Collection[int],
    *,
    vocabulary_size: int | None = None,
) -> list[list[Hypothesis]]:
    """The best hypotheses for each text, at most as many as there are beams, the best first.

    What is found for a text does not depend on the texts beside it, beyond the rounding of fp32 sums.

    Args:
        texts: ids, at least one each: what a decoder continues, or an encoder-decoder reads.
        end_ids: tokens that end a text.
        vocabulary_size: only tokens below this are written; None for the model's vocabulary.

    Raises:
        InputError: an empty text, one beyond the context, or a token forced or forbidden that there is not.
        NotFiniteError: the model computes values that are not numbers.
    """
    vocabulary = vocabulary_size or model.config.vocabulary_size
    ends = torch.tensor(sorted(id for id in end_ids if id < vocabulary), dtype=torch.long, device=model.device)
    rules = _Rules(search, ends, vocabulary)
    reading = _Reading(model, texts, search.max_new_tokens)
    # Of so many candidates, enough have not ended: each beam has no more that end than there are ends.
    candidates = max(2, 1 + len(ends)) * search.beams
    finished: list[list[Hypothesis]] = [[] for _ in texts]
    unfinished = list(range(len(texts)))
    scores = torch.zeros(len(texts), 1, device=model.device)  # (unfinished, width): ln p of what each beam has written
    for length in range(1, reading.most_new + 1):
        width, last = scores.shape[1], length == reading.most_new
        log_p = rules.apply(reading.log_probabilities(vocabulary), reading.written, length, last)
        totals = (scores.view(-1, 1) + log_p).view(len(unfinished), -1)  # (unfinished, width * vocabulary)
        # One beam is ranked without what came before: a long sum's rounding is greater than what tokens differ in.
        ranked = log_p if search.beams == 1 else totals
        places = ranked.topk(min(candidates, totals.shape[1])).indices  # (unfinished, candidates), the best first
        best = totals.gather(1, places)
        rows = places // vocabulary + width * torch.arange(len(unfinished), device=best.device)[:, None]
        tokens = places % vocabulary
        ended = torch.isin(tokens, ends) | last
        worth = search.worth(best, length)
        for place, rank in (ended & (best > -math.inf))[:, : search.beams].nonzero().tolist():
            ids = [*reading.new_ids(int(rows[place, rank])), int(tokens[place, rank])]
            _keep(finished[unfinished[place]], Hypothesis(ids, float(worth[place, rank]), ids[-1] in end_ids), search)
        before, going = scores, best.masked_fill(ended, -math.inf)
        scores, order = going.topk(min(search.beams, going.shape[1]))  # (unfinished, beams)
        hopes = search.worth(scores[:, 0], reading.most_new if _may_grow(search) else length).tolist()
        goes_on = []
        for place, (text, hope) in enumerate(zip(unfinished, hopes, strict=True)):
            goes_on.append(not last and hope > -math.inf and not _settled(finished[text], search, hope))
            if not goes_on[-1] and not finished[text]:  # nothing may follow
                score = search.worth(before[place, 0], max(1, length - 1))
                finished[text] = [Hypothesis(reading.new_ids(place * width), float(score), False)]
        if not any(goes_on):
            break
        kept = torch.tensor(goes_on, device=scores.device)
        scores, order = scores[kept], order[kept]
        unfinished = [text for text, still in zip(unfinished, goes_on, strict=True) if still]
        reading.go_on(rows[kept].gather(1, order).view(-1), tokens[kept].gather(1, order).view(-1))
    return finished


def _may_grow(search: BeamSearch) -> bool:
    """Whether a text counts as what it could be worth at the greatest length."""
    return search.early_stopping == "never" and search.length_penalty > 0


def _settled(finished: Sequence[Hypothesis], search: BeamSearch, hope: float) -> bool:
    """Whether nothing that is unfinished, at best worth `hope`, shall be waited for."""
    if len(finished) < search.beams:
        return False
    return search.early_stopping is True or search.beams == 1 or hope <= finished[-1].score


def _keep(hypotheses: list[Hypothesis], new: Hypothesis, search: BeamSearch) -> None:
    """Put a hypothesis among the best ones, the best first; of equal ones the earlier stays before."""
    hypotheses.append(new)
    hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
    del hypotheses[search.beams :]


class _Rules:
    """What may be written, beyond what the model finds likely."""

    def __init__(self, search: BeamSearch, ends: Tensor, vocabulary: int) -> None:
        forced = () if search.forced_first_id is None else (search.forced_first_id,)
        for id in (*forced, *search.forced_last_ids, *search.forbidden_ids):
            if id >= vocabulary:
                raise InputError(f"there is no token {id}", where="beam search", todo=f"There are {vocabulary}.")
        self.search, self.ends = search, ends
        forbidden = set(search.forbidden_ids) - set(ends.tolist())
        self.forbidden = torch.tensor(sorted(forbidden), dtype=torch.long, device=ends.device)

    def apply(self, log_p: Tensor, written: Tensor, length: int, last: bool) -> Tensor:
        """Log probabilities (rows, vocabulary) with minus infinity for what may not follow `written` (rows, time).

        Args:
            length: of the new part of the text, with the token to come.
            last: whether nothing can follow that token.
        """
        search = self.search
        if search.no_repeat_ngram_size:
            log_p[_completing(written, search.no_repeat_ngram_size)] = -math.inf
        log_p[:, self.forbidden] = -math.inf
        if length <= search.min_new_tokens:
            log_p[:, self.ends] = -math.inf
        if length == 1 and search.forced_first_id is not None:
            log_p = _only(log_p, [search.forced_first_id])
        if last and search.forced_last_ids:
            log_p = _only(log_p, search.forced_last_ids)
        # Where nothing at all may follow, there is nothing to add up to one.
        return log_p.log_softmax(dim=-1).nan_to_num(nan=-math.inf) if search.renormalise else log_p


def _only(log_p: Tensor, ids: Sequence[int]) -> Tensor:
    """Certainty that one of `ids` follows."""
    forced = torch.full_like(log_p, -math.inf)
    forced[:, list(ids)] = 0.0
    return forced


def _completing(written: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The rows, and the tokens after which their last `size` tokens would stand in `written` (rows, time) twice."""
    if written.shape[1] < size:
        nothing = torch.zeros(0, dtype=torch.long, device=written.device)
        return nothing, nothing
    runs = written.unfold(1, size, 1)  # (rows, runs, size)
    beginning = written[:, written.shape[1] - size + 1 :]  # (rows, size - 1): what the next token completes
    row, run = (runs[:, :, :-1] == beginning[:, None]).all(dim=2).nonzero(as_tuple=True)
    tokens = runs[row, run, -1]
    read = tokens != UNREAD
    return row[read], tokens[read]


class _Reading:
    """What a model has read of several texts, and what it has written after them.

    Args:
        texts: what a decoder continues, or an encoder-decoder reads.
        most: tokens to write at most, if the context holds them.

    Attributes:
        written: (rows, time), all that the next token follows, `UNREAD` for padding.
        most_new: tokens to write at most.
    """

    def __init__(self, model: Decoder | EncoderDecoder, texts: Sequence[Sequence[int]], most: int | None) -> None:
        self._model, context, device = model, model.config.context_length, model.device
        self._memory: Tensor | None = None
        self._memory_padding: Tensor | None = None
        for text in texts:
            if not 0 < len(text) <= context:
                raise InputError(f"a text of {len(text)} tokens is not between 1 and the context of {context}")
        ids, padding = padded(texts, device, left=isinstance(model, Decoder))
        if isinstance(model, EncoderDecoder):
            self._memory, self._memory_padding = model.encode(ids, padding=padding), padding
            assert model.config.start_id is not None
            ids, padding = torch.full((len(texts), 1), model.config.start_id, device=device), None
        self.written = ids if padding is None else ids.masked_fill(~padding, UNREAD)
        self._prompt = ids.shape[1]
        # The last token that is written need not be read.
        room = context - self._prompt + 1
        self.most_new = room if most is None else min(most, room)
        dtype = model.embedding.weight.dtype
        self._cache = KeyValueCache(model.config, len(texts), self._prompt + self.most_new - 1, device, dtype)
        self._fresh, self._padding = ids, padding
        self._text_of = torch.arange(len(texts), device=device)  # (rows,)

    def log_probabilities(self, vocabulary: int) -> Tensor:
        """ln p (rows, vocabulary) of the next token of each row, in fp32."""
        if isinstance(self._model, EncoderDecoder):
            hidden = self._model.hidden(
                self._fresh, self._memory, memory_padding=self._memory_padding, cache=self._cache
            )
            self._memory = None  # the cache has what is needed of it
        else:
            hidden = self._model.hidden(self._fresh, cache=self._cache, padding=self._padding)
            self._padding = None
        logits = self._model.head(hidden[:, -1])[:, :vocabulary].float()  # (rows, vocabulary)
        log_p: Tensor = logits.log_softmax(dim=-1)
        if log_p[:, 0].isnan().any():  # one such logit spoils its whole row
            raise NotFiniteError("the model computes values that are not numbers", todo="Its weights are damaged.")
        return log_p

    def go_on(self, rows: Tensor, tokens: Tensor) -> None:
        """Row i becomes what rows[i] was, with tokens[i] after it."""
        texts = self._text_of[rows]
        moved = not torch.equal(texts, self._text_of)
        self._cache.select(rows, memory=moved)
        if moved and self._memory_padding is not None:
            self._memory_padding = self._memory_padding[rows]
        self.written = torch.cat((self.written[rows], tokens[:, None]), dim=1)
        self._text_of, self._fresh = texts, tokens[:, None]

    def new_ids(self, row: int) -> list[int]:
        """What a row has written."""
        ids: list[int] = self.written[row, self._prompt :].tolist()
        return ids
