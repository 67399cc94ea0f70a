"""What is kept of one request while it is answered, and the line of JSON that is left of it."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from fastapi import Request

from rhapsode.base.errors import InputError


@dataclass
class Record:
    """One request.

    Attributes:
        route: the path of the route that answers it, names left open; None when it is none.
        key: the number of the key it came with; None where keys are not asked for, or it was none of them.
        held: what is given back when the request is over, however it ends.
        prompts: what the model was given, as text.
        answers: what it wrote.
    """

    method: str
    path: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    began: float = field(default_factory=time.monotonic)
    route: str | None = None
    key: int | None = None
    model: str | None = None
    status: int | None = None
    first_token: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    held: AsyncExitStack = field(default_factory=AsyncExitStack)
    prompts: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def seconds(self) -> float:
        """Since the request came."""
        return time.monotonic() - self.began

    def saw_token(self) -> None:
        """Note when the first token was there."""
        if self.first_token is None:
            self.first_token = self.seconds()


def record_of(request: Request) -> Record:
    """The record that the guard has begun for a request."""
    record: Record = request.scope["record"]
    return record


class Log:
    """Writes a line of JSON for each request.

    Args:
        path: the file it is appended to; None for standard error.
        texts: whether prompts and answers are written too.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, path: Path | None, *, texts: bool = False) -> None:
        self._texts = texts
        self._file: TextIO | None = None
        if path is not None:
            try:
                self._file = path.open("a", encoding="utf-8", newline="\n")
            except OSError as error:
                raise InputError(f"cannot be written ({error.strerror})", where=str(path)) from None

    def write(self, record: Record) -> None:
        """The line of one request."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": record.id,
            "method": record.method,
            "path": record.path[:200],
            "status": record.status,
            "seconds": round(record.seconds(), 4),
        }
        if record.key is not None:
            line["key"] = record.key
        if record.model is not None:
            line |= {
                "model": record.model,
                "prompt_tokens": record.prompt_tokens,
                "cached_tokens": record.cached_tokens,
                "completion_tokens": record.completion_tokens,
                "first_token_seconds": None if record.first_token is None else round(record.first_token, 4),
                "finish_reasons": record.finish_reasons,
            }
            if self._texts:
                line |= {"prompts": record.prompts, "answers": record.answers}
        # In ASCII: no path can end the line, or say anything to a terminal.
        print(json.dumps(line), file=self._file or sys.stderr, flush=True)


Writer = Callable[[Record], None]
"""What is told of every request when it is over."""
