"""`kill -9` at any moment: resumed to the end, a run ends with the very bits of one that was left alone."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import BATCH, MODEL, SHAPE, STEPS, Driver, Plant, Prepared, digest, lines, names, prepare, records

WITHIN_A_SAVE = (
    "rhapsode.model.folder:save_weights",
    "rhapsode.training.checkpoint:save_file",
    "rhapsode.training.checkpoint:write_manifest",
    "rhapsode.training.checkpoint:verify_folder",
    "rhapsode.base.files:sync_file",
    "rhapsode.base.files:sync_folder",
    "rhapsode.training.loop:retain",
    "rhapsode.training.checkpoint:discard",
    "rhapsode.training.checkpoint:remove",
)


def killed_at(place: str, call: int = 1) -> Plant:
    return (place, call, "signal", signal.SIGKILL)


def assert_finished_as_if_left_alone(driver: Driver, run: Path, prepared: Prepared) -> None:
    ended = driver.resume(run)
    assert ended.code == 0, ended.stderr
    assert digest(run) == prepared.digest
    assert not [name for name in names(run) if not name.startswith("step-")], "something half done was left"
    assert not list(run.glob("*.partial*"))
    steps = [record["step"] for record in records(run, "train")]
    assert steps == list(range(1, STEPS + 1)), "a step is missing from the records, or there twice"


def kill_at_random(driver: Driver, run: Path, prepared: Prepared, seed: int) -> None:
    """Start, kill after a random time, start again, kill again, and finish."""
    draw = random.Random(seed)
    for _ in range(2):
        running = driver.start(["train", "--resume", "--out", run])
        time.sleep(draw.uniform(0, prepared.seconds))
        running.signal(signal.SIGKILL)
        assert running.wait().code in (-signal.SIGKILL, 0)
    assert_finished_as_if_left_alone(driver, run, prepared)


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_random(driver: Driver, run: Path, prepared: Prepared, seed: int) -> None:
    kill_at_random(driver, run, prepared, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
def test_killed_at_random_thirty_times(driver: Driver, run: Path, prepared: Prepared, seed: int) -> None:
    kill_at_random(driver, run, prepared, seed)


@pytest.mark.parametrize("place", WITHIN_A_SAVE)
def test_killed_within_a_save(driver: Driver, run: Path, prepared: Prepared, place: str) -> None:
    assert driver.resume(run, killed_at(place, 3)).code == -signal.SIGKILL
    assert_finished_as_if_left_alone(driver, run, prepared)


@pytest.mark.parametrize("place", ["rhapsode.training.run:_finish", "rhapsode.training.run:new_folder"])
def test_killed_after_the_last_step(driver: Driver, run: Path, prepared: Prepared, place: str) -> None:
    """The checkpoint of the last step is there; only the model is not."""
    assert driver.resume(run, killed_at(place)).code == -signal.SIGKILL
    assert_finished_as_if_left_alone(driver, run, prepared)


def test_killed_in_the_middle_of_a_line(driver: Driver, run: Path, prepared: Prepared) -> None:
    assert driver.resume(run, killed_at("rhapsode.training.optimizers:Optimizers.step", 11)).code == -signal.SIGKILL
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (run / name).open("a", encoding="utf-8") as file:
            file.write('{"kind": "train", "step": 11, "lo')
    assert_finished_as_if_left_alone(driver, run, prepared)
    assert len(lines(run / "samples.jsonl")) == 4


@pytest.mark.parametrize(
    ("place", "resume"),
    [
        ("rhapsode.training.preparation:train_tokenizer", False),
        ("rhapsode.tokenizer.store:_write_split", True),
        ("rhapsode.training.job:write_json", False),
        ("rhapsode.training.run_folder:write_atomically", True),
    ],
)
def test_killed_before_there_was_a_plan(
    driver: Driver, prepared: Prepared, tmp_path: Path, place: str, resume: bool
) -> None:
    """The same command again, with --resume or without, begins again: there is nothing that could be lost."""
    command = [*prepared.arguments, "--out", str(tmp_path / "run")]
    assert driver.run(command, killed_at(place)).code == -signal.SIGKILL
    assert not (tmp_path / "run" / "run.yaml").exists()
    again = driver.run(
        [*command, "--resume"] if resume else command, ("rhapsode.training.run:_carry_out", 1, "signal", 9)
    )
    assert again.code == -signal.SIGKILL
    assert_finished_as_if_left_alone(driver, tmp_path / "run", prepared)


OPTIMIZERS = {
    "muon": ["--optimizer=muon"],
    "adamw": ["--optimizer=adamw", "--learning-rate=0.003"],
    "sgd": ["--optimizer=sgd", "--learning-rate=0.1", "--momentum=0.9"],
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on_with_the_same_bits(driver: Driver, text: Path, tmp_path: Path, optimizer: str) -> None:
    arguments = ["train", text, *SHAPE, *OPTIMIZERS[optimizer], f"--steps={STEPS}"]
    prepared = prepare(driver, tmp_path, arguments)
    run = prepared.copy(tmp_path / "run")
    for call in (5, 8, 2):
        assert driver.resume(run, killed_at("rhapsode.training.optimizers:Optimizers.step", call)).code < 0
    assert_finished_as_if_left_alone(driver, run, prepared)
    saved, whole = (folder / "checkpoints" / f"step-{STEPS:08d}" for folder in (run, tmp_path / "whole"))
    assert (saved / "optimizer.safetensors").read_bytes() == (whole / "optimizer.safetensors").read_bytes()


def test_corrections_of_the_horizon_are_repeated(driver: Driver, text: Path, tmp_path: Path) -> None:
    """A run in minutes has no one right end; but a correction that was used once is used by every resumption."""
    third_correction = "rhapsode.training.horizon:write_json"
    run = tmp_path / "run"
    ended = driver.run(["train", text, *MODEL, *BATCH, "--minutes=0.15", "--out", run], killed_at(third_correction, 3))
    assert ended.code == -signal.SIGKILL, ended.stderr
    corrections = json.loads((run / "horizon.json").read_text(encoding="utf-8"))
    assert len(corrections) == 2
    first = progress(run)
    for checkpoint in (run / "checkpoints").iterdir():  # from the very beginning, through all corrections
        shutil.rmtree(checkpoint)
    assert driver.resume(run, killed_at(third_correction)).code == -signal.SIGKILL
    assert json.loads((run / "horizon.json").read_text(encoding="utf-8")) == corrections
    assert progress(run) == first
    assert driver.resume(run).code == 0
    assert json.loads((run / "horizon.json").read_text(encoding="utf-8"))[:2] == corrections
    assert progress(run)[: len(first)] == first


def progress(run: Path) -> list[tuple[Any, ...]]:
    """What a run computed at each step."""
    return [(record["step"], record["loss"], record["learning_rate"]) for record in records(run, "train")]
