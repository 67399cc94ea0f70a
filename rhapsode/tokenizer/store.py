"""A corpus as token ids on disk, mapped into memory: what training reads. `rhapsode train` makes it.

FOLDER/train/tokens.bin       the ids, uint16 or uint32, little-endian; each document, and each side of a pair, ends
                              with the end of text
FOLDER/train/documents.npy    int64, where each document begins, and the end: (documents + 1,)
FOLDER/train/manifest.json    sizes and digests of these, the tokenizer's digest, the corpus's fingerprint
FOLDER/validation/...         the same for the validation split
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import DamagedError, InputError, MismatchError
from rhapsode.base.files import new_folder, read_json, sha256_of, write_json
from rhapsode.base.progress import Progress
from rhapsode.corpus.sides import sides_of
from rhapsode.tokenizer.pre_tokenizers import by_document
from rhapsode.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rhapsode.corpus.corpus import Corpus, Split

TOKENS_FILE, DOCUMENTS_FILE, MANIFEST_FILE = "tokens.bin", "documents.npy", "manifest.json"
FORMAT = "rhapsode tokens"
FORMAT_VERSION = 1
BATCH_CHARACTERS = 2**22  # encoded at a time: what bounds the memory
MAKE_AGAIN = "Train into a new run folder, or remove this folder to have it made again."


class TokenStore:
    """The tokens of one split of a corpus. `TokenStore.open(folder)` checks that its files are there and whole in size.

    Attributes:
        tokens: (tokens,) ids, uint16 or uint32, mapped from the file.
        documents: (documents + 1,) int64, where each document begins, and the end.
        bytes_of_text: bytes of UTF-8 that all the tokens stand for; the ends of text stand for none.
        unknown: tokens that stand for something the vocabulary lacks.
        fingerprint: what makes two stores the same to a model: ids, documents, tokenizer, corpus. SHA-256, hexadecimal.
        tokenizer_digest, corpus_fingerprint: what it was made with and from.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.fingerprint: str = manifest["fingerprint"]
        self.tokenizer_digest: str = manifest["tokenizer"]["sha256"]
        self.corpus_fingerprint: str = manifest["corpus"]
        self.bytes_of_text: int = manifest["bytes_of_text"]
        self.unknown: int = manifest["unknown"]
        dtype, count = np.dtype(manifest["dtype"]), manifest["tokens"]
        path = folder / TOKENS_FILE
        # The mapped file's size was checked by `open`; a file of no bytes cannot be mapped.
        self.tokens: npt.NDArray[np.unsignedinteger[Any]] = (
            np.memmap(path, dtype=dtype, mode="r", shape=(count,)) if count else np.zeros(0, dtype=dtype)
        )
        self.documents = _read_documents(folder, manifest)

    @classmethod
    def open(cls, folder: Path, *, tokenizer: Tokenizer | None = None, corpus: Corpus | None = None) -> TokenStore:
        """The store in `folder`. Sizes and offsets are checked now; `verify` reads every byte.

        Raises:
            InputError: there is no token store.
            DamagedError: a file is missing, cut short or not as the manifest says.
            MismatchError: it was made with another tokenizer than `tokenizer`, or from another corpus than `corpus`.
        """
        manifest = read_json(folder / MANIFEST_FILE)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise InputError("is not a token store", where=str(folder))
        if manifest.get("format_version") != FORMAT_VERSION:
            version = manifest.get("format_version")
            raise InputError(f"was written in version {version} of the format", where=str(folder), todo=MAKE_AGAIN)
        if not _is_whole(manifest):
            raise DamagedError("is not a whole manifest", where=str(folder / MANIFEST_FILE), todo=MAKE_AGAIN)
        for name in (TOKENS_FILE, DOCUMENTS_FILE):
            _check_size(folder / name, manifest["files"][name]["bytes"])
        store = cls(folder, manifest)
        if tokenizer is not None and tokenizer.digest != store.tokenizer_digest:
            raise _mismatch(folder, "with the tokenizer", store.tokenizer_digest, tokenizer.digest)
        if corpus is not None and corpus.fingerprint != store.corpus_fingerprint:
            raise _mismatch(folder, "from the corpus", store.corpus_fingerprint, corpus.fingerprint)
        return store

    def verify(self) -> None:
        """Read every byte and compare the digests with the manifest.

        Raises:
            DamagedError: naming the first file that is not as it was written.
        """
        for name in (TOKENS_FILE, DOCUMENTS_FILE):
            if sha256_of(self.folder / name) != self.manifest["files"][name]["sha256"]:
                raise DamagedError("is not as it was written", where=str(self.folder / name), todo=MAKE_AGAIN)
        if _fingerprint(self.manifest) != self.fingerprint:
            where = str(self.folder / MANIFEST_FILE)
            raise DamagedError("its fingerprint is not that of its files", where=where, todo=MAKE_AGAIN)


class TokenStores(NamedTuple):
    """The token stores of a corpus."""

    train: TokenStore
    validation: TokenStore


def build_token_store(
    corpus: Corpus, tokenizer: Tokenizer, folder: Path, *, replace: bool = False, quiet: bool = False
) -> TokenStores:
    """Encode a corpus into `folder`, in memory that does not grow with it (a text without any space must fit).

    Raises:
        InputError: the folder exists and `replace` is false, or the tokenizer has no end of text.
    """
    if tokenizer.end_of_text_id is None:
        raise InputError(
            "has no end-of-text token",
            where=tokenizer.where,
            todo='Name one of its special tokens as "eos_token" in a tokenizer_config.json beside it.',
        )
    splits: tuple[Split, Split] = ("train", "validation")
    with new_folder(folder, replace=replace) as temporary:
        size = sum(corpus.bytes(split) for split in splits)
        with Progress("turning text into tokens", size, "bytes", quiet=quiet) as progress:
            for split in splits:
                _write_split(corpus, split, tokenizer, temporary / split, progress)
    return TokenStores(TokenStore.open(folder / "train"), TokenStore.open(folder / "validation"))


def _write_split(corpus: Corpus, split: Split, tokenizer: Tokenizer, folder: Path, progress: Progress) -> None:
    folder.mkdir()
    dtype = np.dtype("<u2" if tokenizer.vocabulary_size <= 2**16 else "<u4")
    end = np.array([tokenizer.end_of_text_id], dtype=dtype)
    digest = hashlib.sha256()
    starts = array("q", [0])
    tokens = unknown = 0
    with (folder / TOKENS_FILE).open("wb") as file:
        for batch in _batches(_sides(corpus, split, tokenizer) if corpus.pairs else _parts(corpus, split, tokenizer)):
            arrays = []
            for ids, part in zip(tokenizer.encode_parts([part.text for part in batch]), batch, strict=True):
                arrays += [ids.astype(dtype), end] if part.ends_text else [ids.astype(dtype)]
                tokens += len(ids) + part.ends_text
                unknown += tokenizer.unknown_count(ids)
                if part.ends_document:
                    starts.append(tokens)
            written = np.concatenate(arrays).tobytes()
            file.write(written)
            digest.update(written)
            progress.advance(sum(len(part.text.encode("utf-8")) for part in batch))
    np.save(folder / DOCUMENTS_FILE, np.array(starts, dtype=np.int64), allow_pickle=False)
    documents = {
        "bytes": (folder / DOCUMENTS_FILE).stat().st_size,
        "sha256": sha256_of(folder / DOCUMENTS_FILE),
    }
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "split": split,
        "dtype": dtype.str,
        "tokens": tokens,
        "documents": len(starts) - 1,
        "bytes_of_text": corpus.bytes(split),
        "unknown": unknown,
        "tokenizer": {"kind": tokenizer.kind, "sha256": tokenizer.digest},
        "corpus": corpus.fingerprint,
        "files": {
            TOKENS_FILE: {"bytes": tokens * dtype.itemsize, "sha256": digest.hexdigest()},
            DOCUMENTS_FILE: documents,
        },
    }
    write_json(folder / MANIFEST_FILE, manifest | {"fingerprint": _fingerprint(manifest)})


class _Part(NamedTuple):
    """A part of a document that is encoded alone."""

    text: str
    ends_text: bool
    """Whether an end of text follows it."""
    ends_document: bool


def _parts(corpus: Corpus, split: Split, tokenizer: Tokenizer) -> Iterator[_Part]:
    """The parts of the documents, in order."""
    for document in by_document(corpus.pieces(split)):
        parts = iter(tokenizer.parts(document))
        part = next(parts)
        for following in parts:
            yield _Part(part, False, False)
            part = following
        yield _Part(part, True, True)


def _sides(corpus: Corpus, split: Split, tokenizer: Tokenizer) -> Iterator[_Part]:
    """The sides of the pairs, in order, each a text of its own."""
    for document in corpus.documents(split):
        first, second = sides_of(document)
        yield _Part(first, True, False)
        yield _Part(second, True, True)


def _batches(parts: Iterator[_Part]) -> Iterator[list[_Part]]:
    batch: list[_Part] = []
    characters = 0
    for part in parts:
        batch.append(part)
        characters += len(part.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _fingerprint(manifest: dict[str, Any]) -> str:
    digests = [manifest["files"][name]["sha256"] for name in (TOKENS_FILE, DOCUMENTS_FILE)]
    parts = (FORMAT, FORMAT_VERSION, manifest["dtype"], *digests, manifest["tokenizer"]["sha256"], manifest["corpus"])
    return hashlib.sha256(" ".join(map(str, parts)).encode("utf-8")).hexdigest()


def _is_whole(manifest: dict[str, Any]) -> bool:
    """Whether a manifest has all its fields, of the right types, in agreement with each other."""
    try:
        counts = [manifest[name] for name in ("tokens", "documents", "bytes_of_text", "unknown")]
        counts += [manifest["files"][name]["bytes"] for name in (TOKENS_FILE, DOCUMENTS_FILE)]
        texts = [manifest["fingerprint"], manifest["corpus"], manifest["tokenizer"]["sha256"]]
        texts += [manifest["files"][name]["sha256"] for name in (TOKENS_FILE, DOCUMENTS_FILE)]
        size = manifest["tokens"] * {"<u2": 2, "<u4": 4}[manifest["dtype"]]
    except (KeyError, TypeError):
        return False
    whole = all(type(count) is int and count >= 0 for count in counts) and all(isinstance(text, str) for text in texts)
    return whole and size == manifest["files"][TOKENS_FILE]["bytes"]


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError:
        raise DamagedError("is missing", where=str(path), todo=MAKE_AGAIN) from None
    if found != size:
        what = f"has {found:,} bytes where the manifest says {size:,}"
        raise DamagedError(what, where=str(path), todo=MAKE_AGAIN)


def _read_documents(folder: Path, manifest: dict[str, Any]) -> npt.NDArray[np.int64]:
    path = folder / DOCUMENTS_FILE
    try:
        # Mapped first: a header that promises more than there is must not take the memory for it.
        documents = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception:  # NumPy reads the header as Python, and a damaged one can fail in as many ways
        raise DamagedError("is not a NumPy array", where=str(path), todo=MAKE_AGAIN) from None
    right = (
        documents.dtype == np.int64
        and documents.shape == (manifest["documents"] + 1,)
        and documents[0] == 0
        and bool(np.all(documents[1:] > documents[:-1]))
        and documents[-1] == manifest["tokens"]
    )
    if not right:
        raise DamagedError("does not fit its tokens", where=str(path), todo=MAKE_AGAIN)
    return documents


def _mismatch(folder: Path, made: str, recorded: str, given: str) -> MismatchError:
    return MismatchError(
        f"was made {made} {recorded[:12]}, not {given[:12]}", where=str(folder), todo="Give what it was made with."
    )
