"""The decoding benchmarks give both sides the same tokens, and each side computes what the model computes of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhapsode.exchange.opening import open_model
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.step import TorchStep
from rhapsode.model.decoder import Decoder

TEXTS, PROMPT, NEW = 3, 40, 5


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The modules of benchmarks/, as they find each other."""
    folder = str(Path(__file__).resolve().parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import our_side
        import sides

        yield SimpleNamespace(our_side=our_side, sides=sides)
    finally:
        sys.path.remove(folder)


def plain(model: Decoder, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Logits (texts, time, vocabulary) without any cache."""
    with torch.no_grad():
        return model(torch.from_numpy(ids)).numpy()  # type: ignore[no-any-return]


def check_room(room: object, scripts: SimpleNamespace, model: Decoder, atol: float) -> None:
    """Prompts read, tokens written, and written again after what came before: as by the model."""
    measure = scripts.sides.Measure(TEXTS, PROMPT, NEW)
    ids = measure.ids(model.config.vocabulary_size)
    right = plain(model, ids)
    close = {"rtol": 0, "atol": atol}
    for text in reversed(range(TEXTS)):
        room.read(text, ids[text, :PROMPT].tolist(), 7)  # type: ignore[attr-defined]
        np.testing.assert_allclose(room.logits(), right[text, PROMPT - 7 : PROMPT], **close)  # type: ignore[attr-defined]
    for _ in range(2):
        scripts.sides.turn(room, measure, ids)
        np.testing.assert_allclose(room.logits(), right[:, -1], **close)  # type: ignore[attr-defined]
    scripts.sides.turn(room, measure, ids, most=2)
    np.testing.assert_allclose(room.logits(), right[:, PROMPT + 1], **close)  # type: ignore[attr-defined]


@given(st.integers(1, 100), st.integers(1, 5000), st.integers(0, 5000))
def test_a_measure_is_what_it_is_called(scripts: SimpleNamespace, texts: int, prompt: int, new: int) -> None:
    measure = scripts.sides.Measure(texts, prompt, new)
    assert scripts.sides.Measure.parse(str(measure)) == measure
    assert measure.tokens == texts * (new if new else prompt)


def test_every_side_is_given_the_same_tokens(scripts: SimpleNamespace) -> None:
    """Each token once and in its place, the prompts only where they are what is timed."""

    class Recorder:
        def __init__(self) -> None:
            self.calls: list[tuple[str, int, list[int]]] = []

        def read(self, text: int, ids: Sequence[int], wanted: int = 1) -> None:
            self.calls.append(("read", text, list(ids)))

        def write(self, ids: Sequence[int], past: int) -> None:
            self.calls.append(("write", past, list(ids)))

    writing, reading = scripts.sides.Measure(2, 3, 2), scripts.sides.Measure(1, 4, 0)
    ids, room = writing.ids(50), Recorder()
    assert ids.shape == (2, 5) and ids.min() >= 0 and ids.max() < 50
    assert np.array_equal(ids, writing.ids(50))
    assert scripts.sides.turn(room, writing, ids) > 0
    assert room.calls == [("write", 3, ids[:, 3].tolist()), ("write", 4, ids[:, 4].tolist())]
    ids, room = reading.ids(50), Recorder()
    scripts.sides.turn(room, reading, ids)
    assert room.calls == [("read", 0, ids[0].tolist())]


def test_our_side(scripts: SimpleNamespace, by_byte_pairs: LanguageModel) -> None:
    model = by_byte_pairs.decoder()
    homes = [range(first, first + 2) for first in (4, 0, 2)]
    check_room(scripts.our_side.OurRoom(TorchStep(model, 6), homes), scripts, model, 1e-4)


@pytest.mark.peers
def test_llama_cpp(scripts: SimpleNamespace, byte_pair_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: `make test-peers` installs it")
    from peers.llama_cpp_side import LlamaCpp
    from turns import Worker

    opened = open_model(byte_pair_folder)
    assert isinstance(opened.model, Decoder)
    path = scripts.our_side.exported(opened, tmp_path, "F32")
    side = LlamaCpp(path, threads=1)
    assert side.vocabulary_size == opened.model.config.vocabulary_size
    assert side.weight_bytes == scripts.our_side.weight_bytes(opened.model)
    rooms = side.rooms(TEXTS, PROMPT + NEW)
    assert len(rooms) == 2
    for room in rooms.values():
        check_room(room, scripts, opened.model, 0.02)  # its cache has 16 bits
    worker = Worker(Path(scripts.sides.__file__), str(path), "--threads", "1", threads=1)
    measure = scripts.sides.Measure(TEXTS, PROMPT, NEW)
    assert json.loads(worker.ask("facts")) == [side.weight_bytes, 2]
    assert float(worker.ask(str(measure))) > 0
    assert json.loads(worker.ask("ways"))[str(measure)] in rooms
    found = np.load(worker.ask(f"logits {measure} {tmp_path / 'logits.npy'}"), allow_pickle=False)
    right = plain(opened.model, measure.ids(side.vocabulary_size))
    np.testing.assert_allclose(found, right[-1, -1], rtol=0, atol=0.02)
    worker.close()
    assert worker.process.returncode == 0
