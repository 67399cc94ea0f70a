"""Bad input: one clear message with file, line or field and what to do, exit code 2, nothing written, nothing lost."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import CONTEXT, Rhapsode

GOOD = "To be, or not to be, that is the question.\n" * 50


def _binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def _undecodable(path: Path) -> None:
    path.write_bytes(GOOD.encode() + b"\xff\xfe\xfa" + GOOD.encode())


def _broken_json(path: Path) -> None:
    path.write_text('{"text": "one"}\n{"text": "two"\n{"text": "three"}\n', encoding="utf-8")


def _json_without_text(path: Path) -> None:
    path.write_text('{"text": "one"}\n{"body": "two"}\n', encoding="utf-8")


def _broken_csv(path: Path) -> None:
    path.write_text('id,text\n1,one\n2,"two\n', encoding="utf-8")


def _cut_archive(path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(GOOD)
        archive.addfile(entry, io.BytesIO(GOOD.encode()))
    path.write_bytes(file.getvalue()[:-30])


def _files(folder: Path) -> list[Path]:
    """What a command left behind, locks aside."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


Text = tuple[str, Callable[[Path], object], list[str], str]
"""The file's name, what makes it, flags, what the message says besides the name."""
TEXTS: list[Text] = [
    ("missing.txt", lambda path: None, [], "does not exist"),
    ("empty.txt", lambda path: path.write_bytes(b""), [], "empty"),
    ("spaces.txt", lambda path: path.write_text(" \n\t\n", encoding="utf-8"), [], ""),
    ("binary.txt", _binary, [], ""),
    ("undecodable.txt", _undecodable, ["--encoding", "utf-8"], ""),
    ("unreadable.txt", lambda path: path.symlink_to(path), [], ""),
    ("broken.jsonl", _broken_json, [], "2"),
    ("other.jsonl", _json_without_text, [], "2"),
    ("broken.csv", _broken_csv, [], ""),
    ("good.csv", lambda path: path.write_text("id,text\n1,one\n", encoding="utf-8"), ["--text-field", "txt"], "txt"),
    ("cut.tar.gz", _cut_archive, [], ""),
    ("short.txt", lambda path: path.write_text("a", encoding="utf-8"), [], ""),
]


@pytest.mark.parametrize("command", ["corpus", "train"])
@pytest.mark.parametrize("text", TEXTS, ids=[name for name, *_ in TEXTS])
def test_texts_that_cannot_be_used(command: str, text: Text, tmp_path: Path, rhapsode: Rhapsode) -> None:
    name, make, flags, told = text
    path, out = tmp_path / name, tmp_path / "out"
    try:
        make(path)
    except OSError:
        pytest.skip("this system makes no such file")
    done = rhapsode(command, path, "--out", out, *flags)
    assert done.code == 2
    assert name in done.error
    assert told in done.error
    assert not _files(out)


def test_the_folder_of_a_refused_text_can_be_used_at_once(tmp_path: Path, rhapsode: Rhapsode) -> None:
    (tmp_path / "text.txt").write_text(GOOD, encoding="utf-8")
    assert rhapsode("train", "missing.txt", "--out", "out").code == 2
    small = ["--steps", "1", "--layers", "1", "--hidden-size", "16", "--heads", "1", "--context-length", "16"]
    assert rhapsode("train", "text.txt", "--out", "out", *small).code == 0


@pytest.mark.parametrize("name", ["broken.jsonl", "broken.csv", "undecodable.txt"])
def test_skip_bad_counts_and_goes_on(name: str, tmp_path: Path, rhapsode: Rhapsode) -> None:
    make, flags = next((make, flags) for file, make, flags, _ in TEXTS if file == name)
    make(tmp_path / name)
    (tmp_path / "good.txt").write_text(GOOD, encoding="utf-8")
    done = rhapsode("corpus", tmp_path / name, tmp_path / "good.txt", "--out", tmp_path / "out", "--skip-bad", *flags)
    assert done.code == 0
    assert "dropped" in done.out
    assert name in done.out


def test_no_text_at_all(rhapsode: Rhapsode, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for words in (["corpus", "--out", "out"], ["train"], ["train", "*.txt"], ["train", "folder"]):
        done = rhapsode(*words)
        assert done.code == 2
        assert done.error
    assert not _files(tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--context-length", "3000"], "too few for one window of 3000"),
        (["--heads", "3", "--hidden-size", "16"], "head"),
        (["--kv-heads", "3", "--heads", "4"], "heads"),
        (["--tokenizer-folder", "none"], "none"),
        (["--layers", "0"], "--layers: value 0 is out of range (1..1000)."),
        (["--learning-rate", "nan"], "--learning-rate: value nan is not a finite number."),
        (["--minutes", "-1"], "--minutes: value -1.0 is out of range (above 0)."),
        (["--minutes", "0.0001"], "minutes"),
        (["--validation-fraction", "1"], "validation_fraction is 1.0"),
        (["--config", "none.yaml"], "none.yaml: the file does not exist."),
        (["--config", "misspelt.yaml"], "misspelt.yaml:2: learning_rat: there is no such setting. Did you mean 'learn"),
        (["--config", "range.yaml"], "range.yaml:1: dropout: value 1.0 is out of range (0 or more and below 1)."),
        (["--config", "type.yaml"], "type.yaml:1: layers: value 'many' is not a whole number."),
        (["--config", "broken.yaml"], "broken.yaml:2: is not the YAML of a settings file"),
        (
            ["--config", "twice.yaml"],
            "twice.yaml:2: is not the YAML of a settings file ('seed' stands here and on line 1",
        ),
    ],
)
def test_settings_that_cannot_be(words: list[str], told: str, tmp_path: Path, rhapsode: Rhapsode) -> None:
    for name, text in {
        "misspelt.yaml": "layers: 2\nlearning_rat: 0.1\n",
        "range.yaml": "dropout: 1\n",
        "type.yaml": "layers: many\n",
        "broken.yaml": "layers: [2\nheads: 2\n",
        "twice.yaml": "seed: 1\nseed: 2\n",
        "text.txt": GOOD,
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    shape = [] if words[0] in ("--hidden-size", "--heads", "--minutes") else ["--steps", "1", "--layers", "1"]
    done = rhapsode("train", "text.txt", "--out", "out", *(shape if "--layers" not in words else []), *words)
    assert done.code == 2
    assert told in done.error
    assert not _files(tmp_path / "out")


def test_a_run_is_neither_replaced_nor_resumed_unasked(run_folder: Path, tmp_path: Path, rhapsode: Rhapsode) -> None:
    (tmp_path / "text.txt").write_text(GOOD, encoding="utf-8")
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    done = rhapsode("train", "text.txt", "--out", run_folder)
    assert done.code == 2
    assert "--resume" in done.error
    assert "--force" in done.error
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, rhapsode: Rhapsode) -> None:
    (tmp_path / "text.txt").write_text(GOOD, encoding="utf-8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch", encoding="utf-8")
    for flags in ([], ["--force"], ["--resume"]):
        done = rhapsode("train", "text.txt", "--out", "mine", *flags)
        assert done.code == 2
        assert "mine" in done.error
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def _change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return change


def _change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return rewrite


def _cut(name: str, share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return cut


NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
Model = tuple[str, Callable[[Path], object], str]
"""What is wrong, what makes it so, what the message says."""
MODELS: list[Model] = [
    ("missing tensor", _change_tensors(lambda tensors: tensors.pop(NORM)), NORM),
    ("mis-shaped tensor", _change_tensors(lambda tensors: tensors.update({NORM: torch.ones(3)})), NORM),
    ("truncated weights", _cut("model.safetensors", 0.5), "model.safetensors"),
    ("empty weights", _cut("model.safetensors", 0.0), "model.safetensors"),
    ("no weights", lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    ("no configuration", lambda folder: (folder / "config.json").unlink(), ""),
    ("broken configuration", _cut("config.json", 0.5), "config.json"),
    ("unknown architecture", _change_config(architectures=["MambaForCausalLM"]), "MambaForCausalLM"),
    (
        "configuration that names code",
        _change_config(architectures=["Evil"], auto_map={"AutoModel": "evil.Model"}),
        "auto_map",
    ),
    ("layers that are not there", _change_config(num_hidden_layers=5), ""),
    ("absurd size", _change_config(hidden_size=2**60), ""),
    ("negative size", _change_config(num_hidden_layers=-1), ""),
    ("no tokenizer", lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    ("broken tokenizer", _cut("tokenizer.json", 0.5), "tokenizer.json"),
    ("no folder", lambda folder: folder.rename(folder.with_name("elsewhere")), "model"),
]


def test_code_that_nobody_needs_is_not_followed(model_folder: Path, rhapsode: Rhapsode) -> None:
    """The architecture is known, so the folder is all that it takes; that code was named is told."""
    _change_config(auto_map={"AutoModel": "evil.Model"}, kernel_config={"attn": "evil/kernel"})(model_folder)
    done = rhapsode("generate", model_folder, "To be")
    assert done.code == 0
    assert "auto_map, kernel_config would run code" in done.err


@pytest.mark.parametrize("model", MODELS, ids=[name for name, *_ in MODELS])
def test_models_that_cannot_be_used(model: Model, model_folder: Path, tmp_path: Path, rhapsode: Rhapsode) -> None:
    _, damage, told = model
    damage(model_folder)
    (tmp_path / "text.txt").write_text(GOOD, encoding="utf-8")
    for words in (
        ["generate", model_folder, "To be"],
        ["next", model_folder, "To be"],
        ["evaluate", model_folder, "text.txt"],
        ["verify", model_folder],
        ["similar", "e", "--model", model_folder],
    ):
        done = rhapsode(*words)
        assert done.code == 2, words
        assert told in done.error + done.out


@pytest.mark.parametrize("command", ["generate", "next"])
def test_a_prompt_longer_than_the_context(command: str, model_folder: Path, rhapsode: Rhapsode) -> None:
    done = rhapsode(command, model_folder, "a" * (CONTEXT + 1))
    assert done.code == 2
    assert str(CONTEXT + 1) in done.error
    assert str(CONTEXT) in done.error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--temperature", "-1"], "-1"),
        (["--top-p", "1.5"], "1.5"),
        (["--top-k", "-3"], "-3"),
        (["--min-p", "2"], "2"),
        (["--max-new-tokens", "0"], "0"),
        (["--temperatur", "1"], "--temperature"),
    ],
)
def test_sampling_that_cannot_be(words: list[str], told: str, model_folder: Path, rhapsode: Rhapsode) -> None:
    done = rhapsode("generate", model_folder, "To be", *words)
    assert done.code == 2
    assert told in done.error


def test_reports_and_checks_of_nothing(tmp_path: Path, rhapsode: Rhapsode) -> None:
    for command in ("report", "verify"):
        for folder in (tmp_path, tmp_path / "none"):
            done = rhapsode(command, folder)
            assert done.code == 2
            assert str(folder) in done.error
    assert list(tmp_path.iterdir()) == []


def test_the_console_script_says_it_the_same_way(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "rhapsode", "corpus", "none.txt", "--out", "out"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: none.txt: ")
    assert done.stderr.count("\n") == 1
