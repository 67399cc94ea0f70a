"""Resuming with other data, another tokenizer or other settings, and two trainers in one folder: refused, and why."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from rhapsode.training.checkpoint import checkpoints

from .conftest import STEPS, Driver, Ended, Prepared, digest

STOP = ("rhapsode.training.optimizers:Optimizers.step", 8, "signal", 9)


@pytest.fixture(scope="module")
def half(driver: Driver, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepared.copy(tmp_path_factory.mktemp("half") / "run")
    assert driver.resume(folder, STOP).code < 0
    return folder


@pytest.fixture
def run(half: Path, tmp_path: Path) -> Path:
    return shutil.copytree(half, tmp_path / "run")


def assert_refused(ended: Ended, *words: str) -> None:
    assert ended.code == 2, ended.stderr
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in error


def assert_still_ends_well(driver: Driver, run: Path, prepared: Prepared) -> None:
    assert driver.resume(run).code == 0
    assert digest(run) == prepared.digest


def test_the_same_text_and_settings_again_are_no_difference(
    driver: Driver, run: Path, text: Path, prepared: Prepared
) -> None:
    ended = driver.run([*prepared.arguments, "--resume", "--out", run])
    assert ended.code == 0, ended.stderr
    assert digest(run) == prepared.digest


def test_other_text(driver: Driver, run: Path, text: Path, prepared: Prepared, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text.read_text(encoding="utf-8").replace("Citizen", "Consul", 1), encoding="utf-8")
    assert_refused(driver.run(["train", other, "--resume", "--out", run]), "the text had", "for training", "now")
    assert_still_ends_well(driver, run, prepared)


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--learning-rate=0.5"], "learning_rate was 0.04 and is 0.5 now"),
        (["--dropout=0"], "dropout was 0.2 and is 0.0 now"),
        (["--steps=25"], f"steps was {STEPS} and is 25 now"),
        (["--sample-prompt=Lo"], "sample_prompt was"),
        (["--tokenizer=byte"], "tokenizer was character and is byte now"),
        (["--layers=2", "--seed=1"], "layers was 1 and is 2 now; seed was 0 and is 1 now"),
        (["--minutes=3"], "minutes was None and is 3.0 now"),
    ],
)
def test_other_settings(driver: Driver, run: Path, prepared: Prepared, flags: list[str], difference: str) -> None:
    told = difference.split("; ")
    assert_refused(driver.run(["train", "--resume", "--out", run, *flags]), *told)


def test_other_tokenizer(driver: Driver, run: Path, text: Path, tmp_path: Path, prepared: Prepared) -> None:
    other = shutil.copytree(run / "tokenizer", tmp_path / "tokenizer")
    same = driver.run(
        ["train", "--resume", "--out", shutil.copytree(run, tmp_path / "copy"), "--tokenizer-folder", other]
    )
    assert same.code == 0, same.stderr
    definition = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(definition + " ", encoding="utf-8")
    command = ["train", "--resume", "--out", run, "--tokenizer-folder", other]
    assert_refused(driver.run(command), "the tokenizer was", "now")
    shutil.copyfile(other / "tokenizer.json", run / "tokenizer" / "tokenizer.json")
    assert_refused(driver.resume(run), "was made with the tokenizer")


def test_settings_edited_in_the_run(driver: Driver, run: Path) -> None:
    settings = (run / "run.yaml").read_text(encoding="utf-8")
    (run / "run.yaml").write_text(settings.replace("weight_decay: 0.01", "weight_decay: 0.3"), encoding="utf-8")
    assert_refused(driver.resume(run), "weight_decay was 0.01 and is 0.3 now")
    (run / "run.yaml").write_text(settings.replace("steps: 24\n", "", 1), encoding="utf-8")
    assert_refused(driver.resume(run), "run.yaml", "a value is missing for steps")
    (run / "run.yaml").write_text(settings.replace("weight_decay", "wieght_decay"), encoding="utf-8")
    assert_refused(driver.resume(run), "run.yaml:", "Did you mean 'weight_decay'?")


def test_tokens_of_another_run(driver: Driver, run: Path, text: Path, tmp_path: Path, prepared: Prepared) -> None:
    other_text = tmp_path / "other.txt"
    other_text.write_text(text.read_text(encoding="utf-8")[:9000], encoding="utf-8")
    arguments = [str(other_text) if argument == str(text) else argument for argument in prepared.arguments]
    planned = ("rhapsode.training.run:_carry_out", 1, "signal", 9)
    assert driver.run([*arguments, "--out", tmp_path / "other"], planned).code < 0
    shutil.rmtree(run / "tokens")
    shutil.copytree(tmp_path / "other" / "tokens", run / "tokens")
    assert_refused(driver.resume(run), "was made")


def test_options_that_would_be_ignored_are_refused(driver: Driver, run: Path) -> None:
    assert_refused(driver.run(["train", "--resume", "--force", "--out", run]), "--resume", "--force")
    assert_refused(driver.run(["train", "--resume", "--dry-run", "--out", run]), "--resume", "--dry-run")
    assert_refused(driver.run(["train", "--resume", "--validation-fraction=0.2", "--out", run]), "validation_fraction")


def test_another_number_of_threads_is_said(driver: Driver, run: Path) -> None:
    ended = driver.run(["train", "--resume", "--out", run, "--threads=2"])
    assert ended.code == 0, ended.stderr
    assert "Computing with 2 threads, not 1: the last bits will differ." in ended.stderr


@pytest.mark.parametrize("how", [["--resume"], ["--force"]])
def test_two_trainers(driver: Driver, run: Path, prepared: Prepared, how: list[str]) -> None:
    """The second is refused while the first is at work, and the first does not notice."""
    hold = ("rhapsode.training.loop:Trainer._step", 4, "sleep", 1.5)
    first = driver.start(["train", "--resume", "--out", run], hold)
    log = run / "log.txt"
    while "Going on from" not in log.read_text(encoding="utf-8"):
        time.sleep(0.01)
    command = [*prepared.arguments, *how, "--out", run]
    assert_refused(driver.run(command), "another process is training in this folder")
    assert first.wait().code == 0
    assert digest(run) == prepared.digest
    assert checkpoints(run / "checkpoints")[-1].name == f"step-{STEPS:08d}"
