"""Making a tokenizer from text.

    rhapsode tokenizer train mytext.txt --kind bpe --vocabulary-size 8192 --out mytokenizer
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rhapsode.base.errors import InputError, nearest
from rhapsode.tokenizer.pre_tokenizers import (
    BYTE_PAIR_PATTERNS,
    byte_characters,
    pre_tokenizer_settings,
    safe_cuts,
    word_pre_tokenizer_settings,
)
from rhapsode.tokenizer.tokenizer import SPECIAL_TOKENS, TEMPLATE_FILE, UNKNOWN, Tokenizer

PART = 2**16  # characters that the library counts at a time


def train_tokenizer(
    texts: Iterable[str], kind: str, vocabulary_size: int | None = None, *, pre_tokenizer: str = "qwen2"
) -> Tokenizer:
    """A tokenizer of the given kind, made from `texts`; the same texts give the same file.

    Args:
        texts: the training text, document by document; read once, never held as a whole.
        kind: a name in `KINDS`.
        vocabulary_size: number of tokens, the special ones among them; characters and bytes have their own number.
        pre_tokenizer: how "bpe" cuts text into pieces: a name in `BYTE_PAIR_PATTERNS`.

    Raises:
        InputError: no such kind or pre-tokeniser, no text, or a vocabulary too small.
    """
    if kind not in KINDS:
        raise InputError(f"there is no tokenizer kind {kind!r}", todo=nearest(kind, KINDS))
    if pre_tokenizer not in BYTE_PAIR_PATTERNS:
        raise InputError(f"there is no pre-tokeniser {pre_tokenizer!r}", todo=nearest(pre_tokenizer, BYTE_PAIR_PATTERNS))
    size = None if vocabulary_size is None else vocabulary_size - len(SPECIAL_TOKENS)
    return _tokenizer(KINDS[kind](_not_empty(texts), size))


def _character(texts: Iterator[str], size: int | None) -> dict[str, Any]:
    """Pairs without any merge leave single characters, spaces and line ends among them."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    counts.pop(UNKNOWN, None)
    vocabulary = {token: id for id, token in enumerate([*sorted(counts), UNKNOWN])}
    return {"model": _pairs(vocabulary, [], unknown=UNKNOWN), "pre_tokenizer": None, "decoder": {"type": "Fuse"}}


def _bpe(texts: Iterator[str], size: int | None) -> dict[str, Any]:
    from tokenizers import Tokenizer as Library
    from tokenizers import models, trainers

    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=byte_characters(), special_tokens=[], show_progress=False
    )
    engine = _untrained(models.BPE(), pre_tokenizer_settings("qwen2"))
    engine.train_from_iterator((part for text in texts for part in safe_cuts(text, PART)), trainer)
    return json.loads(engine.to_str())


KINDS: dict[str, Callable[[Iterator[str], int | None], dict[str, Any]]] = {"character": _character, "bpe": _bpe}


def _pairs(vocabulary: dict[str, int], merges: list[list[str]], unknown: str | None = None) -> dict[str, Any]:
    """The `model` part of a tokenizer.json that joins pairs."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": merges,
    }


def _untrained(model: Any, pre_tokenizer: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer as Library

    content = json.loads(Library(model).to_str())
    return Library.from_str(json.dumps(content | {"pre_tokenizer": pre_tokenizer, "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}}))


def _not_empty(texts: Iterable[str]) -> Iterator[str]:
    """The texts that are not empty, of which there must be one."""
    count = 0
    for text in texts:
        if text:
            count += 1
            yield text
    if not count:
        raise InputError("there is no text to make a tokenizer from")


def _tokenizer(parts: dict[str, Any]) -> Tokenizer:
    """The tokenizer of these parts, with the special tokens after the vocabulary."""
    first = len(parts["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": first + index, "content": name} | flags for index, name in enumerate(SPECIAL_TOKENS)]
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    content |= {"pre_tokenizer": parts["pre_tokenizer"], "post_processor": None}
    content |= {"decoder": parts["decoder"], "model": parts["model"]}
    template = Path(__file__).with_name(TEMPLATE_FILE).read_text(encoding="utf-8")
    return Tokenizer(json.dumps(content, indent=2, ensure_ascii=False) + "\n", chat_template=template)
