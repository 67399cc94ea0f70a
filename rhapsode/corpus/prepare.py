"""Texts in, a corpus folder out: read, without duplicates, split (`rhapsode corpus TEXT... --out FOLDER`).

Texts are gathered in one file while they are read, since the split needs to know them all, and then dealt out. So a
corpus may be larger than memory (some 130 bytes are kept for each document) and takes twice its size on disk meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rhapsode import __version__
from rhapsode.base.errors import InputError
from rhapsode.base.files import new_folder, sha256_of, write_json
from rhapsode.base.progress import Progress
from rhapsode.corpus.account import ReadReport
from rhapsode.corpus.corpus import (
    ENTRIES,
    FILES,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Corpus,
    Split,
    fingerprint_of,
    offsets_file,
    text_file,
)
from rhapsode.corpus.decode import BLOCK_BYTES
from rhapsode.corpus.formats import Piece
from rhapsode.corpus.read import read_pieces
from rhapsode.corpus.sides import sides_of
from rhapsode.corpus.split import characters_for_training, choose_validation, rank
from rhapsode.corpus.unpack import printable

KEY_BYTES = 16  # of a SHA-256: two of a billion different documents share them once in 10^20 corpora


def prepare_corpus(
    inputs: Sequence[str],
    out: Path,
    *,
    validation: Sequence[str] = (),
    validation_fraction: float = 0.1,
    seed: int = 0,
    licence: str | None = None,
    text_field: str = "text",
    target: Sequence[str] = (),
    validation_target: Sequence[str] = (),
    target_field: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    skip_bad: bool = False,
    force: bool = False,
) -> Corpus:
    """Read `inputs` and write the corpus folder `out`: wholly, or not at all.

    Args:
        inputs: files, folders, globs, `-` for standard input.
        out: the new folder.
        validation: texts to validate on, of the same kinds. Documents that equal one of them are dropped from training.
        validation_fraction: without `validation`, how much is kept for it: documents that hold about this share of
            the bytes, or the last part of a single document.
        seed: another seed chooses other documents for validation.
        licence: recorded for each document.
        text_field, target, target_field, separator, encoding, skip_bad: see `read_pieces`.
        validation_target: what `target` is to `inputs`, to `validation`.
        force: replace `out` if it is a corpus.

    Raises:
        InputError: an input cannot be used, there is no text or too little to split, `out` exists or cannot be written.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction is {validation_fraction}; it must be above 0 and below 1")
    if target and validation and not validation_target:
        raise InputError("the texts to validate on have no counterparts", todo="Name them with --validation-target.")
    if target and target_field is not None:
        raise InputError("pairs are either lines of two files or rows of one", todo="Give --target or --target-field.")
    _check_target(out, [*inputs, *validation, *target, *validation_target], force=force)
    report, pairs = ReadReport(), bool(target) or target_field is not None
    licence = printable(licence) if licence else None
    how: dict[str, Any] = {
        "text_field": text_field,
        "target_field": target_field,
        "separator": separator,
        "encoding": encoding,
        "skip_bad": skip_bad,
    }
    validation_pieces = read_pieces(validation, target=validation_target, **how, report=report, leave_out=out)
    pieces = read_pieces(inputs, target=target, **how, report=report, leave_out=out)
    try:
        with new_folder(out, replace=force) as folder:
            work = folder / "gathered"
            work.mkdir()
            with Progress("reading", report.bytes_total, "bytes") as progress:
                kept_for_validation = _Gathered(work / "validation", seed, licence, report, pairs=pairs)
                kept_for_validation.gather(validation_pieces, progress)
                known = kept_for_validation.keys
                gathered = _Gathered(work / "texts", seed, licence, report, pairs=pairs, not_these=known)
                gathered.gather(pieces, progress)
            if validation and not kept_for_validation.sizes:
                raise _no_text(validation, report)
            if not gathered.sizes:
                raise _no_text(inputs, report)
            with _Dealing(folder) as dealing:
                if validation:
                    dealing.deal(kept_for_validation, [True] * len(kept_for_validation.sizes))
                    dealing.deal(gathered, [False] * len(gathered.sizes))
                    split_by = "named files"
                elif pairs and len(gathered.sizes) == 1:
                    raise InputError("there is one pair, too little to keep any for validation", where=inputs[0])
                elif len(gathered.sizes) == 1:
                    dealing.cut(gathered, validation_fraction)
                    split_by = "position"
                else:
                    sizes, ranks = np.array(gathered.sizes, np.int64), np.array(gathered.ranks, np.uint64)
                    dealing.deal(gathered, choose_validation(sizes, ranks, validation_fraction).tolist())
                    split_by = "document"
            shutil.rmtree(work)
            settings = {
                "pairs": pairs,
                "inputs": [printable(text) for text in inputs],
                "validation": [printable(text) for text in validation],
                "target": [printable(text) for text in target],
                "validation_target": [printable(text) for text in validation_target],
                "validation_fraction": validation_fraction,
                "seed": seed,
                "licence": licence,
                **how,
            }
            _finish(folder, dealing, split_by, report, settings)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=str(out)) from None
    return Corpus.open(out)


def _check_target(out: Path, inputs: Sequence[str], *, force: bool) -> None:
    """Refuse to replace what is no corpus, or what is being read: --force must not cost anyone their texts."""
    if not force or not out.exists():
        return
    if not Corpus.is_corpus(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InputError("is not a corpus, so it will not be replaced", where=str(out), todo="Choose another name.")
    target = out.resolve()
    for text in inputs:
        if Path(text).resolve().is_relative_to(target) and Path(text).exists():
            raise InputError("lies in the corpus that is to be replaced", where=text, todo="Choose another name.")


def _no_text(inputs: Sequence[str], report: ReadReport) -> InputError:
    dropped = [f"{entry.count:,} {reason} ({entry.examples[0]})" for reason, entry in report.dropped.items()]
    names = ", ".join("standard input" if text == "-" else text for text in inputs[:3])
    todo = f"Dropped were: {'; '.join(dropped)}." if dropped else "Name files or folders that hold some."
    return InputError("there is no text to use", where=names + (", ..." if len(inputs) > 3 else ""), todo=todo)


class _Gathered:
    """The documents read so far: their text in one file, where each came from in another, sizes and ranks here."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        licence: str | None,
        report: ReadReport,
        *,
        pairs: bool,
        not_these: set[bytes] | frozenset[bytes] = frozenset(),
    ) -> None:
        folder.mkdir()
        self.text_path, self.origins_path = folder / "texts.txt", folder / "origins.jsonl"
        self.sizes, self.characters, self.ranks = array("q"), array("q"), array("Q")
        self.keys: set[bytes] = set()
        self._seed, self._licence, self._report, self._not_these = seed, licence, report, not_these
        self._pairs = pairs

    def gather(self, pieces: Iterator[Piece], progress: Progress) -> None:
        """Take in every document that is not empty, unreadable or known."""
        as_json = json.JSONEncoder(ensure_ascii=False).encode
        with self.text_path.open("wb", BLOCK_BYTES) as text, self.origins_path.open("w", encoding="utf-8") as origins:
            begin, size, characters, digest = 0, 0, 0, hashlib.sha256()
            for piece in pieces:
                data = piece.text.encode("utf-8")
                text.write(data)
                digest.update(data)
                size += len(data)
                characters += len(piece.text)
                if piece.last:
                    if self._is_new(piece, digest.digest()):
                        origin = {"source": piece.source, "encoding": piece.encoding, "licence": self._licence}
                        origins.write(as_json(origin) + "\n")
                        self.sizes.append(size)
                        self.characters.append(characters)
                        self.ranks.append(rank(self._seed, self._split_key(piece, digest.digest())))
                        begin += size
                    elif size:
                        text.seek(begin)
                        text.truncate()
                    size, characters, digest = 0, 0, hashlib.sha256()
                progress.update(self._report.bytes_read)

    def _split_key(self, last: Piece, digest: bytes) -> bytes:
        """What decides to which split a document goes: of a pair the first side, whose counterparts stay together."""
        return hashlib.sha256(sides_of(last.text)[0].encode("utf-8")).digest() if self._pairs else digest

    def _is_new(self, last: Piece, digest: bytes) -> bool:
        key = digest[:KEY_BYTES]
        if last.dropped is not None:
            return False
        if key in self._not_these:
            self._report.drop("also in validation", last.source)
            return False
        if key in self.keys:
            self._report.drop("duplicate", last.source)
            return False
        self.keys.add(key)
        return True


class _Dealing:
    """Deals gathered documents out to the files of the two splits."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.offsets: dict[Split, array[int]] = {split: array("q", [0]) for split in SPLITS}
        self.characters: dict[Split, int] = dict.fromkeys(SPLITS, 0)

    def __enter__(self) -> _Dealing:
        self._texts = {split: (self._folder / text_file(split)).open("wb", BLOCK_BYTES) for split in SPLITS}
        self._entries = (self._folder / ENTRIES).open("w", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._entries.close()
        for file in self._texts.values():
            file.close()

    def deal(self, gathered: _Gathered, for_validation: Sequence[bool]) -> None:
        """Put each document where it belongs, in the order in which they were read."""
        with (
            gathered.text_path.open("rb", BLOCK_BYTES) as text,
            gathered.origins_path.open(encoding="utf-8") as origins,
            Progress("writing", sum(gathered.sizes), "bytes") as progress,
        ):
            documents = zip(origins, gathered.sizes, gathered.characters, for_validation, strict=True)
            for origin, size, characters, validates in documents:
                self._put("validation" if validates else "train", text, size, characters, origin)
                progress.advance(size)

    def cut(self, gathered: _Gathered, share: float) -> None:
        """Cut a single document in two: its beginning for training, its end for validation.

        Raises:
            InputError: it is too short for that.
        """
        origin = gathered.origins_path.read_text(encoding="utf-8")
        size, characters = gathered.sizes[0], gathered.characters[0]
        before = characters_for_training(characters, share)
        if not 0 < before < characters:
            raise InputError(
                f"is too short to keep a part of {share:g} for validation (length: {characters})",
                where=json.loads(origin)["source"],
                todo="Give more text, or name a text to validate on with --validation.",
            )
        place = _byte_of_character(gathered.text_path, before)
        with gathered.text_path.open("rb", BLOCK_BYTES) as text:
            self._put("train", text, place, before, origin)
            self._put("validation", text, size - place, characters - before, origin)

    def _put(self, split: Split, text: BinaryIO, size: int, characters: int, origin: str) -> None:
        digest, left = hashlib.sha256(), size
        while left:
            block = text.read(min(left, BLOCK_BYTES))
            left -= len(block)
            digest.update(block)
            self._texts[split].write(block)
        self.offsets[split].append(self.offsets[split][-1] + size)
        self.characters[split] += characters
        more = {"bytes": size, "characters": characters, "sha256": digest.hexdigest(), "split": split}
        # Two JSON objects made one as text: taking each line apart again costs more than all the rest here.
        self._entries.write(f"{origin.rstrip()[:-1]}, {json.dumps(more)[1:]}\n")


def _byte_of_character(path: Path, character: int) -> int:
    """Where in the UTF-8 file `path` the character with this number begins."""
    offset = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            beginnings = (np.frombuffer(block, np.uint8) & 0xC0) != 0x80
            count = int(np.count_nonzero(beginnings))
            if character < count:
                return offset + int(np.flatnonzero(beginnings)[character])
            character -= count
            offset += len(block)
    return offset


def _finish(folder: Path, dealing: _Dealing, split_by: str, report: ReadReport, settings: dict[str, Any]) -> None:
    offsets = {split: np.array(dealing.offsets[split], np.int64) for split in SPLITS}
    for split in SPLITS:
        np.save(folder / offsets_file(split), offsets[split])
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in FILES}
    texts = {split: str(files[text_file(split)]["sha256"]) for split in SPLITS}
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "rhapsode": __version__,
        "fingerprint": fingerprint_of(texts, offsets),
        "split_by": split_by,
        "splits": {
            split: {
                "documents": len(dealing.offsets[split]) - 1,
                "bytes": dealing.offsets[split][-1],
                "characters": dealing.characters[split],
            }
            for split in SPLITS
        },
        **report.as_json(),
        "files": files,
        "settings": settings,
    }
    write_json(folder / MANIFEST, manifest)
