"""Many texts through an encoder-decoder: those of about one length side by side, in memory that does not grow.

    rhapsode translate runs/german sentences.txt --out german.txt

A text stands for whatever the model was trained to read, and its translation for what it was trained to write.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rhapsode.base.errors import DamagedError
from rhapsode.base.files import read_json
from rhapsode.base.progress import Progress, note
from rhapsode.base.settings import validated
from rhapsode.inference.beam_search import beam_search
from rhapsode.inference.beams import BeamSearch, Hypothesis
from rhapsode.inference.reading import framed
from rhapsode.model.encoder_decoder import EncoderDecoder
from rhapsode.tokenizer.tokenizer import Tokenizer

TEXTS_IN_A_POOL = 2048
"""So many texts are read, sorted by length, and translated before the next ones are read."""
BEAMS_AT_ONCE = 640
"""Beginnings of texts that go on side by side; fewer where the vocabulary or the context is large."""
NUMBERS_AT_ONCE = 1 << 26
"""Numbers in all that is computed of the logits, or that is kept of the texts: 256 MB."""


@dataclass(frozen=True)
class Translation:
    """What a model made of a text."""

    text: str
    """The text written."""
    ids: list[int]
    """Its tokens, one that ended it included."""
    score: float
    """The sum of ln p of these tokens, divided by their number to the power of the length penalty."""
    ended: bool
    """Whether the model ended it; else it has the greatest length, and may be cut."""


NOTHING = Translation("", [], 0.0, True)


def translate(
    model: EncoderDecoder,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    search: BeamSearch,
    end_ids: Collection[int],
    *,
    progress: Progress | None = None,
) -> Iterator[Translation]:
    """The best hypothesis for each text, in the order of the texts. A text of nothing but spaces stays empty.

    What is written does not depend on the texts beside it, beyond the rounding of fp32 sums.

    Args:
        progress: advanced by the texts translated, which is before they can be given in their order.

    Raises:
        InputError: a text is longer than the model's context.
        NotFiniteError: the model computes values that are not numbers.
    """
    config, number = model.config, 0
    coming = iter(texts)
    while pool := list(islice(coming, TEXTS_IN_A_POOL)):
        sources = {}
        for place, text in enumerate(pool):
            number += 1
            if text.strip():
                name = f"text {number}"
                sources[place] = framed(tokenizer, text, config.context_length, name=name, gaps=True)
        written = dict.fromkeys(range(len(pool)), NOTHING)
        for places in _groups(model, sources, search):
            found = beam_search(
                model,
                [sources[place] for place in places],
                search,
                end_ids,
                vocabulary_size=min(config.vocabulary_size, tokenizer.vocabulary_size),
            )
            for place, hypotheses in zip(places, found, strict=True):
                written[place] = _translation(tokenizer, hypotheses[0])
            if progress is not None:
                progress.advance(len(places))
        if progress is not None:
            progress.advance(len(pool) - len(sources))
        yield from (written[place] for place in range(len(pool)))


def _groups(model: EncoderDecoder, sources: dict[int, list[int]], search: BeamSearch) -> Iterator[Sequence[int]]:
    """The places of texts that are translated together: those of about one length."""
    config = model.config
    tower = config.towers[-1]
    written = min(config.context_length, search.max_new_tokens or config.context_length)
    kept = 2 * tower.layers * tower.kv_heads * tower.head_dim * (written + config.context_length)
    largest = max(3 * config.vocabulary_size, kept)
    rows = min(BEAMS_AT_ONCE, NUMBERS_AT_ONCE // largest)
    order = sorted(sources, key=lambda place: len(sources[place]))
    size = max(1, rows // search.beams)
    return (order[start : start + size] for start in range(0, len(order), size))


def _translation(tokenizer: Tokenizer, hypothesis: Hypothesis) -> Translation:
    text = (tokenizer.target or tokenizer).decode(hypothesis.ids)
    return Translation(text, hypothesis.ids, hypothesis.score, hypothesis.ended)


# What generation_config.json calls the fields of `BeamSearch` that mean the same.
SAME = {
    "num_beams": "beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "max_new_tokens": "max_new_tokens",
    "min_new_tokens": "min_new_tokens",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "forced_bos_token_id": "forced_first_id",
    "renormalize_logits": "renormalise",
}
# What would change the text, and is not done; with the value at which it changes nothing.
NOT_FOLLOWED = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "begin_suppress_tokens": None,
    "forced_decoder_ids": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "do_sample": False,
}


def folder_search(folder: Path) -> BeamSearch:
    """How a model folder says that texts be searched for: by its generation_config.json, else its config.json.

    What it says and is not done here is told.

    Raises:
        InputError: a value is not what it should be.
    """
    path = folder / "generation_config.json"
    path = path if path.is_file() else folder / "config.json"
    values = read_json(path)
    if not isinstance(values, dict):
        raise DamagedError("is not a JSON object", where=str(path))
    values = {name: value for name, value in values.items() if value is not None}
    said: dict[str, Any] = {ours: values[theirs] for theirs, ours in SAME.items() if theirs in values}
    # Their lengths count the token that the decoder begins with.
    for theirs, ours in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if ours not in said and theirs in values:
            length = _integer(values[theirs], theirs, path)
            if length > 1:
                said[ours] = length - 1
    if "forced_eos_token_id" in values:
        said["forced_last_ids"] = _integers(values["forced_eos_token_id"], "forced_eos_token_id", path)
    single, several = _bad_words(values.get("bad_words_ids", []), path)
    said["forbidden_ids"] = (*single, *_integers(values.get("suppress_tokens", []), "suppress_tokens", path))
    for name, harmless in NOT_FOLLOWED.items():
        if values.get(name, harmless) not in (harmless, False, 0, []):
            note(f"{path}: {name} is not followed when texts are translated.")
    if several:
        note(f"{path}: bad_words_ids of several tokens are not followed when texts are translated.")
    return validated(BeamSearch, said, str(path))


def _bad_words(value: object, path: Path) -> tuple[tuple[int, ...], int]:
    """The words that are one token, and how many are several."""
    if not isinstance(value, list):
        raise DamagedError("bad_words_ids must be a list of lists of tokens' numbers", where=str(path))
    words = [_integers(word, "bad_words_ids", path) for word in value]
    return tuple(word[0] for word in words if len(word) == 1), sum(len(word) > 1 for word in words)


def _integers(value: object, name: str, path: Path) -> tuple[int, ...]:
    return tuple(_integer(one, name, path) for one in (value if isinstance(value, list) else [value]))


def _integer(value: object, name: str, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DamagedError(f"{name} must be a whole number of 0 or more", where=str(path))
    return value
