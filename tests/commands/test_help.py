"""Every command explains itself, down to every option."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from rhapsode.base.settings import field_docs, flag
from rhapsode.cli.foundations import ORDER
from rhapsode.cli.main import COMMANDS
from rhapsode.training.settings import TrainSettings

from .conftest import Rhapsode

OWN_APPLICATIONS = ("tokenizer", "embeddings", "foundations")
SUBCOMMANDS = [
    *(["tokenizer", name] for name in ("train", "encode", "decode", "compare")),
    *(["embeddings", name] for name in ("evaluate", "picture")),
    *(["foundations", name] for name in ORDER),
]


@pytest.mark.parametrize("words", [[name] for name, *_ in COMMANDS] + SUBCOMMANDS)
def test_help(words: list[str], rhapsode: Rhapsode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = rhapsode(*words, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: rhapsode {' '.join(words)}")
    for option in re.findall(r"│ \*?\s*(--[a-z-]+)(.*)", done.out):
        assert re.search(r"[a-z]{3}", re.sub(r"--[a-z-]+|\[.*?\]|[A-Z]{2,}", "", option[1])), (
            f"{option[0]} says nothing"
        )


@pytest.mark.parametrize("name", [name for name, *_ in COMMANDS if name not in OWN_APPLICATIONS])
def test_examples_are_shown_each_on_a_line(name: str, rhapsode: Rhapsode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert re.search(rf"^ *rhapsode {name}", rhapsode(name, "--help").out, re.MULTILINE)


def test_every_setting_of_training_is_a_flag_and_explained(rhapsode: Rhapsode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    output = rhapsode("train", "--help").out
    docs = field_docs(TrainSettings)
    for field in fields(TrainSettings):
        assert flag(field.name) in output
        assert docs[field.name][:60] in output
