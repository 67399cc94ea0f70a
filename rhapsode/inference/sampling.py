"""From logits to one token: which settings there are, in which order they act, and the draw itself.

    rhapsode generate runs/mytext "Once" --temperature 0.8 --top-p 0.95 --seed 1

The order is the same everywhere:

1. bans and limits     tokens that are banned, or that the constraint does not allow here, have probability 0;
2. logit bias          is added to the logits of its tokens;
3. repetition penalty  on the logits of tokens that the text already holds, the prompt included;
4. presence penalty    taken from the logit of each token that was written, the prompt not included;
5. frequency penalty   taken as often as the token was written;
6. temperature         P(w) = exp(log p(w) / T) / sum exp(log p / T); 0 is the most likely token;
7. top-k               only the k most likely tokens;
8. top-p               only the fewest most likely tokens that together reach the share p;
9. min-p               only tokens at least min-p times as likely as the most likely one;
10. typical            only the tokens whose surprise is nearest to the expected one, that together reach the share.

What is left after each step is scaled to sum to one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args, get_type_hints

import numpy as np

from rhapsode.base.errors import InputError, NotFiniteError
from rhapsode.base.random import generator
from rhapsode.base.settings import Range
from rhapsode.inference.constraint import Constraint, Kind


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one text are drawn, and when the text ends.

    Raises:
        InputError: a value is out of range, or a stop string is empty.
    """

    temperature: Annotated[float, Range(0)] = 0.8
    """Divides the log probabilities: below 1 safer, above 1 wilder, 0 always the most likely token."""
    top_k: Annotated[int, Range(0)] = 0
    """Keep only this many of the most likely tokens; 0 keeps all."""
    top_p: Annotated[float, Range(0, 1, low_open=True)] = 0.95
    """Keep the fewest most likely tokens that together have this probability; 1 keeps all."""
    min_p: Annotated[float, Range(0, 1)] = 0.0
    """Keep tokens that are at least this share as likely as the most likely one; 0 keeps all."""
    typical_p: Annotated[float, Range(0, 1, low_open=True)] = 1.0
    """Keep the tokens of the most usual surprise that together have this probability (Meister et al. 2023); 1 all."""
    repetition_penalty: Annotated[float, Range(0, low_open=True)] = 1.0
    """Above 1, tokens that the text already holds become less likely (Keskar et al. 2019)."""
    presence_penalty: Annotated[float, Range(-2, 2)] = 0.0
    """Taken from the logit of every token that was written, the prompt not counted."""
    frequency_penalty: Annotated[float, Range(-2, 2)] = 0.0
    """Taken from the logit of a token for each time it was written, the prompt not counted."""
    logit_bias: Annotated[dict[str, float], Range(-100, 100)] = field(default_factory=dict)
    """Added to the logits of tokens; each is named by its id, written in digits."""
    banned_tokens: tuple[str, ...] = ()
    """Tokens that are never written, named as in the vocabulary."""
    json_schema: str | None = None
    """The text is JSON that this schema allows."""
    regex: str | None = None
    """The text matches this regular expression, from its first character to its last."""
    grammar: str | None = None
    """The text is a sentence of this grammar, in Lark's form."""
    choice: tuple[str, ...] = ()
    """The text is one of these."""
    seed: Annotated[int, Range(0)] = 0
    """The same seed, prompt and settings give the same text."""
    max_new_tokens: Annotated[int, Range(1)] = 256
    """Stop after this many tokens."""
    stop: tuple[str, ...] = ()
    """Stop where the text comes to hold one of these; it is not shown."""
    stop_tokens: tuple[str, ...] = ()
    """Stop at one of these tokens, named as in the vocabulary (<|im_end|>)."""
    shown_tokens: tuple[str, ...] = ()
    """Control tokens whose names stand in the text where the model writes them; others are not shown."""

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(Sampling, include_extras=True).items():
            value: Any = getattr(self, name)
            numbers = value.values() if isinstance(value, dict) else (value,)
            for limit in getattr(annotation, "__metadata__", ()):
                for number in numbers:
                    if isinstance(limit, Range) and (not math.isfinite(number) or number not in limit):
                        raise InputError(f"value {number} is out of range ({limit})", where=name)
        for id in self.logit_bias:
            if not (id.isascii() and id.isdigit()):
                raise InputError(f"{id!r} is not the id of a token, in digits", where="logit_bias")
        limits = [
            name for name in ("json_schema", "regex", "grammar", "choice") if getattr(self, name) not in (None, ())
        ]
        if len(limits) > 1:
            raise InputError("a text can be held to one of them only", where=" and ".join(limits))
        if "" in self.stop:
            raise InputError("an empty string stops every text", where="stop")

    @property
    def constraint(self) -> Constraint | None:
        """What the text must be; None for anything."""
        kinds: tuple[Kind, ...] = get_args(Kind)
        for kind in kinds:
            value = getattr(self, kind)
            if value not in (None, ()):
                return Constraint(kind, json.dumps(value) if kind == "choice" else value)
        return None


def distribution(
    logits: np.ndarray,
    sampling: Sampling,
    previous: Sequence[int] = (),
    *,
    prompt_length: int = 0,
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """The probability (vocabulary,) of each token, after all steps.

    Args:
        logits: (vocabulary,), any floating type; computed in float64.
        previous: ids of the text so far, prompt included, for the penalties.
        prompt_length: so many of them are the prompt's.
        allowed: (vocabulary,) of bool, the tokens that may be written; None for all.

    Raises:
        NotFiniteError: a logit is infinite or not a number.
        InputError: no token is allowed, or a bias is for one that there is not.
    """
    (*_, (_, scores)) = _biased(logits, sampling, previous, prompt_length, allowed)
    (*_, (_, probabilities)) = _filtered(scores, sampling)
    return probabilities


def steps(
    logits: np.ndarray,
    sampling: Sampling,
    previous: Sequence[int] = (),
    *,
    prompt_length: int = 0,
    allowed: np.ndarray | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """The probabilities (vocabulary,) after each step that is on, by its name; arguments and errors as `distribution`.

    The first, "model", is what the model itself says; "temperature" is always among them.
    """
    for name, scores in _biased(logits, sampling, previous, prompt_length, allowed):
        yield name, _softmax(scores)
    yield from _filtered(scores, sampling)


def _biased(
    logits: np.ndarray, sampling: Sampling, previous: Sequence[int], prompt_length: int, allowed: np.ndarray | None
) -> Iterator[tuple[str, np.ndarray]]:
    """The logits, and what each step that acts on logits makes of them."""
    scores = logits.astype(np.float64)
    if not np.isfinite(scores).all():
        raise NotFiniteError("the model computes values that are not finite", todo="Its weights are damaged.")
    yield "model", scores
    if allowed is not None:
        if not allowed.any():
            raise InputError("no token may be written here")
        scores = np.where(allowed, scores, -np.inf)
        yield "bans and limits", scores
    if sampling.logit_bias:
        for id, bias in sampling.logit_bias.items():
            if int(id) >= len(scores):
                raise InputError(f"there are {len(scores)} tokens, none of them is {id}", where="logit_bias")
            scores[int(id)] += bias
        yield "logit bias", scores
    if sampling.repetition_penalty != 1.0 and len(previous):
        seen = np.unique(np.asarray(previous))
        penalty = sampling.repetition_penalty
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
        yield "repetition penalty", scores
    if len(previous) > prompt_length and (sampling.presence_penalty or sampling.frequency_penalty):
        written, times = np.unique(np.asarray(previous[prompt_length:]), return_counts=True)
        if sampling.presence_penalty:
            scores[written] -= sampling.presence_penalty
            yield "presence penalty", scores
        if sampling.frequency_penalty:
            scores[written] -= sampling.frequency_penalty * times
            yield "frequency penalty", scores


def _filtered(scores: np.ndarray, sampling: Sampling) -> Iterator[tuple[str, np.ndarray]]:
    """The probabilities at the temperature, and what each filter leaves of them."""
    if sampling.temperature == 0.0:
        probabilities = np.zeros(len(scores))
        probabilities[scores.argmax()] = 1.0
        yield "temperature", probabilities
        return
    probabilities = _softmax(scores, sampling.temperature)
    yield "temperature", probabilities
    for name, keep in FILTERS.items():
        kept = keep(probabilities, sampling)
        if kept is not None:
            probabilities = np.where(kept, probabilities, 0.0)
            probabilities /= probabilities.sum()
            yield name, probabilities


def _softmax(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    with np.errstate(over="ignore"):  # far below the best at a tiny temperature: minus infinity is right
        powers: np.ndarray = np.exp((scores - scores.max()) / temperature)
    powers /= powers.sum()
    return powers


def _top_k(probabilities: np.ndarray, sampling: Sampling) -> np.ndarray | None:
    if not 0 < sampling.top_k < len(probabilities):
        return None
    least = np.partition(probabilities, -sampling.top_k)[-sampling.top_k]
    kept: np.ndarray = probabilities >= least
    return kept


def _top_p(probabilities: np.ndarray, sampling: Sampling) -> np.ndarray | None:
    if sampling.top_p == 1.0:
        return None
    # Tokens below this share together miss less than 1 - p, so that none of them is needed to reach p: nearly
    # the whole vocabulary need not be sorted.
    candidates = np.flatnonzero(probabilities >= (1.0 - sampling.top_p) / len(probabilities))
    return _until(candidates[np.argsort(-probabilities[candidates], kind="stable")], probabilities, sampling.top_p)


def _min_p(probabilities: np.ndarray, sampling: Sampling) -> np.ndarray | None:
    if sampling.min_p == 0.0:
        return None
    kept: np.ndarray = probabilities >= sampling.min_p * probabilities.max()
    return kept


def _typical(probabilities: np.ndarray, sampling: Sampling) -> np.ndarray | None:
    if sampling.typical_p == 1.0:
        return None
    possible = np.flatnonzero(probabilities)
    surprise = -np.log(probabilities[possible])  # (possible,), in nats
    expected = (probabilities[possible] * surprise).sum()
    return _until(possible[np.argsort(np.abs(surprise - expected), kind="stable")], probabilities, sampling.typical_p)


def _until(order: np.ndarray, probabilities: np.ndarray, share: float) -> np.ndarray:
    """The first tokens in `order` (ids) that together reach the share, as (vocabulary,) of bool."""
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = np.zeros(len(probabilities), dtype=bool)
    kept[order[before < share]] = True
    return kept


FILTERS: dict[str, Callable[[np.ndarray, Sampling], np.ndarray | None]] = {
    "top-k": _top_k,
    "top-p": _top_p,
    "min-p": _min_p,
    "typical": _typical,
}
"""Which tokens are kept, in the order in which they act; None where a filter is off."""


def draw(probabilities: np.ndarray, seed: int, position: int) -> int:
    """The token drawn for one position of a text: a pure function of the probabilities, the seed and the position."""
    cumulative = probabilities.cumsum()
    point = generator(seed, "sampling", position).random() * cumulative[-1]
    # Rounding may carry the point onto the end, where no token is.
    return int(np.searchsorted(cumulative, min(point, np.nextafter(cumulative[-1], 0.0)), side="right"))
