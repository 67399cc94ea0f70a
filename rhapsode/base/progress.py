"""How far long work is: a bar with rate and time left on a terminal, a plain line every ten seconds anywhere else.

Written by whoever does the work, as `with Progress("reading", total=size, unit="bytes") as progress:` and
`progress.advance(len(block))` for each block.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_FRAMES = 0.1
RATE_WINDOW_SECONDS = 30.0

_shown: list[Progress] = []  # the bars on the terminal now, the innermost last


@cache
def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def on_terminal() -> bool:
    """Whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and not _console().is_dumb_terminal


def note(text: str) -> None:
    """Print `text` on stderr, above the bar if there is one."""
    if _shown:
        _console().print(text)
    else:
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`seconds` as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def quantity(amount: float, unit: str) -> str:
    """`amount` with its `unit`; bytes and seconds in the form people read them in, small rates with their decimals."""
    if unit == "seconds":
        return duration(amount)
    if unit == "bytes":
        for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if amount >= size:
                return f"{amount / size:.1f} {name}"
    return f"{amount:,.0f} {unit}" if amount >= 10 or amount == int(amount) else f"{amount:.2g} {unit}"


class Progress:
    """A context manager around one piece of long work.

    An interrupt inside the block leaves the terminal as it was, with the bar standing where the work stopped.

    Args:
        description: what is being done, as "reading".
        total: how much there is to do in `unit`, or None when nobody knows.
        unit: what is counted, as "bytes", "steps" or "seconds".
        completed: how much was done before this process began; it does not count for the rate.
        quiet: show nothing at all.
    """

    def __init__(
        self, description: str, total: float | None, unit: str, *, completed: float = 0, quiet: bool = False
    ) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.completed, self.quiet = completed, quiet
        self._fields: dict[str, str] = {}
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._lines_printed = 0

    def __enter__(self) -> Self:
        self._last_shown = time.monotonic()
        self._history: deque[tuple[float, float]] = deque([(self._last_shown, self.completed)])
        if not self.quiet and on_terminal():
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[state]}", markup=False),
                console=_console(),
                auto_refresh=False,  # no thread: two cores are for the work
                redirect_stdout=sys.stdout.isatty(),  # results that go to a file must not turn into notes
            )
            self._task = self._bar.add_task(self.description, total=self.total, state=self.state())
            self._bar.start()
            _shown.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            try:
                self._show()
            finally:
                self._bar.stop()
                _shown.remove(self)
        elif self._lines_printed:
            self._show()

    def advance(self, amount: float = 1) -> None:
        """`amount` more is done."""
        self.update(self.completed + amount)

    def update(self, completed: float, **fields: str) -> None:
        """`completed` is done in all; `fields` are shown after it (`loss="2.31"`) until they are given anew."""
        self.completed = completed
        self._fields |= fields
        now = time.monotonic()
        if now - self._last_shown >= (SECONDS_BETWEEN_LINES if self._bar is None else SECONDS_BETWEEN_FRAMES):
            self._last_shown = now
            self._history.append((now, completed))
            while len(self._history) > 2 and now - self._history[0][0] > RATE_WINDOW_SECONDS:
                self._history.popleft()
            self._show()

    def rate(self) -> float:
        """How much is done per second, over the last half minute."""
        (then, before), now = self._history[0], time.monotonic()
        return max(0.0, self.completed - before) / (now - then) if now > then else 0.0

    def state(self) -> str:
        """How much is done, how fast, how long it will take, and the fields: what stands after the bar."""
        rate = self.rate()
        done = quantity(self.completed, self.unit)
        if self.total is not None:
            percent = 100 * self.completed / self.total if self.total else 100
            done = f"{percent:3.0f} %, {done.removesuffix(f' {self.unit}')} of {quantity(self.total, self.unit)}"
        parts = [done]
        if rate and self.unit != "seconds":  # seconds per second say nothing
            parts.append(f"{quantity(rate, self.unit)}/s")
        if rate and self.total is not None and self.completed < self.total:
            parts.append(f"{duration((self.total - self.completed) / rate)} left")
        parts += [f"{name.replace('_', ' ')} {value}" for name, value in self._fields.items()]
        return ", ".join(parts)

    def _show(self) -> None:
        if self.quiet:
            return
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=self.total, completed=self.completed, state=self.state())
            self._bar.refresh()
        else:
            self._lines_printed += 1
            print(f"{self.description}: {self.state().strip()}", file=sys.stderr, flush=True)
