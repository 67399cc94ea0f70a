"""What the commands are tried on: a tiny model folder and a short run, both made by the package itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rhapsode.cli.main import run

from ..measurements import short_measurements

CONTEXT = 32


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what was wrong."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")


Rhapsode = Callable[..., Done]


@pytest.fixture
def rhapsode(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rhapsode:
    """Runs a command as the console script does, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RHAPSODE_TRACEBACK", raising=False)

    def command(*words: str | Path) -> Done:
        capsys.readouterr()
        with short_measurements():
            code = run([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Done(code, out, err)

    return command


@pytest.fixture(scope="session")
def trained(shakespeare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, finished. Do not change it: take `run_folder` or `model_folder` for that."""
    folder = tmp_path_factory.mktemp("commands")
    text = folder / "text.txt"
    text.write_text(shakespeare.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    words = f"--steps 3 --tokenizer character --hidden-size 16 --layers 1 --heads 1 --context-length {CONTEXT}"
    words += " --batch-size 2 --validation-interval 1 --checkpoint-interval 1 --sample-interval 2 --device cpu"
    words += " --validation-tokens 200 --threads 1"
    with short_measurements():
        assert run(["train", str(text), "--out", str(folder / "run"), *words.split()]) == 0
    return folder / "run"


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def model_folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of its model."""
    return Path(shutil.copytree(trained / "model", tmp_path / "model"))
