"""`rhapsode chat MODEL`: talk with a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from rhapsode.cli.generate import SAMPLING
from rhapsode.cli.serve import LOOPBACK, PORT, run_server
from rhapsode.inference.cache_type import CacheType
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.styles import Style

if TYPE_CHECKING:
    from socket import socket

    from rhapsode.inference.chat import Chat
    from rhapsode.inference.text import Piece

HELP = """\
/help            this list
/regenerate      another reply in place of the last one
/temperature T   0 is the most likely reply, below 1 safer, above 1 wilder
/save FILE       write the conversation to a new file
/reset           begin anew
/quit            end; Ctrl-D does the same
Ctrl-C stops a reply. A line that shall begin with / begins with //."""

COMMANDS = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")]


def chat(
    model: Path,
    *,
    system: str | None = None,
    web: bool = False,
    device: str = "auto",
    cache_type: CacheType = "float32",
    style: Annotated[Style | None, Parameter(group=SAMPLING)] = None,
    sampling: Annotated[Sampling, Parameter(name="*", group=SAMPLING)] = Sampling(),  # noqa: B008  # frozen
) -> None:
    """Talk with a model.

    A model tuned for chat answers through its template. Any other continues the text: what you type and what it writes
    become one text, and an empty line lets it go on. /help lists what you can do besides.

        rhapsode chat runs/mytext --temperature 0.7

        rhapsode chat runs/mytext --web

    Parameters
    ----------
    model: Path
        A model folder, a checkpoint, or a run.
    system: str
        What the model is told before the conversation.
    web: bool
        Talk in the browser instead, where every token can be looked into.
    device: str
        auto, cpu, cuda or mps.
    cache_type: CacheType
        What keys and values are kept in: float16 takes half the memory, int8 a quarter, on a processor.
    style: Style
        Values that go well together, for what their name says; flags beside it are stronger.
    """
    import sys

    from rhapsode.base.errors import InputError
    from rhapsode.base.machine import prepare
    from rhapsode.inference.chat import Chat
    from rhapsode.inference.language_model import load

    if web:
        if system is not None or style is not None or sampling != Sampling():
            raise InputError(
                "the page has settings of its own",
                where="--web",
                todo="Leave out --system, --style and the settings of sampling; they are set on the page.",
            )
        with _socket_for_page() as listening_socket:
            run_server([model], listening_socket, device=device, cache_type=cache_type, browser=True)
        return
    prepare(device)
    language_model = load(model, device)
    language_model.cache_type = cache_type
    conversation = Chat(language_model, sampling, system)
    if sys.stdin.isatty():
        _keep_history()
        tuned = "answers through its chat template" if conversation.template else "continues your text"
        print(f"{model} {tuned}. /help lists the commands, Ctrl-D ends.")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends)")
            continue
        try:
            if line.strip() == "/quit":
                return
            _obey(conversation, line)
        except InputError as error:
            print(f"({error.message})")


def _socket_for_page() -> socket:
    """At the usual port where it is free: the browser keeps the conversations of each address apart."""
    from rhapsode.base.errors import InputError
    from rhapsode.serving.server import listening

    try:
        return listening(LOOPBACK[0], PORT)
    except InputError:
        return listening(LOOPBACK[0], 0)


def _obey(conversation: Chat, line: str) -> None:
    """Do what one line asks: a command, or something said."""
    from dataclasses import replace

    from rhapsode.base.errors import InputError, nearest

    command, _, argument = line.strip().partition(" ")
    argument = argument.strip()
    if not line.startswith("/") or line.startswith("//"):
        _show(conversation, conversation.say(line.removeprefix("/") if line.startswith("//") else line))
    elif command == "/help":
        print(HELP)
    elif command == "/regenerate":
        _show(conversation, conversation.regenerate())
    elif command == "/temperature":
        try:
            value = float(argument)
        except ValueError:
            raise InputError(f"{argument!r} is not a number", todo="As in: /temperature 0.8") from None
        conversation.sampling = replace(conversation.sampling, temperature=value)
    elif command == "/save":
        _save(conversation, argument)
    elif command == "/reset":
        conversation.reset()
        print("(a new conversation)")
    else:
        raise InputError(f"there is no command {command}", todo=nearest(command, COMMANDS))


def _show(conversation: Chat, pieces: Iterator[Piece]) -> None:
    """Print a reply as it is written. Ctrl-C stops it; what was written stays in the conversation."""
    forgotten = conversation.forgotten
    reason = None
    try:
        for piece in pieces:
            if conversation.forgotten and not forgotten:
                print("(the conversation is longer than the model's context: from here on it forgets the beginning)")
                forgotten = conversation.forgotten
            print(piece.text, end="", flush=True)
            reason = piece.finish_reason
        print()
    except KeyboardInterrupt:
        print(" (stopped)")
    if reason == "context":
        print("(the model's context is full)")


def _save(conversation: Chat, name: str) -> None:
    from rhapsode.base.errors import InputError

    if not name:
        raise InputError("/save needs the name of a file", todo="As in: /save talk.txt")
    try:
        with Path(name).open("x", encoding="utf-8", newline="\n") as file:
            file.write(conversation.transcript() + "\n")
    except FileExistsError:
        raise InputError("already exists", where=name, todo="Choose another name.") from None
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=name) from None
    print(f"(written to {name})")


def _keep_history() -> None:
    """Let the arrow keys bring lines back, where Python has readline."""
    from contextlib import suppress

    with suppress(ImportError):
        import readline  # noqa: F401  # importing it changes what input() does
