"""Tools that a model may call and the calls it makes, in words; `chat` shows them to it, `tools` reads them back."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from rhapsode.base.errors import InputError, shown

LONGEST_NAME = 64
NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{LONGEST_NAME}}}")


def _no_parameters() -> dict[str, Any]:
    return {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Tool:
    """A function that a model may ask to be called.

    Raises:
        InputError: the name is none that a model can write in a call, or the parameters are those of no object.
    """

    name: str
    """1 to 64 letters, digits, `_`, `.` and `-`."""
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=_no_parameters)
    """The JSON schema of its arguments, an object."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            todo = "Take 1 to 64 of the letters a to z and A to Z, digits, _, . and -."
            raise InputError(f"{shown(self.name)} cannot be the name of a tool", where="tools", todo=todo)
        if self.parameters.get("type", "object") != "object":
            said = shown(self.parameters["type"])
            raise InputError(f"the arguments are of type {said}, not object", where=f"tool {self.name}")

    def as_json(self) -> dict[str, Any]:
        """As chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: str = "{}"
    """A JSON object; clients write nothing where it is empty."""
    id: str = ""
    """By which its result refers to it. Some templates want 9 letters and digits; what a model writes has none."""

    def value(self) -> dict[str, Any]:
        """The arguments.

        Raises:
            InputError: they are no JSON object.
        """
        try:
            value = json.loads(self.arguments or "{}", parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise InputError(f"are not JSON ({error})", where=f"arguments of {self.name}") from None
        if not isinstance(value, dict):
            raise InputError(f"{shown(value)} is not an object", where=f"arguments of {self.name}")
        return value


def _refuse(constant: str) -> None:
    """Python reads NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{constant} is no value")


def json_spans(text: str, value: dict[str, Any]) -> list[tuple[int, int]]:
    """Where in a text this object stands as JSON, from and to."""
    spans, decoder = [], json.JSONDecoder()
    for match in re.finditer("{", text):
        try:
            found, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if found == value:
            spans.append((match.start(), end))
    return spans
