"""rhapsode generate, next, chat and evaluate, run as the console script runs them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rhapsode.cli.main import run
from rhapsode.inference.evaluation import evaluate
from rhapsode.inference.language_model import LanguageModel, load
from rhapsode.model.decoder import Decoder
from rhapsode.model.families.qwen3 import QWEN3
from rhapsode.model.folder import save_model
from rhapsode.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer
from rhapsode.tokenizer.train import train_tokenizer

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rhapsode(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Command]:
    """Exit code, standard output and standard error of a command, run in an empty folder."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)

    def command(*words: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = run([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    yield command
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(byte_pair_folder: Path, make_folder: Callable[..., Path]) -> Path:
    return make_folder(Tokenizer.load(byte_pair_folder), never=SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load(folder, "cpu")


def test_generate_writes_the_prompt_and_its_continuation(rhapsode: Command, folder: Path, model: LanguageModel) -> None:
    expected = model.generate("Before we", max_new_tokens=12, seed=5).text
    for words in (["Before we"], ["--prompt", "Before we"], ["--prompt=Before we"]):
        code, out, err = rhapsode("generate", folder, *words, "--max-new-tokens", 12, "--seed", 5)
        assert (code, out) == (0, f"Before we{expected}\n")
        assert "12 tokens, stopped at --max-new-tokens 12" in err
        assert "--seed 6" in err


def test_generate_reads_standard_input_without_its_last_line_end(
    rhapsode: Command, folder: Path, model: LanguageModel
) -> None:
    expected = model.generate("one\ntwo é", max_new_tokens=3).text
    for end in (b"", b"\n", b"\r\n"):
        code, out, _ = rhapsode(
            "generate", folder, "--prompt", "-", "--max-new-tokens", 3, stdin="one\ntwo é".encode() + end
        )
        assert (code, out) == (0, f"one\ntwo é{expected}\n")
    code, _, err = rhapsode("generate", folder, "--prompt", "-", stdin=b"abc\xff")
    assert (code, err) == (2, "error: standard input: is not UTF-8 text at byte 3.\n")


def test_generate_writes_several_texts_each_with_its_own_seed(
    rhapsode: Command, folder: Path, model: LanguageModel
) -> None:
    code, out, err = rhapsode("generate", folder, "We", "--count", 3, "--seed", 7, "--max-new-tokens", 6)
    texts = [model.generate("We", max_new_tokens=6, seed=seed).text for seed in (7, 8, 9)]
    assert (code, out) == (
        0,
        "".join(f"--- seed {seed} ---\nWe{text}\n" for seed, text in zip((7, 8, 9), texts, strict=True)),
    )
    assert err.count("6 tokens, ") == 3


def test_generate_says_when_the_context_is_full(rhapsode: Command, folder: Path) -> None:
    _, _, err = rhapsode("generate", folder, "We", "--max-new-tokens", 500)
    assert "stopped because the model's context of 64 tokens is full" in err


def test_two_prompts_are_refused(rhapsode: Command, folder: Path) -> None:
    code, out, err = rhapsode("generate", folder, "One", "--prompt", "Two")
    assert (code, out) == (2, "")
    assert err == "error: there are two prompts. Give PROMPT or --prompt.\n"


def test_next_draws_one_column_of_bars_for_each_temperature(
    rhapsode: Command, folder: Path, model: LanguageModel
) -> None:
    code, out, _ = rhapsode("next", folder, "The cat sat on the", "--temperature", "0.1", "1", "2", "--top", "4")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["next", "token", "temperature", "0.1", "temperature", "1", "temperature", "2"]
    rows = model.next_token("The cat sat on the", (0.1, 1.0, 2.0), top=4)
    for line, row in zip(lines[1:5], rows, strict=True):
        percents = [float(number) for number in re.findall(r"([\d.]+) %", line)]
        assert percents == [round(100 * probability, 1) for probability in row.probabilities]
    others = [line for line in lines if line.startswith("396 others")]
    assert len(others) == 1
    assert "█" in others[0]
    assert lines[-1].startswith("next: rhapsode generate ")


def test_bars_are_as_long_as_the_probability() -> None:
    from rhapsode.cli.next import _bar

    assert _bar(1.0, 10) == "100.0 % ██████████"
    assert _bar(0.5, 10) == " 50.0 % █████     "
    assert _bar(0.0625, 10) == "  6.2 % ▋         "
    assert _bar(0.0, 10) == "  0.0 %           "
    for eighth in range(81):
        bar = _bar(eighth / 80, 10).split("% ")[1]
        assert len(bar) == 10
        assert sum(" ▏▎▍▌▋▊▉█".index(character) for character in bar) == eighth


def test_next_as_json_sums_to_one(rhapsode: Command, folder: Path) -> None:
    code, out, _ = rhapsode("next", folder, "The cat", "--temperature", "0", "1.5", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["temperatures"] == [0.0, 1.5]
    assert len(answer["tokens"]) == 10
    for column in (0, 1):
        shown = sum(token["probabilities"][column] for token in answer["tokens"])
        assert shown + answer["others"][column] == pytest.approx(1.0)
    assert answer["tokens"][0]["probabilities"][0] == 1.0


TEXTS = ("First Citizen:\nYou are all resolved rather to die than to famish? 🦙\n" * 8, "Speak, speak.\n" * 5)


def test_evaluate_joins_documents_as_training_does(
    rhapsode: Command, folder: Path, model: LanguageModel, tmp_path: Path
) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    end = model.tokenizer.end_of_text_id
    tokens = [id for text in TEXTS for id in [*model.tokenizer.encode(text), end]]
    size = sum(len(text.encode()) for text in TEXTS)
    for words, stride in (([], 32), (["--stride", 64], 64), (["--stride", 5], 5)):
        expected = evaluate(model.model, np.array(tokens), context=64, stride=stride, bytes_of_text=size)
        code, out, _ = rhapsode("evaluate", folder, "0.txt", "1.txt", "--json", *words)
        answer = json.loads(out)
        assert code == 0
        assert answer["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-5)
        assert answer["perplexity"] == pytest.approx(expected.perplexity, rel=1e-5)
        assert (answer["tokens"], answer["bytes"], answer["documents"]) == (len(tokens) - 1, size, 2)
        assert (answer["context"], answer["stride"], answer["unknown"]) == (64, stride, 0)
    code, out, _ = rhapsode("evaluate", folder, "0.txt", "1.txt")
    assert code == 0
    usual = evaluate(model.model, np.array(tokens), context=64, stride=32, bytes_of_text=size)
    shown = next(line for line in out.splitlines() if line.startswith("bits per byte"))
    assert float(shown.split()[-1]) == pytest.approx(usual.bits_per_byte, abs=1e-4)
    assert "2 documents" in out


def test_evaluate_says_when_the_vocabulary_flatters(rhapsode: Command, character_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("日本語 the people", encoding="utf-8")
    code, out, _ = rhapsode("evaluate", character_folder, "text.txt")
    assert code == 0
    assert "3 tokens stand for something that the vocabulary lacks" in out


def test_evaluate_refuses_what_holds_no_text(rhapsode: Command, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Some text.", encoding="utf-8")
    assert rhapsode("evaluate", folder)[2].startswith("error: there is no TEXT.")
    code, _, err = rhapsode("evaluate", folder, "text.txt", "--stride", 65)
    assert (code, err) == (2, "error: stride must be between 1 and the context of 64, not 65.\n")
    code, _, err = rhapsode("evaluate", folder, "text.txt", "--context", 65)
    assert (code, err) == (2, "error: context must be between 1 and the model's 64, not 65.\n")


def chat_lines(rhapsode: Command, folder: Path, *lines: str, words: tuple[str, ...] = ()) -> list[str]:
    stdin = "".join(f"{line}\n" for line in lines).encode()
    code, out, err = rhapsode("chat", folder, "--max-new-tokens", 5, *words, stdin=stdin)
    assert (code, err) == (0, "")
    return out.splitlines()


def test_chat_with_a_base_model_continues_text(rhapsode: Command, folder: Path, model: LanguageModel) -> None:
    expected = model.generate("We are", max_new_tokens=5).text
    out = chat_lines(rhapsode, folder, "We are")
    assert "\n".join(out).startswith(expected)


def test_chat_commands(rhapsode: Command, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    out = "\n".join(
        chat_lines(
            rhapsode,
            folder,
            "/help",
            "/regenerate",
            "/temperature hot",
            "/temperature -1",
            "/temperature 0",
            "/regenarate",
            "We are",
            "/save talk.txt",
            "/save mine.txt",
            "/save",
            "/save no/where.txt",
            "/reset",
            "/quit",
            "never said",
        )
    )
    for told in (
        "Ctrl-C stops a reply",
        "(there is no reply yet. Say something first.)",
        "('hot' is not a number.",
        "(temperature: value -1.0 is out of range (0 or more).)",
        "(there is no command /regenarate. Did you mean '/regenerate'?)",
        "(written to talk.txt)",
        "(mine.txt: already exists. Choose another name.)",
        "(/save needs the name of a file.",
        "(no/where.txt: cannot be written",
        "(a new conversation)",
    ):
        assert told in out
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "keep"
    greedy = load(folder, "cpu").generate("We are", temperature=0.0, max_new_tokens=5).text
    assert (tmp_path / "talk.txt").read_text(encoding="utf-8") == f"We are{greedy}\n"


def test_chat_regenerates_with_the_next_seed_and_two_slashes_say_one(
    rhapsode: Command, folder: Path, model: LanguageModel, tmp_path: Path
) -> None:
    chat_lines(rhapsode, folder, "//We", "/regenerate", "/save talk.txt", words=("--seed", "3"))
    expected = model.generate("/We", max_new_tokens=5, seed=4).text
    assert (tmp_path / "talk.txt").read_text(encoding="utf-8") == f"/We{expected}\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C another way")
@pytest.mark.timeout(60)
def test_ctrl_c_stops_the_reply_and_only_the_reply(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["plain words of text"], "character")
    decoder = Decoder(QWEN3.config(tokenizer.vocabulary_size, 16, 1, 2, 2, 8, 16, 200_000, tied_embeddings=False))
    torch.nn.init.zeros_(decoder.head.weight)  # at temperature 0 it says its first character for ever
    save_model(tmp_path, decoder, tokenizer, {"objective": "next token"})
    words = [
        sys.executable,
        "-m",
        "rhapsode",
        "chat",
        str(tmp_path),
        "--temperature",
        "0",
        "--max-new-tokens",
        "100000",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(b"plain\n")
        process.stdin.flush()
        assert process.stdout.read(5)  # the reply has begun, and would take minutes
        process.send_signal(signal.SIGINT)
        process.stdin.write(f"/save {tmp_path / 'talk.txt'}\n".encode())
        process.stdin.close()
        rest, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 0, errors
    assert b"(stopped)" in rest
    assert (tmp_path / "talk.txt").read_text(encoding="utf-8").startswith("plain")


def test_generate_with_beams_prints_the_likeliest_texts(rhapsode: Command, folder: Path, model: LanguageModel) -> None:
    expected = model.search("Before we", beams=4, max_new_tokens=9)
    words = ["generate", folder, "Before we", "--beams", 4, "--max-new-tokens", 9]
    code, out, err = rhapsode(*words)
    assert code == 0 and out == f"Before we{expected[0].text}\n"
    assert f"score {expected[0].score:.4f}, 9 tokens, stopped at --max-new-tokens 9" in err
    assert "4 beams, " in err and "--beams 8" in err
    code, out, err = rhapsode(*words, "--count", 3)
    texts = [f"--- text {number} ---\nBefore we{each.text}\n" for number, each in enumerate(expected[:3], start=1)]
    assert code == 0 and out == "".join(texts)
    assert f"text 3: score {expected[2].score:.4f}" in err
    shorter = model.search("Before we", beams=4, max_new_tokens=9, length_penalty=-1.0)
    code, out, err = rhapsode(*words, "--length-penalty", -1.0)
    assert out == f"Before we{shorter[0].text}\n" and f"score {shorter[0].score:.4f}" in err
    code, out, err = rhapsode(*words, "--choice", "yes", "--choice", "no", "--seed", 7)
    assert out in ("Before weyes\n", "Before weno\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--beams", 4, "--temperature", 0.7], "temperature: is for texts that are drawn"),
        (["--beams", 4, "--top-p", 1], "top_p: is for texts that are drawn"),
        (["--beams", 4, "--style", "code"], "--style: is for texts that are drawn"),
        (["--beams", 4, "--speculate", "prompt"], "--speculate: is for texts that are drawn"),
        (["--beams", 4, "--count", 5], "--count: 4 beams find no 5 texts"),
        (["--length-penalty", 2], "--length-penalty: is for searches"),
        (["--beams", 0], "--beams"),
    ],
)
def test_what_contradicts_a_search_is_refused(
    rhapsode: Command, folder: Path, words: list[object], message: str
) -> None:
    code, out, err = rhapsode("generate", folder, "Before we", *words)
    assert code == 2 and out == "" and message in err
