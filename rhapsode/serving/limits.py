"""How much one key may ask for: requests in a minute, and texts at once."""

from __future__ import annotations

import math
import time
from collections import Counter

from rhapsode.base.errors import RhapsodeError
from rhapsode.inference.engine import QueueFullError


class TooOftenError(RhapsodeError):
    """A key asks more often than it may.

    Attributes:
        seconds: after which it may ask again.
    """

    def __init__(self, per_minute: int, seconds: float) -> None:
        self.seconds = max(1, math.ceil(seconds))
        super().__init__(f"more than {per_minute} requests in a minute", todo=f"Ask again in {self.seconds} s.")


class Limits:
    """Counts what each key asks for. A key is any number; requests without one share None.

    Args:
        per_minute: requests that each key may make in a minute; None for any number.
        texts: that each key may have waiting or being written; None for any number.
        seconds: in which an answer must be there; None for any time.
    """

    def __init__(self, per_minute: int | None = None, texts: int | None = None, seconds: float | None = None) -> None:
        self._per_minute, self._texts, self._seconds = per_minute, texts, seconds
        self._spent: dict[int | None, tuple[float, float]] = {}
        self._writing: Counter[int | None] = Counter()

    def ask(self, key: int | None) -> None:
        """Count one request. What is not asked for in a quiet minute may be asked for at once.

        Raises:
            TooOftenError: the key's minute is used up.
        """
        if self._per_minute is None:
            return
        now = time.monotonic()
        spent, since = self._spent.get(key, (0.0, now))
        spent = max(0.0, spent - (now - since) * self._per_minute / 60)
        if spent + 1 > self._per_minute:
            self._spent[key] = spent, now
            raise TooOftenError(self._per_minute, (spent + 1 - self._per_minute) * 60 / self._per_minute)
        self._spent[key] = spent + 1, now

    def begin(self, key: int | None, texts: int) -> None:
        """Count texts that begin; `end` must follow.

        Raises:
            QueueFullError: the key has too many already; none is counted.
        """
        if self._texts is not None and self._writing[key] + texts > self._texts:
            raise QueueFullError(
                f"{self._writing[key]} texts of this key are being written, of {self._texts} at most",
                todo="Try again later.",
            )
        self._writing[key] += texts

    def deadline(self) -> float | None:
        """When an answer that begins now must be there, by `time.monotonic`."""
        return None if self._seconds is None else time.monotonic() + self._seconds

    def end(self, key: int | None, texts: int) -> None:
        """Count texts that are over."""
        self._writing[key] -= texts
