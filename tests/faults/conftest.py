"""Tiny runs in processes of their own, to be killed, starved and lied to."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

STEPS = 24
MODEL = ["--tokenizer=character", "--hidden-size=16", "--layers=1", "--heads=2", "--context-length=8"]
BATCH = ["--batch-size=6", "--threads=1"]
INTERVALS = ["--checkpoint-interval=3", "--validation-interval=4", "--sample-interval=7", "--validation-tokens=300"]
SHAPE = [*MODEL, *BATCH, *INTERVALS]

Plant = tuple[Any, ...]
"""(where, which call, what to do, ...): see `plant` in driver.py."""


@dataclass(frozen=True)
class Ended:
    """A process that ended."""

    code: int
    """Its exit code; the negative number of the signal that killed it."""
    stdout: str
    stderr: str


@dataclass
class Running:
    """A process that was started."""

    driver: Driver
    pid: int
    folder: Path

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        code = int(self.driver.ask({"wait": self.pid}))
        out, err = ((self.folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        assert "Traceback" not in err, err
        assert "fault of Rhapsode" not in err, err
        return Ended(code, out, err)


@dataclass
class Driver:
    """The process of driver.py."""

    process: subprocess.Popen[str]
    folder: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def ask(self, request: dict[str, Any]) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def start(self, arguments: Sequence[str | Path], *plants: Plant) -> Running:
        """Start `rhapsode ARGUMENTS` with faults planted in it."""
        folder = self.folder / str(next(self.numbers))
        folder.mkdir()
        request = {
            "arguments": [str(argument) for argument in arguments],
            "plants": plants,
            "folder": str(folder),
            "stdout": str(folder / "stdout"),
            "stderr": str(folder / "stderr"),
        }
        return Running(self, int(self.ask(request)), folder)

    def run(self, arguments: Sequence[str | Path], *plants: Plant) -> Ended:
        return self.start(arguments, *plants).wait()

    def resume(self, run: Path, *plants: Plant) -> Ended:
        return self.run(["train", "--resume", "--out", run], *plants)


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    if not hasattr(os, "fork"):
        pytest.skip("these tests fork and kill processes, which Windows does not know")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("driver.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
    ) as process:
        yield Driver(process, tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory, shakespeare: Path) -> Path:
    """Some scenes of Shakespeare."""
    path = tmp_path_factory.mktemp("text") / "scenes.txt"
    path.write_text(shakespeare.read_text(encoding="utf-8")[:12_000], encoding="utf-8")
    return path


@dataclass(frozen=True)
class Prepared:
    """A run that was killed when it had its plan, and what it comes to when it is left alone."""

    folder: Path
    arguments: list[str]
    """Those it was made with, but --out."""
    digest: str
    """SHA-256 of the weights it ends with."""
    seconds: float
    """How long it takes from the plan to the end."""

    def copy(self, to: Path) -> Path:
        return shutil.copytree(self.folder, to)


KILLED_WHEN_PLANNED: Plant = ("rhapsode.training.run:_carry_out", 1, "signal", signal.SIGKILL)


def prepare(driver: Driver, folder: Path, arguments: Sequence[str | Path]) -> Prepared:
    """A run up to its plan, and the same run to its end, in `folder`."""
    ended = driver.run([*arguments, "--out", folder / "planned"], KILLED_WHEN_PLANNED)
    assert ended.code == -signal.SIGKILL, ended.stderr
    whole = shutil.copytree(folder / "planned", folder / "whole")
    begin = time.monotonic()
    ended = driver.resume(whole)
    assert ended.code == 0, ended.stderr
    seconds = time.monotonic() - begin
    return Prepared(folder / "planned", [str(argument) for argument in arguments], digest(whole), seconds)


@pytest.fixture(scope="session")
def prepared(driver: Driver, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A run with everything in it that resuming could get wrong: dropout, gradient accumulation, Muon and AdamW."""
    more = ["--dropout=0.2", "--micro-batch-size=4", "--weight-decay=0.01", "--schedule=cosine"]
    arguments = ["train", str(text), *SHAPE, *more, f"--steps={STEPS}"]
    return prepare(driver, tmp_path_factory.mktemp("prepared"), arguments)


@pytest.fixture
def run(prepared: Prepared, tmp_path: Path) -> Path:
    """A run folder with a plan, ready to be resumed from its beginning."""
    return prepared.copy(tmp_path / "run")


def digest(run: Path) -> str:
    """SHA-256 of the weights that a run ended with."""
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def names(run: Path) -> list[str]:
    """What lies in a run's checkpoints."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines; every one of them must be whole."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in lines(run / "metrics.jsonl") if record["kind"] == kind]
