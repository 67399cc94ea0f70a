"""Beam search for texts of ids: through the engine for decoders, side by side in one cache for encoder-decoders.

((best, *_),) = beam_search(model, [ids], BeamSearch(beams=5), end_ids)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from rhapsode.base.errors import InputError
from rhapsode.inference.beams import Beams, BeamSearch, Hypothesis
from rhapsode.inference.engine import Engine
from rhapsode.inference.padding import padded
from rhapsode.inference.search import Search
from rhapsode.inference.step import TorchStep, room_for_blocks
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.decoder import Decoder
from rhapsode.model.encoder_decoder import EncoderDecoder


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
    context, vocabulary = model.config.context_length, vocabulary_size or model.config.vocabulary_size
    for text in texts:
        if not 0 < len(text) <= context:
            raise InputError(f"a text of {len(text)} tokens is not between 1 and the context of {context}")
    if isinstance(model, Decoder):
        return _continued(model, texts, search, end_ids, vocabulary)
    # The last token that is written need not be read, and the first one that is read is not written.
    most_new = min(context, search.max_new_tokens or context)
    reading = _Reading(model, texts, most_new)
    beams = Beams(search, reading.fresh, most_new, end_ids, vocabulary)
    while (going := beams.go_on(reading.logits())) is not None:
        reading.go_on(*going)
    return beams.finished


def _continued(
    model: Decoder, texts: Sequence[Sequence[int]], search: BeamSearch, end_ids: Collection[int], vocabulary: int
) -> list[list[Hypothesis]]:
    """As `beam_search` by a decoder: each text is a request to an engine."""
    context = model.config.context_length
    searches = [Search(text, search, end_ids, context, vocabulary) for text in texts]
    needed = [each.blocks for each in searches]
    step = TorchStep(model, max(*needed, min(sum(needed), room_for_blocks(model.config, model.device))))
    engine = Engine(step, None, context)
    requests = [engine.search(text, search, end_ids, vocabulary_size=vocabulary) for text in texts]
    for request in requests:
        engine.finish(request)
    return [request.hypotheses for request in requests]


class _Reading:
    """What an encoder-decoder has read of several texts, and of the beams that go on after them.

    Attributes:
        fresh: (rows, 1), the last token of each beam, which is to be read.
    """

    def __init__(self, model: EncoderDecoder, texts: Sequence[Sequence[int]], most_new: int) -> None:
        self._model, device = model, model.device
        ids, self._memory_padding = padded(texts, device)
        self._memory: Tensor | None = model.encode(ids, padding=self._memory_padding)
        assert model.config.start_id is not None
        self.fresh = torch.full((len(texts), 1), model.config.start_id, device=device)
        self._cache = KeyValueCache(model.config, len(texts), most_new, device, model.embedding.weight.dtype)
        self._text_of = torch.arange(len(texts), device=device)  # (rows,)

    def logits(self) -> Tensor:
        """(rows, vocabulary) of the next token of each beam."""
        hidden = self._model.hidden(self.fresh, self._memory, memory_padding=self._memory_padding, cache=self._cache)
        self._memory = None  # the cache has what is needed of it
        logits: Tensor = self._model.head(hidden[:, -1])
        return logits

    def go_on(self, rows: Tensor, tokens: Tensor) -> None:
        """Beam i becomes what beam rows[i] was, with tokens[i] after it."""
        texts = self._text_of[rows]
        moved = not torch.equal(texts, self._text_of)
        self._cache.select(rows, memory=moved)
        if moved and self._memory_padding is not None:
            self._memory_padding = self._memory_padding[rows]
        self._text_of, self.fresh = texts, tokens[:, None]
