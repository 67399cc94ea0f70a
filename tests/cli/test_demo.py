"""The demo: a run of its own each time, a page, samples at three temperatures, and what to type next."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhapsode.cli.demo import next_free
from rhapsode.cli.main import run


def test_the_next_free_name(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    assert next_free(folder) == folder
    folder.mkdir()
    (tmp_path / "demo-2").mkdir()
    assert next_free(folder) == tmp_path / "demo-3"


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert run(["demo", "--minutes", "1"]) == 0
    output = capsys.readouterr().out
    for expected in ("--- temperature 0.2 ---", "--- temperature 1 ---", "rhapsode chat runs/demo-2"):
        assert expected in output
    assert (tmp_path / "runs" / "demo-2" / "report.html").stat().st_size > 10_000
