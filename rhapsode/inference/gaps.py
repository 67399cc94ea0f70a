"""Texts with gaps in them: masks that an encoder fills, spans that an encoder-decoder writes.

A gap is named in the text, as in "The <|mask|> sat on the mat." No other special token becomes one by being named.
"""

from __future__ import annotations

import re

from rhapsode.tokenizer.tokenizer import Tokenizer

SPAN = re.compile(r"<\|span_\d+\|>|<extra_id_\d+>")
"""How the tokens are named that stand for spans: here, and in T5's vocabularies."""


def encode_with_gaps(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text, without a frame; gaps named in it become their tokens.

    Space beside a gap belongs to it where the tokenizer says so (`lstrip`, `rstrip`): RoBERTa's mask stands for a word
    that brings its own.
    """
    gaps = {
        name: id for name, id in tokenizer.special_tokens.items() if id == tokenizer.mask_id or SPAN.fullmatch(name)
    }
    if not any(name in text for name in gaps):
        return tokenizer.encode(text)
    tokens = {token["content"]: token for token in tokenizer.content["added_tokens"]}
    patterns = []
    for name in sorted(gaps, key=len, reverse=True):
        before, after = (r"\s*" if tokens[name].get(flag) else "" for flag in ("lstrip", "rstrip"))
        patterns.append(f"{before}{re.escape(name)}{after}")
    ids: list[int] = []
    for part in re.split(f"({'|'.join(patterns)})", text):
        gap = gaps.get(part.strip())
        ids += tokenizer.encode(part) if gap is None else [gap]
    return ids
