"""The process that renders templates: it stays, it is started anew when it fails, and it carries nothing over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from rhapsode.base.errors import InputError
from rhapsode.inference import template
from rhapsode.inference.template import render

GOOD = "{% for m in messages %}{{ m }};{% endfor %}"
VARIABLES: dict[str, Any] = {"messages": ["Grüße", "日本"]}
RENDERED = "Grüße;日本;"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
SHORT = 4.0  # seconds: none of the limits of 10 was waited for


def good() -> int:
    """Render what is good; the id of the process that did."""
    assert render(GOOD, VARIABLES, "model") == RENDERED
    assert template._process._process is not None
    return template._process._process.pid


def test_the_process_stays() -> None:
    assert len({good() for _ in range(20)}) == 1


def test_one_that_is_killed_between_two_renderings_is_replaced() -> None:
    first = good()
    os.kill(first, signal.SIGTERM)
    assert good() != first
    assert not psutil.pid_exists(first)  # no zombie is left


def test_one_that_is_killed_while_it_renders_is_replaced_once() -> None:
    """Whoever ended it, the template may be innocent; what ends a fresh one too has failed."""
    good()
    killed: list[int] = []

    def kill() -> None:
        for _ in range(2):
            time.sleep(0.4)
            process = template._process._process
            assert process is not None
            killed.append(process.pid)
            process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    start = time.monotonic()
    with pytest.raises(InputError, match="it uses too much memory or time"):
        render(ENDLESS, {}, "model")
    killer.join()
    assert time.monotonic() - start < SHORT
    assert len(set(killed)) == 2 and good() not in killed


def test_after_an_endless_template_the_next_one_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    first = good()
    monkeypatch.setattr(template, "SECONDS", 1)
    start = time.monotonic()
    with pytest.raises(InputError, match="it takes longer than 1 seconds"):
        render(ENDLESS, {}, "model")
    assert time.monotonic() - start < SHORT
    assert good() != first
    assert not psutil.pid_exists(first)


_join = threading.Thread.join


def test_one_that_nobody_ends_is_ended_by_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    good()
    monkeypatch.setattr(template, "SECONDS", 1)
    monkeypatch.setattr(threading.Thread, "join", lambda self, timeout=None: _join(self, None))
    start = time.monotonic()
    with pytest.raises(InputError, match="it uses too much memory or time"):
        render(ENDLESS, {}, "model")
    assert time.monotonic() - start < 30  # twice the two to three seconds of processor time


def test_after_one_that_eats_memory_the_next_one_is_rendered() -> None:
    first = good()
    with pytest.raises(InputError, match="MemoryError"):
        render("{{ 'a' * 10 ** 10 }}", {}, "model")
    assert good() != first


def test_memory_that_an_earlier_template_left_is_not_the_next_ones_fault() -> None:
    for _ in range(4):
        assert render("{{ (a * n) | length }}", {"a": "a", "n": 500_000_000}, "model") == "500000000"


def test_answers_that_are_none_are_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    good()
    template._process.end()
    for says in ("print('no number')", "print(10**19)", "print(3); print('{}')", "print('5\\n[1,2]', flush=True)"):
        (tmp_path / "strange.py").write_text(f"{says}\nimport sys; sys.stdin.read()", encoding="utf-8")
        monkeypatch.setattr(template, "__file__", str(tmp_path / "strange.py"))
        with pytest.raises(InputError, match="it uses too much memory or time"):
            render(GOOD, VARIABLES, "model")
    monkeypatch.undo()
    good()


def test_many_threads_each_get_their_own_answer() -> None:
    def one(number: int) -> str:
        if number % 8 == 7:
            with pytest.raises(InputError, match=f"refused {number}"):
                render("{{ raise_exception('refused ' ~ n) }}", {"n": number}, "model")
            return ""
        return render("{{ n }} of {{ text }}", {"n": number, "text": "ab" * number * 997}, "model")

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(one, range(320)))
    assert answers == ["" if n % 8 == 7 else f"{n} of {'ab' * n * 997}" for n in range(320)]


@pytest.mark.parametrize(
    "hostile",
    [
        "{% set messages = ['changed'] %}{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}",
        "{% macro raise_exception(x) %}{% endmacro %}{% macro tojson(x) %}changed{% endmacro %}{{ tojson(1) }}",
        "{% set range = 3 %}{% set dict = 4 %}{% set loop = 5 %}{{ range }}",
        "{% set cycler.__init__ = 1 %}",
        "{% set strftime_now.x = 1 %}",
        "{% do namespace.update(a=1) %}",
        "{{ namespace.__init__.__globals__.update(x=1) }}",
        "{{ messages.append('changed') }}",
        "{{ dict.update({}, a=1) }}{{ self.__dict__ }}",
        "{{ ''.join.__self__.__class__ }}",
        "{% macro deep(n) %}{{ deep(n + 1) }}{% endmacro %}{{ deep(0) }}",
    ],
)
def test_nothing_of_a_template_reaches_the_next_one(hostile: str) -> None:
    witness = (
        "{{ messages | tojson }} {{ range(3) | list }} {{ dict(a=1) }} {{ namespace(a=1).a }} {{ cycler('x').next() }} "
        "{{ ns is defined }} {{ strftime_now.x is defined }} {{ loop is defined }} "
    )

    def seen() -> str:
        with pytest.raises(InputError, match="as ever"):
            render("{{ raise_exception('as ever') }}", VARIABLES, "model")
        return render(witness, VARIABLES, "model")

    template._process.end()
    fresh = seen()
    assert fresh == '["Grüße", "日本"] [0, 1, 2] {\'a\': 1} 1 x False False False '
    try:
        render(hostile, VARIABLES, "model")
    except InputError as error:
        assert "\n" not in str(error)
    assert seen() == fresh


ALONE = f"""
import os, sys, psutil
from rhapsode.inference import template
template.render({GOOD!r}, {VARIABLES!r}, "model")
print(template._process._process.pid)
"""


@pytest.mark.parametrize("end", ["", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_it_ends_with_the_interpreter(end: str) -> None:
    """Also where nothing is left to end it: at the end of its input."""
    if end and sys.platform == "win32":
        pytest.skip("Windows has no such signal")
    code = ALONE + f"sys.stdout.flush(); {end}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    deadline = time.monotonic() + 5
    while psutil.pid_exists(int(done.stdout)) and _is_ours(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_ours(pid: int) -> bool:
    """Whether it is still the process that renders, and not one that ended and that nobody has asked after."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any("template.py" in part for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_process_has_one_of_its_own() -> None:
    code = (
        ALONE
        + f"""
sys.stdout.flush()
template._process._lock.acquire()  # another thread is being served
child = os.fork()
if child == 0:
    assert template.render({GOOD!r}, {VARIABLES!r}, "model") == {RENDERED!r}
    print(template._process._process.pid, flush=True)
    template._process.end()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
template._process._lock.release()
template.render({GOOD!r}, {VARIABLES!r}, "model")
print(template._process._process.pid)
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    first, forked, again = done.stdout.split()
    assert first == again != forked
    assert done.stderr == ""
