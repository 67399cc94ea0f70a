"""What was read, what was dropped and why: `rhapsode corpus` shows it at its end and saves it in the manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rhapsode.base.errors import InputError

EXAMPLES_KEPT = 3


class UnreadableTextError(InputError):
    """One file, archive member or row that is no usable text. Whoever reads with `skip_bad` drops it and goes on.

    Args:
        reason: what it counts as when it is dropped, as "undecodable".
    """

    def __init__(self, what: str, *, reason: str, where: str, todo: str | None = None) -> None:
        self.reason = reason
        super().__init__(what, where=where, todo=todo or "Mend it or leave it out, or drop such texts with --skip-bad.")


@dataclass
class Read:
    """What was read of one kind of file. Characters are counted after decoding and composing."""

    files: int = 0
    documents: int = 0
    characters: int = 0


@dataclass
class Dropped:
    """What was dropped for one reason: how often, and where it was for the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class ReadReport:
    """The account of one reading. `bytes_read` counts the files on disk as they are, packed or not."""

    read: dict[str, Read] = field(default_factory=dict)
    dropped: dict[str, Dropped] = field(default_factory=dict)
    encodings: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_total: int | None = 0

    def begin_file(self, kind: str) -> None:
        self.read.setdefault(kind, Read()).files += 1

    def document(self, kind: str, characters: int, encoding: str) -> None:
        entry = self.read.setdefault(kind, Read())
        entry.documents += 1
        entry.characters += characters
        self.encodings[encoding] = self.encodings.get(encoding, 0) + 1

    def drop(self, reason: str, where: str) -> None:
        entry = self.dropped.setdefault(reason, Dropped())
        entry.count += 1
        if len(entry.examples) < EXAMPLES_KEPT:
            entry.examples.append(where)

    def add_bytes(self, count: int) -> None:
        self.bytes_read += count

    def as_json(self) -> dict[str, Any]:
        return {
            "read": {kind: asdict(entry) for kind, entry in sorted(self.read.items())},
            "dropped": {reason: asdict(entry) for reason, entry in sorted(self.dropped.items())},
            "encodings": dict(sorted(self.encodings.items())),
        }


@dataclass(frozen=True)
class Reading:
    """How texts are to be read, and the account of it.

    Args:
        text_field: the field of JSON lines, or the column of CSV and parquet files, that holds the text.
        target_field: the one that holds the other side, where each row is a pair; in text files a TAB is between.
        separator: where it stands in a text file, one document ends and the next begins.
        encoding: the encoding of every text, or None to find it out.
        skip_bad: drop and count what cannot be read.
    """

    text_field: str = "text"
    target_field: str | None = None
    separator: str | None = None
    encoding: str | None = None
    skip_bad: bool = False
    report: ReadReport = field(default_factory=ReadReport)

    @property
    def fields(self) -> list[str]:
        """The fields that a row must have."""
        return [self.text_field] if self.target_field is None else [self.text_field, self.target_field]

    def bad(self, error: UnreadableTextError) -> None:
        """Count `error` if bad texts are to be skipped, raise it otherwise."""
        if not self.skip_bad:
            raise error
        self.report.drop(error.reason, error.where or "")
