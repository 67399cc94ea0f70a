"""The command `rhapsode`: parses, calls one function of one room, and turns every error into one line and an exit code.

Run `rhapsode --help`. Exit codes: 0 done, 2 the input was wrong, 1 a fault of Rhapsode itself, 130 interrupted.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import BoundArguments
from inspect import Parameter as Kind
from typing import NoReturn, get_args

from cyclopts import App, ArgumentCollection, CycloptsError, Group, Parameter, UnknownCommandError, UnusedCliTokensError

from rhapsode import __version__
from rhapsode.base.errors import InputError, RhapsodeError, nearest
from rhapsode.cli.style import fill_in_style

HELP = """\
From text of your own to a language model of your own, on the machine you have.

rhapsode demo                             see it all in three minutes
rhapsode train mytext.txt --minutes 10    a model of your text
rhapsode generate runs/mytext "Once"      text from it
rhapsode next runs/mytext "The cat"       what it thinks comes next
rhapsode quantize runs/mytext --bits 8 --out small    smaller, faster
rhapsode import model.gguf --out theirs   a model of others
rhapsode export runs/mytext --out mine.gguf --format gguf --type q8_0    for llama.cpp and Ollama

`rhapsode COMMAND --help` explains one command.
"""

PREPARE, TRAIN, USE, EXCHANGE, JUDGE, EXPLAIN = (
    Group.create_ordered(name)
    for name in ("Prepare text", "Train a model", "Use it", "Bring it in, take it out", "Judge it", "Look inside")
)

# (name, group, where the command is, what it does): in the order in which a model lives.
# The modules are imported when their command runs: this help must come at once.
COMMANDS = (
    ("corpus", PREPARE, "corpus:corpus", "Read texts of many formats into one clean corpus, split for validation."),
    ("tokenizer", PREPARE, "tokenizer:app", "Train, try and compare tokenizers."),
    ("train", TRAIN, "train:train", "Train a language model on texts, within the minutes you give it."),
    ("demo", TRAIN, "demo:demo", "Train on the bundled Shakespeare for three minutes and show the result."),
    ("generate", USE, "generate:generate", "Continue a prompt."),
    ("chat", USE, "chat:chat", "Talk with a model."),
    ("fill", USE, "fill:fill", "Fill the gaps in a text."),
    ("translate", USE, "translate:translate", "Turn texts into what the model was trained to make of them."),
    ("embed", USE, "embed:embed", "Turn texts into vectors, or compare them."),
    ("next", USE, "next:next_token", "Draw the probabilities of the next token at several temperatures."),
    ("serve", USE, "serve:serve", "Serve models to the programs that speak the OpenAI dialect."),
    ("quantize", USE, "quantize:quantize", "Make a model of a quarter or a sixth of the size, which runs faster."),
    ("bench", USE, "bench:bench", "Measure how fast a model reads and writes on this machine."),
    ("import", EXCHANGE, "importing:import_", "Bring in a model of others: a folder, GGUF, llama2.c, or from the hub."),
    (
        "export",
        EXCHANGE,
        "exporting:export",
        "Write a model for other tools, and check that it computes the same.",
    ),
    (
        "evaluate",
        JUDGE,
        "evaluate:evaluate",
        "Measure perplexity and bits per byte on a text, or do tasks of the evaluation harness.",
    ),
    ("report", JUDGE, "report:report", "Make the page that shows how a run went."),
    ("verify", JUDGE, "verify:verify", "Check that a run, checkpoint, model, corpus or token store is undamaged."),
    ("similar", EXPLAIN, "similar:similar", "Show the words whose vectors are nearest to a word's."),
    ("analogy", EXPLAIN, "analogy:analogy", "Complete an analogy: king - man + woman."),
    ("embeddings", EXPLAIN, "embeddings:app", "Compare word vectors with people's judgements, and draw them."),
    ("foundations", EXPLAIN, "foundations:app", "See the networks before the transformer at work, each on a page."),
)


def _shown_default(value: object) -> str | None:
    if value is None or value is False or value == ():
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def application() -> App:
    """The command line, with every command still unimported."""
    app = App(
        name="rhapsode",
        help=HELP,
        help_format="plaintext",  # only here: it keeps the examples' columns
        version=__version__,
        default_parameter=Parameter(negative="", show_default=_shown_default),
        config=(fill_in_style, _refuse_fractions),
        result_action="return_value",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
    )
    app["--help"].group = app["--version"].group = Group.create_ordered("Other")
    for position, (name, group, path, summary) in enumerate(COMMANDS):
        own_application = path.endswith(":app")  # says for itself how its help is written
        options = {} if own_application else {"help_format": "markdown"}
        app.command(f"rhapsode.cli.{path}", name=name, group=group, help=summary, sort_key=position, **options)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; whatever goes wrong is told in one line on stderr."""
    try:
        app = application()
        with _without_pydantic():
            _, chain, _ = app.parse_commands(list(arguments))
            for asked in chain[1:2]:
                if asked.default_command is not None:
                    asked.help = None  # of one command the whole docstring is shown, not the line in the list
            command, bound, _ = app.parse_args(list(arguments))
        _refuse_unknown_options(app, bound, arguments)
        command(*bound.args, **bound.kwargs)
        sys.stdout.flush()
    except CycloptsError as error:
        return _fail(_one_line(error), 2)
    except RhapsodeError as error:
        return _fail(error.message, error.exit_code)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError:
        return _fail("there is not enough memory for this. Choose something smaller, or close other programs.", 2)
    except OSError as error:
        if error.filename is None:
            return _fault(error)
        return _fail(f"{error.filename}: {(error.strerror or str(error)).lower()}.", 2, error)
    except Exception as error:
        return _fault(error)
    return 0


def _refuse_fractions(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Where a whole number is asked for, cyclopts rounds 1.5, and the user would never know."""
    for argument in arguments:
        kinds = {argument.hint, *get_args(argument.hint)}
        for token in argument.tokens:
            if int in kinds and float not in kinds and re.fullmatch(r"[+-]?[\d_]*\.[\d_]*", token.value):
                raise InputError(f"{token.value} is no whole number", where=argument.name)


@contextmanager
def _without_pydantic() -> Iterator[None]:
    """cyclopts checks every value by pydantic's rules too where a program around us has imported it: as if it had not,
    so that a command line means the same everywhere."""
    hidden = sys.modules.pop("pydantic", None)
    try:
        yield
    finally:
        if hidden is not None:
            sys.modules["pydantic"] = hidden


def _refuse_unknown_options(app: App, bound: BoundArguments, arguments: Sequence[str]) -> None:
    """Commands that read - as standard input take any word for a text: a misspelt option must not pass for one."""
    if "--" in arguments:  # whoever writes it says that all words behind it are texts
        return
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind in (Kind.VAR_POSITIONAL, Kind.POSITIONAL_ONLY):
            for word in value if isinstance(value, tuple | list) else (value,):
                if isinstance(word, str) and re.match(r"--?[A-Za-z]", word) and word in arguments:
                    chain, apps, _ = app.parse_commands(list(arguments))
                    options = [option for taken in apps[-1].assemble_argument_collection() for option in taken.names]
                    near = difflib.get_close_matches(word.partition("=")[0], options, n=1)
                    todo = f"Did you mean {near[0]!r}?" if near else f"See `{' '.join(('rhapsode', *chain))} --help`."
                    raise InputError(f"there is no option {word!r}", todo=todo)


def _one_line(error: CycloptsError) -> str:
    """What was wrong with the command line, and where to read more."""
    command = " ".join(("rhapsode", *(error.command_chain or ())))
    if isinstance(error, UnknownCommandError) and error.app is not None and error.unused_tokens:
        word = error.unused_tokens[0]
        if word.startswith("-"):
            return f"there is no option {word!r}. See `{command} --help`."
        return f"there is no command {word!r}. {nearest(word, (name for name in error.app if name[0] != '-'))}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{command} does not take {' '.join(error.unused_tokens)!r} as well. See `{command} --help`."
    message = " ".join(str(error).split())
    return message if message.endswith("?") else f"{message.rstrip('.')}. See `{command} --help`."


def _fail(message: str, code: int, error: BaseException | None = None) -> int:
    if error is not None and os.environ.get("RHAPSODE_TRACEBACK"):
        traceback.print_exception(error)
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.name != "nt"
    print(f"\x1b[31merror:\x1b[0m {message}" if colour else f"error: {message}", file=sys.stderr)
    return code


def _fault(error: Exception) -> int:
    """Our own fault: say so, and leave the traceback where it can be sent to us from."""
    told = f"{type(error).__name__}: {error}".splitlines()[0]
    if os.environ.get("RHAPSODE_TRACEBACK"):
        return _fail(f"{told}. This is a fault of Rhapsode, not of your input.", 1, error)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix="rhapsode-fault-", suffix=".txt", delete=False
    ) as file:
        file.write(f"rhapsode {__version__}, Python {sys.version}, {sys.platform}\n{' '.join(sys.argv)}\n\n")
        traceback.print_exception(error, file=file)
    return _fail(f"{told}. This is a fault of Rhapsode, not of your input; please report it with {file.name}.", 1)


def main() -> NoReturn:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Models write any character, file names may hold bytes that are none: neither may end the work.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))
