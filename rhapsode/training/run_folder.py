"""The run folder: everything a run was told, did and made, as files that others read.

    runs/NAME/  run.yaml  plan.json  metrics.jsonl  samples.jsonl  log.txt  corpus/  tokenizer/  tokens/
                checkpoints/step-00000500/  model/  report.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rhapsode.base.errors import InputError
from rhapsode.base.files import exclusive_lock, write_atomically
from rhapsode.base.progress import note


class RunFolder:
    """The paths of one run, and its logs, each line of which reaches the disk as it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / "lock"
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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if need be, and keep every other trainer out of it.

        Raises:
            InputError: it cannot be written to, or another trainer is at work in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            write_atomically(self.path / "writable", b"")
            (self.path / "writable").unlink()
        except OSError as error:
            raise InputError(
                f"cannot be written to ({error.strerror})",
                where=str(self.path),
                todo="Choose another folder with --out.",
            ) from None
        with exclusive_lock(self.lock, "training in this folder"):
            yield

    @property
    def begun(self) -> bool:
        """Whether a run was ever begun here, even one that was killed before it had a plan."""
        return self.lock.exists()

    @property
    def exists(self) -> bool:
        """Whether there is a run with a plan here, which can be resumed."""
        return self.settings.exists()

    def write_settings(self, values: dict[str, Any]) -> None:
        """Write every resolved setting as YAML."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        header = "# Every setting of this run; `rhapsode train TEXT --config run.yaml` repeats it.\n"
        write_atomically(self.settings, header + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))

    def record(self, kind: str, **values: Any) -> None:
        """Append one line to metrics.jsonl. A disk that is full loses the line, not the run."""
        self._append(self.metrics, {"kind": kind, **values})

    def sample(self, **values: Any) -> None:
        """Append one line to samples.jsonl."""
        self._append(self.samples, values)

    def say(self, text: str, *, quiet: bool = False) -> None:
        """Append a dated line to log.txt and, unless `quiet`, show it above the progress bar."""
        if not quiet:
            note(text)
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
        except OSError as error:
            note(f"The log could not be written ({error.strerror}).")

    def _append(self, path: Path, value: dict[str, Any]) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as error:
            note(f"{path.name} could not be written ({error.strerror}); training goes on.")

    def cut_records(self, step: int) -> None:
        """Forget what metrics and samples say of steps after `step`: they will be done again."""
        for path in (self.metrics, self.samples):
            if not path.exists():
                continue
            kept = []
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    value = json.loads(line)
                except json.JSONDecodeError:
                    continue  # half a line, from a kill in the middle of it
                if isinstance(value, dict) and value.get("step", 0) <= step and value.get("kind") != "end":
                    kept.append(line)
            write_atomically(path, "".join(f"{line}\n" for line in kept))
