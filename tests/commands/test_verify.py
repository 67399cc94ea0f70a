"""`rhapsode verify`: every file of a run that has a digest, changed by one bit or cut short, is found and named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .conftest import Rhapsode

PARTS = ("corpus", "tokens/train", "tokens/validation", "checkpoints/*", "model")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def test_an_undamaged_run_and_each_of_its_parts(trained: Path, rhapsode: Rhapsode) -> None:
    done = rhapsode("verify", trained)
    assert done.code == 0
    assert "DAMAGED" not in done.out
    folders = [folder for part in PARTS for folder in trained.glob(part)]
    assert len(folders) >= 6
    for folder in folders:
        assert str(folder.relative_to(trained)) in done.out
        assert rhapsode("verify", folder).code == 0


def test_every_damaged_file_is_found(trained: Path, tmp_path: Path, rhapsode: Rhapsode) -> None:
    for folder in (folder for part in PARTS for folder in trained.glob(part)):
        for file in sorted(folder.iterdir()):
            copy = tmp_path / "copy"
            shutil.copytree(trained, copy)
            damaged = copy / file.relative_to(trained)
            # A bit of a manifest may spell another valid one; its digests then no longer fit, or nothing has changed.
            (_cut if file.name == "manifest.json" else _flip)(damaged)
            done = rhapsode("verify", copy)
            assert done.code == 2, file
            assert "DAMAGED" in done.out
            assert str(folder.relative_to(trained)) in done.error or folder.name in done.out
            shutil.rmtree(copy)


@pytest.mark.parametrize("name", ["run.yaml", "corpus/manifest.json", "tokens/train/tokens.bin", "tokenizer"])
def test_missing_parts_are_found(name: str, run_folder: Path, rhapsode: Rhapsode) -> None:
    path = run_folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = rhapsode("verify", run_folder)
    assert done.code == 2
    assert "damaged" in done.error


def test_tokens_of_another_text_are_found(run_folder: Path, tmp_path: Path, rhapsode: Rhapsode) -> None:
    (tmp_path / "other.txt").write_text("Another text altogether. " * 100, encoding="utf-8")
    assert rhapsode("corpus", "other.txt", "--out", run_folder / "corpus", "--force").code == 0
    done = rhapsode("verify", run_folder)
    assert done.code == 2
    assert "was made from the corpus" in done.out


def test_a_run_that_was_killed_is_not_damaged(run_folder: Path, rhapsode: Rhapsode) -> None:
    metrics = run_folder / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-20])
    shutil.rmtree(run_folder / "model")
    shutil.rmtree(run_folder / "checkpoints")
    assert rhapsode("verify", run_folder).code == 0
    metrics.write_bytes(b"{broken\n" + metrics.read_bytes())
    done = rhapsode("verify", run_folder)
    assert done.code == 2
    assert "metrics.jsonl:1" in done.out or ":1: is not JSON" in done.out
