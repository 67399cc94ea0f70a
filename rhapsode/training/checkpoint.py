"""Checkpoints: a model folder, the optimizer's tensors and the loop's integers, vouched for by a manifest written last.

    rhapsode verify runs/mytext/checkpoints/step-00000500
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rhapsode.base.errors import DamagedError, RhapsodeError
from rhapsode.base.files import TEMPORARY_SUFFIX, new_folder, read_json, sha256_of, write_json

MANIFEST = "manifest.json"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"


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
    best_step: int
    """Where it was."""
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
    """
    with new_folder(folder, replace=True) as temporary:
        write_model(temporary)
        save_file({name: tensor.contiguous() for name, tensor in optimizer.items()}, temporary / OPTIMIZER)
        write_json(temporary / STATE, asdict(state))
        write_manifest(temporary, identity)


def write_manifest(folder: Path, identity: dict[str, str]) -> None:
    """Vouch for every file in `folder` as it is now."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {"identity": identity, "files": files})


def verify_folder(folder: Path) -> dict[str, Any]:
    """Compare every file with the manifest; returns the manifest's identity.

    Raises:
        DamagedError: the manifest is missing or broken, or a file is missing, truncated, changed or not vouched for.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DamagedError(f"has no {MANIFEST}, so nothing vouches for it", where=str(folder))
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(files := manifest.get("files"), dict):
        raise DamagedError("does not list files", where=str(path))
    for name, expected in files.items():
        file = folder / name
        if Path(name).name != name or not isinstance(expected, dict):
            raise DamagedError(f"lists {name!r}, which is not a file of this folder", where=str(path))
        if not file.is_file():
            raise DamagedError("the file is missing", where=str(file))
        if (size := file.stat().st_size) != expected.get("bytes"):
            raise DamagedError(f"has {size:,} bytes; {expected.get('bytes'):,} were written", where=str(file))
        if sha256_of(file) != expected.get("sha256"):
            raise DamagedError("its content has changed since it was written", where=str(file))
    if stray := {entry.name for entry in folder.iterdir()} - set(files) - {MANIFEST}:
        raise DamagedError(f"{', '.join(sorted(stray))} was not written with it", where=str(folder))
    return dict(manifest.get("identity") or {})


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
    found = (path for path in folder.iterdir() if path.is_dir() and path.name.startswith("step-"))
    return sorted(path for path in found if TEMPORARY_SUFFIX not in path.name)


def newest_good(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; `say` is told of each that does not."""
    for path in reversed(checkpoints(folder)):
        try:
            verify_folder(path)
        except RhapsodeError as error:
            say(f"Checkpoint {path.name} is damaged and not used: {error.message}")
            continue
        return path
    return None


def remove_leftovers(folder: Path) -> list[str]:
    """Delete what a killed save left half done; returns the names."""
    leftovers = [path for path in folder.iterdir() if TEMPORARY_SUFFIX in path.name] if folder.is_dir() else []
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in leftovers]


def retain(folder: Path, newest: int, best_step: int) -> None:
    """Delete all checkpoints but the newest ones and the best; call it after the newest one verified."""
    for path in checkpoints(folder)[:-newest]:
        if path.name != checkpoint_name(best_step):
            shutil.rmtree(path, ignore_errors=True)
