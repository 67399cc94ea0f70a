"""`rhapsode foundations NAME`: one of the networks before the transformer at work, and a page that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(name="foundations", help_format="markdown")

PAGES = Path("foundations")
ORDER = ("digits", "hopfield", "boltzmann", "rbm", "dbn", "words", "attention")


@dataclass(frozen=True)
class Choices:
    """What every demonstration can be asked for."""

    out: Path | None = None
    """The page to write; without it foundations/NAME.html, or the next free name after it."""

    seed: int = 0
    """The same seed gives the same page."""

    pictures: Path | None = None
    """A folder that gets the page's figures as SVG files as well."""

    quick: Annotated[bool, Parameter(negative=())] = False
    """Everything smaller, in seconds: to see what it does, not how well."""

    force: Annotated[bool, Parameter(negative=())] = False
    """Replace the page, and pictures of it."""


Chosen = Annotated[Choices, Parameter(name="*")]


@app.command(sort_key=0)
def digits(*, choices: Chosen = Choices()) -> None:
    """Backpropagation: a network learns to read digits, another what word comes next.

    rhapsode foundations digits
    """
    from rhapsode.foundations.demonstrations.digits import demonstrate

    _show("digits", "Layers and backpropagation", "Simple units that learn from their errors", demonstrate, choices)


@app.command(sort_key=1)
def hopfield(*, choices: Chosen = Choices()) -> None:
    """Hopfield networks: noisy pictures are restored as the energy falls.

    rhapsode foundations hopfield --seed 3
    """
    from rhapsode.foundations.demonstrations.hopfield import demonstrate

    subtitle = "A memory that settles into the valleys of an energy"
    _show("hopfield", "Hopfield networks", subtitle, demonstrate, choices)


@app.command(sort_key=2)
def boltzmann(*, choices: Chosen = Choices()) -> None:
    """Boltzmann machines: units that flip by chance learn a probability, awake and dreaming.

    rhapsode foundations boltzmann --quick
    """
    from rhapsode.foundations.demonstrations.boltzmann import demonstrate

    subtitle = "A probability learnt by comparing what is seen with what is dreamt"
    _show("boltzmann", "Boltzmann machines", subtitle, demonstrate, choices)


@app.command(sort_key=3)
def rbm(*, choices: Chosen = Choices()) -> None:
    """Restricted Boltzmann machines: they learn what digits are made of, and dream of them.

    rhapsode foundations rbm --out dreams.html
    """
    from rhapsode.foundations.demonstrations.rbm import demonstrate

    subtitle = "Half of the connections, and learning is fast"
    _show("rbm", "Restricted Boltzmann machines", subtitle, demonstrate, choices)


@app.command(sort_key=4)
def dbn(*, choices: Chosen = Choices()) -> None:
    """Deep belief networks: layers that learn one after another, then all together from few labels.

    rhapsode foundations dbn --quick
    """
    from rhapsode.foundations.demonstrations.dbn import demonstrate

    _show("dbn", "Deep belief networks", "One machine on top of another", demonstrate, choices)


@app.command(sort_key=5)
def words(*, choices: Chosen = Choices()) -> None:
    """Word vectors: what words stand near to each other, of the bundled Shakespeare.

    rhapsode foundations words --seed 3
    """
    from rhapsode.foundations.demonstrations.words import demonstrate

    _show("words", "Word vectors", "You shall know a word by the company it keeps", demonstrate, choices)


@app.command(sort_key=6)
def attention(*, choices: Chosen = Choices()) -> None:
    """From associative memory to attention, the same numbers all the way.

    rhapsode foundations attention --pictures figures
    """
    from functools import partial

    from rhapsode.cli.same_numbers import ModelTransformer
    from rhapsode.foundations.demonstrations.attention import demonstrate

    subtitle = "One step of an associative memory is one step of a transformer"
    walk = partial(demonstrate, transformer=ModelTransformer())
    _show("attention", "From memory to attention", subtitle, walk, choices)


def _show(name: str, title: str, subtitle: str, demonstrate: Callable[..., None], choices: Choices) -> None:
    """Run a demonstration, write its page, and say where it is and what comes next."""
    import time

    from threadpoolctl import threadpool_limits

    from rhapsode.base.errors import InputError
    from rhapsode.base.progress import duration
    from rhapsode.foundations.page import Page

    began = time.monotonic()
    # Before the work: what stands in its way is known at once.
    out = _place(name, choices)
    if choices.pictures is not None:
        if not choices.pictures.is_dir():
            todo = "Make it, or choose another."
            raise InputError("the folder does not exist", where=str(choices.pictures), todo=todo)
        _check_writable(choices.pictures)
        there = sorted(path.name for path in choices.pictures.glob(f"{name}-*.svg"))
        if there and not choices.force:
            todo = "Choose another folder, or pass --force to replace it."
            raise InputError("already exists", where=str(choices.pictures / there[0]), todo=todo)
    following = ORDER[ORDER.index(name) + 1 :]
    command = f"rhapsode foundations {following[0]}" if following else "rhapsode demo"
    page = Page(title, subtitle)
    # these matrices are small: a second thread costs as much time as it saves, and far more on a busy machine
    with threadpool_limits(1, user_api="blas"):
        demonstrate(page, seed=choices.seed, quick=choices.quick)
    page.next("Go on" if following else "Train a transformer", command)
    page.write(out)
    if choices.pictures is not None:
        page.write_pictures(choices.pictures, prefix=f"{name}-")
    for fact, value, note in page.facts:
        print(f"{fact}: {value}{f' {note}' if note else ''}")
    print(f"\n{out}, made in {duration(time.monotonic() - began)}: open it in a browser\nnext: {command}")


def _place(name: str, choices: Choices) -> Path:
    """Where the page goes."""
    from rhapsode.base.errors import InputError

    out = choices.out
    if out is None:
        if not PAGES.is_dir() and (PAGES.exists() or PAGES.is_symlink()):
            raise InputError("is no folder", where=str(PAGES), todo="Pass --out with another place for the page.")
        PAGES.mkdir(exist_ok=True)
        number, out = 1, PAGES / f"{name}.html"
        while (out.exists() or out.is_symlink()) and not choices.force:
            number += 1
            out = PAGES / f"{name}-{number}.html"
    elif not out.parent.is_dir():
        raise InputError("its folder does not exist", where=str(out), todo="Make it, or choose another.")
    elif (out.exists() or out.is_symlink()) and not choices.force:
        todo = "Choose another name, or pass --force to replace it."
        raise InputError("already exists", where=str(out), todo=todo)
    if out.exists() and not out.is_file():  # a folder, or a device
        raise InputError("is no file", where=str(out), todo="Choose another name for the page.")
    _check_writable(out.parent)
    return out


def _check_writable(folder: Path) -> None:
    """
    Raises:
        InputError: no file can be made in `folder`.
    """
    import tempfile

    from rhapsode.base.errors import InputError

    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot be written to ({reason})", where=str(folder), todo="Choose another.") from None
