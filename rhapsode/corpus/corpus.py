"""A prepared corpus: the folder that `rhapsode corpus TEXT... --out FOLDER` writes and training reads.

    FOLDER/train.txt               the documents one after another, UTF-8, nothing between them
    FOLDER/train.documents.npy     int64, where each begins in bytes, and the end: (documents + 1,)
    FOLDER/validation.txt, FOLDER/validation.documents.npy
    FOLDER/documents.jsonl         a line for each document: source, bytes, characters, sha256, encoding, licence, split
    FOLDER/manifest.json           sizes and digests of these, what was read and dropped and why, the settings

The texts are plain files: look into them with any editor.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.files import read_json, sha256_of

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
MANIFEST = "manifest.json"
ENTRIES = "documents.jsonl"
FORMAT = "rhapsode corpus"
FORMAT_VERSION = 1
PIECE_CHARACTERS = 1 << 20


def text_file(split: Split) -> str:
    return f"{split}.txt"


def offsets_file(split: Split) -> str:
    return f"{split}.documents.npy"


FILES = (*(name for split in SPLITS for name in (text_file(split), offsets_file(split))), ENTRIES)


def fingerprint_of(texts: Mapping[Split, str], offsets: Mapping[Split, npt.NDArray[np.int64]]) -> str:
    """What makes two corpora the same to a model: the texts, where documents begin, and the split. Nothing else.

    Args:
        texts: the SHA-256 of each split's text.
        offsets: where each split's documents begin, (documents + 1,).
    """
    digest = hashlib.sha256(f"{FORMAT} {FORMAT_VERSION}\n".encode())
    for split in SPLITS:
        places = hashlib.sha256(offsets[split].astype("<i8").tobytes()).hexdigest()
        digest.update(f"{split} {texts[split]} {places}\n".encode())
    return digest.hexdigest()


class Corpus:
    """A prepared corpus on disk. `Corpus.open(folder)` checks that its parts are there and whole in size."""

    def __init__(self, folder: Path, manifest: dict[str, Any], offsets: dict[Split, npt.NDArray[np.int64]]) -> None:
        self.folder, self.manifest, self._offsets = folder, manifest, offsets

    @staticmethod
    def is_corpus(folder: Path) -> bool:
        """Whether `folder` is a prepared corpus, whole or damaged."""
        try:
            manifest = read_json(folder / MANIFEST)
        except InputError:
            return False
        return isinstance(manifest, dict) and manifest.get("format") == FORMAT

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """The corpus in `folder`. Sizes and offsets are checked now; `verify` reads every byte.

        Raises:
            InputError: there is no corpus.
            DamagedError: a file is missing, cut short or not as the manifest says.
        """
        manifest = read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise InputError("is not a prepared corpus", where=str(folder), todo="Make one with `rhapsode corpus`.")
        if manifest.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"was written in version {manifest.get('format_version')} of the corpus format",
                where=str(folder),
                todo="Make it again with `rhapsode corpus`.",
            )
        try:
            for name in FILES:
                _check_size(folder / name, int(manifest["files"][name]["bytes"]))
            counts = {split: int(manifest["splits"][split]["documents"]) for split in SPLITS}
            if not isinstance(manifest["fingerprint"], str):
                raise TypeError
        except (KeyError, TypeError, ValueError):
            raise DamagedError("is not a whole manifest", where=str(folder / MANIFEST)) from None
        return cls(folder, manifest, {split: _read_offsets(folder, split, counts[split]) for split in SPLITS})

    @property
    def fingerprint(self) -> str:
        """Depends only on the texts and the split: SHA-256 in hexadecimal digits."""
        return str(self.manifest["fingerprint"])

    @property
    def pairs(self) -> bool:
        """Whether each document is a pair of texts, which `sides_of` takes apart."""
        return bool(self.manifest.get("settings", {}).get("pairs", False))

    def count(self, split: Split) -> int:
        """How many documents."""
        return len(self._offsets[split]) - 1

    def bytes(self, split: Split) -> int:
        """How many bytes of UTF-8."""
        return int(self._offsets[split][-1])

    def characters(self, split: Split) -> int:
        """How many characters (Unicode code points)."""
        return int(self.manifest["splits"][split]["characters"])

    def offsets(self, split: Split) -> npt.NDArray[np.int64]:
        """Where each document begins in the bytes of `text_path(split)`, and the end: (documents + 1,)."""
        return self._offsets[split]

    def text_path(self, split: Split) -> Path:
        return self.folder / text_file(split)

    def documents(self, split: Split) -> Iterator[str]:
        """The documents in order, each whole in memory."""
        with self.text_path(split).open("rb") as file:
            for size in np.diff(self._offsets[split]).tolist():
                yield file.read(size).decode("utf-8")

    def pieces(self, split: Split, characters: int = PIECE_CHARACTERS) -> Iterator[tuple[str, bool]]:
        """The documents in order, in pieces of at most `characters`, each with whether it ends its document.

        Long documents are cut where a line ends between two characters that are no space, or before a single space
        if there is no such line: a byte-level BPE tokenizer gives the same tokens for the pieces as for the whole.
        """
        with self.text_path(split).open("rb") as file:
            for size in np.diff(self._offsets[split]).tolist():
                decoder, left, text = codecs.getincrementaldecoder("utf-8")(), size, ""
                while left or len(text) > characters:
                    while left and len(text) <= characters:
                        block = file.read(min(left, characters))
                        left -= len(block)
                        text += decoder.decode(block)
                    if len(text) > characters:
                        cut = _place_to_cut(text, characters)
                        yield text[:cut], False
                        text = text[cut:]
                yield text, True

    def entries(self) -> Iterator[dict[str, Any]]:
        """What `documents.jsonl` says of each document. Those of one split come in the order of its text."""
        with (self.folder / ENTRIES).open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)

    def verify(self) -> None:
        """Read every byte and compare the digests with the manifest.

        Raises:
            DamagedError: naming the first file that is not as it was written.
        """
        for name in FILES:
            if sha256_of(self.folder / name) != self.manifest["files"][name].get("sha256"):
                raise DamagedError("is not as it was written", where=str(self.folder / name))
        texts = {split: str(self.manifest["files"][text_file(split)]["sha256"]) for split in SPLITS}
        if fingerprint_of(texts, self._offsets) != self.fingerprint:
            raise DamagedError("its fingerprint is not that of its files", where=str(self.folder / MANIFEST))


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError:
        raise DamagedError("is missing", where=str(path), todo="Make the corpus again.") from None
    if found != size:
        what = f"has {found:,} bytes where the manifest says {size:,}"
        raise DamagedError(what, where=str(path), todo="Make the corpus again.")


def _read_offsets(folder: Path, split: Split, documents: int) -> npt.NDArray[np.int64]:
    path = folder / offsets_file(split)
    try:
        # Mapped first: a header that promises more than there is must not take the memory for it.
        offsets = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception:  # NumPy reads the header as Python, and a damaged one can fail in as many ways
        raise DamagedError("is not a NumPy array", where=str(path), todo="Make the corpus again.") from None
    right = (
        offsets.dtype == np.int64
        and offsets.shape == (documents + 1,)
        and offsets[0] == 0
        and bool(np.all(offsets[1:] > offsets[:-1]))
        and offsets[-1] == (folder / text_file(split)).stat().st_size
    )
    if not right:
        raise DamagedError("does not fit its text", where=str(path), todo="Make the corpus again.")
    return offsets


def _place_to_cut(text: str, limit: int) -> int:
    """The last good place in `text`, which is longer than `limit`, to end a piece of at most `limit` characters."""
    for sign, into_this_piece in (("\n", 1), (" ", 0)):
        at = limit
        while (at := text.rfind(sign, 1, at)) > 0:
            if not text[at - 1].isspace() and not text[at + 1].isspace():
                return at + into_this_piece
    return limit
