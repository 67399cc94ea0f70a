"""Which models a server takes, and what it says of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from rhapsode.base.errors import InputError
from rhapsode.inference.language_model import load
from rhapsode.inference.step import block_bytes
from rhapsode.model.config import StackSizes
from rhapsode.model.families import FAMILIES
from rhapsode.model.folder import save_model
from rhapsode.model.model import new_model
from rhapsode.model.packed import pack_model
from rhapsode.model.packed_folder import load_packed, save_packed
from rhapsode.serving.app import Access, application
from rhapsode.serving.models import Models
from rhapsode.tokenizer.train import train_tokenizer

KINDS = {"decoder": "qwen3", "encoder": "modernbert", "encoder-decoder": "marian"}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a random model of each kind."""
    made = {}
    for kind, family in KINDS.items():
        tokenizer = train_tokenizer(["some text to begin with"], "byte", model=FAMILIES[family].kind)
        more = {"start_id": tokenizer.padding_id, "decoder": StackSizes(2, 4, 4, 8, 64)} if "-" in kind else {}
        config = FAMILIES[family].config(tokenizer.vocabulary_size, 32, 2, 4, 4, 8, 64, 64, **more)
        model = new_model(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
        made[kind] = tmp_path_factory.mktemp(kind)
        save_model(made[kind], model, tokenizer, {"objective": "none"})
    return made


def test_an_encoder_gives_vectors_and_continues_nothing(kinds: dict[str, Path]) -> None:
    paths = {"reader": kinds["encoder"], "writer": kinds["decoder"]}
    models = Models(paths, device="cpu", memory=1 << 30, queue=10)
    with TestClient(application(models, Access())) as client:
        said = client.get("/v1/models/reader").json()  # nobody has asked for it
        assert (said["kind"], said["chat"], said["max_model_len"], said["loaded"]) == ("encoder", None, None, False)
        body = {"model": "reader", "input": ["a text", "another one"]}
        found = client.post("/v1/embeddings", json=body).json()["data"]
        expected = load(kinds["encoder"], "cpu").embed(body["input"])
        assert np.array([one["embedding"] for one in found]) == pytest.approx(expected, abs=1e-5)
        said = client.get("/v1/models/reader").json()
        assert (said["kind"], said["chat"], said["max_model_len"], said["loaded"]) == ("encoder", False, 64, True)
        for path, more in (("completions", {"prompt": "a"}), ("next", {"prompt": "a"})):
            answer = client.post(f"/v1/{path}", json={"model": "reader", **more})
            assert answer.status_code == 400 and "this is an encoder; only a decoder continues text" in answer.text
        assert client.post("/v1/completions", json={"model": "writer", "prompt": "a"}).status_code == 200


def test_packed_weights_are_served_and_counted(kinds: dict[str, Path], tmp_path: Path) -> None:
    plain = load(kinds["decoder"], "cpu")
    save_packed(tmp_path, pack_model(plain.decoder(), 8), plain.tokenizer, {"parent": {"source": "runs/mytext"}})
    models = Models({"packed": tmp_path}, device="cpu", memory=1 << 30, queue=10)
    (served,) = models
    assert served.weights == load_packed(tmp_path).nbytes
    with TestClient(application(models, Access())) as client:
        asked = {"model": "packed", "prompt": "some", "max_tokens": 8, "temperature": 0}
        text = client.post("/v1/completions", json=asked).json()["choices"][0]["text"]
        assert text == load(tmp_path, "cpu").generate("some", temperature=0, max_new_tokens=8).text
        assert served.worker is not None
        cache = served.worker.model.engine().pool.count * block_bytes(plain.config)
        assert served.taken == served.worker.model.weight_bytes + cache


def test_what_is_not_served(kinds: dict[str, Path], tmp_path: Path) -> None:
    def models(path: Path, memory: int = 1 << 30) -> Models:
        return Models({"model": path}, device="cpu", memory=memory, queue=10)

    with pytest.raises(InputError, match="a server has decoders and encoders; this is an encoder-decoder"):
        models(kinds["encoder-decoder"])
    with pytest.raises(InputError, match=r"its weights take 0\.00 GB, more than the 0\.00 GB for models"):
        models(kinds["decoder"], 1000)
    with pytest.raises(InputError, match="there is no such file or folder"):
        models(tmp_path / "nothing")
    (tmp_path / "text").write_text("no model")
    with pytest.raises(InputError, match="is no model that is known here"):
        models(tmp_path / "text")
    asyncio.run(models(kinds["decoder"]).load_first())
