"""Progress: plain lines where there is no terminal, a bar where there is one, nothing lost when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from rhapsode.base import progress
from rhapsode.base.progress import Progress, duration, note, quantity


@pytest.mark.parametrize(
    ("amount", "unit", "text"),
    [
        (1234567, "tokens", "1,234,567 tokens"),
        (0.5, "steps", "0.5 steps"),
        (3, "steps", "3 steps"),
        (999, "bytes", "999 bytes"),
        (1_500_000, "bytes", "1.5 MB"),
        (2_000_000_000, "bytes", "2.0 GB"),
        (75, "seconds", "1:15"),
    ],
)
def test_quantity(amount: float, unit: str, text: str) -> None:
    assert quantity(amount, unit) == text


def test_duration() -> None:
    assert [duration(seconds) for seconds in (-1, 0.6, 59.6, 3600)] == ["0:00", "0:01", "1:00", "1:00:00"]


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_lines_come_at_most_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("training", 100, "steps") as work:
        for step in range(1, 51):
            clock.now += 0.5
            work.update(step, loss=f"{step / 10:.2f}")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "training: 20 %, 20 of 100 steps, 2 steps/s, 0:40 left, loss 2.00",
        "training: 40 %, 40 of 100 steps, 2 steps/s, 0:30 left, loss 4.00",
        "training: 50 %, 50 of 100 steps, 2 steps/s, 0:25 left, loss 5.00",
    ]


def test_work_done_before_does_not_count_for_the_rate(clock: Clock) -> None:
    with Progress("training", 1000, "steps", completed=500) as work:
        clock.now = 10.0
        work.update(510)
        assert work.rate() == 1.0


def test_rate_follows_the_last_half_minute(clock: Clock) -> None:
    with Progress("reading", None, "bytes", quiet=True) as work:
        for _ in range(10):
            clock.now += 10
            work.advance(1000)
        for _ in range(10):
            clock.now += 10
            work.advance(10)
        assert work.rate() == pytest.approx(1.0)


@pytest.mark.parametrize("quiet", [True, False])
def test_short_or_quiet_work_prints_nothing(quiet: bool, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", 0, "bytes", quiet=quiet) as work:
        clock.now = 100.0 if quiet else 9.0
        work.advance(10)
    assert capsys.readouterr() == ("", "")


def test_note_without_a_bar_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    note("the [red]newest[/red] checkpoint is damaged")
    assert capsys.readouterr().err == "the [red]newest[/red] checkpoint is damaged\n"


PROGRAM = """
import sys, time
from rhapsode.base.progress import Progress, note
with Progress("training [x]", 100, "steps") as work:
    for step in range(40):
        time.sleep(0.01)
        work.update(step, loss="2.31")
    note("a note [y]")
    print("ready", flush=True)
    if "wait" in sys.argv:
        time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize("interrupted", [False, True])
def test_bar_on_a_terminal(interrupted: bool) -> None:
    import pty

    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *(["wait"] if interrupted else [])],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"ready"
        if interrupted:
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
        shown = b""
        while True:
            try:
                block = os.read(ours, 65536)
            except OSError:  # Linux reports the end of a terminal as an error
                break
            if not block:
                break
            shown += block
        os.close(ours)
    text = shown.decode("utf-8")
    assert "training [x]" in text
    assert "39 of 100 steps" in text
    assert "loss 2.31" in text
    assert "a note [y]\r\n" in text
    assert text.rindex("\x1b[?25h") > text.index("\x1b[?25l"), "the cursor is shown again"
    assert ("KeyboardInterrupt" in text) == interrupted
