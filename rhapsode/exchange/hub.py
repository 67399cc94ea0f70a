"""Models by their name on the Hugging Face hub: `owner/name`, or `owner/name@revision`.

    rhapsode generate HuggingFaceTB/SmolLM2-135M "Once upon a time"

A name is resolved to a commit once. The commit is printed and recorded beside the files, so that the same name means
the same bytes from then on, with or without a network; `owner/name@COMMIT` takes another one. Fetched are weights in
safetensors, JSON, the files of tokenizers and the chat template: never code, and never pickles.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.files import read_json, write_json
from rhapsode.base.progress import Progress, note, quantity

NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w][\w./-]*))?", re.ASCII)
COMMIT = re.compile("[0-9a-f]{40}")
NEWEST = "main"

WANTED = frozenset(
    {
        "config.json",
        "generation_config.json",
        "rhapsode.json",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "encoder.json",
        "vocab.bpe",
        "vocab.txt",
        "spiece.model",
        "tokenizer.model",
        "sentencepiece.bpe.model",
        "source.spm",
        "target.spm",
        "target/tokenizer.json",
        "target/tokenizer_config.json",
    }
)
"""Files of a repository that are fetched, besides the weights and ranks of tiktoken."""

RECORDS = "rhapsode"
"""The folder with our records in the cache's folder of a repository."""

SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Fetched:
    """A repository's files on this machine."""

    name: str
    commit: str
    folder: Path

    @property
    def origin(self) -> str:
        """What it is, for good."""
        return f"{self.name}@{self.commit}"


def is_name(text: str) -> bool:
    """Whether a text may be the name of a model on the hub. Local files and folders come before it."""
    match = NAME.fullmatch(text)
    if match is None:
        return False
    # A misspelt path in a folder that is there is no reason to ask the network; a revision says that it is meant.
    return match["revision"] is not None or not Path(text).parent.is_dir()


def fetched(text: str) -> Fetched:
    """The files of a model on the hub, fetched unless they are here already.

    Raises:
        InputError: there is no such model or revision, it has no weights in safetensors, the hub cannot be reached,
            it does not let us in, or the disk has no room.
    """
    match = NAME.fullmatch(text)
    assert match is not None
    name, revision = match["name"], match["revision"] or NEWEST
    from huggingface_hub.constants import HF_HUB_CACHE

    home = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    record = home / RECORDS / f"{quote(revision, safe='')}.json"
    commit, files = _recorded(record)
    if commit is not None:
        folder = home / "snapshots" / commit
        if all((folder / file).is_file() for file in files):
            note(f"{name}: commit {commit}, fetched before; {record} holds that it is meant by {text!r}.")
            return Fetched(name, commit, folder)
    with _explained(text, name, revision):
        found, present = _fetch(name, commit or revision, home)
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, {"commit": found.commit, "files": present})
    note(f"{name}: commit {found.commit}, kept in {found.folder}.")
    return found


def _recorded(record: Path) -> tuple[str | None, list[str]]:
    """The commit and the files that a name stands for since it was first used here."""
    if not record.is_file():
        return None, []
    content = read_json(record)
    commit, files = (content.get("commit"), content.get("files")) if isinstance(content, dict) else (None, None)
    if (
        not isinstance(commit, str)
        or COMMIT.fullmatch(commit) is None
        or not isinstance(files, list)
        or any(not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts for file in files)
    ):
        raise DamagedError("is no record of a fetched model", where=str(record), todo="Delete it to fetch anew.")
    return commit, files


def _fetch(name: str, revision: str, home: Path) -> tuple[Fetched, list[str]]:
    """The files of a revision, and their names."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    from rhapsode.model.folder import INDEX, WEIGHTS, weight_files
    from rhapsode.model.packed_folder import PACKED

    info = HfApi().model_info(name, revision=revision, files_metadata=True)
    commit = str(info.sha)
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or []}
    _require_weights(name, sizes)
    wanted = [file for file in sizes if file in WANTED or re.fullmatch(r"[\w.-]+\.tiktoken", file, re.ASCII)]
    with _silent():
        if INDEX in sizes:
            index = Path(hf_hub_download(name, INDEX, revision=commit))
            wanted += [INDEX, *(path.name for path in weight_files(index.parent))]
        else:
            wanted.append(PACKED if PACKED in sizes else WEIGHTS)
        total = sum(sizes.get(file, 0) for file in wanted)
        _require_room(home, total - _held(home, commit, wanted), name)
        with Progress("fetching", total, "bytes") as progress, _watched(home, commit, wanted, progress):
            folder = Path(snapshot_download(name, revision=commit, allow_patterns=wanted))
    return Fetched(name, commit, folder), sorted(wanted)


def _require_weights(name: str, files: dict[str, int]) -> None:
    """Refuse a repository without weights that can be read, before anything is fetched."""
    from rhapsode.model.folder import INDEX, PICKLED, WEIGHTS, refuse_pickle
    from rhapsode.model.packed_folder import PACKED

    if not files.keys().isdisjoint((WEIGHTS, INDEX, PACKED)):
        return
    for file in sorted(files):
        if "/" not in file and file.endswith(PICKLED):
            raise refuse_pickle(Path(name) / file)
    packed = [file for file in sorted(files) if file.endswith(".gguf")]
    todo = f"Fetch {packed[0]}, and name the file." if packed else "Name a model with weights in safetensors."
    raise InputError(f"has no {WEIGHTS}", where=name, todo=todo)


def _require_room(home: Path, needed: int, name: str) -> None:
    there = next(folder for folder in (home, *home.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"{quantity(needed, 'bytes')} are to be fetched, and the disk has {quantity(free, 'bytes')} free",
            where=name,
            todo=f"Make room, or set HF_HOME to a folder on another disk (now {home.parent}).",
        )


def _held(home: Path, commit: str, files: list[str]) -> int:
    """Bytes of the wanted files that are here already, finished or not."""
    total = 0
    with suppress(OSError):  # files come and go while they are fetched
        for path in (home / "blobs").glob("*.incomplete"):
            total += path.stat().st_size
    for file in files:
        with suppress(OSError):
            total += (home / "snapshots" / commit / file).stat().st_size
    return total


@contextmanager
def _watched(home: Path, commit: str, files: list[str], progress: Progress) -> Iterator[None]:
    """Show how much is here while the library fetches: its own bars come in several kinds, and lines by the hundred."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SECONDS_BETWEEN_LOOKS):
            progress.update(_held(home, commit, files))

    progress.completed = _held(home, commit, files)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    progress.update(_held(home, commit, files))


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the library's bars and warnings from the terminal: what goes wrong becomes one message."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    off, logger = are_progress_bars_disabled(), logging.getLogger("huggingface_hub")
    level = logger.level
    disable_progress_bars()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if not off:
            enable_progress_bars()


@contextmanager
def _explained(text: str, name: str, revision: str) -> Iterator[None]:
    """What the library raises, as one message."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise InputError(
            "its owner lets in only who has agreed to terms",
            where=text,
            todo=f"Agree at https://huggingface.co/{name}, then `hf auth login`.",
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(f"has no revision {revision!r} on the hub", where=name) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            "is no file or folder here, and no model on the hub that it shows us",
            where=text,
            todo="Check the spelling; for a private model, `hf auth login` first.",
        ) from None
    except errors.OfflineModeIsEnabled:
        raise _out_of_reach(text, "HF_HUB_OFFLINE forbids to fetch it") from None
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise InputError("the disk is full", where=text, todo="Make room: what was fetched is kept.") from None
        if not _of_the_network(error):
            raise
        raise _out_of_reach(text, f"the hub cannot be reached ({_first_line(error)})") from None


def _out_of_reach(text: str, why: str) -> InputError:
    return InputError(
        f"is no file or folder here, was not fetched before, and {why}",
        where=text,
        todo="Try again with a network, or name a local folder.",
    )


def _of_the_network(error: Any) -> bool:
    """Whether an error is of a connection, in whatever library makes it."""
    return isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3"))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
