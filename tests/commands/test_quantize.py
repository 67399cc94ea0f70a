"""rhapsode quantize, of a run: what it loses is measured on what the run was validated on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rhapsode.inference.block_pool import blocks_of
from rhapsode.inference.kernels.choice import SWITCH
from rhapsode.inference.language_model import load
from rhapsode.inference.quantization import measured
from rhapsode.tokenizer.store import TokenStore

from .conftest import CONTEXT, Rhapsode


@pytest.mark.parametrize("part", ["", "model"])
def test_a_run_is_measured_on_its_validation_data(run_folder: Path, rhapsode: Rhapsode, part: str) -> None:
    source = run_folder / part
    done = rhapsode("quantize", source, "--bits", "4", "--out", "small")
    assert done.code == 0 and "nats per token" in done.out
    tokens = TokenStore.open(run_folder / "tokens" / "validation").tokens
    step = load(Path("small"), "cpu").step(blocks_of(CONTEXT))
    expected = measured(load(source, "cpu").decoder(), step, tokens)
    record = json.loads(Path("small/rhapsode.json").read_text(encoding="utf-8"))["quantization"]
    assert record["measured_on_tokens"] == len(tokens) - 1
    assert record["kl_divergence_nats"] == pytest.approx(expected.divergence)
    assert record["perplexity"] == pytest.approx(expected.packed_perplexity)


def test_what_was_made_works_with_the_other_commands(
    run_folder: Path, rhapsode: Rhapsode, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rhapsode("quantize", run_folder, "--bits", "8", "--out", "small").code == 0
    for words in (["verify", "small"], ["next", "small", "The"], ["bench", "small", "--new-tokens", "2"]):
        assert rhapsode(*words).code == 0, words
    again = rhapsode("quantize", "small", "--bits", "4", "--out", "smaller")
    assert (again.code, again.error) == (
        2,
        "small: is quantised already. Quantise the model that it was made from, once.",
    )
    copied = rhapsode("import", "small", "--out", "plain")
    assert copied.code == 0, copied.err
    monkeypatch.setenv(SWITCH, "0")
    texts = [rhapsode("generate", name, "The", "--temperature", "0") for name in ("small", "plain")]
    assert texts[0].code == 0 and texts[0].out == texts[1].out
