"""Who computes steps, and why; and that everything works by torch where kernels cannot be used."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rhapsode
from rhapsode.base.errors import InputError
from rhapsode.cli.main import run
from rhapsode.inference.cache_type import CacheType
from rhapsode.inference.kernels import choice
from rhapsode.inference.kernels.choice import SWITCH, check_cache_type, kernel_step, refused, refused_by_machine
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.step import Reading, TorchStep
from rhapsode.model.config import Experts, ModelConfig
from rhapsode.model.packed import pack_model
from rhapsode.model.packed_folder import save_packed

from ..conftest import random_decoder

PROMPT = "Before we proceed any further"
SMALL = ModelConfig(40, 12, 2, 2, 1, 6, 20, 16)

needs_kernels = pytest.mark.skipif(refused_by_machine() is not None, reason="kernels cannot be used here")


@pytest.fixture(scope="module")
def packed_folder(by_byte_pairs: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    save_packed(folder, pack_model(by_byte_pairs.decoder(), 8), by_byte_pairs.tokenizer, {"objective": "next token"})
    return folder


def without(cache_type: CacheType, why: str) -> str:
    """What is said of a cache that torch does not keep."""
    return f"a cache in {cache_type} is for the kernels, and {why}. Leave --cache-type out."


@needs_kernels
def test_kernels_compute_where_they_can(by_byte_pairs: LanguageModel, packed_folder: Path) -> None:
    from rhapsode.inference.kernels.step import KernelStep

    for model in (by_byte_pairs, rhapsode.load(packed_folder, "cpu")):
        assert isinstance(model.step(4), KernelStep)
        assert model.step_by == "kernels"


@needs_kernels
def test_both_write_the_same(by_byte_pairs: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(by_byte_pairs.decoder(), by_byte_pairs.tokenizer)
    by_kernels = [model.generate(PROMPT, temperature=0, max_new_tokens=30), model.search(PROMPT, max_new_tokens=10)]
    assert model.step_by == "kernels"
    monkeypatch.setenv(SWITCH, "0")
    model = LanguageModel(by_byte_pairs.decoder(), by_byte_pairs.tokenizer)
    generation, found = (
        model.generate(PROMPT, temperature=0, max_new_tokens=30),
        model.search(PROMPT, max_new_tokens=10),
    )
    assert model.step_by == f"torch, because {SWITCH} is 0"
    assert by_kernels[0] == generation
    assert [each.ids for each in by_kernels[1]] == [each.ids for each in found]  # type: ignore[union-attr]


def test_a_switch_turns_them_off(packed_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    model = rhapsode.load(packed_folder, "cpu")
    assert isinstance(model.step(4), TorchStep)
    assert model.step_by == f"torch, because {SWITCH} is 0"
    assert model.generate(PROMPT, max_new_tokens=5).ids
    monkeypatch.setenv(SWITCH, "1")
    assert refused(SMALL_DECODER) == refused_by_machine()


SMALL_DECODER = random_decoder(SMALL)


def test_what_is_refused_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "refused_by_machine", lambda: None)
    assert refused(SMALL_DECODER) is None
    assert refused(random_decoder(SMALL).double()) == "the weights are not in fp32"
    assert refused(random_decoder(SMALL).bfloat16()) == "the weights are not in fp32"
    assert refused(random_decoder(SMALL).to("meta")) == "the model is on meta"
    packed = pack_model(SMALL_DECODER, 8)
    assert refused(packed, "cuda") == "the model is on cuda"
    monkeypatch.setattr(choice, "refused_by_machine", lambda: "the processor has no avx2")
    assert refused(packed) == refused(SMALL_DECODER) == "the processor has no avx2"


@needs_kernels
def test_models_that_no_kernel_knows() -> None:
    experts = replace(SMALL, experts=Experts(2, 1, 8, True, (0,)))
    assert refused(random_decoder(experts)) == "it is a mixture of experts"
    assert "form that no decoder here has" in str(refused(random_decoder(replace(SMALL, order="post"))))


def test_machines_that_no_kernel_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert refused_by_machine.__wrapped__() == "kernels are for x86-64 processors, not arm64"


@needs_kernels
def test_processors_that_have_less(monkeypatch: pytest.MonkeyPatch) -> None:
    from rhapsode.inference.kernels import vectors

    monkeypatch.setattr(vectors, "features", lambda: {"avx2": True, "fma": False})
    assert refused_by_machine.__wrapped__() == "the processor has no fma, f16c"


@pytest.mark.parametrize("cache_type", ["float16", "int8"])
def test_torch_keeps_no_small_cache(
    packed_folder: Path, cache_type: CacheType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SWITCH, "0")
    model = rhapsode.load(packed_folder, "cpu")
    model.cache_type = cache_type
    with pytest.raises(InputError) as caught:
        model.generate(PROMPT)
    assert str(caught.value) == without(cache_type, f"{SWITCH} is 0")
    check_cache_type("float32", "anything")
    words = ["generate", str(packed_folder), PROMPT, "--cache-type", cache_type, "--max-new-tokens", "3"]
    assert run([*words, "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == f"error: {without(cache_type, f'{SWITCH} is 0')}\n"


@needs_kernels
@pytest.mark.parametrize("cache_type", ["float16", "int8"])
def test_kernels_keep_a_small_cache(packed_folder: Path, cache_type: CacheType) -> None:
    model = rhapsode.load(packed_folder, "cpu")
    model.cache_type = cache_type
    model.cache_bytes = 1
    assert model.generate(PROMPT, max_new_tokens=5).ids and model.step_by == "kernels"


@needs_kernels
def test_who_waits_for_the_compiler_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rhapsode.inference.kernels import compiled

    monkeypatch.setattr(compiled, "is_kept", lambda function: False)
    step = kernel_step(SMALL_DECODER, 2)
    assert capsys.readouterr().err == "compiling for this processor, once: half a minute or less\n"
    monkeypatch.setattr(compiled, "is_kept", lambda function: True)
    (logits,) = kernel_step(SMALL_DECODER, 2)([Reading([1, 2, 3], [1], 0, 3)])
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(logits, step([Reading([1, 2, 3], [1], 0, 3)])[0])


def test_everything_works_without_numba(packed_folder: Path, byte_pair_folder: Path) -> None:
    """In a process that cannot import it: both kinds of folders, and one message for what only kernels do."""
    code = f"""
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
import rhapsode
from rhapsode.cli.main import run
for folder in ({str(packed_folder)!r}, {str(byte_pair_folder)!r}):
    model = rhapsode.load(folder, "cpu")
    assert model.generate({PROMPT!r}, seed=1, max_new_tokens=5).ids
    print(model.step_by)
    assert run(["generate", folder, {PROMPT!r}, "--cache-type", "int8", "--device", "cpu"]) == 2
"""
    environment = {name: value for name, value in os.environ.items() if name != SWITCH} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    reasons = done.stdout.splitlines()
    assert len(reasons) == 2
    for reason in reasons:
        assert reason.startswith("torch, because Numba cannot be imported (")
    why = reasons[0].removeprefix("torch, because ")
    assert done.stderr == f"error: {without('int8', why)}\n" * 2
