"""What a decoder should reach on a text: bits per byte, from its size and from how much it reads.

The constants come from runs whose numbers stand in docs/lab.md.
"""

from __future__ import annotations

import lzma
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PairLengths:
    """How long the sides of pairs of texts are, in tokens, their ends counted."""

    pairs: int
    """How many there are for training."""
    source: float
    """Mean of the sides that are read."""
    target: float
    """Mean of the sides that are written."""
    longest: int
    """As long as all but one in a thousand sides are at most."""


@dataclass(frozen=True)
class Text:
    """What the planner knows of the tokenized text."""

    tokens: int
    """Training tokens."""
    bytes: int
    """Bytes of UTF-8 they stand for."""
    validation_tokens: int
    compressed_bits_per_byte: float
    """What a general compressor reaches on a piece of it; see `compressed`."""
    pairs: PairLengths | None = None
    """Of pairs of texts."""


def compressed(sample: str) -> float:
    """Bits per byte that xz needs for a piece of text: how predictable it is before any learning."""
    data = sample.encode("utf-8")
    return 8.0 * len(lzma.compress(data, preset=1)) / max(1, len(data))


REFERENCE_COMPRESSED = 3.14
"""Bits per byte of xz on the texts of the runs that the constants come from."""
FLOOR, SIZE_FACTOR, SIZE_POWER, TEXT_FACTOR, TEXT_POWER = 1.66, 23.0, 0.35, 103.7, 0.4
REPEATS_WORTH = 8.0
"""How many repetitions of a text are worth something, roughly; 15 in the source, for models that regularise better."""


def expected_bits_per_byte(parameters: float, bytes_seen: float, text: Text) -> float:
    """What a run should reach: a floor, and powers of the model's size and of the text it reads.

    The form is Hoffmann et al. 2022, equation 10, in bytes; its constants are fitted to the runs in docs/lab.md, and
    scaled by how well xz compresses the text compared with theirs. Text read again is worth less each time
    (Muennighoff et al. 2023, equation 5).
    """
    fresh = min(bytes_seen, text.bytes)
    repeats = max(0.0, bytes_seen / text.bytes - 1)
    effective = fresh * (1 + REPEATS_WORTH * (1 - math.exp(-repeats / REPEATS_WORTH)))
    scale = text.compressed_bits_per_byte / REFERENCE_COMPRESSED
    return float(scale * (FLOOR + SIZE_FACTOR / parameters**SIZE_POWER + TEXT_FACTOR / effective**TEXT_POWER))
