"""Styles set what they say, flags are stronger, and the guide says the same as the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rhapsode.cli.main import application
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.styles import STYLES


def parsed(*words: str) -> Sampling:
    _, bound, _ = application().parse_args(["generate", "model", "prompt", *words])
    sampling = bound.arguments.get("sampling", Sampling())
    assert isinstance(sampling, Sampling)
    return sampling


@pytest.mark.parametrize("style", STYLES)
def test_a_style_sets_its_values_and_flags_are_stronger(style: str) -> None:
    values = next(values for name, values in STYLES.items() if name == style)
    assert parsed("--style", style) == Sampling(**values)
    assert parsed("--temperature", "0.5", "--style", style) == Sampling(**values | {"temperature": 0.5})
    assert parsed(f"--style={style}", "--seed", "3") == Sampling(**values, seed=3)


def test_the_guide_says_what_the_code_does() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "generation.md").read_text(encoding="utf-8")
    for style, values in STYLES.items():
        (row,) = re.findall(rf"^\| {style} \| `(.*?)`", guide, re.MULTILINE)
        assert row == " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())


def test_logit_bias_on_the_command_line() -> None:
    assert parsed("--logit-bias.262", "-5", "--logit-bias.7", "2").logit_bias == {"262": -5.0, "7": 2.0}
