"""How well a model predicts a text: nats per token, perplexity, bits per byte.

rhapsode evaluate runs/mytext unseen.txt
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rhapsode.base.errors import InputError, NotFiniteError
from rhapsode.inference.padding import groups_of_like_length, padded
from rhapsode.inference.reading import TOKENS_AT_ONCE
from rhapsode.model.decoder import Decoder

if TYPE_CHECKING:
    from rhapsode.base.progress import Progress

LOGITS_AT_ONCE = 1 << 25
"""Numbers in the largest block of logits: 128 MB, whatever the vocabulary."""

UNCOUNTED = -1


@dataclass(frozen=True)
class Evaluation:
    """How well a text was predicted."""

    nats_per_token: float
    """Mean of -ln p(token) over all predicted tokens: all but the first, which nothing precedes."""
    perplexity: float
    """exp(nats_per_token)."""
    bits_per_byte: float
    """Length of the whole text in the model's code, in bits per byte of UTF-8: comparable between tokenizers."""
    tokens: int
    """Predicted tokens."""
    bytes: int
    """Bytes of UTF-8 that all tokens, the first included, stand for."""


@dataclass(frozen=True)
class Continuation:
    """How well what follows a context was predicted."""

    log_probability: float
    """ln p of all its tokens together."""
    greedy: bool
    """Whether each of them is the most likely one where it stands."""


def windows(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, first) of each window over a text of so many tokens.

    A window reads tokens[start:end] and predicts tokens[start + 1 : end + 1]; of these it counts tokens[first:],
    which no window before it has counted. So each token but the very first counts exactly once, seen after at least
    `context - stride` others (after all there are, in the first window).
    """
    start, first = 0, 1
    while first < tokens:
        end = min(start + context, tokens - 1)
        yield start, end, first
        start, first = start + stride, end + 1


@torch.no_grad()
def token_losses(
    model: Decoder, tokens: np.ndarray, *, context: int, stride: int, batch: int = 8
) -> Iterator[np.ndarray]:
    """-ln p of tokens[1:], in their order, some at a time; the arguments and errors are those of `evaluate`."""
    if len(tokens) < 2:
        raise InputError(f"a text of {len(tokens)} tokens is too short to be predicted", todo="Give at least two.")
    if not 1 <= context <= model.config.context_length:
        raise InputError(f"context must be between 1 and the model's {model.config.context_length}, not {context}")
    if not 1 <= stride <= context:
        raise InputError(f"stride must be between 1 and the context of {context}, not {stride}")
    device = model.device
    rows = max(1, LOGITS_AT_ONCE // model.config.vocabulary_size)
    context = min(context, len(tokens) - 1)
    every = windows(len(tokens), context, min(stride, context))
    while group := list(islice(every, batch)):
        ids = np.zeros((len(group), context), dtype=np.int64)  # what is right of a short window's end, nobody sees
        targets = np.full((len(group), context), UNCOUNTED, dtype=np.int64)
        for row, (start, end, first) in enumerate(group):
            ids[row, : end - start] = tokens[start:end]
            targets[row, first - 1 - start : end - start] = tokens[first : end + 1]
        wanted = torch.from_numpy(targets).to(device)
        counted = wanted != UNCOUNTED  # (batch, time)
        hidden = model.hidden(torch.from_numpy(ids).to(device))[counted]  # (counted, hidden)
        wanted = wanted[counted]  # (counted,)
        for some, their in zip(torch.split(hidden, rows), torch.split(wanted, rows), strict=True):
            yield F.cross_entropy(model.head(some), their, reduction="none").cpu().numpy()


def evaluate(
    model: Decoder,
    tokens: np.ndarray,
    *,
    context: int,
    stride: int,
    bytes_of_text: int,
    batch: int = 8,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict every token of a text from those before it.

    Bits per byte charge the first token, which nothing precedes, log2(vocabulary): the figure is then the length of
    a real code for every byte of the text. End-of-text tokens between documents are predicted and charged too; they
    stand for no bytes.

    Args:
        tokens: (tokens,) ids of any integer type; may be a memory map.
        context: tokens a window reads.
        stride: tokens from one window to the next; `context` for windows that do not overlap.
        bytes_of_text: bytes of UTF-8 that the tokens stand for.
        batch: windows side by side; it does not change the result beyond rounding.
        progress: advanced by the tokens predicted.

    Raises:
        InputError: a text of fewer than two tokens or of no bytes, a context beyond the model's, or a stride beyond
            the context.
    """
    if bytes_of_text < 1:
        raise InputError("a text of no bytes cannot be evaluated")
    nats = 0.0
    for losses in token_losses(model, tokens, context=context, stride=stride, batch=batch):
        nats += float(losses.sum(dtype=np.float64))
        if progress is not None:
            progress.advance(len(losses))
    predicted = len(tokens) - 1
    mean = nats / predicted
    bits = (nats + math.log(model.config.vocabulary_size)) / math.log(2)
    return Evaluation(
        nats_per_token=mean,
        perplexity=math.exp(mean) if mean < math.log(np.finfo(np.float64).max) else math.inf,
        bits_per_byte=bits / bytes_of_text,
        tokens=predicted,
        bytes=bytes_of_text,
    )


@torch.no_grad()
def continuations(
    model: Decoder, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, progress: Progress | None = None
) -> list[Continuation]:
    """Predict what follows each context, many texts side by side.

    Pairs that differ in nothing but their last token are read once. All rows of the model's head count, those beyond
    the tokenizer's vocabulary included, as in transformers.

    Args:
        pairs: ids of each context and of what follows it.
        progress: advanced by the pairs predicted.

    Raises:
        InputError: a context or what follows it is empty, or both have more tokens than the model reads and one more.
        NotFiniteError: the model computes values that are not finite.
    """
    context_length = model.config.context_length
    askers: dict[tuple[int, ...], list[int]] = {}  # the pairs that need a text, by its ids
    for number, (context, following) in enumerate(pairs):
        if not context or not following:
            raise InputError("neither a context nor what follows it can be empty", where=f"pair {number + 1}")
        if len(context) + len(following) > context_length + 1:
            raise InputError(
                f"{len(context)} tokens and {len(following)} that follow are more than the model's context of "
                f"{context_length} and one more",
                where=f"pair {number + 1}",
            )
        askers.setdefault((*context, *following)[:-1], []).append(number)
    texts = dict(enumerate(askers))
    found: dict[int, Continuation] = {}
    for group in groups_of_like_length(texts, TOKENS_AT_ONCE):
        ids, _ = padded([texts[place] for place in group], model.device)  # what is right of a text, it does not see
        numbers: list[int] = []  # of the pairs, and of each token that is wanted: the row, the place, the id
        rows: list[int] = []
        times: list[int] = []
        tokens: list[int] = []
        for row, place in enumerate(group):
            for number in askers[texts[place]]:
                following, read = pairs[number][1], len(texts[place])
                numbers.append(number)
                rows += [row] * len(following)
                times += range(read - len(following), read)
                tokens += following
        hidden = model.hidden(ids)[torch.tensor(rows), torch.tensor(times)]  # (tokens, hidden)
        log_p, best = _predicted(model, hidden, torch.tensor(tokens, device=ids.device))
        ends = np.cumsum([len(pairs[number][1]) for number in numbers])[:-1]
        for number, values, right in zip(numbers, np.split(log_p, ends), np.split(best, ends), strict=True):
            found[number] = Continuation(float(values.sum()), bool(right.all()))
        if progress is not None:
            progress.advance(len(numbers))
    return [found[number] for number in range(len(pairs))]


def _predicted(model: Decoder, hidden: Tensor, tokens: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """ln p (tokens,) of the tokens after hidden states (tokens, hidden), in double, and whether each is the best."""
    rows = max(1, LOGITS_AT_ONCE // model.config.vocabulary_size)
    log_p, best = [], []
    for some, their in zip(torch.split(hidden, rows), torch.split(tokens, rows), strict=True):
        logits = model.head(some).float()  # (some, vocabulary)
        log_p.append(-F.cross_entropy(logits, their, reduction="none").double().cpu().numpy())
        best.append((logits.argmax(dim=-1) == their).cpu().numpy())
    values = np.concatenate(log_p)
    if not np.isfinite(values).all():
        raise NotFiniteError("the model computes values that are not finite", todo="Its weights are damaged.")
    return values, np.concatenate(best)
