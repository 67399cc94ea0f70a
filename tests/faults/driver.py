"""Runs the command line with faults planted in it: what the tests of this folder start, watch and kill.

    python tests/faults/driver.py        (reads requests on standard input; see conftest.py)

It imports everything once and forks a process for each run: importing torch takes longer than a tiny run does. The
processes are real, and so are their deaths.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rich.table  # noqa: F401  # what the command imports when it needs it: once here, not in every process
import tokenizers  # noqa: F401
import torch
import torch._dynamo  # torch's optimizers import it, which takes seconds

import rhapsode.cli.console
import rhapsode.cli.train  # noqa: F401
from rhapsode.cli.main import run
from rhapsode.report import report
from rhapsode.training import planner
from rhapsode.training import run as training
from rhapsode.training.timing import step_seconds


def send(number: int, times: int = 1) -> None:
    """A signal to this process, `times` in a row."""
    for _ in range(times):
        os.kill(os.getpid(), number)


def fill(folder: str) -> None:
    """Write into a small file system until nothing more fits."""
    with (Path(folder) / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


def free(folder: str) -> None:
    (Path(folder) / "filler").unlink(missing_ok=True)


def limit(size: int) -> None:
    """No file may grow beyond `size` bytes from now on; -1 for any size. Writing fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def matrix_of(model: Any) -> Any:
    return model.stack.blocks[0].attention.query.weight


def spoil_gradient(gradient: Any, *_: Any) -> None:
    """The gradient of one matrix, as it is computed next."""
    matrix_of(gradient.model).register_hook(lambda gradient: gradient * float("nan"))


def spoil_weight(holder: Any, *_: Any) -> None:
    with torch.no_grad():
        matrix_of(holder.model).view(-1)[0] = float("inf")


def spoil_data(windows: Any, *_: Any) -> None:
    """Ids that are not in the vocabulary, in the file that the trainer has mapped."""
    np.memmap(windows.tokens.filename, dtype=windows.tokens.dtype, mode="r+")[:] = 65535


ACTIONS: dict[str, Callable[..., None]] = {
    "signal": send,
    "fill": fill,
    "free": free,
    "limit": limit,
    "sleep": time.sleep,
}
SPOILS: dict[str, Callable[..., None]] = {
    "gradient": spoil_gradient,
    "weight": spoil_weight,
    "data": spoil_data,
}


def plant(at: str, call: int, do: str, *arguments: Any) -> None:
    """Make the `call`-th call (from 1) of `at`, as module:function or module:Class.method, do something first.

    do: one of ACTIONS with `arguments`; one of SPOILS, on what the call is given; "nan", which spoils its result.
    """
    module, _, path = at.partition(":")
    *outer, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for attribute in outer:
        owner = getattr(owner, attribute)
    original, calls = getattr(owner, name), 0

    def planted(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and do in ACTIONS:
            ACTIONS[do](*arguments)
        if calls == call and do in SPOILS:
            SPOILS[do](*given)
        result = original(*given, **named)
        return result * float("nan") if calls == call and do == "nan" else result

    setattr(owner, name, planted)


def child(request: dict[str, Any]) -> int:
    """One run of the command line, its output in files."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    sys.argv = ["rhapsode", *request["arguments"]]
    # These three take a second or more, and nothing here looks at what they make.
    training.peak_flops = lambda on, seconds=0.0: 1e9
    planner.step_seconds = lambda *given: step_seconds(*given[:-1], budget=0.0)
    report.write_report = lambda run: run / "report.html"
    for fault in request["plants"]:
        plant(*fault)
    return run(request["arguments"])


def main() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # else each process would copy the memory of all objects when it first collects garbage
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        process = os.fork()
        if process == 0:
            code = 99
            try:
                code = child(request)
            except SystemExit as leaving:
                code = int(leaving.code or 0)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(process, flush=True)


if __name__ == "__main__":
    main()
