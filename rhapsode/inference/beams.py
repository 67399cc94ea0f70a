"""Beam search: the most likely text, as far as looking at a few beginnings at a time can find it.

    rhapsode generate runs/mytext "Once upon a time" --beams 5

At each step the `beams` best beginnings of a text are continued by every token, and the best continuations go on. The
score of a text is sum ln p(token) / length^length_penalty. One beam is greedy search: always the most likely token.
Here is what goes on, and what is found; the engine reads the beams of decoders, `beam_search` those of others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
import torch
from torch import Tensor

from rhapsode.base.errors import InputError, NotFiniteError
from rhapsode.base.settings import Range
from rhapsode.inference.text import Text


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
    """Whether it came to an end; else it has the greatest length, or nothing may follow."""


class Beams:
    """The beams of a search: the beginnings that go on side by side, for one text or several, and what was found.

    Whoever reads them gives the logits after each one, and is told which of them go on, with which tokens:

        while (going := beams.go_on(logits)) is not None: rows, tokens = going; ...

    Args:
        prompts: (texts, time), what each text goes on from; at first, each is the only beam of its text.
        most_new: tokens to write at most.
        end_ids: tokens that end a text.
        vocabulary: only tokens below this are written.
        guide: for a single text, says what it may be and where it ends besides; None for nothing more.

    Attributes:
        finished: for each text the best hypotheses so far, the best first; complete when nothing goes on.

    Raises:
        InputError: a token is forced or forbidden that there is not.
    """

    def __init__(
        self,
        search: BeamSearch,
        prompts: Tensor,
        most_new: int,
        end_ids: Collection[int],
        vocabulary: int,
        guide: Text | None = None,
    ) -> None:
        texts, device = len(prompts), prompts.device
        ends = torch.tensor(sorted(id for id in end_ids if id < vocabulary), dtype=torch.long, device=device)
        self.finished: list[list[Hypothesis]] = [[] for _ in range(texts)]
        self._search, self._ends, self._rules = search, ends, _Rules(search, ends, vocabulary)
        self._most_new, self._vocabulary = most_new, vocabulary
        self._written, self._prompt = prompts, prompts.shape[1]  # (rows, time): all that the next token follows
        self._unfinished = list(range(texts))
        self._scores = torch.zeros(texts, 1, device=device)  # (unfinished, width): ln p of what each beam has written
        self._guides = None if guide is None else [guide]

    def go_on(self, logits: Tensor) -> tuple[Tensor, Tensor] | None:
        """What goes on (rows, tokens), both (new rows,): beam i becomes what beam rows[i] was, with tokens[i] after it.

        Args:
            logits: (rows, at least the vocabulary) of the next token of each beam.

        Returns:
            None when the search has ended.

        Raises:
            NotFiniteError: the model computes values that are not numbers.
        """
        search, vocabulary, unfinished, scores = self._search, self._vocabulary, self._unfinished, self._scores
        width, length = scores.shape[1], self._written.shape[1] - self._prompt + 1
        last = length == self._most_new
        log_p = self._rules.apply(self._log_probabilities(logits), self._written, length, last, self._allowed())
        totals = (scores.view(-1, 1) + log_p).view(len(unfinished), -1)  # (unfinished, width * vocabulary)
        # One beam is ranked without what came before: a long sum's rounding is greater than what tokens differ in.
        ranked = log_p if search.beams == 1 else totals
        places, ended, guides = self._candidates(ranked)  # (unfinished, candidates), the best first
        best = totals.gather(1, places)
        rows = places // vocabulary + width * torch.arange(len(unfinished), device=best.device)[:, None]
        tokens = places % vocabulary
        worth, closed = search.worth(best, length), ended | last
        for place, rank in (closed & (best > -math.inf))[:, : search.beams].nonzero().tolist():
            ids = [*self._new_ids(int(rows[place, rank])), int(tokens[place, rank])]
            hypothesis = Hypothesis(ids, float(worth[place, rank]), bool(ended[place, rank]))
            _keep(self.finished[unfinished[place]], hypothesis, search)
        going = best.masked_fill(closed, -math.inf)
        self._scores, order = going.topk(min(search.beams, going.shape[1]))  # (unfinished, beams)
        hopes = search.worth(self._scores[:, 0], self._most_new if _may_grow(search) else length).tolist()
        goes_on = []
        for place, (text, hope) in enumerate(zip(unfinished, hopes, strict=True)):
            goes_on.append(not last and hope > -math.inf and not _settled(self.finished[text], search, hope))
            if not goes_on[-1] and not self.finished[text]:  # nothing may follow
                score = search.worth(scores[place, 0], max(1, length - 1))
                self.finished[text] = [Hypothesis(self._new_ids(place * width), float(score), False)]
        if not any(goes_on):
            return None
        kept = torch.tensor(goes_on, device=best.device)
        width = int((self._scores[kept] > -math.inf).sum(dim=1).max())  # what nothing may follow does not go on
        self._scores, order = self._scores[kept, :width], order[kept, :width]
        self._unfinished = [text for text, still in zip(unfinished, goes_on, strict=True) if still]
        rows, tokens = rows[kept].gather(1, order).view(-1), tokens[kept].gather(1, order).view(-1)
        self._written = torch.cat((self._written[rows], tokens[:, None]), dim=1)
        if guides is not None:
            self._guides = [guides[place] for place in places[0, order[0]].tolist()]
        return rows, tokens

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        """ln p (rows, vocabulary) of the next token of each beam, in fp32."""
        log_p: Tensor = logits[:, : self._vocabulary].float().log_softmax(dim=-1)
        if log_p[:, 0].isnan().any():  # one such logit spoils its whole row
            raise NotFiniteError("the model computes values that are not numbers", todo="Its weights are damaged.")
        return log_p

    def _new_ids(self, row: int) -> list[int]:
        """What a beam has written."""
        ids: list[int] = self._written[row, self._prompt :].tolist()
        return ids

    def _allowed(self) -> Tensor | None:
        """What the guides let follow, (rows, vocabulary) of bool; None for everything."""
        masks = [guide.allowed() for guide in self._guides or ()]
        allowed = [mask for mask in masks if mask is not None]
        return torch.from_numpy(np.stack(allowed)).to(self._written.device) if allowed else None

    def _candidates(self, ranked: Tensor) -> tuple[Tensor, Tensor, dict[int, Text] | None]:
        """The places in `ranked` (unfinished, continuations) of the best ones, and which of them end their text.

        Returns:
            Places and ends (unfinished, candidates), the best first, and for each place the guide after its token.
        """
        # Of so many candidates, enough have not ended: each beam has no more that end than there are ends.
        count = max(2, 1 + len(self._ends)) * self._search.beams
        guides: dict[int, Text] = {}
        while True:
            places = ranked.topk(min(count, ranked.shape[1])).indices
            ended = torch.isin(places % self._vocabulary, self._ends)
            if self._guides is None:
                return places, ended, None
            possible = [place for place in places[0].tolist() if ranked[0, place] > -math.inf]
            for place in possible:
                if place not in guides:
                    guides[place] = self._guides[place // self._vocabulary].fork()
                    guides[place].push(place % self._vocabulary)
            stopped = [guides[place].finish_reason in ("stop", "end of text") for place in possible]
            ended[0, : len(possible)] |= torch.tensor(stopped, dtype=torch.bool, device=ended.device)
            enough = stopped.count(False) >= self._search.beams
            if enough or len(possible) < places.shape[1] or places.shape[1] == ranked.shape[1]:
                return places, ended, guides
            count *= 2  # a stop string may be completed by any number of tokens


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

    def apply(self, log_p: Tensor, written: Tensor, length: int, last: bool, allowed: Tensor | None) -> Tensor:
        """Log probabilities (rows, vocabulary) with minus infinity for what may not follow `written` (rows, time).

        Args:
            length: of the new part of the text, with the token to come.
            last: whether nothing can follow that token.
            allowed: (rows, vocabulary) of bool, what may follow; None for everything.
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
        if allowed is not None:
            log_p = log_p.masked_fill(~allowed, -math.inf)
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
    return row, runs[row, run, -1]
