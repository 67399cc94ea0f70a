"""Checkpoints: a model folder, the optimizer's tensors and the loop's integers, vouched for by a manifest written last.

rhapsode verify runs/mytext/checkpoints/step-00000500
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rhapsode.base.errors import DamagedError, RhapsodeError
from rhapsode.base.files import as_json, discard, new_folder, read_json, remove, sha256_of, write_json

MANIFEST = "manifest.json"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
DAMAGED = "damaged-"
"""What the name of a checkpoint that did not verify begins with, once it is set aside."""


@dataclass(frozen=True)
class State:
    """Everything a run needs besides tensors, all of it integers and floats: random numbers are counted, not stored."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens trained on."""
    seconds: float
    """Time the run has taken, over all its processes."""
    best_loss: float | None
    """Lowest validation loss so far, in nats per token."""
    best_bits_per_byte: float | None
    """Bits per byte then."""
    best_step: int
    """Where it was."""
    last_loss: float | None
    """Validation loss of the last evaluation."""
    evaluations_since_best: int
    """How long it has not been lower."""


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    write_model: Callable[[Path], None],
    optimizer: dict[str, Tensor],
    state: State,
    identity: dict[str, str],
) -> None:
    """Write a whole checkpoint and put it in place in one rename.

    Args:
        folder: where it will be; whatever is there is replaced.
        write_model: writes the model folder's files into an empty folder.
        identity: what the checkpoint belongs to: digest of the settings, fingerprint of the data, parent.

    Raises:
        OSError: the disk is full or not writable. Nothing is left behind, nothing that was there is lost.
        DamagedError: what was written does not read back as it should. Nothing is left behind either.
    """
    with disk_errors(), new_folder(folder, replace=True) as temporary:
        write_model(temporary)
        save_file({name: tensor.contiguous() for name, tensor in optimizer.items()}, temporary / OPTIMIZER)
        write_json(temporary / STATE, asdict(state))
        write_manifest(temporary, identity)
        verify_folder(temporary)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise OSError when safetensors, which has an error of its own for it, meets a full or failing disk."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error).rpartition("I/O error: ")[2]) from None


def write_manifest(folder: Path, identity: dict[str, str]) -> None:
    """Vouch for every file in `folder` as it is now."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {"identity": identity, "files": files, "sha256": _digest(identity, files)})


def _digest(identity: object, files: object) -> str:
    """What the manifest vouches for itself with."""
    return hashlib.sha256(json.dumps([identity, files], sort_keys=True).encode("utf-8")).hexdigest()


def verify_folder(folder: Path) -> dict[str, str]:
    """Compare every file with the manifest; returns the manifest's identity.

    Raises:
        DamagedError: the manifest is missing or broken, or a file is missing, truncated, changed or not vouched for.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DamagedError(f"has no {MANIFEST}, so nothing vouches for it", where=str(folder))
    manifest = read_json(path)
    try:
        identity: dict[str, str] = manifest["identity"]
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        whole = manifest["sha256"] == _digest(identity, manifest["files"])
        whole = whole and path.read_bytes() == as_json(manifest).encode("utf-8")
    except (AttributeError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise DamagedError("its content has changed since it was written", where=str(path))
    for name, (size, digest) in files.items():
        file = folder / name
        if Path(name).name != name:
            raise DamagedError(f"lists {name!r}, which is not a file of this folder", where=str(path))
        if not file.is_file():
            raise DamagedError("the file is missing", where=str(file))
        if (found := file.stat().st_size) != size:
            raise DamagedError(f"has {found} bytes; {size} were written", where=str(file))
        if sha256_of(file) != digest:
            raise DamagedError("its content has changed since it was written", where=str(file))
    if stray := {entry.name for entry in folder.iterdir()} - set(files) - {MANIFEST}:
        raise DamagedError(f"{', '.join(sorted(stray))} was not written with it", where=str(folder))
    return identity


def load_state(folder: Path) -> tuple[State, dict[str, Tensor]]:
    """The loop's state and the optimizer's tensors of a verified checkpoint.

    Raises:
        DamagedError: a file is not what `save_checkpoint` writes.
    """
    try:
        return State(**read_json(folder / STATE)), load_file(folder / OPTIMIZER)
    except (TypeError, SafetensorError, OSError) as error:
        raise DamagedError(f"cannot be read ({error})", where=str(folder)) from None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first; temporary leftovers are none."""
    if not folder.is_dir():
        return []
    named = re.compile(r"step-\d{8}")
    return sorted(path for path in folder.iterdir() if path.is_dir() and named.fullmatch(path.name))


def newest_good(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, str]] | None:
    """The newest checkpoint that verifies, and its identity; `say` is told of each that does not.

    Those are set aside under another name: nobody takes them for good ones, and what is in them is not lost.
    """
    for path in reversed(checkpoints(folder)):
        try:
            return path, verify_folder(path)
        except (RhapsodeError, OSError) as error:
            reason = error.message if isinstance(error, RhapsodeError) else f"{error}."
        aside = path.with_name(DAMAGED + path.name)
        remove(aside)
        path.rename(aside)
        say(f"Checkpoint {path.name} is damaged and set aside as {aside.name}: {reason}")
    return None


def retain(folder: Path, newest: int, best_step: int) -> None:
    """Delete all checkpoints but the newest ones and the best; call it after the newest one verified."""
    for path in checkpoints(folder)[:-newest]:
        if path.name != checkpoint_name(best_step):
            remove(discard(path))
