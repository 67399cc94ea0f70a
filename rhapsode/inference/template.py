"""A chat template, run where it can do no harm: in Jinja's immutable sandbox, in a process with limits.

`render` starts this very file as a program, and asks it again as long as it answers well. Templates come with models
that others made: the sandbox keeps them from objects and files, the process from using up time or memory. Each
rendering has an environment of its own, so that none changes what the next one finds.

Over the pipes go messages: the number of bytes as a line, then so many bytes of JSON.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import CodeType
from typing import IO, Any

LONGEST_TEMPLATE = 1 << 20  # characters; the longest published ones have 20,000
LONGEST_TEXT = 1 << 24  # characters of a rendered conversation
LONGEST_ANSWER = 12 * LONGEST_TEXT + 1000  # bytes: a character is at most two escapes of JSON
LONGEST_NUMBER = 20  # digits
SECONDS = 10  # for what takes milliseconds
MEMORY = 1 << 30  # bytes, where the system can limit them
KEPT_TEMPLATES = 8  # whose compiled code is kept


def render(template: str, variables: dict[str, Any], where: str) -> str:
    """The text that a Jinja template makes of JSON variables, with the functions that chat templates expect.

    Any number of threads may ask; one is served after another.

    Args:
        where: where the template is, for messages.

    Raises:
        InputError: the template is wrong, refuses the conversation, or exceeds a limit.
    """
    from rhapsode.base.errors import InputError  # not at the top: the program below does without Rhapsode

    def failed(why: str) -> InputError:
        return InputError(f"the chat template does not work: {why}", where=where)

    if len(template) > LONGEST_TEMPLATE:
        raise failed(f"it is longer than {LONGEST_TEMPLATE:,} characters")
    work = json.dumps({"template": template, "variables": variables, "seconds": SECONDS}).encode("ascii")
    try:
        answer = _process.ask(work)
    except TimeoutError:
        raise failed(f"it takes longer than {SECONDS} seconds") from None
    if answer is None:
        raise failed("it uses too much memory or time")
    if "error" in answer:
        raise failed(answer["error"])
    return str(answer["text"])


class _Process:
    """The program below, at work: started when it is needed, and anew when it has failed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, work: bytes) -> dict[str, Any] | None:
        """Its answer; None if it gives none.

        A process that fails may have been ended by others, or may hold what earlier templates left. Only what fails
        in a fresh one has failed.

        Raises:
            TimeoutError: there is no answer in time.
        """
        with self._lock:
            while True:
                fresh = self._process is None
                process = self._process or self._start()
                answer = self._exchange(process, work)
                if answer is not None and not answer.get("exhausted"):
                    return answer
                self._end()
                if fresh:
                    return answer

    def end(self) -> None:
        """End it, if there is one."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """Leave it to the process that this one was forked from."""
        _others.append(self._process)
        self._process, self._lock = None, threading.Lock()  # which may have been held there

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: only installed packages are imported, nothing that lies beside this file or where the user stands.
        command = [sys.executable, "-P", __file__]
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing)
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], work: bytes) -> dict[str, Any] | None:
        """Send it work and wait for the answer, in a thread: no system lets both pipes be given up in time."""
        answers: list[dict[str, Any]] = []

        def exchange() -> None:
            assert process.stdin is not None and process.stdout is not None
            with suppress(OSError, ValueError):  # it is dead, or what it says is no answer
                _send(process.stdin, work)
                answer = json.loads(_receive(process.stdout) or b"")
                if isinstance(answer, dict) and ("text" in answer or "error" in answer):
                    answers.append(answer)

        thread = threading.Thread(target=exchange, name="chat template", daemon=True)
        thread.start()
        try:
            thread.join(SECONDS)
            if thread.is_alive():
                raise TimeoutError
        except BaseException:  # Ctrl-C too: an answer that nobody waits for must not become the next one's
            process.kill()
            thread.join()
            self._end()
            raise
        return answers[0] if answers else None

    def _end(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what it has not read
                if pipe is not None:
                    pipe.close()


_process = _Process()
_others: list[subprocess.Popen[bytes] | None] = []  # of the processes that this one was forked from


def _send(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(b"%d\n" % len(message) + message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes | None:
    """The next message; None at the end.

    Raises:
        ValueError: what comes is none.
    """
    line = pipe.readline(LONGEST_NUMBER)
    if not line:
        return None
    size = int(line)
    if size > LONGEST_ANSWER:
        raise ValueError("too long")
    return pipe.read(size)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:
        return  # Windows: the time limit has to do
    with suppress(OSError, ValueError):  # some systems know a limit only by name
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _limit_time(seconds: int) -> None:
    """So much more of the processor, should nobody be there any more to end this process."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 1, most))


def _environment() -> Any:
    """Jinja as transformers sets it up for chat templates."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        from datetime import datetime

        return datetime.now().strftime(form)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **({"ensure_ascii": False} | options))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    functions: dict[str, Callable[..., Any]] = {"raise_exception": raise_exception, "strftime_now": strftime_now}
    environment.globals.update(functions)
    environment.filters["tojson"] = tojson
    return environment


def _answer(work: dict[str, Any], codes: dict[str, CodeType]) -> dict[str, Any]:
    """What a template makes of its variables, or why it makes nothing.

    Args:
        codes: compiled templates, which nothing can change.
    """
    source = work["template"]
    environment = _environment()
    try:
        code = codes.get(source) or environment.compile(source)
        template = environment.template_class.from_code(environment, code, environment.make_globals(None))
        text = template.render(work["variables"])
        if len(text) > LONGEST_TEXT:
            return {"error": f"it makes more than {LONGEST_TEXT:,} characters"}
    except Exception as error:  # whatever a template of others can run into
        line = getattr(error, "lineno", None)
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        told = f"line {line}: {reason}" if line else reason
        return {"error": told, "exhausted": isinstance(error, MemoryError)}
    if source not in codes and len(codes) >= KEPT_TEMPLATES:
        codes.clear()
    codes[source] = code
    return {"text": text}


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is meant for who asks, and reaches both
    _environment()  # whatever is imported for it comes before the limit
    _limit_memory()
    codes: dict[str, CodeType] = {}
    while (message := _receive(sys.stdin.buffer)) is not None:
        work = json.loads(message)
        _limit_time(work["seconds"])
        _send(sys.stdout.buffer, json.dumps(_answer(work, codes)).encode("ascii"))


if __name__ == "__main__":
    _main()
else:
    atexit.register(_process.end)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_process.forget)
