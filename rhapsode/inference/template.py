"""A chat template, run where it can do no harm: in Jinja's immutable sandbox, in a process with limits.

`render` starts this very file as a program. Templates come with models that others made: the sandbox keeps them from
objects and files, the process from using up time or memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

LONGEST_TEMPLATE = 1 << 20  # characters; the longest published ones have 20,000
LONGEST_TEXT = 1 << 24  # characters of a rendered conversation
SECONDS = 10  # for what takes milliseconds
MEMORY = 1 << 30  # bytes, where the system can limit them


def render(template: str, variables: dict[str, Any], where: str) -> str:
    """The text that a Jinja template makes of JSON variables, with the functions that chat templates expect.

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
    work = json.dumps({"template": template, "variables": variables}).encode("ascii")
    try:
        # -P: only installed packages are imported, nothing that lies beside this file or where the user stands.
        command = [sys.executable, "-P", __file__]
        done = subprocess.run(command, input=work, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise failed(f"it takes longer than {SECONDS} seconds") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise failed("it uses too much memory or time") from None
    if "error" in answer:
        raise failed(answer["error"])
    return str(answer["text"])


def _limit_this_process() -> None:
    try:
        import resource
    except ImportError:
        return  # Windows: the time limit has to do
    for limit, value in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS)):
        try:
            resource.setrlimit(limit, (value, value))
        except (OSError, ValueError):
            continue  # some systems know a limit only by name


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


def _main() -> None:
    work = json.loads(sys.stdin.buffer.read())
    environment = _environment()
    _limit_this_process()
    try:
        text = environment.from_string(work["template"]).render(work["variables"])
        if len(text) > LONGEST_TEXT:
            answer = {"error": f"it makes more than {LONGEST_TEXT:,} characters"}
        else:
            answer = {"text": text}
    except Exception as error:  # whatever a template of others can run into
        line = getattr(error, "lineno", None)
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        answer = {"error": f"line {line}: {reason}" if line else reason}
    sys.stdout.buffer.write(json.dumps(answer).encode("ascii"))


if __name__ == "__main__":
    _main()
