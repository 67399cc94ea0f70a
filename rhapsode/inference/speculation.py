"""Guesses of the next tokens, cheap to make and checked all at once; they never change what is written.

rhapsode generate runs/mytext "Once" --speculate prompt

A token is drawn from (probabilities, seed, position) alone. So the model reads several guessed tokens in one step,
draws at each place what it would have drawn anyway, and stops at the first guess that is not that. (Leviathan et al.
2023 accept and reject at random to keep the distribution; here the very text stays the same.)
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from rhapsode.inference.text import Text
from rhapsode.model.cache import KeyValueCache
from rhapsode.model.decoder import Decoder

LONGEST_MATCH = 4
"""Tokens: what follows a longer match is hardly likelier to come again."""


class Speculation(Protocol):
    """Makes guesses for texts."""

    def guess(self, text: Text, most: int) -> list[int]:
        """At most so many tokens that may come next; none when there is nothing to go by."""
        ...

    def forget(self, text: Text) -> None:
        """The text has ended."""
        ...


class PromptLookup:
    """What followed the last tokens where they stood before in the text (Saxena 2023): for repeating and quoting."""

    def guess(self, text: Text, most: int) -> list[int]:
        ids = np.array(text.ids)
        for length in range(min(LONGEST_MATCH, len(ids) - 1), 1, -1):
            runs = np.lib.stride_tricks.sliding_window_view(ids[:-1], length)  # (len(ids) - length, length)
            found = np.flatnonzero((runs == ids[-length:]).all(axis=1))
            if len(found):
                start = int(found[-1]) + length
                guessed: list[int] = ids[start : start + most].tolist()
                return guessed
        return []

    def forget(self, text: Text) -> None:
        """Nothing is kept."""


class DraftModel:
    """What a smaller model with the same tokenizer would write, drawn with the text's own random numbers."""

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._caches: dict[Text, tuple[KeyValueCache, list[int]]] = {}

    @torch.no_grad()
    def guess(self, text: Text, most: int) -> list[int]:
        model = self._model
        context = model.config.context_length
        if text not in self._caches:
            weight = model.embedding.weight
            capacity = min(context, text.longest)
            self._caches[text] = (KeyValueCache(model.config, 1, capacity, weight.device, weight.dtype), [])
        cache, read = self._caches[text]
        ids, prompt = list(text.ids), len(text.ids)
        agreed = next((place for place, (a, b) in enumerate(zip(read, ids, strict=False)) if a != b), len(read))
        cache.crop(min(agreed, len(ids) - 1))
        while len(ids) < prompt + most and len(ids) <= cache.capacity:
            fresh = torch.tensor([ids[cache.length :]], device=model.device)
            logits = model.head(model.hidden(fresh, cache=cache)[:, -1])[0].float().cpu().numpy()  # (vocabulary,)
            ids.append(text.draw(logits, ids))
        self._caches[text] = (cache, ids[: cache.length])
        return ids[prompt:]

    def forget(self, text: Text) -> None:
        self._caches.pop(text, None)
