"""The run folder: everything a run was told, did and made, as files that others read.

runs/NAME/  run.yaml  plan.json  metrics.jsonl  samples.jsonl  log.txt  corpus/  tokenizer/  tokens/
            checkpoints/step-00000500/  model/  report.html
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from rhapsode.base.errors import InputError
from rhapsode.base.files import TEMPORARY_SUFFIX, append, exclusive_lock, leftovers, remove, write_atomically
from rhapsode.base.progress import note
from rhapsode.training.checkpoint import checkpoints


class RunFolder:
    """The paths of one run, and its logs, each line of which reaches the disk as it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / "rhapsode.lock"
        self.settings = path / "run.yaml"
        self.plan = path / "plan.json"
        self.horizon = path / "horizon.json"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.log = path / "log.txt"
        self.corpus = path / "corpus"
        self.tokenizer = path / "tokenizer"
        self.tokens = path / "tokens"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"
        files = (self.settings, self.plan, self.horizon, self.metrics, self.samples, self.log, self.report)
        folders = (self.corpus, self.tokenizer, self.tokens, self.checkpoints, self.model, self.tensorboard)
        self.written = files + folders
        """All that a run writes besides its lock: what --force replaces, and nothing else."""
        self._unwritable: set[Path] = set()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if need be, and keep every other trainer out of it.

        Raises:
            InputError: it cannot be written to, or another trainer is at work in it.
        """
        with ExitStack() as held:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.path):
                    pass
                held.enter_context(exclusive_lock(self.lock, "training in this folder"))
            except OSError as error:
                raise InputError(
                    f"cannot be written to ({error.strerror})",
                    where=str(self.path),
                    todo="Choose another folder with --out.",
                ) from None
            yield

    @property
    def begun(self) -> bool:
        """Whether a run was ever begun here, even one that was killed before it had a plan.

        Only files that nobody else would write count: what is in a folder that is no run must never be deleted.
        """
        return self.lock.exists() or (self.settings.exists() and self.plan.exists())

    @property
    def exists(self) -> bool:
        """Whether there is a run here that got as far as training, or what is left of one."""
        return self.settings.exists() or self.model.exists() or bool(checkpoints(self.checkpoints))

    @contextmanager
    def making_way(self) -> Iterator[None]:
        """Set what an earlier run wrote aside while another is prepared: deleted if that ends well, else put back."""
        aside = self.path / f"replaced{TEMPORARY_SUFFIX}-{os.getpid()}"
        aside.mkdir()
        for path in self.written:
            if path.exists():
                path.rename(aside / path.name)
        self.checkpoints.mkdir()
        try:
            yield
        except BaseException:
            for path in self.written:
                remove(path)
            for path in aside.iterdir():
                path.rename(self.path / path.name)
            aside.rmdir()
            raise
        remove(aside)

    def remove_leftovers(self) -> list[str]:
        """Delete what killed processes left half done; returns the names."""
        own = {"replaced", *(path.name for path in self.written)}
        found = [path for path in leftovers(self.path) if path.name.partition(TEMPORARY_SUFFIX)[0] in own]
        if self.checkpoints.is_dir():
            found += [path for path in leftovers(self.checkpoints) if path.name.startswith("step-")]
        for path in found:
            remove(path)
        return [path.name for path in found]

    def write_settings(self, values: dict[str, Any]) -> None:
        """Write every resolved setting as YAML."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        header = "# Every setting of this run; `rhapsode train TEXT --config run.yaml` repeats it.\n"
        write_atomically(self.settings, header + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))

    def record(self, kind: str, **values: Any) -> None:
        """Append one line to metrics.jsonl. A disk that is full loses the line, not the run."""
        self._append(self.metrics, _as_line({"kind": kind, **values}))

    def sample(self, **values: Any) -> None:
        """Append one line to samples.jsonl."""
        self._append(self.samples, _as_line(values))

    def say(self, text: str, *, quiet: bool = False) -> None:
        """Append a dated line to log.txt and, unless `quiet`, show it above the progress bar."""
        if not quiet:
            note(text)
        self._append(self.log, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def _append(self, path: Path, line: str) -> None:
        """A full disk is told of once, until there is space again."""
        try:
            append(path, line)
        except OSError as error:
            if path not in self._unwritable:
                note(f"{path.name} cannot be written ({error.strerror}); its lines are lost until it can.")
            self._unwritable.add(path)
        else:
            self._unwritable.discard(path)

    def cut_records(self, step: int) -> None:
        """Forget what metrics and samples say of steps after `step`: they will be done again."""
        for path in (self.metrics, self.samples):
            if not path.exists():
                continue
            kept = []
            for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                with suppress(ValueError, TypeError, AttributeError):  # half a line, from a kill in the middle of it
                    value = json.loads(line)
                    if value.get("step", 0) <= step and value.get("kind") != "end":
                        kept.append(line)
            write_atomically(path, "".join(f"{line}\n" for line in kept))


def _as_line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
