"""Files that are either wholly there or not at all: atomic writes, folder replacement, digests, locks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rhapsode.base.errors import DamagedError, InputError

TEMPORARY_SUFFIX = ".partial"

_unfinished: set[Path] = set()  # the temporary folders of `new_folder` now: it makes all in them durable at its end


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable. Windows cannot open folders: there the rename alone has to do."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the bytes of `path` durable."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `path` in one step: a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        InputError: there is something at `path` that is no file, as a folder or a device.
    """
    _refuse_what_is_no_file(path)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    durable = not any(folder in _unfinished for folder in path.parents)
    try:
        with temporary.open("wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(path.parent)


@contextmanager
def new_file(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary sibling, for the block to write, that becomes `target` in one rename when it ends well.

    What `write_atomically` is for files that are too large to be made in memory.

    Raises:
        InputError: `target` exists and `replace` is false, or it is no file.
    """
    if target.exists() and not replace:
        raise InputError(
            "already exists", where=str(target), todo="Choose another name, or pass --force to replace it."
        )
    _refuse_what_is_no_file(target)
    temporary = target.with_name(target.name + TEMPORARY_SUFFIX)
    durable = not any(folder in _unfinished for folder in target.parents)
    try:
        yield temporary
        if durable:
            sync_file(temporary)
        temporary.replace(target)
    except BaseException:
        remove(temporary)
        raise
    if durable:
        sync_folder(target.parent)


def _refuse_what_is_no_file(target: Path) -> None:
    """A rename would put a file in the place of a device, for whoever may do that."""
    if target.exists() and not target.is_file():
        raise InputError("is no file", where=str(target), todo="Choose another name.")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as `as_json` gives it, atomically."""
    write_atomically(path, as_json(value))


def as_json(value: Any) -> str:
    """`value` as indented JSON. Not-a-number is refused: it is not JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        InputError: the file is missing or unreadable.
        DamagedError: it is not JSON; the message names line and column.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("the file does not exist", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except UnicodeDecodeError:
        raise DamagedError("is not UTF-8 text", where=str(path)) from None
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> Any:
    """The JSON value of `text`.

    Raises:
        DamagedError: it is not JSON; the message names line and column. Or it spells half a character.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # halves of characters: of a pair, or alone
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except json.JSONDecodeError as error:
        raise DamagedError(f"is not JSON ({error.msg})", where=f"{where}:{error.lineno}:{error.colno}") from None
    except RecursionError:
        raise DamagedError("is not JSON that can be read (it is nested too deeply)", where=where) from None
    except UnicodeEncodeError:
        raise DamagedError("holds half a character", where=where) from None
    except ValueError:  # a number of more digits than Python converts
        raise DamagedError("is not JSON that can be read (a number in it is too long)", where=where) from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append(path: Path, text: str) -> None:
    """Append `text` to a file, wholly or not at all: a disk that fills up in the middle leaves no half of it.

    Raises:
        OSError: it could not be written.
    """
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        rest = memoryview(text.encode("utf-8"))
        try:
            while rest:
                rest = rest[file.write(rest) or 0 :]
        except OSError:
            file.truncate(end)
            raise


def leftovers(folder: Path) -> list[Path]:
    """What killed processes left half done in `folder`: the temporary names of `write_atomically` and `new_folder`."""
    ending = re.compile(re.escape(TEMPORARY_SUFFIX) + r"(-old)?(-\d+)?")
    return sorted(path for path in folder.iterdir() if ending.fullmatch(path.name, path.name.find(TEMPORARY_SUFFIX)))


def remove(path: Path) -> None:
    """Delete a file or a folder with all in it, if it is there. What cannot be deleted stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def discard(path: Path) -> Path:
    """Rename `path` to a name under which `leftovers` finds it, so that no half of it is ever taken for the whole."""
    return path.rename(path.with_name(f"{path.name}{TEMPORARY_SUFFIX}-old-{os.getpid()}"))


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary sibling that becomes `target` in one rename when the block ends well, and vanishes when it does not.

    Every file in it is fsynced before the rename, the parent folder after it.

    Raises:
        InputError: `target` exists and `replace` is false.
    """
    if target.exists() and not replace:
        raise InputError(
            "already exists", where=str(target), todo="Choose another name, or pass --force to replace it."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}{TEMPORARY_SUFFIX}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    _unfinished.add(temporary)
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                sync_file(path)
        for path in sorted(temporary.rglob("*"), reverse=True):
            if path.is_dir():
                sync_folder(path)
        sync_folder(temporary)
        if target.exists():
            old = discard(target)
            try:
                temporary.rename(target)
            except BaseException:
                old.rename(target)
                raise
            remove(old)
        else:
            temporary.rename(target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        _unfinished.discard(temporary)


@contextmanager
def exclusive_lock(path: Path, purpose: str) -> Iterator[None]:
    """Hold `path` as a lock that the system drops when the process dies, however it dies.

    Raises:
        InputError: another process holds it; `purpose` says what it is doing.
    """
    file: IO[bytes] = path.open("a+b")
    try:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # Windows only
            else:
                import fcntl

                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise InputError(
                    f"cannot be locked ({error.strerror})",
                    where=str(path),
                    todo="Choose a folder on a disk of this machine.",
                ) from None
            raise InputError(
                f"another process is {purpose}",
                where=str(path.parent),
                todo="Wait for it to end, or choose another folder.",
            ) from None
        yield
    finally:
        file.close()
