"""Spoilt model folders and checkpoints: never a crash, a hang, too much memory, code run or a traceback; always one
message, or a clean read.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from rhapsode.exchange.llama2c import MAGIC, VERSION_1_HEADER, Header
from rhapsode.model.families import FAMILIES
from rhapsode.model.folder import save_model

from . import model_mutants
from .forked import spoil
from .shapes import byte_pairs, random_model, shape_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="mutants are read in forked processes")

FAST, ALL = 100, 10_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each family, one of shards, and a checkpoint in each of llama2.c's formats."""
    top, tokenizer = tmp_path_factory.mktemp("sound"), byte_pairs()
    with pytest.MonkeyPatch.context() as patch:
        for name in (*FAMILIES, "shards"):
            (top / name).mkdir()
            if name == "shards":
                patch.setattr("rhapsode.model.folder.SHARD_BYTES", 20_000)
            family = "llama" if name == "shards" else name
            save_model(top / name, random_model(shape_of(family)), tokenizer, {"objective": "none", "parent": None})
            (top / name / "rhapsode.json").unlink()
    for version in (0, 1):
        header = Header(version, 16, 24, 2, 2, 1, 262, 32, True)
        sizes = (16, 24, 2, 2, 1, 262, 32)
        head = struct.pack("<7i", *sizes)
        if version == 1:
            head = (MAGIC + struct.pack("<i", 1) + head + b"\x01").ljust(VERSION_1_HEADER, b"\0")
        numbers = np.random.default_rng(0).standard_normal((header.size - len(head)) // 4, dtype=np.float32)
        folder = top / f"llama2c-{version}"
        folder.mkdir()
        (folder / "model.bin").write_bytes(head + numbers.tobytes())
        pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), "t", "o", "to"]
        data = b"".join(struct.pack("<fi", -float(n), len(text)) + text.encode() for n, text in enumerate(pieces))
        (folder / "tok.bin").write_bytes(struct.pack("<i", 7) + data)
    return top


def test_the_sound_ones_are_read(sound: Path) -> None:
    for folder in sound.iterdir():
        model_mutants.read(folder, 0)


@pytest.mark.parametrize("kind", model_mutants.KINDS)
def test_mutants(sound: Path, kind: str) -> None:
    counts = spoil("model_mutants", sound, kind, 0, FAST)
    assert counts["refused"] > FAST / 4 and counts["read"] > FAST / 20


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", model_mutants.KINDS)
def test_ten_thousand_mutants(sound: Path, kind: str) -> None:
    counts = spoil("model_mutants", sound, kind, 0, ALL)
    print(json.dumps(counts, indent=2))
