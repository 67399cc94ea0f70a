"""What a model makes of a text that it only reads: words for its gaps, how likely each token is, a vector.

rhapsode fill runs/novels "The <|mask|> sat on the mat."
rhapsode embed runs/novels texts.txt --out vectors.npy
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhapsode.base.errors import InputError, NotFiniteError
from rhapsode.base.progress import Progress
from rhapsode.inference.gaps import encode_with_gaps
from rhapsode.inference.padding import groups_of_like_length, padded
from rhapsode.model.decoder import Decoder
from rhapsode.model.encoder import Encoder
from rhapsode.model.encoder_decoder import EncoderDecoder
from rhapsode.model.model import Model
from rhapsode.tokenizer.tokenizer import Tokenizer

Pooling = Literal["mean", "last", "cls"]
"""The mean of all tokens' vectors, the frame's included; the last token's; the first one's."""

TOKENS_AT_ONCE = 4096
"""Tokens, padding included, that are read side by side."""


@dataclass(frozen=True)
class Candidate:
    """One token that a gap could be filled with."""

    id: int
    """The token."""
    text: str
    """What it stands for; bytes that are no whole character as the replacement character."""
    probability: float
    """How likely it is there, given all the rest of the text."""


@dataclass(frozen=True)
class Filling:
    """A text whose gaps an encoder has filled."""

    text: str
    """The text, with the most likely token in each gap. Gaps are filled one by one: they do not know of each other."""
    gaps: list[list[Candidate]]
    """For each gap, the candidates, the most likely first."""


def framed(tokenizer: Tokenizer, text: str, context: int, *, name: str = "the text", gaps: bool = False) -> list[int]:
    """The ids that a model reads for a text: those of its tokens, in their frame.

    Args:
        name: what the message calls it.
        gaps: whether gaps named in the text become their tokens.

    Raises:
        InputError: it has more tokens than the context.
    """
    front, back = tokenizer.frame
    ids = [*front, *(encode_with_gaps(tokenizer, text) if gaps else tokenizer.encode(text)), *back]
    _check_length(ids, context, name)
    return ids


def _check_length(ids: Sequence[int], context: int, name: str) -> None:
    if len(ids) > context:
        raise InputError(
            f"{name} has {len(ids)} tokens; the model reads {context}",
            todo="Cut it into sentences, or use a model with a longer context.",
        )


@torch.no_grad()
def fill(model: Encoder, tokenizer: Tokenizer, text: str, top: int) -> Filling:
    """The `top` most likely tokens for each gap in a text.

    Raises:
        InputError: no gap, a text longer than the context, `top` below one, or an encoder without a head.
    """
    if top < 1:
        raise InputError(f"top must be at least 1, not {top}")
    if tokenizer.mask_id is None:
        raise InputError("the tokenizer has no token that stands for a gap", where=tokenizer.where)
    ids = framed(tokenizer, text, model.config.context_length, gaps=True)
    places = [place for place, id in enumerate(ids) if id == tokenizer.mask_id]
    if not places:
        mask = tokenizer.id_to_token(tokenizer.mask_id)
        raise InputError("there is no gap in the text", todo=f"Write {mask} where a word is missing.")
    found = _log_probabilities(model, tokenizer, model_input(ids, model), torch.tensor([places]))[0].exp()
    gaps, filled = [], list(ids)
    best = found.topk(min(top, found.shape[1]))  # (gaps, top)
    for place, likely, numbers in zip(places, best.values.tolist(), best.indices.tolist(), strict=True):
        texts = [tokenizer.id_to_bytes(id).decode("utf-8", errors="replace") for id in numbers]
        gaps.append([Candidate(*one) for one in zip(numbers, texts, likely, strict=True)])
        filled[place] = numbers[0]
    return Filling(tokenizer.decode(filled), gaps)


def model_input(ids: Sequence[int], model: Model) -> Tensor:
    """One text as a batch, (1, time), where the model is."""
    return torch.tensor([list(ids)], device=model.device)


@torch.no_grad()
def pseudo_log_probabilities(model: Encoder, tokenizer: Tokenizer, text: str) -> tuple[list[int], list[float]]:
    """The tokens of a text, and ln p of each given all the others: each in turn is hidden (Salazar et al. 2020).

    Raises:
        InputError: an empty text, one longer than the context, no token to hide others with, or no head.
    """
    if tokenizer.mask_id is None:
        raise InputError("the tokenizer has no token that hides others", where=tokenizer.where)
    ids = framed(tokenizer, text, model.config.context_length)
    before, after = map(len, tokenizer.frame)
    count = len(ids) - before - after
    if count < 1:
        raise InputError("the text is empty", todo="Give at least one character.")
    found: list[float] = []
    for start in range(0, count, step := max(1, TOKENS_AT_ONCE // len(ids))):
        places = torch.arange(start, min(start + step, count)) + before  # (rows,)
        rows = model_input(ids, model).repeat(len(places), 1)  # (rows, time)
        here = torch.arange(len(places), device=rows.device), places.to(rows.device)
        hidden, rows[here] = rows[here], tokenizer.mask_id
        log_p = _log_probabilities(model, tokenizer, rows, places[:, None])[:, 0]  # (rows, vocabulary)
        found += log_p.gather(1, hidden[:, None])[:, 0].tolist()
    return ids[before : before + count], found


def _log_probabilities(model: Encoder, tokenizer: Tokenizer, ids: Tensor, places: Tensor) -> Tensor:
    """ln p (rows, places, vocabulary) of the tokens at some places (rows, places) of ids (rows, time)."""
    model.require_head()
    hidden = model.hidden(ids)[torch.arange(len(ids), device=ids.device)[:, None], places.to(ids.device)]
    # A model may have more rows than its tokenizer has tokens: those stand for nothing.
    logits = model.head(hidden)[..., : tokenizer.vocabulary_size].float()
    log_p: Tensor = logits.log_softmax(dim=-1)
    if log_p.isnan().any():
        raise NotFiniteError("the model computes values that are not numbers", todo="Its weights are damaged.")
    return log_p


@torch.no_grad()
def embed(
    model: Model,
    tokenizer: Tokenizer,
    texts: Iterable[str | Sequence[int]],
    pooling: Pooling,
    *,
    normalise: bool,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """The vectors (texts, hidden) of texts, from the last hidden states (an encoder-decoder's encoder's).

    A text may be ids, which are read as they are.

    A vector does not depend on the texts beside it, beyond the rounding of fp32 sums.

    Raises:
        InputError: no texts, one that is longer than the context or has no tokens, or a pooling that does not exist or
            that says nothing.
        NotFiniteError: the model computes values that are not finite.
    """
    if pooling not in ("mean", "last", "cls"):
        raise InputError(f"pooling {pooling!r} is none of: mean, last, cls")
    if pooling == "cls" and isinstance(model, Decoder):
        todo = "Use mean, or last: its last token has seen the whole text."
        raise InputError("pooling cls says nothing in a decoder: its first token has seen no other", todo=todo)
    context = model.config.context_length
    sources: dict[int, Sequence[int]] = {}
    for place, text in enumerate(texts):
        ids = framed(tokenizer, text, context, name=f"text {place + 1}") if isinstance(text, str) else text
        _check_length(ids, context, f"text {place + 1}")
        sources[place] = ids
        if not ids:
            raise InputError(f"text {place + 1} is empty", todo="Leave it out.")
    vectors = np.empty((len(sources), model.config.hidden_size), dtype=np.float32)
    for places in groups_of_like_length(sources, TOKENS_AT_ONCE):
        rows, padding = padded([sources[place] for place in places], model.device)
        read = model.encode if isinstance(model, EncoderDecoder) else model.hidden
        lengths = torch.tensor([len(sources[place]) for place in places], device=rows.device)
        pooled = _pooled(read(rows, padding=padding), lengths, pooling)  # (rows, hidden)
        if normalise:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        vectors[places] = pooled.cpu().numpy()
        if progress is not None:
            progress.advance(len(places))
    if not np.isfinite(vectors).all():
        raise NotFiniteError("the model computes values that are not finite", todo="Its weights are damaged.")
    return vectors


def _pooled(hidden: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """One vector (rows, hidden) for each text of hidden states (rows, time, hidden), in fp32."""
    hidden = hidden.float()
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    real = torch.arange(hidden.shape[1], device=hidden.device)[None, :] < lengths[:, None]  # (rows, time)
    return hidden.masked_fill(~real[:, :, None], 0.0).sum(dim=1) / lengths[:, None]
