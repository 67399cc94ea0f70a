"""The pages of `rhapsode foundations hopfield` and `attention`: what they say is what was computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rhapsode.cli.same_numbers import ModelTransformer
from rhapsode.foundations.demonstrations import attention, hopfield
from rhapsode.foundations.demonstrations.letters import letters
from rhapsode.foundations.hopfield import Hopfield
from rhapsode.foundations.page import Page


@pytest.mark.parametrize("side", [8, 20])
def test_letters_are_drawn(side: int) -> None:
    drawn = letters("RHAPSODE", side)
    assert drawn.shape == (8, side * side)
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    assert len(np.unique(drawn, axis=0)) == 8
    assert (np.mean(drawn == 1, axis=1) > 0.1).all()  # each has ink, and more paper
    assert (np.mean(drawn == 1, axis=1) < 0.5).all()
    pictures = drawn.reshape(8, side, side)
    assert not (pictures[:, 0] == 1).all(axis=1).any()
    np.testing.assert_array_equal(letters("A", side)[0], drawn[2])
    o = pictures[5]
    assert o[side // 2, side // 2] == -1  # paper within an O, with ink around it
    assert (o[side // 2] == 1).any()
    np.testing.assert_array_equal(Hopfield(rule="pseudo-inverse").fit(drawn).step(drawn), drawn)


def test_the_page_of_hopfield_networks(tmp_path: Path) -> None:
    page = Page("Hopfield networks", "")
    hopfield.demonstrate(page, seed=0, quick=True)
    facts = {note: value for _, value, note in page.facts}
    assert facts["by the pseudo-inverse, noise"] == "8 of 8"
    names = {path.stem for path in page.write_pictures(tmp_path)}
    assert names == {"restored", "noise", "blank", "unknown", "turns", "at-once", "capacity", "rules"}
    text = page.write(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "the end is a two-cycle" in text
    again = Page("Hopfield networks", "")
    hopfield.demonstrate(again, seed=0, quick=True)
    assert again.write(tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_the_page_of_attention(tmp_path: Path) -> None:
    page = Page("Attention", "")
    attention.demonstrate(page, seed=0, quick=True, transformer=ModelTransformer())
    facts = {name: value for name, value, _ in page.facts}
    assert facts["Stages from memory to block"] == "9"
    assert float(facts["Largest difference"]) <= attention.TOLERANCE
    text = page.write(tmp_path / "page.html").read_text(encoding="utf-8")
    for way in ("ModernHopfield", "transformer_block", "rhapsode.model, fast_attention"):
        assert f">{way}</td>" in text
    assert {path.stem for path in page.write_pictures(tmp_path)} == {"capacity", "energy", "beta"}
