"""Reads spoilt files, each in a process of its own, and tells how that ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rhapsode.base.errors import RhapsodeError

SECONDS = 5  # of the processor
ROOM = 100 * 10**6  # bytes beyond twice the files

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
"""What Python tells an audit hook when a program is run, a pickle names a class, or the network is asked."""

Files = Mapping[str, bytes]
"""What a mutant consists of: content by name."""

Read = Callable[[Path, int], Any]
"""Given a folder of a mutant, and its number."""


def read_one(read: Read, folder: Path, number: int) -> str:
    """Read what is in a folder: "read", or "refused" by one message of Rhapsode's own."""
    try:
        read(folder, number)
    except RhapsodeError as error:
        if "\n" in error.message or len(error.message) > 2000:
            raise AssertionError(f"not one message: {error.message}") from error
        return "refused"
    return "read"


def _child(read: Read, folder: Path, number: int) -> None:
    """What the forked process does; its exit status tells how it ended."""
    status = 3

    def watch(event: str, arguments: Any) -> None:
        if event in FORBIDDEN:
            print(f"{event}{arguments}", file=sys.stderr, flush=True)
            os._exit(4)

    try:
        sys.addaudithook(watch)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(20 * SECONDS)
        status = {"read": 0, "refused": 1}[read_one(read, folder, number)]
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def run(
    mutant: Callable[[int], tuple[str, Files]], read: Read, first: int, count: int
) -> tuple[Counter[str], list[str]]:
    """How many mutants ended how, and what was wrong with which.

    Args:
        mutant: what was done, and the files; always the same for a number.
        read: does with the files in a folder all that can be done with them.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ended: Counter[str] = Counter()
    wrong: list[str] = []
    idle = _memory_of(lambda: None)[1]
    for number in range(first, first + count):
        name, files = mutant(number)
        with tempfile.TemporaryDirectory() as place:
            folder, said = Path(place) / "files", Path(place) / "said"
            folder.mkdir()
            for file, data in files.items():
                (folder / file).write_bytes(data)

            def child(folder: Path = folder, said: Path = said, number: int = number) -> None:
                os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
                _child(read, folder, number)

            status, memory = _memory_of(child)
            text = said.read_text(encoding="utf-8", errors="replace") if said.exists() else ""
            left = sorted(path.name for path in folder.iterdir() if path.name not in files)
        size = sum(map(len, files.values()))
        if os.WIFSIGNALED(status):
            fault = f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
        elif os.WEXITSTATUS(status) > 1:
            fault = text[-2000:]
        elif left:
            fault = f"wrote {', '.join(left)}"
        elif memory - idle > 2 * size + ROOM:
            fault = f"took {memory - idle:,} bytes for files of {size:,}"
        else:
            ended["read" if os.WEXITSTATUS(status) == 0 else "refused"] += 1
            ended[name] += 1
            continue
        wrong.append(f"mutant {number} ({name}): {fault}")
    return ended, wrong


def _memory_of(child: Callable[[], None]) -> tuple[int, int]:
    """How a forked process ended, and the most memory that it took, in bytes."""
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(0)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_maxrss * 1024


def spoil(module: str, *arguments: object) -> dict[str, int]:
    """Run a module of mutants, whose last two arguments are the first and the number of them; what each ended in."""
    command = [sys.executable, "-m", f"tests.exchange.{module}", *map(str, arguments)]
    environment = os.environ | {"RUST_BACKTRACE": "0"}
    top = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=top, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert not result["faults"], "\n".join(result["faults"][:20])
    counts: dict[str, int] = result["counts"]
    assert counts["read"] + counts["refused"] == arguments[-1]
    return counts


def report(counts: Counter[str], faults: list[str]) -> None:
    """The result as JSON, on stdout."""
    print(json.dumps({"counts": counts, "faults": faults}, indent=2))
