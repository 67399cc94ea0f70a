"""A disk that is full or read-only: training goes on, the last good checkpoint stays, and people are told."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhapsode.training.checkpoint import checkpoints, verify_folder

from .conftest import Driver, Plant, Prepared, digest, lines, records

SAVE = "rhapsode.training.loop:save_checkpoint"
SMALL = 2000
"""Bytes: less than the weights, more than a line of records."""


def limited(first: int, last: int | None) -> list[Plant]:
    """From the `first` save on, no file may grow larger than SMALL; from the `last` on, any may again."""
    plants: list[Plant] = [(SAVE, first, "limit", SMALL)]
    return plants if last is None else [*plants, (SAVE, last, "limit", -1)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let root mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_warned_and_ended_as_if_left_alone(run: Path, prepared: Prepared, stderr: str, reason: str) -> None:
    warnings = [record["message"] for record in lines(run / "metrics.jsonl") if record["kind"] == "warning"]
    assert warnings or reason in stderr
    assert f"could not be saved ({reason}" in stderr
    assert "Training goes on." in stderr
    for checkpoint in checkpoints(run / "checkpoints"):
        verify_folder(checkpoint)
    assert not list(run.rglob("*.partial*"))
    assert digest(run) == prepared.digest


def test_full_for_a_while(driver: Driver, run: Path, prepared: Prepared) -> None:
    ended = driver.resume(run, *limited(3, 6))
    assert ended.code == 0, ended.stderr
    assert_warned_and_ended_as_if_left_alone(run, prepared, ended.stderr, "File too large")


def test_full_for_a_while_on_a_real_disk(driver: Driver, small_disk: Path, prepared: Prepared) -> None:
    run = prepared.copy(small_disk / "run")
    ended = driver.resume(run, (SAVE, 3, "fill", str(small_disk)), (SAVE, 6, "free", str(small_disk)))
    assert ended.code == 0, ended.stderr
    assert_warned_and_ended_as_if_left_alone(run, prepared, ended.stderr, "No space left on device")


@pytest.mark.parametrize("real", [False, True])
def test_full_until_the_end(
    driver: Driver, prepared: Prepared, tmp_path: Path, request: pytest.FixtureRequest, real: bool
) -> None:
    """The model cannot be written: that is said, the last good checkpoint stays, and with space again the run ends."""
    disk = request.getfixturevalue("small_disk") if real else tmp_path
    run = prepared.copy(disk / "run")
    plants = [(SAVE, 3, "fill", str(disk))] if real else limited(3, None)
    ended = driver.resume(run, *plants)
    assert ended.code == 2, ended.stderr
    kept = checkpoints(run / "checkpoints")[-1]
    verify_folder(kept)
    assert "the model could not be written" in ended.stderr
    assert f"`rhapsode train --resume --out {run}` goes on from step {int(kept.name[5:])}." in ended.stderr
    assert not (run / "model").exists()
    (disk / "filler").unlink(missing_ok=True)
    ended = driver.resume(run)
    assert ended.code == 0, ended.stderr
    assert digest(run) == prepared.digest


def test_a_full_disk_leaves_no_half_lines(driver: Driver, run: Path, prepared: Prepared) -> None:
    """Once there is space again, the records go on, and every line of them is whole."""
    size = (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").exists() else 0
    ended = driver.resume(run, (SAVE, 2, "limit", size + 3000), (SAVE, 7, "limit", -1))
    assert ended.code == 0, ended.stderr
    lines(run / "metrics.jsonl")
    steps = [record["step"] for record in records(run, "train")]
    assert steps == sorted(set(steps)) and steps[-1] == 24 and len(steps) < 24
    # Told anew only when a shorter line had fitted in between.
    assert 1 <= ended.stderr.count("metrics.jsonl cannot be written") < 24 - len(steps)
    assert digest(run) == prepared.digest


def test_stopped_while_the_disk_is_full(driver: Driver, run: Path, prepared: Prepared) -> None:
    """It must not say that it saved what it could not save."""
    space_for_the_model: Plant = ("rhapsode.training.run:_put_model", 1, "limit", -1)
    ended = driver.resume(run, *limited(4, None), (SAVE, 5, "signal", 15), space_for_the_model)
    assert ended.code == 128 + 15, ended.stderr
    kept, end = checkpoints(run / "checkpoints")[-1], records(run, "end")[-1]
    assert int(kept.name[5:]) < end["step"]
    assert f"Stopped by SIGTERM at step {end['step']}, not saved." in ended.stderr
    assert f"goes on from step {int(kept.name[5:])}." in ended.stderr
    assert driver.resume(run).code == 0
    assert digest(run) == prepared.digest


def test_a_target_that_cannot_be_written_to_is_refused_before_anything_is_read(
    driver: Driver, text: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("mine", encoding="utf-8")
    ended = driver.run(["train", text, "--steps=3", "--out", blocked / "run"])
    assert ended.code == 2
    assert "cannot be written to" in ended.stderr
    assert "Reading" not in ended.stderr
    assert blocked.read_text(encoding="utf-8") == "mine"


def test_a_read_only_disk_is_refused(driver: Driver, small_disk: Path, prepared: Prepared) -> None:
    run = prepared.copy(small_disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for command in (["train", "--resume", "--out", str(run)], [*prepared.arguments, "--out", str(small_disk / "new")]):
        ended = driver.run(command)
        assert ended.code == 2
        assert "cannot be written to (Read-only file system)" in ended.stderr
        assert "Reading" not in ended.stderr
