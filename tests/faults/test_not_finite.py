"""A value that is no number, or a token that is none: found before the update, with step and samples named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rhapsode.training.checkpoint import checkpoints, verify_folder

from .conftest import Driver, Plant, Prepared, digest, records

WHAT: dict[str, tuple[Plant, str]] = {
    # The micro-batches are 4 of 6 windows: two losses, and two batches, to a step.
    "the loss": (("rhapsode.model.decoder:Decoder.loss", 19, "nan"), "the loss is not a finite number"),
    "a gradient": (
        ("rhapsode.training.gradient:Gradient.compute", 10, "gradient"),
        "a gradient is not a finite number",
    ),
    "a weight": (("rhapsode.training.gradient:Gradient.compute", 10, "weight"), "is not a finite number"),
    "the data": (("rhapsode.training.objectives.windows:Windows.batch", 19, "data"), "the data hold token 65535"),
}


@pytest.mark.parametrize("what", WHAT)
def test_not_a_number(driver: Driver, run: Path, prepared: Prepared, what: str) -> None:
    plant, message = WHAT[what]
    ended = driver.resume(run, plant)
    assert ended.code == 1, ended.stderr
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert message in error
    assert "step 10, samples 54 to 5" in error  # nine steps of six before it
    assert records(run, "train")[-1]["step"] == 9, "the tenth step was taken"
    end = records(run, "end")[-1]
    assert end["reason"] == "not finite" and "step 10" in end["message"]
    newest = checkpoints(run / "checkpoints")[-1]
    assert newest.name == "step-00000009"
    verify_folder(newest)
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(newest / "model.safetensors").values())
    assert not (run / "model").exists()
    if what == "the data":  # they are spoilt for good
        ended = driver.resume(run)
        assert ended.code == 2 and "tokens.bin" in ended.stderr and "is not as it was written" in ended.stderr
    else:
        assert driver.resume(run).code == 0
        assert digest(run) == prepared.digest


def test_weights_that_a_step_made_infinite_are_never_saved(driver: Driver, run: Path) -> None:
    """The gradient was finite, the step was not: the checkpoint due then must not take the place of a good one."""
    ended = driver.resume(run, ("rhapsode.training.loop:Trainer._validate", 2, "weight"))
    assert ended.code == 1, ended.stderr
    assert "a weight is not a finite number" in ended.stderr and "step 8, samples 42 to 47" in ended.stderr
    assert "step-00000008" not in [path.name for path in checkpoints(run / "checkpoints")]


def test_spoilt_validation_tokens_are_refused_on_resuming(driver: Driver, run: Path) -> None:
    path = run / "tokens" / "validation" / "tokens.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    ended = driver.resume(run)
    assert ended.code == 2 and str(path) in ended.stderr and "is not as it was written" in ended.stderr


def test_a_learning_rate_that_blows_up_ends_with_a_message(driver: Driver, text: Path, tmp_path: Path) -> None:
    """No fault planted: what a person may really do."""
    model = ["--tokenizer=character", "--hidden-size=16", "--layers=1", "--context-length=8", "--batch-size=4"]
    rate = ["--optimizer=sgd", "--learning-rate=1e30", "--steps=30", "--threads=1", "--clipping=0"]
    ended = driver.run(["train", text, *model, *rate, "--out", tmp_path / "run"])
    assert ended.code == 1, ended.stderr
    assert "not a finite number" in ended.stderr and "Try a smaller --learning-rate" in ended.stderr
    for checkpoint in checkpoints(tmp_path / "run" / "checkpoints"):
        for tensor in load_file(checkpoint / "model.safetensors").values():
            assert bool(tensor.isfinite().all())
    json.dumps(records(tmp_path / "run", "train"), allow_nan=False)
