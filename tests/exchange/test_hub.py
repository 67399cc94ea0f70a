"""Models by their name on the hub, against a small hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.exchange.doors import import_model
from rhapsode.exchange.hub import fetched, is_name
from rhapsode.exchange.opening import open_model
from rhapsode.model.decoder import Decoder
from rhapsode.model.folder import save_model
from rhapsode.model.packed import pack_model
from rhapsode.model.packed_folder import save_packed

from . import hub_server
from .hub_server import Hub, Repository
from .shapes import byte_pairs, random_model, shape_of

NAME = "someone/tiny"
UNWANTED = {
    "pytorch_model.bin": b"PK\x03\x04",
    "modeling_tiny.py": b"raise SystemExit",
    "training_args.bin": b"\x80\x04.",
    "model.onnx": b"onnx",
    "nested/model.safetensors": b"",
    ".gitattributes": b"*.bin lfs",
}


def files_of(tmp_path: Path, family: str = "llama", seed: int = 0) -> dict[str, bytes]:
    """A model folder's files by name."""
    folder = tmp_path / f"{family}-{seed}"
    folder.mkdir()
    save_model(folder, random_model(shape_of(family), seed), byte_pairs(), {"parent": None, "objective": ""})
    (folder / "rhapsode.json").unlink()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, which the library takes for the only one, and an empty cache. What HF_ENDPOINT and HF_HOME set."""
    with hub_server.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.chdir(tmp_path)
        yield hub


def test_only_what_is_needed_is_fetched(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = files_of(tmp_path)
    commit = hub.put(NAME, {**files, **UNWANTED})
    opened = open_model(NAME)
    assert opened.origin == f"{NAME}@{commit}"
    assert f"{NAME}: commit {commit}" in capsys.readouterr().err
    assert set(hub.asked) == files.keys() - {"README.md"}
    found = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert not found & UNWANTED.keys()
    expected = random_model(shape_of("llama"))
    for (name, ours), theirs in zip(opened.model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_packed_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    model = random_model(shape_of("llama"))
    assert isinstance(model, Decoder)
    save_packed(folder, pack_model(model, 8), byte_pairs(), {"parent": {"source": "runs/mytext"}})
    hub.put(NAME, {path.name: path.read_bytes() for path in folder.iterdir()} | UNWANTED)
    opened = open_model(NAME)
    assert opened.format == "packed"
    assert "packed.safetensors" in hub.asked and not set(hub.asked) & UNWANTED.keys()


def test_a_name_means_the_same_commit_from_then_on(hub: Hub, tmp_path: Path) -> None:
    """With or without a network; a commit asked for is another matter."""
    first = hub.put(NAME, files_of(tmp_path))
    assert fetched(NAME).commit == first
    second = hub.put(NAME, files_of(tmp_path, seed=1))
    hub.asked.clear()
    assert fetched(NAME).commit == first and not hub.asked
    assert fetched(f"{NAME}@{second}").commit == second
    hub.repositories.clear()
    assert fetched(NAME).commit == first
    assert fetched(f"{NAME}@{second}").commit == second


def test_what_was_deleted_is_fetched_again_from_the_same_commit(hub: Hub, tmp_path: Path) -> None:
    first = hub.put(NAME, files_of(tmp_path))
    (fetched(NAME).folder / "config.json").unlink()
    hub.put(NAME, files_of(tmp_path, seed=1))
    again = fetched(NAME)
    assert again.commit == first and (again.folder / "config.json").is_file()


def test_shards_and_a_branch(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rhapsode.model.folder.SHARD_BYTES", 20_000)
    files = files_of(tmp_path)

    assert sum(name.endswith(".safetensors") for name in files) > 3
    hub.put(NAME, {**files, "model-00001-of-00001.safetensors": b"of no index"}, branch="half/small")
    opened = open_model(f"{NAME}@half/small")
    assert "model-00001-of-00001.safetensors" not in hub.asked
    assert {path.name for path in opened.files} >= {name for name in files if name.endswith(".safetensors")}


def test_a_translator_with_two_tokenizers(hub: Hub, tmp_path: Path) -> None:
    files = files_of(tmp_path, "marian")
    target = {f"target/{name}": files[name] for name in ("tokenizer.json", "tokenizer_config.json")}
    hub.put(NAME, {**files, **target})
    assert open_model(NAME).tokenizer.target is not None
    hub.asked.clear()
    assert open_model(NAME).tokenizer.target is not None and not hub.asked


def test_imported_with_its_commit(hub: Hub, tmp_path: Path) -> None:
    commit = hub.put(NAME, files_of(tmp_path))
    imported = import_model(NAME, tmp_path / "in").path
    record = json.loads((imported / "rhapsode.json").read_text(encoding="utf-8"))
    assert record["parent"]["source"] == f"{NAME}@{commit}"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b"PK\x03\x04"}, "pytorch_model.bin: these weights are pickled"),
        ({"config.json": b"{}", "model.ckpt": b"\x80\x04"}, "model.ckpt: these weights are pickled"),
        ({"tiny-q4.gguf": b"GGUF"}, r"has no model\.safetensors.*Fetch tiny-q4\.gguf, and name the file"),
        ({"README.md": b""}, r"has no model\.safetensors.*Name a model with weights in safetensors"),
    ],
)
def test_repositories_without_weights(hub: Hub, files: dict[str, bytes], words: str) -> None:
    hub.put(NAME, files)
    with pytest.raises(InputError, match=words):
        fetched(NAME)
    assert not hub.asked


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ((401, "RepoNotFound"), "is no file or folder here, and no model on the hub that it shows us"),
        ((403, "GatedRepo"), r"lets in only who has agreed to terms\. Agree at https://huggingface.co/someone/tiny"),
        ((404, "RevisionNotFound"), "has no revision 'main' on the hub"),
        ((500, ""), r"was not fetched before, and the hub cannot be reached \(Server error '500"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, error: tuple[int, str], words: str) -> None:
    hub.repositories[NAME] = Repository(error=error)
    with pytest.raises(InputError, match=words) as caught:
        fetched(NAME)
    assert "\n" not in caught.value.message


def test_without_a_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"was not fetched before, and HF_HUB_OFFLINE forbids to fetch it\. Try again"):
        fetched(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"was not fetched before, and the hub cannot be reached"):
        fetched(NAME)
    assert not (tmp_path / "cache").exists()


def test_a_disk_without_room(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put(NAME, files_of(tmp_path))
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and type("Usage", (), {"free": 1000})
    )
    with pytest.raises(InputError, match=r"are to be fetched, and the disk has .* free\. Make room, or set HF_HOME"):
        fetched(NAME)
    assert not hub.asked


def test_a_record_that_is_none(hub: Hub, tmp_path: Path) -> None:
    hub.put(NAME, files_of(tmp_path))
    fetched(NAME)
    (record,) = (tmp_path / "cache").rglob("rhapsode/main.json")
    content = json.loads(record.read_text(encoding="utf-8"))
    for spoilt in ([], content | {"commit": "main"}, content | {"files": ["../../x"]}, content | {"files": 3}):
        record.write_text(json.dumps(spoilt), encoding="utf-8")
        with pytest.raises(DamagedError, match=r"is no record of a fetched model\. Delete it to fetch anew"):
            fetched(NAME)


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_name("someone/tiny") and is_name("someone/tiny@main") and is_name("runs/tiny@v1.0")
    for text in ("runs/tiny", "tiny", "a/b/c", "/a/b", "../b", "./a", "someone/", "some one/tiny", "someone/tiny@../x"):
        assert not is_name(text), text
    with pytest.raises(InputError, match=r"To have 'runs/tiny' from the hub, write runs/tiny@main"):
        open_model("runs/tiny")


def test_the_command(tmp_path: Path) -> None:
    """As a user has it: HF_ENDPOINT names the hub. Then offline; then a name that was never fetched."""
    with hub_server.running() as hub:
        hub.put(NAME, files_of(tmp_path))
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
        outputs = [next_token(NAME, tmp_path, environment)]
    environment |= {"HF_HUB_OFFLINE": "1"}
    outputs += [next_token(name, tmp_path, environment) for name in (NAME, "someone/other")]
    assert outputs[0].returncode == outputs[1].returncode == 0, outputs[0].stderr
    assert outputs[0].stdout == outputs[1].stdout
    assert outputs[2].returncode == 2
    assert outputs[2].stderr == (
        "error: someone/other: is no file or folder here, was not fetched before, and HF_HUB_OFFLINE forbids to fetch "
        "it. Try again with a network, or name a local folder.\n"
    )


def next_token(name: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rhapsode", "next", name, "To be"]
    top = str(Path(__file__).parents[2])
    environment = environment | {"PYTHONPATH": top}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
