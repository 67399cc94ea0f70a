"""Whole runs: what is refused before there is one, what --force may delete, steps that add up however they are cut."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rhapsode.base.errors import InputError
from rhapsode.training.run import train
from rhapsode.training.settings import TrainSettings

from ..measurements import short_measurements

TINY = TrainSettings(
    tokenizer="character", hidden_size=16, layers=1, heads=2, context_length=8, batch_size=6, steps=4, threads=1
)


@pytest.fixture(scope="module", autouse=True)
def soon() -> Iterator[None]:
    with short_measurements():
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, shakespeare: Path) -> Path:
    path = tmp_path_factory.mktemp("text") / "scenes.txt"
    path.write_text(shakespeare.read_text(encoding="utf-8")[:6000], encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, and the digest of its bytes; locks and logs change with each start."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "rhapsode.lock"
    }


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.fixture(scope="module")
def done(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended; nobody changes it."""
    run = tmp_path_factory.mktemp("done") / "run"
    train([str(text)], TINY, out=run)
    return run


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_accumulation_equals_the_big_batch(text: Path, tmp_path: Path, dropout: float) -> None:
    """Losses are sums over tokens, and each sample has its own dropout masks: the cuts may even be uneven."""
    runs = {}
    for micro in (6, 4, 1):
        runs[micro] = tmp_path / str(micro)
        train([str(text)], replace(TINY, dropout=dropout, micro_batch_size=micro, seed=3), out=runs[micro])
    whole = load_file(runs[6] / "model" / "model.safetensors")
    for micro in (4, 1):
        assert losses(runs[micro]) == pytest.approx(losses(runs[6]), rel=1e-5)
        for name, tensor in load_file(runs[micro] / "model" / "model.safetensors").items():
            assert float((tensor - whole[name]).abs().max()) < 2e-3, name  # Muon enlarges what fp32 rounds


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (replace(TINY, context_length=8000), "too few for one window of 8000"),
        (replace(TINY, validation_tokens=1), "validate on has 1 tokens"),
        (replace(TINY, sample_prompt="much too long"), "--sample-prompt: has 13 tokens; the model's context has 8"),
        (replace(TINY, learning_rate=-1.0), "--learning-rate"),
        (replace(TINY, dropout=1.5), "--dropout"),
        (replace(TINY, device="abacus"), "abacus"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_run(
    text: Path, tmp_path: Path, settings: TrainSettings, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        train([str(text)], settings, out=tmp_path / "run")
    assert words in caught.value.message
    assert not (tmp_path / "run" / "run.yaml").exists()
    train([str(text)], replace(TINY, steps=1), out=tmp_path / "run")  # nothing stands in the way of the next attempt


@pytest.mark.parametrize("content", ["a", "ab", "abcdefgh"])
def test_a_text_too_short_to_train_or_split(tmp_path: Path, content: str) -> None:
    path = tmp_path / "short.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError):
        train([str(path)], TINY, out=tmp_path / "run")
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_a_prompt_taken_from_a_text_without_spaces(tmp_path: Path) -> None:
    """The default prompt is cut to fit, whatever the text looks like."""
    path = tmp_path / "long words.txt"
    path.write_text("吾輩は猫である名前はまだ無い" * 300, encoding="utf-8")
    assert train([str(path)], TINY, out=tmp_path / "run").reason == "done"


def test_an_existing_run_is_left_alone(done: Path, text: Path) -> None:
    before = contents(done)
    with pytest.raises(InputError, match="a run is already here") as caught:
        train([str(text)], TINY, out=done)
    assert "--resume" in caught.value.message and "--force" in caught.value.message
    assert contents(done) == before


def test_force_replaces_a_run_and_leaves_what_it_did_not_write(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train([str(text)], TINY, out=run)
    (run / "notes.txt").write_text("mine", encoding="utf-8")
    (run / "pictures").mkdir()
    (run / "pictures" / "cat.txt").write_text("mine too", encoding="utf-8")
    train([str(text)], replace(TINY, steps=2), out=run, force=True)
    assert len(losses(run)) == 2
    assert (run / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert (run / "pictures" / "cat.txt").read_text(encoding="utf-8") == "mine too"
    assert not list(run.glob("*.partial*"))


@pytest.mark.parametrize("bad", ["a missing text", "a text too short", "settings that do not fit"])
def test_force_loses_nothing_when_the_new_run_cannot_be_prepared(text: Path, tmp_path: Path, bad: str) -> None:
    run, short = tmp_path / "run", tmp_path / "short.txt"
    train([str(text)], TINY, out=run)
    short.write_text("a", encoding="utf-8")
    before = contents(run)
    attempts: dict[str, tuple[str, TrainSettings]] = {
        "a missing text": (str(tmp_path / "none.txt"), TINY),
        "a text too short": (str(short), TINY),
        "settings that do not fit": (str(text), replace(TINY, context_length=100_000)),
    }
    given, settings = attempts[bad]
    with pytest.raises(InputError):
        train([given], settings, out=run, force=True)
    assert contents(run) == before


def test_a_run_is_not_replaced_by_one_that_reads_it(done: Path) -> None:
    before = contents(done)
    for inside in (done / "corpus", done / "corpus" / "train.txt", done):
        with pytest.raises(InputError, match="lies in the run folder itself"):
            train([str(inside)], TINY, out=done, force=True)
    with pytest.raises(InputError, match="lies in the run folder itself"):
        train([str(done / "corpus")], replace(TINY, tokenizer_folder=done / "tokenizer"), out=done, force=True)
    assert contents(done) == before


@pytest.mark.parametrize(
    "names", [["model/mine.txt"], ["lock", "corpus/mine.txt"], ["checkpoints/mine.txt", "log.txt"]]
)
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_run_is_never_cleared(text: Path, tmp_path: Path, names: list[str], force: bool) -> None:
    """Whatever its files are called, and with --force too."""
    folder = tmp_path / "mine"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine", encoding="utf-8")
    before = contents(folder)
    with pytest.raises(InputError):
        train([str(text)], TINY, out=folder, force=force)
    assert contents(folder) == before


def test_a_run_whose_settings_were_lost_is_not_overwritten(text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train([str(text)], TINY, out=run)
    (run / "run.yaml").unlink()
    before = contents(run)
    with pytest.raises(InputError, match="a run is already here"):
        train([str(text)], TINY, out=run)
    with pytest.raises(InputError, match=r"run\.yaml"):
        train([], TINY, out=run, resume=True)
    assert contents(run) == before


def test_every_setting_of_a_run_is_resolved(done: Path) -> None:
    from rhapsode.base.settings import read_yaml

    settings: dict[str, Any] = read_yaml(done / "run.yaml")
    assert {name for name, value in settings.items() if value is None} == {
        "minutes",
        "memory",
        "tokenizer_folder",
        "decoder_layers",  # there is one tower
    }
    assert settings["threads"] == 1


def test_records_with_separators_of_lines_in_them_survive(tmp_path: Path) -> None:
    """A sample may hold any character; those that Python takes for the end of a line are none in JSON lines."""
    from rhapsode.training.run_folder import RunFolder

    run = RunFolder(tmp_path)
    for step, text in enumerate(["plain", "next\u2028line", "feed\u0085and\u2029more", "late"]):
        run.sample(step=step, text=text)
    run.cut_records(2)
    kept = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert [sample["text"] for sample in kept] == ["plain", "next\u2028line", "feed\u0085and\u2029more"]


def test_the_end_names_the_best_step_and_its_figures(done: Path) -> None:
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    end = [line for line in lines if line["kind"] == "end"][-1]
    best = min((line for line in lines if line["kind"] == "validation"), key=lambda line: line["loss"])
    assert (end["best_step"], end["loss"], end["bits_per_byte"]) == (best["step"], best["loss"], best["bits_per_byte"])
