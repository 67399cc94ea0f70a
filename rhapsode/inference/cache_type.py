"""What a cache keeps keys and values in."""

from __future__ import annotations

from typing import Literal

CacheType = Literal["float32", "float16", "int8"]
"""int8 with a factor for each head of a token; only float32 where torch computes the steps."""

NUMBER_BYTES: dict[CacheType, int] = {"float32": 4, "float16": 2, "int8": 1}
"""Of a number in a cache."""
