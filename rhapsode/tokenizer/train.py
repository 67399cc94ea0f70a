"""Making a tokenizer from text.

    rhapsode tokenizer train mytext.txt --kind bpe --vocabulary-size 8192 --out mytokenizer

Special tokens come after the vocabulary and are not in it: no text can spell them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from rhapsode.base.errors import InputError, nearest
from rhapsode.tokenizer.definition import added_token, as_text, byte_pairs, definition, frame, unigram, word_level
from rhapsode.tokenizer.pre_tokenizers import (
    BYTE_LEVEL,
    PATTERNS,
    WORD_PATTERN,
    byte_characters,
    pre_tokenizer_settings,
    split_settings,
)
from rhapsode.tokenizer.sample import SAMPLE_CHARACTERS, Sample, evenly_spaced
from rhapsode.tokenizer.tokenizer import (
    END_OF_TEXT,
    MASK,
    SPECIAL_TOKENS,
    TEMPLATE_FILE,
    UNKNOWN,
    Tokenizer,
    library_from,
    span_token,
)

ModelKind = Literal["decoder", "encoder", "encoder-decoder"]
KINDS = ("character", "word", "byte", "bpe", "unigram")
DEFAULT_VOCABULARY_SIZE = 8192
LARGEST_VOCABULARY = 1_000_000

Parts = dict[str, Any]  # the `model`, `pre_tokenizer` and `decoder` parts of a tokenizer.json


def train_tokenizer(
    texts: Iterable[str],
    kind: str,
    vocabulary_size: int | None = None,
    *,
    pre_tokenizer: str = "qwen2",
    model: ModelKind = "decoder",
    spans: int = 0,
    sample_characters: int = SAMPLE_CHARACTERS,
) -> Tokenizer:
    """A tokenizer of the given kind made from `texts`. The same texts give the same file, on any number of threads.

    Args:
        texts: the training text, document by document; read once.
        kind: one of `KINDS`.
        vocabulary_size: most tokens there may be, the special ones among them; bytes are always 260. None: as many as
            there are characters, 8192 for other kinds.
        pre_tokenizer: how "bpe" cuts text into pieces: a name in `PATTERNS`.
        model: what kind of model it is for: an encoder has a mask token, and its texts stand between two ends of text;
            the texts of an encoder-decoder are followed by one.
        spans: how many tokens there shall be that stand for spans of a text.
        sample_characters: of more text than this, an evenly spaced sample is used, so that memory stays bounded.

    Raises:
        InputError: no such kind or pre-tokeniser, no text, or a vocabulary too small.
    """
    if kind not in KINDS:
        raise InputError(f"there is no tokenizer kind {kind!r}", todo=nearest(kind, KINDS))
    if pre_tokenizer not in PATTERNS:
        raise InputError(f"there is no pre-tokeniser {pre_tokenizer!r}", todo=nearest(pre_tokenizer, PATTERNS))
    special = [*SPECIAL_TOKENS, *([MASK] if model == "encoder" else []), *map(span_token, range(spans))]
    size = _model_size(kind, vocabulary_size, len(special))
    counts: Counter[str] = Counter()
    if kind == "character":  # of these all text counts: a rare character must not be missed
        texts = _counted(texts, counts)
    sample = evenly_spaced(texts, sample_characters)
    if not sample.characters:
        raise InputError("there is no text to make a tokenizer from")
    if kind == "character":
        parts = _characters(counts, size)
    elif kind == "word":
        parts = _words(sample.parts, size)
    elif kind == "byte":
        parts = _bytes()
    elif kind == "bpe":
        parts = _byte_pairs(sample.parts, size, pre_tokenizer)
    else:
        parts = _unigram(sample.parts, size)
    return _tokenizer(parts, sample, special, model)


def _counted(texts: Iterable[str], counts: Counter[str]) -> Iterator[str]:
    """`texts`, their characters counted in passing."""
    for text in texts:
        counts.update(text)
        yield text


def _model_size(kind: str, vocabulary_size: int | None, special: int) -> int:
    """Most tokens that the vocabulary may have before so many special ones are added."""
    smallest = {"character": 2, "word": 2}.get(kind, 256) + special
    if vocabulary_size is None:
        vocabulary_size = LARGEST_VOCABULARY if kind == "character" else DEFAULT_VOCABULARY_SIZE
    if not smallest <= vocabulary_size <= LARGEST_VOCABULARY:
        raise InputError(
            f"a {kind} tokenizer has {smallest} to {LARGEST_VOCABULARY:,} tokens, the special ones among them",
            where=f"vocabulary size {vocabulary_size}",
        )
    return vocabulary_size - special


def _characters(counts: Counter[str], size: int) -> Parts:
    """One token per character, the most frequent ones if there are too many, and one for every other character."""
    del counts[UNKNOWN]
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[: size - 1]
    vocabulary = {token: id for id, token in enumerate([*sorted(frequent), UNKNOWN])}
    return {"model": byte_pairs(vocabulary, [], unknown=UNKNOWN), "pre_tokenizer": None, "decoder": {"type": "Fuse"}}


def _words(parts: list[str], size: int) -> Parts:
    """The most frequent words and signs, most frequent first, and one token for every other."""
    from tokenizers import models, trainers

    trainer = trainers.WordLevelTrainer(vocab_size=size - 1, special_tokens=[], show_progress=False)
    model = _trained(models.WordLevel(), split_settings(WORD_PATTERN), trainer, parts)
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    vocabulary = {word: id for id, word in enumerate([*(word for word in words if word != UNKNOWN), UNKNOWN])}
    return {
        "model": word_level(vocabulary, UNKNOWN),
        "pre_tokenizer": split_settings(WORD_PATTERN),
        "decoder": {"type": "Fuse"},
    }


def _bytes() -> Parts:
    """Token n is byte n: pairs without any merge, at the level of bytes."""
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    return {"model": byte_pairs(vocabulary, []), "pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL}


def _byte_pairs(parts: list[str], size: int, pre_tokenizer: str) -> Parts:
    """Bytes, and pairs joined in the order of their frequency (Sennrich et al. 2016)."""
    from tokenizers import models, trainers

    settings = pre_tokenizer_settings(pre_tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[], initial_alphabet=byte_characters(), show_progress=False
    )
    model = _trained(models.BPE(), settings, trainer, parts)
    return {"model": byte_pairs(model["vocab"], model["merges"]), "pre_tokenizer": settings, "decoder": BYTE_LEVEL}


def _unigram(parts: list[str], size: int) -> Parts:
    """Pieces of bytes with the log-probabilities under which the text is most likely (Kudo 2018), best first."""
    from tokenizers import models, trainers

    settings = pre_tokenizer_settings("gpt-2")
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=[], initial_alphabet=byte_characters(), show_progress=False
    )
    model = _trained(models.Unigram(), settings, trainer, parts)

    # The library adds up in an order that changes from run to run, so the last digits of its scores do as well; it
    # gives the bytes that no piece needs scores near the lowest in any order; and it may give more pieces than asked.
    lowest = min(score for _, score in model["vocab"])
    unneeded = lowest + 0.0001 * 257
    bytes_alone = [(piece, lowest if score < unneeded else score) for piece, score in model["vocab"] if len(piece) == 1]
    longer = [(piece, score) for piece, score in model["vocab"] if len(piece) > 1]
    longer = sorted(longer, key=lambda item: (-round(item[1], 4), item[0]))[: size - 256]
    rounded = [(piece, round(score, 4)) for piece, score in bytes_alone + longer]
    vocabulary = sorted(rounded, key=lambda item: (-item[1], item[0]))
    return {
        "model": unigram(vocabulary, unknown_id=None),
        "pre_tokenizer": settings,
        "decoder": BYTE_LEVEL,
    }


def _trained(model: Any, pre_tokenizer: Parts, trainer: Any, parts: list[str]) -> Parts:
    """The `model` part of the tokenizer.json that the library makes from `parts`."""
    from tokenizers import Tokenizer as Library

    content = json.loads(Library(model).to_str()) | {"pre_tokenizer": pre_tokenizer}
    library = library_from(json.dumps(content))
    library.train_from_iterator(parts, trainer)
    trained: Parts = json.loads(library.to_str())["model"]
    return trained


def _tokenizer(parts: Parts, sample: Sample, special: list[str], model: ModelKind) -> Tokenizer:
    """The tokenizer of these parts, with the special tokens after its vocabulary."""
    first = len(parts["model"]["vocab"])
    ids = {name: first + index for index, name in enumerate(special)}
    # Where a word brings the space before it, what hides the word hides the space, as in RoBERTa's vocabulary.
    words = parts["pre_tokenizer"] is not None and parts["pre_tokenizer"] != BYTE_LEVEL
    added = [added_token(name, id, lstrip=words and name == MASK) for name, id in ids.items()]
    settings: dict[str, Any] = {"rhapsode": {"characters_read": sample.of, "characters_used": sample.characters}}
    around: Parts | None = None
    if model == "encoder":
        settings |= {"mask_token": MASK, "cls_token": END_OF_TEXT, "sep_token": END_OF_TEXT}
        around = frame([END_OF_TEXT], [END_OF_TEXT], ids)
    elif model == "encoder-decoder":
        around = frame([], [END_OF_TEXT], ids)
    return Tokenizer(
        as_text(definition(**parts, added_tokens=added, post_processor=around)),
        settings=settings,
        chat_template=Path(__file__).with_name(TEMPLATE_FILE).read_text(encoding="utf-8"),
    )
