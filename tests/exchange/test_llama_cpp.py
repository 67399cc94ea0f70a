"""What llama.cpp itself makes of models trained here and exported: the same ids, the same text, the same numbers.

    make test-peers

which builds llama-cpp-python first. With `pytest -s` the figures are printed.
"""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rhapsode
from rhapsode.exchange.doors import Passage, export_model
from rhapsode.exchange.parity import LlamaCpp, Ours, Prompt, divergence
from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.training.settings import TrainSettings

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1800)]

FAMILIES = ("qwen3", "llama")
CONTEXT, GREEDY, STRINGS = 160, 100, 200

PIECES = (
    *("To be, or not to be", "don't", "WE'LL", "it's I'd they've", "naïve façade", "Größe", "Ærøskøbing", "Ελλάδα"),
    *("Привет, мир", "日本語のテキスト", "中文", "한국어", "مرحبا بالعالم", "हिन्दी", "ไทย", "🦙🦙", "½ ² ⅷ"),
    *("\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308", "€$£"),
    *(" ", "  ", "   \t", "\n", "\n\n\n", "\r\n", "\t\t", "\u00a0", "\u3000", "\u200b", "\x00", "\x7f", "\ufeff"),
    *("1", "42", "1234567890", "3.14159", "1,000,000", "٣٤٥", "0x1F", "a1b2c3", "2024-11-24T12:00"),
    *("!?...", "--", "(((", '"quoted"', "`code`", "#include <x>", "for i in range(10):\n    pass", "a_b-c.d/e\\f"),
    *("<|endoftext|>", "<|im_start|>user", "</s>", "[INST]", "<unk>", "https://example.org/?a=1&b=%20"),
)


@pytest.fixture(scope="module")
def llama_cpp() -> Any:
    return pytest.importorskip(
        "llama_cpp", reason="llama-cpp-python is not installed: `make test-peers` builds and installs it"
    )


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, shakespeare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of byte-level BPE on Shakespeare, long enough for words."""
    family = request.param
    folder = tmp_path_factory.mktemp("trained") / family
    settings = TrainSettings(
        family=family,
        tokenizer="bpe",
        vocabulary_size=1000,
        hidden_size=64,
        layers=2,
        heads=4,
        kv_heads=2,
        context_length=CONTEXT,
        batch_size=4,
        steps=100,
        validation_tokens=2000,
        device="cpu",
    )
    rhapsode.train([str(shakespeare)], settings, out=folder / "run")
    return folder / "run"


def exported(run: Path, quantization: str) -> Passage:
    return export_model(run, run.parent / f"{quantization}.gguf", format="gguf", quantization=quantization, force=True)


def mixed_strings(shakespeare: Path) -> list[str]:
    """Lines of plays, pieces of many scripts side by side, and characters at random."""
    draw = random.Random(0)
    lines = shakespeare.read_text(encoding="utf-8").splitlines(keepends=True)
    found = [""]
    while len(found) < STRINGS:
        kind = len(found) % 3
        if kind == 0:
            text = "".join(draw.choices(lines, k=draw.randint(1, 4)))
        elif kind == 1:
            text = "".join(draw.choices(PIECES, k=draw.randint(1, 12)))
        else:
            ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
            text = "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randint(1, 30)))
        found.append(unicodedata.normalize("NFC", text))  # which llama.cpp does not do
    return found


def test_the_same_tokens(llama_cpp: Any, trained: Path, shakespeare: Path) -> None:
    tokenizer = load(trained, "cpu").tokenizer
    theirs = llama_cpp.Llama(str(exported(trained, "F32").path), vocab_only=True, verbose=False)
    texts = mixed_strings(shakespeare)
    for text in texts:
        ids = tokenizer.encode(text)
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ids, text
        if ids:
            assert theirs.detokenize(ids) == text.encode()
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    print(f"\n{trained.parent.name}: ids of {len(texts)} strings equal, {tokens} tokens")


def test_the_same_text(llama_cpp: Any, trained: Path) -> None:
    """100 tokens at temperature 0, by each its own way: `generate` here, `create_completion` there."""
    passage, model = exported(trained, "F32"), load(trained, "cpu")
    theirs = llama_cpp.Llama(
        str(passage.path), n_ctx=CONTEXT, verbose=False, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32
    )
    for prompt in ("To be, or not", "KING RICHARD:\n", "My lord"):
        ids = model.tokenizer.encode(prompt)
        assert theirs.tokenize(prompt.encode(), add_bos=True, special=True) == ids
        written = model.generate(prompt, temperature=0, max_new_tokens=GREEDY)
        completed = theirs.create_completion(prompt, temperature=0, max_tokens=GREEDY, repeat_penalty=1.0)
        assert completed["choices"][0]["text"] == written.text
        assert completed["usage"]["completion_tokens"] == len(written.ids)
    rows = {row.peer: row for row in passage.parity.rows}
    assert rows["llama.cpp"].agreeing == rows["llama.cpp"].of > 0
    print(f"\n{trained.parent.name}: greedy texts of {GREEDY} tokens equal; table: {rows['llama.cpp']}")


@pytest.mark.parametrize(("quantization", "limit"), [("F32", 1e-5), ("F16", 1e-4), ("Q8_0", 0.01), ("Q4_0", 0.5)])
def test_how_far_it_diverges(llama_cpp: Any, trained: Path, shakespeare: Path, quantization: str, limit: float) -> None:
    model = load(trained, "cpu")
    passage = exported(trained, quantization)
    found = [mean_divergence(model, LlamaCpp(passage.path, CONTEXT), text) for text in excerpts(shakespeare)]
    print(f"\n{trained.parent.name} {quantization}: KL divergence {np.mean(found):.2e} nats")
    assert np.mean(found) < limit


def excerpts(shakespeare: Path) -> list[str]:
    text = shakespeare.read_text(encoding="utf-8")
    return [text[start : start + 600] for start in range(1_000_000, 1_100_000, 10_000)]


def mean_divergence(model: LanguageModel, theirs: LlamaCpp, text: str) -> float:
    prompt = Prompt(tuple(model.tokenizer.encode(text)[:CONTEXT]))
    return divergence(Ours(model.model).logits(prompt), theirs.logits(prompt))
