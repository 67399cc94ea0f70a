"""Checkpoints that are not as they were written: found every time, set aside, and the newest good one used."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from rhapsode.training.checkpoint import checkpoints, newest_good, verify_folder

from .conftest import Driver, Prepared, digest, names, records

FILES = [
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "rhapsode.json",
    "README.md",
    "chat_template.jinja",
]
STOP = ("rhapsode.training.optimizers:Optimizers.step", 14, "signal", 9)


@pytest.fixture(scope="module")
def half(driver: Driver, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed on its way, with several checkpoints."""
    folder = prepared.copy(tmp_path_factory.mktemp("half") / "run")
    assert driver.resume(folder, STOP).code < 0
    assert len(checkpoints(folder / "checkpoints")) >= 2
    return folder


@pytest.fixture
def run(half: Path, tmp_path: Path) -> Path:
    return shutil.copytree(half, tmp_path / "run")


def truncate(path: Path, share: float) -> None:
    size = path.stat().st_size
    with path.open("rb+") as file:
        file.truncate(size - 1 if share == 1 else int(size * share))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_the_list_of_files_is_that_of_a_checkpoint(run: Path) -> None:
    assert sorted(path.name for path in checkpoints(run / "checkpoints")[-1].iterdir()) == sorted(FILES)


def assert_falls_back(run: Path) -> None:
    """The newest is set aside, and the one before it taken."""
    before, newest = checkpoints(run / "checkpoints")[-2:]
    told: list[str] = []
    found = newest_good(run / "checkpoints", told.append)
    assert found is not None and found[0] == before
    assert len(told) == 1 and f"Checkpoint {newest.name} is damaged" in told[0]
    assert not newest.exists()
    assert (newest.parent / f"damaged-{newest.name}").is_dir()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 1])
@pytest.mark.parametrize("name", FILES)
def test_truncated(run: Path, name: str, share: float) -> None:
    truncate(checkpoints(run / "checkpoints")[-1] / name, share)
    assert_falls_back(run)


@pytest.mark.parametrize("name", FILES)
def test_one_bit_flipped(run: Path, name: str) -> None:
    path = checkpoints(run / "checkpoints")[-1] / name
    flip(path, random.Random(name).randrange(8 * path.stat().st_size))
    assert_falls_back(run)


def test_any_bit_of_the_manifest(run: Path) -> None:
    """The manifest vouches for the others; it must vouch for itself too."""
    newest = checkpoints(run / "checkpoints")[-1]
    path = newest / "manifest.json"
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 400):
        flip(path, bit)
        with pytest.raises(Exception, match=r"manifest\.json|was not written|missing") as caught:
            verify_folder(newest)
        assert type(caught.value).__name__ in ("DamagedError", "InputError")
        path.write_bytes(whole)
    verify_folder(newest)


@pytest.mark.parametrize("name", FILES)
def test_deleted(run: Path, name: str) -> None:
    (checkpoints(run / "checkpoints")[-1] / name).unlink()
    assert_falls_back(run)


def test_a_file_that_was_not_written_with_it(run: Path) -> None:
    (checkpoints(run / "checkpoints")[-1] / "modeling.py").write_text("print('hello')", encoding="utf-8")
    assert_falls_back(run)


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_the_run_goes_on_from_the_one_before(driver: Driver, run: Path, prepared: Prepared, name: str) -> None:
    before, newest = checkpoints(run / "checkpoints")[-2:]
    truncate(newest / name, 0.5)
    ended = driver.resume(run)
    assert ended.code == 0, ended.stderr
    assert f"Checkpoint {newest.name} is damaged and set aside as damaged-{newest.name}" in ended.stderr
    assert f"Going on from {before.name}." in ended.stderr
    assert any(newest.name in record["message"] for record in records(run, "warning"))
    assert digest(run) == prepared.digest


def test_when_none_is_good_the_run_begins_again(driver: Driver, run: Path, prepared: Prepared) -> None:
    for checkpoint in checkpoints(run / "checkpoints"):
        flip(checkpoint / "model.safetensors", 8000)
    ended = driver.resume(run)
    assert ended.code == 0, ended.stderr
    assert "There is no good checkpoint: training begins again." in ended.stderr
    assert digest(run) == prepared.digest
    assert [name for name in names(run) if name.startswith("damaged-")]


def test_leftovers_of_a_killed_save_are_removed(driver: Driver, run: Path, prepared: Prepared) -> None:
    newest = checkpoints(run / "checkpoints")[-1]
    shutil.copytree(newest, newest.with_name("step-00000099.partial-123"))
    shutil.copytree(newest, newest.with_name("step-00000001.partial-old-123"))
    (run / "horizon.json.partial").write_text("[", encoding="utf-8")
    ended = driver.resume(run)
    assert ended.code == 0, ended.stderr
    for name in ("step-00000099.partial-123", "step-00000001.partial-old-123", "horizon.json.partial"):
        assert f"Removed {name}" in ended.stderr
    assert not list(run.rglob("*.partial*"))
    assert digest(run) == prepared.digest


def test_a_users_own_files_are_no_leftovers(driver: Driver, run: Path) -> None:
    (run / "notes.partial").write_text("mine", encoding="utf-8")
    (run / "my.partial-1").mkdir()
    assert driver.resume(run).code == 0
    assert (run / "notes.partial").read_text(encoding="utf-8") == "mine"
    assert (run / "my.partial-1").is_dir()


def test_a_damaged_best_checkpoint_is_not_made_the_model(driver: Driver, tmp_path: Path, prepared: Prepared) -> None:
    """The newest may be good and the best damaged: then the model is that of the last step, and said so."""
    run = prepared.copy(tmp_path / "run")
    stop = ("rhapsode.training.optimizers:Optimizers.step", 14, "signal", 15)
    assert driver.resume(run, stop, ("rhapsode.training.run:_finish", 1, "signal", 9)).code < 0
    newest = checkpoints(run / "checkpoints")[-1]
    best = json.loads((newest / "state.json").read_text(encoding="utf-8"))["best_step"]
    assert (newest.name, best) == ("step-00000014", 12)
    flip(newest.with_name("step-00000012") / "model.safetensors", 8000)
    ended = driver.resume(run, ("rhapsode.training.horizon:Horizon.look_at_clock", 1, "signal", 15))
    assert ended.code == 128 + 15, ended.stderr
    assert "step-00000012, the best checkpoint, is missing or damaged: the model is that of step 14." in ended.stderr
    assert digest(run) == digest_of(newest)


def digest_of(checkpoint: Path) -> str:
    manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    return str(manifest["files"]["model.safetensors"]["sha256"])
