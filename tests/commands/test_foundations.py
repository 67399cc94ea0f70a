"""rhapsode foundations NAME: each leaves a page, says where it is and what comes next."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from rhapsode.cli.foundations import ORDER

from .conftest import Rhapsode


@pytest.mark.parametrize("name", ORDER)
def test_each_leaves_a_page(name: str, rhapsode: Rhapsode) -> None:
    done = rhapsode("foundations", name, "--quick")
    assert done.code == 0, done.err
    page = Path("foundations", f"{name}.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 2
    assert page.count("<p>") >= 2
    assert max(map(len, re.findall(r"<p>(.*?)</p>", page))) > 200, "a paragraph that explains"
    *facts, _, where, what_next = done.out.splitlines()
    assert facts
    for fact in facts:
        fact_name, _, value = fact.partition(": ")
        assert f"<dt>{fact_name}</dt>" in page
        assert value
    assert re.fullmatch(rf"foundations/{name}\.html, made in \d+:\d\d: open it in a browser", where)
    following = ORDER[ORDER.index(name) + 1 :]
    assert what_next == (f"next: rhapsode foundations {following[0]}" if following else "next: rhapsode demo")


def test_a_seed_gives_the_same_page_again_and_nothing_is_overwritten(rhapsode: Rhapsode) -> None:
    for seed in (3, 3, 4):
        assert rhapsode("foundations", "words", "--quick", "--seed", seed).code == 0
    pages = [Path("foundations", name).read_bytes() for name in ("words.html", "words-2.html", "words-3.html")]
    assert pages[0] == pages[1] != pages[2]
    assert rhapsode("foundations", "words", "--quick", "--seed", 4, "--force").code == 0
    assert Path("foundations", "words.html").read_bytes() == pages[2]
    assert not Path("foundations", "words-4.html").exists()


def test_where_the_page_and_its_pictures_go(rhapsode: Rhapsode, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    done = rhapsode("foundations", "words", "--quick", "--out", "my page.html", "--pictures", "pictures")
    assert (done.code, "my page.html, made in" in done.out) == (0, True)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} >= {"words-map.svg", "words-loss.svg"}
    again = rhapsode("foundations", "words", "--quick", "--out", "my page.html")
    assert again.code == 2
    assert again.error == "my page.html: already exists. Choose another name, or pass --force to replace it."


def test_what_stands_in_the_way_is_known_before_the_work(
    rhapsode: Rhapsode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def demonstrate(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr("rhapsode.foundations.demonstrations.words.demonstrate", demonstrate)
    (tmp_path / "folder").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "words-map.svg").write_text("mine")
    (tmp_path / "link.html").symlink_to("nowhere.html")
    for words, message in (
        (["--out", "folder", "--force"], "folder: is no file. Choose another name for the page."),
        (["--out", os.devnull, "--force"], f"{os.devnull}: is no file. Choose another name for the page."),
        (["--out", "link.html"], "link.html: already exists. Choose another name, or pass --force to replace it."),
        (["--pictures", "pictures"], "pictures/words-map.svg: already exists. Choose another folder, or pass --force"),
    ):
        done = rhapsode("foundations", "words", "--quick", *words)
        assert (done.code, done.error[: len(message)]) == (2, message)
    assert (tmp_path / "pictures" / "words-map.svg").read_text() == "mine"

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as only_here:
        only_here.setattr("tempfile.NamedTemporaryFile", refuse)
        for words, folder in ((["--out", "folder/page.html"], "folder"), (["--pictures", "folder"], "foundations")):
            done = rhapsode("foundations", "words", "--quick", *words)
            assert (done.code, done.error) == (
                2,
                f"{folder}: cannot be written to (permission denied). Choose another.",
            )
    Path("foundations").rmdir()
    Path("foundations").write_text("mine")
    done = rhapsode("foundations", "words", "--quick")
    assert (done.code, done.error) == (2, "foundations: is no folder. Pass --out with another place for the page.")
    assert Path("foundations").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["word"], "there is no command 'word'. Did you mean 'words'?"),
        (
            ["words", "--out", "none/page.html"],
            "none/page.html: its folder does not exist. Make it, or choose another.",
        ),
        (["words", "--pictures", "none"], "none: the folder does not exist. Make it, or choose another."),
        (["words", "--seed", "1.5"], "--seed: 1.5 is no whole number."),
        (["words", "--seed", "x"], 'Invalid value for --seed: unable to convert "x" into int.'),
        (["words", "--fast"], "Unknown option: --fast"),
    ],
)
def test_wrong_command_lines(words: list[str], message: str, rhapsode: Rhapsode) -> None:
    done = rhapsode("foundations", *words)
    assert done.code == 2
    assert done.error.startswith(message)
    assert not Path("foundations").exists() or not any(Path("foundations").iterdir())
