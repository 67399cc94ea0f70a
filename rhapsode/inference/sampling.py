"""From logits to one token: which settings there are, in which order they act, and the draw itself.

    rhapsode generate runs/mytext "Once" --temperature 0.8 --top-p 0.95 --seed 1

The order is the same everywhere:

1. repetition penalty  on the logits of tokens that the text already holds;
2. temperature         P(w) = exp(log p(w) / T) / sum exp(log p / T); 0 is the most likely token;
3. top-k               only the k most likely tokens;
4. top-p               only the fewest most likely tokens that together reach the share p;
5. min-p               only tokens at least min-p times as likely as the most likely one.

What is left after each step is scaled to sum to one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import numpy as np

from rhapsode.base.errors import InputError, NotFiniteError
from rhapsode.base.random import generator
from rhapsode.base.settings import Range


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
    repetition_penalty: Annotated[float, Range(0, low_open=True)] = 1.0
    """Above 1, tokens that the text already holds become less likely (Keskar et al. 2019)."""
    seed: Annotated[int, Range(0)] = 0
    """The same seed, prompt and settings give the same text."""
    max_new_tokens: Annotated[int, Range(1)] = 256
    """Stop after this many tokens."""
    stop: tuple[str, ...] = ()
    """Stop where the text comes to hold one of these; it is not shown."""
    stop_tokens: tuple[str, ...] = ()
    """Stop at one of these tokens, named as in the vocabulary (<|im_end|>)."""

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(Sampling, include_extras=True).items():
            value: Any = getattr(self, name)
            for limit in getattr(annotation, "__metadata__", ()):
                if isinstance(limit, Range) and (not math.isfinite(value) or value not in limit):
                    raise InputError(f"value {value} is out of range ({limit})", where=name)
        if "" in self.stop:
            raise InputError("an empty string stops every text", where="stop")


def distribution(logits: np.ndarray, sampling: Sampling, previous: Sequence[int] = ()) -> np.ndarray:
    """The probability (vocabulary,) of each token, after all steps.

    Args:
        logits: (vocabulary,), any floating type; computed in float64.
        previous: ids of the text so far, prompt included, for the repetition penalty.

    Raises:
        NotFiniteError: a logit is infinite or not a number.
    """
    scores = logits.astype(np.float64)
    if not np.isfinite(scores).all():
        raise NotFiniteError("the model computes values that are not finite", todo="Its weights are damaged.")
    if sampling.repetition_penalty != 1.0 and len(previous):
        seen = np.unique(np.asarray(previous))
        penalty = sampling.repetition_penalty
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    if sampling.temperature == 0.0:
        probabilities = np.zeros(len(scores))
        probabilities[scores.argmax()] = 1.0
        return probabilities
    with np.errstate(over="ignore"):  # far below the best at a tiny temperature: minus infinity is right
        probabilities = np.exp((scores - scores.max()) / sampling.temperature)
    probabilities /= probabilities.sum()
    if 0 < sampling.top_k < len(probabilities):
        least = np.partition(probabilities, -sampling.top_k)[-sampling.top_k]
        probabilities = _only(probabilities, probabilities >= least)
    if sampling.top_p < 1.0:
        # Tokens below this share together miss less than 1 - p, so that none of them is needed to reach p: nearly
        # the whole vocabulary need not be sorted.
        candidates = np.flatnonzero(probabilities >= (1.0 - sampling.top_p) / len(probabilities))
        order = candidates[np.argsort(-probabilities[candidates], kind="stable")]
        before = np.cumsum(probabilities[order]) - probabilities[order]
        kept = np.zeros(len(probabilities), dtype=bool)
        kept[order[before < sampling.top_p]] = True
        probabilities = _only(probabilities, kept)
    if sampling.min_p > 0.0:
        probabilities = _only(probabilities, probabilities >= sampling.min_p * probabilities.max())
    return probabilities


def _only(probabilities: np.ndarray, kept: np.ndarray) -> np.ndarray:
    left: np.ndarray = np.where(kept, probabilities, 0.0)
    left /= left.sum()
    return left


def draw(probabilities: np.ndarray, seed: int, position: int) -> int:
    """The token drawn for one position of a text: a pure function of the probabilities, the seed and the position."""
    cumulative = probabilities.cumsum()
    point = generator(seed, "sampling", position).random() * cumulative[-1]
    # Rounding may carry the point onto the end, where no token is.
    return int(np.searchsorted(cumulative, min(point, np.nextafter(cumulative[-1], 0.0)), side="right"))
