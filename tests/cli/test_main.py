"""The command line itself: help at once, every error in one line with its exit code, nothing misread."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cyclopts import App

from rhapsode.base.errors import InputError, RhapsodeError
from rhapsode.cli import main
from rhapsode.cli.main import COMMANDS, run

HEAVY = {"torch", "numpy", "tokenizers", "tiktoken", "matplotlib", "transformers", "pyarrow", "safetensors", "scipy"}


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["train", "--help"], ["corpus", "--help"], ["verify", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
import sys, rhapsode
from rhapsode.cli.main import run
assert run({arguments!r}) == 0
print("imported:", *({{name.partition(".")[0] for name in sys.modules}} & {HEAVY!r}))
"""
    output = python(program).stdout
    assert "Usage: rhapsode" in output
    assert output.splitlines()[-1].split() == ["imported:"]


def test_help_takes_less_than_half_a_second() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        python("import sys; sys.argv = ['rhapsode', '--help']; from rhapsode.cli.main import main; main()")
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 0.5


def test_help_shows_every_command_in_the_order_of_a_models_life(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    output = capsys.readouterr().out
    places = [output.index(f"│ {name} ") for name, *_ in COMMANDS]
    assert places == sorted(places)
    assert 'rhapsode generate runs/mytext "Once"' in output


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == "0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reprot"], "there is no command 'reprot'. Did you mean 'report'?"),
        (["tokenizer", "trane"], "there is no command 'trane'. Did you mean 'train'?"),
        (["--hepl"], "there is no option '--hepl'. See `rhapsode --help`."),
        (["train", "a.txt", "--layrs", "3"], "there is no option '--layrs'. Did you mean '--layers'?"),
        (["train", "a.txt", "--layrs=3"], "there is no option '--layrs=3'. Did you mean '--layers'?"),
        (["train", "a.txt", "--xyz"], "there is no option '--xyz'. See `rhapsode train --help`."),
        (["train", "a.txt", "--layers", "1.5"], "--layers: 1.5 is no whole number."),
        (["corpus", "a.txt", "--seed", "-2.5"], "--seed: -2.5 is no whole number."),
        (["train", "a.txt", "--layers", "x"], 'Invalid value for --layers: unable to convert "x" into int.'),
        (["train", "a.txt", "--optimizer", "adam"], 'Choose from: "muon", "adamw", "sgd". Did you mean "adamw"?'),
        (["train", "a.txt", "--layers"], "--layers requires an argument"),
        (["report"], "RUN requires an argument. See `rhapsode report --help`."),
        (["report", "a", "b"], "rhapsode report does not take 'b' as well. See `rhapsode report --help`."),
        (["report", "a", "--force"], "Unknown option: --force. See `rhapsode report --help`."),
    ],
)
def test_wrong_command_lines(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_behind_two_hyphens_every_word_is_a_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["train", "--out", str(tmp_path / "run"), "--", "--layrs"]) == 2
    assert "--layrs: does not exist" in capsys.readouterr().err


Raiser = Callable[[BaseException], int]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Raiser:
    """Runs a command that raises what it is given; returns the exit code."""

    def raise_in_command(error: BaseException) -> int:
        app = App(name="rhapsode", print_error=False, exit_on_error=False, suppress_keyboard_interrupt=False)

        @app.default
        def command() -> None:
            raise error

        monkeypatch.setattr(main, "application", lambda: app)
        return run([])

    return raise_in_command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("is bad", where="a.txt:3", todo="Mend it."), 2, "error: a.txt:3: is bad. Mend it."),
        (RhapsodeError("broke"), 1, "error: broke."),
        (PermissionError(13, "Permission denied", "a.txt"), 2, "error: a.txt: permission denied."),
        (MemoryError(), 2, "error: there is not enough memory for this. Choose something smaller, or close other prog"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_errors(
    raising: Raiser, error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == code
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("two\nlines"), OSError("nowhere"), AssertionError()])
def test_a_fault_of_ours_leaves_its_traceback_in_a_file(
    raising: Raiser,
    error: Exception,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(main.tempfile, "tempdir", str(tmp_path))
    assert raising(error) == 1
    err = capsys.readouterr().err
    (file,) = tmp_path.iterdir()
    assert err.startswith(f"error: {type(error).__name__}: ")
    assert err.endswith(f"This is a fault of Rhapsode, not of your input; please report it with {file}.\n")
    assert err.count("\n") == 1
    assert "raise_in_command" in file.read_text(encoding="utf-8") or "in command" in file.read_text(encoding="utf-8")


def test_tracebacks_on_request(
    raising: Raiser, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHAPSODE_TRACEBACK", "1")
    assert raising(ValueError("x")) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: ValueError: x. This is a fault of Rhapsode, not of your input.\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows tells of a closed pipe in another way")
@pytest.mark.parametrize(
    ("command", "code"),
    [("print(1)", 141), ("from rhapsode.cli.console import console; console().print(1)", 1)],  # 1: rich leaves so
)
def test_a_reader_that_has_seen_enough_is_no_error(command: str, code: int) -> None:
    program = f"""
from cyclopts import App
from rhapsode.cli import main
app = App(result_action="return_value")
@app.default
def command(): {command}
main.application = lambda: app
main.main()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == code


def test_any_character_reaches_a_pipe() -> None:
    program = "import sys; sys.argv = ['x', 'ž\\udcff🦙']; from rhapsode.cli.main import main; main()"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=False)
    assert done.returncode == 2
    assert "ž\\udcff🦙" in done.stderr.decode("utf-8")


def test_a_program_that_uses_pydantic_reads_command_lines_alike() -> None:
    program = "import pydantic; from rhapsode.cli.main import run; run(['train', 'missing.txt', '--dry-run'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "missing.txt" in done.stderr and "pydantic" not in done.stderr
