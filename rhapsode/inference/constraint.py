"""What a text must be, in words; `matching` holds it to that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["json_schema", "regex", "grammar", "choice"]


@dataclass(frozen=True)
class Constraint:
    """What a text must be."""

    kind: Kind
    """JSON that a schema allows, a regular expression, a grammar in Lark's form, or one of several strings."""
    source: str
    """The schema, expression or grammar; of a choice, the strings as a JSON list."""
