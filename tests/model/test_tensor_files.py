"""safetensors files: byte for byte the library's when written, no more in memory than is used when read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.base.progress import Progress
from rhapsode.model import tensor_files
from rhapsode.model.tensor_files import LARGEST_HEADER, TensorFiles, Written, write_tensors


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"b.weight": (3, 5), "a.bias": (7,), "ä": (2, 3, 4), "b.weigh": (1,), "a": (1, 1)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def written(path: Path, content: dict[str, torch.Tensor]) -> None:
    rows = [Written(name, tuple(tensor.shape), lambda tensor=tensor: tensor) for name, tensor in content.items()]
    with Progress("writing", None, "bytes", quiet=True) as progress:
        write_tensors(path, rows, progress)
        assert progress.completed == sum(tensor.nbytes for tensor in content.values())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_bytes_are_the_library_s(tmp_path: Path, count: int) -> None:
    content = dict(list(tensors().items())[:count])
    written(tmp_path / "ours", content)
    save_file(content, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("as_it_is", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_type_becomes_fp32(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, *, as_it_is: bool
) -> None:
    monkeypatch.setattr(tensor_files, "CONVERTED_AT_ONCE", 20)  # the file is let go of in between
    content = {name: tensor.to(dtype) for name, tensor in tensors().items()}
    save_file(content, tmp_path / "file")
    files = TensorFiles([tmp_path / "file"], "folder")
    assert files.names == set(content)
    for name, tensor in content.items():
        assert files.shape(name) == tuple(tensor.shape)
        read = files.tensor(name, as_it_is=as_it_is)
        assert read.dtype == torch.float32
        assert torch.equal(read, tensor.float())


def test_what_is_written_to_a_mapped_tensor_stays_in_memory(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "file")
    before = (tmp_path / "file").read_bytes()
    TensorFiles([tmp_path / "file"], "folder").tensor("b.weight", as_it_is=True).zero_()
    assert (tmp_path / "file").read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int64, torch.bool])
def test_numbers_that_need_scales_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.zeros(4).to(dtype)}, tmp_path / "file")
    with pytest.raises(InputError, match=r"tensor 'a' is of the type \w+; F64, F32, F16, BF16 can be read.*GGUF"):
        TensorFiles([tmp_path / "file"], "folder").tensor("a", as_it_is=True)


def test_one_name_in_two_files(tmp_path: Path) -> None:
    for file in ("one", "two"):
        save_file({"a": torch.zeros(4)}, tmp_path / file)
    with pytest.raises(DamagedError, match="two: tensor 'a' is also in one"):
        TensorFiles([tmp_path / "one", tmp_path / "two"], "folder")


def header(content: object, data: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode("utf-8")
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

HOSTILE = {
    "empty": b"",
    "a header longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "a negative length": b"\xff" * 8 + b"{}",
    "no JSON": header(b"{{{"),
    "nested deeply": header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "offsets beyond the end": header({"a": ENTRY | {"data_offsets": [0, 4000]}}, bytes(4)),
    "offsets that do not fit the shape": header({"a": ENTRY | {"shape": [2]}}, bytes(4)),
    "offsets backwards": header({"a": ENTRY | {"data_offsets": [4, 0]}}, bytes(4)),
    "negative offsets": header({"a": ENTRY | {"data_offsets": [-4, 0]}}, bytes(4)),
    "overlapping": header({"a": ENTRY, "b": ENTRY}, bytes(4)),
    "a hole": header({"a": ENTRY, "b": ENTRY | {"data_offsets": [8, 12]}}, bytes(12)),
    "an enormous shape": header({"a": ENTRY | {"shape": [2**62, 2**62]}}, bytes(4)),
    "a negative shape": header({"a": ENTRY | {"shape": [-1]}}, bytes(4)),
    "an unknown type": header({"a": ENTRY | {"dtype": "PICKLE"}}, bytes(4)),
    "a name twice": header(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
    ),
    "more than the header says": header({"a": ENTRY}, bytes(8)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(DamagedError, match="is damaged"):
        files = TensorFiles([tmp_path / "file"], "folder")
        for name in files.names:
            files.tensor(name, as_it_is=True)


def test_a_header_that_is_too_large_is_not_parsed(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.write((LARGEST_HEADER + 1).to_bytes(8, "little"))
        file.truncate(LARGEST_HEADER + 100)
    with pytest.raises(DamagedError, match=r"its header would have 33,554,433 bytes"):
        TensorFiles([tmp_path / "file"], "folder")
