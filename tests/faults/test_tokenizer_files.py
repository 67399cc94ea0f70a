"""Damaged tokenizer files of every form: one message or a tokenizer, within seconds and memory, and no crash.

`mutants.py` says what is done to them, and opens them in a process of its own.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsode.tokenizer.tokenizer import Tokenizer
from rhapsode.tokenizer.train import KINDS, train_tokenizer

from ..tokenizer.formats.conftest import train
from ..tokenizer.formats.test_byte_pairs import files_of
from ..tokenizer.formats.test_marian import GERMAN, ids_of

FORMS = [
    *("sentencepiece-unigram", "sentencepiece-bpe", "marian", "wordpiece", "pairs", "tiktoken"),
    *(f"json-{kind}" for kind in KINDS),
    *("json-wordpiece", "json-sentencepiece-unigram", "json-sentencepiece-bpe"),
]


@pytest.fixture(scope="module")
def folders(shakespeare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each form."""
    top = tmp_path_factory.mktemp("forms")
    text = shakespeare.read_text(encoding="utf-8")[:60_000]
    lines = text.split("\n")

    def put(form: str, name: str, data: bytes | str | object) -> None:
        (top / form).mkdir(exist_ok=True)
        content = data if isinstance(data, bytes | str) else json.dumps(data)
        (top / form / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))

    put("sentencepiece-unigram", "spiece.model", train(lines, 700))
    given = {"user_defined_symbols": ["\n", "<a>"], "byte_fallback": True}
    put("sentencepiece-bpe", "tokenizer.model", train(lines, 700, model_type="bpe", **given))
    source, target = train(lines, 500), train(GERMAN, 150)
    put("marian", "source.spm", source)
    put("marian", "target.spm", target)
    put("marian", "vocab.json", ids_of(source, target))

    words = sorted({word.lower() for word in text.split() if word.isalpha()})
    put(
        "wordpiece",
        "vocab.txt",
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 127)), *words]),
    )
    mask = {"content": "[MASK]", "lstrip": True, "special": True}
    put("wordpiece", "tokenizer_config.json", {"do_lower_case": True, "added_tokens_decoder": {"4": mask}})

    trained = {kind: train_tokenizer([text], kind, 700) for kind in KINDS}
    vocabulary, merges = files_of(trained["bpe"], "<|endoftext|>")
    put("pairs", "vocab.json", vocabulary)
    put("pairs", "merges.txt", merges)
    put("pairs", "added_tokens.json", {"<x>": len(vocabulary)})
    ranks = [(trained["bpe"].id_to_bytes(id), id) for id in range(696)]
    put("tiktoken", "small.tiktoken", b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks))
    for kind in KINDS:
        trained[kind].save(top / f"json-{kind}")
    for form in ("wordpiece", "sentencepiece-unigram", "sentencepiece-bpe"):
        Tokenizer.load(top / form).save(top / f"json-{form}")
    return top


def assert_survived(folder: Path, first: int, last: int) -> None:
    command = [sys.executable, str(Path(__file__).with_name("mutants.py")), str(folder), str(first), str(last)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"mutant {lines[-1]} of {folder.name}: {done.returncode}\n{done.stderr[-2000:]}"
    counts = json.loads(lines[-1])
    assert sum(counts.values()) == last - first and counts["refused"] > 0


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files(folders: Path, form: str) -> None:
    assert_survived(folders / form, 0, 200)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", FORMS)
def test_ten_thousand_damaged_files(folders: Path, form: str) -> None:
    assert_survived(folders / form, 200, 10_000)


@pytest.mark.parametrize("form", FORMS)
def test_the_whole_files_open(folders: Path, form: str) -> None:
    tokenizer = Tokenizer.load(folders / form)
    assert tokenizer.encode("the") and tokenizer.vocabulary_size > 60
