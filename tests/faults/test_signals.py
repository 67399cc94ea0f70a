"""SIGINT and SIGTERM: the step or the save in hand ends, the run is saved, and the message says how to go on."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from rhapsode.training.checkpoint import checkpoints, verify_folder

from .conftest import Driver, Plant, Prepared, digest, records

SIGNALS = [signal.SIGINT, signal.SIGTERM]
PLACES = {
    "in a step": "rhapsode.training.optimizers:Optimizers.step",
    "in an evaluation": "rhapsode.training.objectives.next_token:evaluate",
    "in a sample": "rhapsode.inference.engine:Engine.submit",
    "in a save": "rhapsode.model.folder:save_weights",
    "when a save is put in place": "rhapsode.base.files:sync_folder",
    "when old ones are deleted": "rhapsode.training.loop:retain",
}


def assert_saved_and_resumable(driver: Driver, run: Path, prepared: Prepared, number: signal.Signals) -> None:
    """The newest checkpoint is that of the step it stopped at, a model is there, and the run ends as if left alone."""
    end = records(run, "end")[-1]
    assert end["reason"] == number.name
    newest = checkpoints(run / "checkpoints")[-1]
    verify_folder(newest)
    assert newest.name == f"step-{end['step']:08d}"
    assert (run / "model" / "model.safetensors").exists()
    assert driver.resume(run).code == 0
    assert digest(run) == prepared.digest


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_signal(driver: Driver, run: Path, prepared: Prepared, place: str, number: signal.Signals, times: int) -> None:
    ended = driver.resume(run, (place, 2, "signal", number, times))
    assert ended.code == 128 + number, ended.stderr
    assert ended.stderr.count("Stopping: finishing this step and saving.") == 1
    assert f"Stopped by {number.name}" in ended.stderr
    assert f"`rhapsode train --resume --out {run}` goes on from step" in ended.stderr
    assert_saved_and_resumable(driver, run, prepared, number)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("seed", range(2))
def test_signal_at_a_random_moment(
    driver: Driver, run: Path, prepared: Prepared, number: signal.Signals, seed: int
) -> None:
    draw = random.Random(f"{number} {seed}")
    running = driver.start(["train", "--resume", "--out", run])
    while not (run / "metrics.jsonl").exists():  # before training there is nothing to save, and the signal ends it
        time.sleep(0.005)
    time.sleep(draw.uniform(0.1, 0.7 * prepared.seconds))
    running.signal(number)
    ended = running.wait()
    if ended.code != 0:  # it may have been done just then
        assert ended.code == 128 + number, ended.stderr
        assert_saved_and_resumable(driver, run, prepared, number)
    assert digest(run) == prepared.digest


def test_signal_during_the_last_step_lets_the_run_end(driver: Driver, run: Path, prepared: Prepared) -> None:
    ended = driver.resume(run, ("rhapsode.training.run:_put_model", 1, "signal", signal.SIGINT, 2))
    assert ended.code == 0, ended.stderr
    assert digest(run) == prepared.digest


@pytest.mark.parametrize("place", ["in a step", "in a save", "when a save is put in place"])
def test_a_third_signal_is_obeyed_at_once(driver: Driver, run: Path, prepared: Prepared, place: str) -> None:
    """Nothing more is saved then, but nothing is lost either: the run goes on from its last checkpoint."""
    ended = driver.resume(run, (PLACES[place], 2, "signal", signal.SIGINT, 3))
    assert ended.code == 130
    assert "Interrupted." in ended.stderr
    assert not list(run.rglob("*.partial*"))
    assert driver.resume(run).code == 0
    assert digest(run) == prepared.digest


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_during_preparation_leaves_nothing_in_the_way(
    driver: Driver, prepared: Prepared, tmp_path: Path, number: signal.Signals
) -> None:
    command = [*prepared.arguments, "--out", str(tmp_path / "run")]
    ended = driver.run(command, ("rhapsode.training.preparation:train_tokenizer", 1, "signal", number))
    assert ended.code == (130 if number == signal.SIGINT else -signal.SIGTERM)
    killed_when_planned: Plant = ("rhapsode.training.run:_carry_out", 1, "signal", signal.SIGKILL)
    assert driver.run(command, killed_when_planned).code == -signal.SIGKILL
    assert driver.resume(tmp_path / "run").code == 0
    assert digest(tmp_path / "run") == prepared.digest
