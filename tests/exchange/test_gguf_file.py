from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf as oracle
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from rhapsode.base.errors import DamagedError, InputError
from rhapsode.exchange.gguf_file import QUANTIZATIONS, GgufFile, Tensor, stored_type, write_gguf

from . import gguf_bytes as raw
from .gguf_bytes import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT8, UINT32, UINT64, Typed, entry, gguf, tensor_info

Values = Callable[[], npt.NDArray[np.float32]]


def from_file(values: npt.NDArray[np.float32]) -> Values:
    return lambda: values


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def written(data: bytes) -> Path:
        (tmp_path / "model.gguf").write_bytes(data)
        return tmp_path / "model.gguf"

    return written


def plain(value: Any) -> Any:
    """A metadata value as Python has it, to be compared."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list) else value


def same_as_oracle(path: Path) -> GgufFile:
    """The file, when it reads as the `gguf` package reads it."""
    ours, theirs = GgufFile(path), oracle.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        expected = field.contents()
        if field.types[-1] == oracle.GGUFValueType.FLOAT32 and len(field.types) == 1:
            assert np.float32(ours.metadata[key]) == np.float32(expected)
        elif field.types[:2] != [oracle.GGUFValueType.ARRAY] * 2:  # those it flattens
            np.testing.assert_equal(plain(ours.metadata[key]), expected)  # where not-a-number equals itself
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert (info.type, info.size, info.offset) == (tensor.tensor_type.name, tensor.n_bytes, tensor.data_offset)
        expected = oracle.quants.dequantize(tensor.data, tensor.tensor_type).reshape(info.shape)
        np.testing.assert_array_equal(ours.tensor(tensor.name), expected)
    return ours


def test_every_type_of_value_reads_as_the_package_reads_it(write: Callable[[bytes], Path]) -> None:
    file = same_as_oracle(write(raw.small()))
    assert file.metadata["test.words"] == ["", "a", "日本", "🦙" * 9]
    assert plain(file.metadata["test.nested"]) == [[1, 2], ["x"]]
    assert {name: info.type for name, info in file.tensors.items()} == {
        "a.weight": "F32",
        "b.weight": "F32",
        "c.weight": "Q8_0",
        "d.weight": "Q4_K",
        "e.weight": "F16",
    }


@pytest.mark.parametrize("name", ["gpt-2", "bert-bge", "phi-3"])
def test_vocabularies_of_llama_cpp(shared_data: Path, tmp_path: Path, name: str) -> None:
    packed = shared_data / "tokenizer_vectors" / "llama_cpp" / f"ggml-vocab-{name}.gguf.gz"
    (tmp_path / "vocabulary.gguf").write_bytes(gzip.decompress(packed.read_bytes()))
    file = same_as_oracle(tmp_path / "vocabulary.gguf")
    assert file.version == 3 and not file.tensors and len(file.metadata) >= 16
    assert len(file.metadata.texts("tokenizer.ggml.tokens")) > 30_000


def test_a_file_of_nothing_but_an_architecture(shared_data: Path) -> None:
    file = same_as_oracle(shared_data / "weights" / "tiny_files" / "empty.gguf")
    assert dict(file.metadata) == {"general.architecture": "llama"}


def test_a_file_whose_tensor_is_not_in_it_is_refused(shared_data: Path) -> None:
    path = shared_data / "weights" / "tiny_files" / "tiny.gguf"
    with pytest.raises(
        DamagedError, match=r"'test\.weight\.0' would end at byte 32,896 of 122\. Is the file cut short\?"
    ):
        GgufFile(path)
    with pytest.raises(ValueError):
        oracle.GGUFReader(path)


def test_version_2_reads_like_3(write: Callable[[bytes], Path]) -> None:
    data = raw.small()
    file = GgufFile(write(data[:4] + struct.pack("<I", 2) + data[8:]))
    assert file.version == 2 and len(file.tensors) == 5


def test_alignment(write: Callable[[bytes], Path]) -> None:
    data = gguf(
        [entry("general.alignment", Typed(UINT32, 8))],
        [tensor_info("a", (2,), 0, 0), tensor_info("b", (1,), 0, 8)],
        struct.pack("<3f", 1, 2, 3),
        alignment=8,
    )
    file = same_as_oracle(write(data))
    assert file.alignment == 8
    assert file.tensor("b").tolist() == [3]


def test_tensors_are_mapped_not_copied(write: Callable[[bytes], Path]) -> None:
    file = GgufFile(write(raw.small()))
    assert np.shares_memory(file.tensor("a.weight"), file._bytes)
    assert not file.tensor("a.weight").flags.writeable


def test_typed_reading_names_what_is_wrong(write: Callable[[bytes], Path]) -> None:
    metadata = GgufFile(write(raw.small())).metadata
    assert metadata.integer(f"test.{UINT32}") == 1 and metadata.number(f"test.{UINT32}") == 1.0
    assert metadata.flag(f"test.{BOOL}") is True
    assert metadata.text("general.architecture") == "llama"
    assert metadata.integer("nowhere", 7) == 7 and metadata.texts("nowhere", []) == []
    with pytest.raises(DamagedError, match=r"model\.gguf: has no 'llama\.block_count'"):
        metadata.integer("llama.block_count")
    with pytest.raises(DamagedError, match=r"'general\.architecture' must be an integer, and is str"):
        metadata.integer("general.architecture")
    with pytest.raises(DamagedError, match=r"'test\.array\.5' must be an array of strings, and is an array of int32"):
        metadata.texts(f"test.array.{INT32}")
    with pytest.raises(DamagedError, match="must be true or false, and is int"):
        metadata.flag(f"test.{UINT8}")
    with pytest.raises(DamagedError, match="must be a number, and is bool"):
        metadata.number(f"test.{BOOL}")


def test_floats_come_back_as_they_were_configured(write: Callable[[bytes], Path]) -> None:
    data = gguf([entry(f"e{n}", Typed(FLOAT32, n)) for n in (1e-5, 1e-12, 10000.0, 0.1, 3.4e38)])
    assert list(GgufFile(write(data)).metadata.values()) == [1e-5, 1e-12, 10000.0, 0.1, 3.4e38]


@pytest.mark.parametrize("type", [type for type in oracle.GGMLQuantizationType if type.name not in ("F32", "F16")])
def test_what_the_package_can_dequantise_is_and_all_else_is_named(
    write: Callable[[bytes], Path], type: oracle.GGMLQuantizationType
) -> None:
    block_length, block_size = oracle.GGML_QUANT_SIZES[type]
    blocks = np.random.default_rng(type).integers(0, 256, 7 * block_size, dtype=np.uint8)
    data = gguf([], [tensor_info("x", (7, block_length), type, 0)], blocks.tobytes())
    file = GgufFile(write(data))
    assert file.tensors["x"].type == type.name and file.tensors["x"].size == blocks.size
    try:
        with np.errstate(all="ignore"):
            expected = oracle.quants.dequantize(blocks.reshape(7, -1), type)
    except NotImplementedError:
        with pytest.raises(InputError, match=f"'x' is stored as {type.name}, which cannot be dequantised"):
            file.tensor("x")
        return
    np.testing.assert_array_equal(file.tensor("x"), expected)


def test_large_tensors_are_dequantised_in_parts(write: Callable[[bytes], Path]) -> None:
    rows = 2**18 // 256 + 5
    blocks = np.random.default_rng(0).integers(0, 100, rows * 256 // 32 * 34, dtype=np.uint8)
    file = GgufFile(write(gguf([], [tensor_info("x", (rows, 256), 8, 0)], blocks.tobytes())))
    expected = oracle.quants.dequantize(blocks.reshape(rows, -1), oracle.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(file.tensor("x"), expected)


def test_an_unknown_tensor_is_named_with_the_nearest(write: Callable[[bytes], Path]) -> None:
    with pytest.raises(InputError, match=r"has no tensor 'a\.wieght'\. Did you mean 'a\.weight'\?"):
        GgufFile(write(raw.small())).tensor("a.wieght")


MANY = 2**40
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is not a GGUF file"),
    "four bytes": (b"GGUF", "is not a GGUF file"),
    "another format": (b"PK\x03\x04" + bytes(100), "is not a GGUF file"),
    "version 1": (b"GGUF" + struct.pack("<III", 1, 0, 0), "is version 1 of GGUF"),
    "version 4": (gguf(version=4), "is version 4 of GGUF"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "no counts": (b"GGUF" + struct.pack("<I", 3), "ends where a number should follow"),
    "many keys": (gguf(keys=MANY), "1,099,511,627,776 keys, more than fit"),
    "many tensors": (gguf(tensors=MANY), "1,099,511,627,776 tensors, more than fit"),
    "one key too many": (gguf([entry("a", Typed(UINT8, 1))], keys=2), "2 keys, more than fit"),
    "a long key": (gguf([raw.string("k" * 70_000) + struct.pack("<IB", UINT8, 1)]), "a key has a name of 70,000 bytes"),
    "a key that ends the file": (gguf([struct.pack("<Q", 2**20) + b"ab" * 9]), "a key has a name of 1,048,576 bytes"),
    "a cut key": (gguf([struct.pack("<Q", 900) + b"ab" * 9]), "string of 900 bytes, more than are left"),
    "a key twice": (gguf([entry("a", Typed(UINT8, 1))] * 2), "has the key 'a' twice"),
    "a key that is no text": (gguf([entry(b"\xff\xfe", Typed(UINT8, 1))]), "at byte 32 that is not UTF-8"),
    "a value of no type": (gguf([raw.string("a") + struct.pack("<IQ", 13, 1)]), "'a' is of type 13, which does not"),
    "no truth": (gguf([entry("a", Typed(BOOL, 2))]), "'a' must be true or false, and is 2"),
    "no truths": (gguf([entry("a", Typed(ARRAY, [0, 1, 9], BOOL))]), "'a' must be true or false, and is 9"),
    "a long string": (gguf([raw.string("a") + struct.pack("<IQ", STRING, MANY)]), "string of 1,099,511,627,776 bytes"),
    "a long array": (
        gguf([raw.string("a") + struct.pack("<IIQ", ARRAY, FLOAT32, MANY)]),
        "ends where 4,398,046,511,104",
    ),
    "many strings": (
        gguf([raw.string("a") + struct.pack("<IIQ", ARRAY, STRING, MANY)]),
        "strings in 'a', more than fit",
    ),
    "many arrays": (gguf([raw.string("a") + struct.pack("<IIQ", ARRAY, ARRAY, MANY)]), "arrays in 'a', more than fit"),
    "an array of no type": (gguf([raw.string("a") + struct.pack("<IIQ", ARRAY, 99, 0)]), "'a' is an array of type 99"),
    "the largest count": (gguf([raw.string("a") + struct.pack("<IIQ", ARRAY, UINT64, 2**64 - 1)]), "ends where"),
    "a string of half": (gguf([entry("a", Typed(ARRAY, [b"\xc3"], STRING))]), "that is not UTF-8"),
    "deep nesting": (
        gguf([raw.string("a") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 100_000]),
        "'a' has arrays nested deeper than 4",
    ),
    "an alignment of 0": (gguf([entry("general.alignment", Typed(UINT32, 0))]), "its alignment, 0, is no power of two"),
    "an alignment of 24": (gguf([entry("general.alignment", Typed(UINT32, 24))]), "its alignment, 24, is no power"),
    "an alignment in words": (gguf([entry("general.alignment", Typed(STRING, "x"))]), "must be an integer, and is str"),
    "five dimensions": (gguf([], [tensor_info("x", (1,) * 5, 0, 0)], bytes(32)), "'x' has 5 dimensions"),
    "an unknown type": (gguf([], [tensor_info("x", (1,), 31, 0)], bytes(32)), "'x' is of type 31, which is not known"),
    "rows of half blocks": (gguf([], [tensor_info("x", (2, 16), 8, 0)], bytes(64)), "rows of other lengths than Q8_0"),
    "one quantised number": (gguf([], [tensor_info("x", (), 8, 0)], bytes(64)), "rows of other lengths than Q8_0"),
    "an enormous shape": (gguf([], [tensor_info("x", (2**62, 2**62), 0, 0)], bytes(32)), "'x' would end at byte"),
    "a negative shape": (gguf([], [tensor_info("x", (2**64 - 4,), 0, 0)], bytes(32)), "'x' would end at byte"),
    "a shape of nothing": (
        gguf([], [tensor_info("x", (3, 0), 8, 0)], bytes(32)),
        "has the shape (3, 0): it holds nothing",
    ),
    "nothing many times": (gguf([], [tensor_info("x", (2**63, 0), 0, 0)], bytes(32)), ": it holds nothing"),
    "an offset between": (gguf([], [tensor_info("x", (1,), 0, 4)], bytes(64)), "'x' begins at no multiple of 32"),
    "an offset beyond": (gguf([], [tensor_info("x", (1,), 0, 2**63)], bytes(64)), "'x' would end at byte"),
    "the same place": (
        gguf([], [tensor_info("x", (16,), 0, 0), tensor_info("y", (1,), 0, 32)], bytes(96)),
        "the tensors 'x' and 'y' overlap",
    ),
    "the same name": (
        gguf([], [tensor_info("x", (1,), 0, 0), tensor_info("x", (1,), 0, 32)], bytes(96)),
        "has the tensor 'x' twice",
    ),
    "a cut end": (raw.small()[:-40], "would end at byte"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_one_message(write: Callable[[bytes], Path], case: str) -> None:
    data, message = HOSTILE[case]
    with pytest.raises(InputError) as caught:
        GgufFile(write(data))
    assert message in caught.value.message and caught.value.message.count("\n") == 0


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        GgufFile(tmp_path / "nowhere.gguf")
    with pytest.raises(InputError, match="cannot be read"):
        GgufFile(tmp_path)


MEASURE = """
import resource, sys, time
import gguf
from rhapsode.base.errors import InputError
from rhapsode.exchange.gguf_file import GgufFile

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before, start = peak(), time.process_time()
try:
    file = GgufFile(sys.argv[1])
except InputError as error:
    print("refused:", error, file=sys.stderr)
print(peak() - before, time.process_time() - start)
"""


def measured(path: Path) -> tuple[int, float]:
    """Bytes of memory and seconds of the processor that opening a file takes, in a process of its own."""
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    memory, seconds = done.stdout.split()
    return int(memory), float(seconds)


def strings(count: int, data: bytes) -> bytes:
    return raw.string("a") + struct.pack("<IIQ", ARRAY, STRING, count) + data


def test_a_vocabulary_of_a_quarter_of_a_million_reads_fast(tmp_path: Path) -> None:
    words = b"".join(raw.string(f"word{n}") for n in range(250_000))
    pairs = b"".join(raw.string(f"wo{n} rd{n}") for n in range(250_000))
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(gguf([strings(250_000, words), raw.string("b") + strings(250_000, pairs)[9:]]))
    memory, seconds = measured(path)
    assert memory < 2 * path.stat().st_size + 100e6
    assert seconds < 2  # of half a million strings; some 0.4
    assert GgufFile(path).metadata.texts("a")[249_999] == "word249999"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty strings", strings(4_000_000, bytes(8 * 4_000_000))),
        ("strings of two letters", strings(4_000_000, raw.string("ab") * 4_000_000)),
        ("a long string with one wide letter", raw.entry("a", Typed(STRING, "a" * 40_000_000 + "🦙"))),
        (
            "empty arrays",
            raw.string("a") + struct.pack("<IIQ", ARRAY, ARRAY, 3_000_000) + struct.pack("<IQ", 0, 0) * 3_000_000,
        ),
        ("tensors of one byte", b""),
    ],
)
def test_memory_is_bounded_by_the_file(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / "hostile.gguf"
    if name == "tensors of one byte":
        infos = [tensor_info(f"{n:x}", (1,), 24, n) for n in range(1_000_000)]
        path.write_bytes(gguf([entry("general.alignment", Typed(UINT32, 1))], infos, bytes(1_000_000), alignment=1))
    else:
        path.write_bytes(gguf([data]))
    memory, seconds = measured(path)
    assert memory < 2 * path.stat().st_size + 100e6
    assert seconds < 5


scalars = st.booleans() | st.integers(-(2**31), 2**32 - 1) | st.text(max_size=20) | st.floats(width=32, allow_nan=False)
number_types = st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?"])
number_arrays = number_types.flatmap(lambda name: arrays_of.arrays(name, st.integers(0, 9)))
keys = st.text(min_size=1, max_size=30).filter(lambda key: not key.startswith("general."))
metadata_values = st.dictionaries(keys, scalars | st.lists(st.text(max_size=9), max_size=5) | number_arrays, max_size=8)
shapes = st.lists(st.integers(1, 70), min_size=1, max_size=4).filter(lambda shape: np.prod(shape) <= 5000).map(tuple)


@settings(deadline=None)
@given(values=metadata_values, shapes=st.lists(shapes, max_size=5), quantization=st.sampled_from(sorted(QUANTIZATIONS)))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], shapes: list[tuple[int, ...]], quantization: str
) -> None:
    path = tmp_path_factory.mktemp("written") / "model.gguf"
    numbers = np.random.default_rng(len(shapes))
    tensors = {f"t{n}": numbers.standard_normal(shape, dtype=np.float32) for n, shape in enumerate(shapes)}
    sources = [Tensor(name, tensor.shape, from_file(tensor)) for name, tensor in tensors.items()]
    written = write_gguf(path, "test", values, sources, quantization)
    file = same_as_oracle(path)
    assert written.size == path.stat().st_size
    assert file.metadata.text("general.architecture") == "test"
    assert file.metadata.integer("general.file_type") == QUANTIZATIONS[quantization]
    require_equal(values, file.metadata)
    assert list(file.tensors) == list(tensors)
    for name, tensor in tensors.items():
        type = file.tensors[name].type
        assert type == written.types[name] == stored_type(tensor.shape, quantization)
        require_near(file.tensor(name), tensor, type)
        if type in ("F32", "F16", "BF16", "Q8_0", "Q4_0"):  # by the package in one go, rows as they are
            packed = oracle.quants.quantize(tensor, oracle.GGMLQuantizationType[type])
            expected = oracle.quants.dequantize(packed, oracle.GGMLQuantizationType[type])
            np.testing.assert_array_equal(file.tensor(name), expected)


def require_equal(written: Mapping[str, Any], read: Mapping[str, Any]) -> None:
    for key, value in written.items():
        found = read[key]
        if isinstance(value, np.ndarray):
            assert isinstance(found, np.ndarray) and found.dtype == value.dtype
            np.testing.assert_array_equal(found, value)
        elif isinstance(value, float):
            assert np.float32(found) == np.float32(value) and isinstance(found, float)
        elif isinstance(value, list) and not value:
            assert len(found) == 0
        else:
            assert found == value and type(found) is type(value)


# How far a number may be from what was stored: parts of the largest in its block (32 numbers of a row). The scales of
# blocks are themselves of half precision.
STEPS = {
    "F32": 0.0,
    "F16": 2**-11,
    "BF16": 2**-8,
    "Q8_0": 1 / 254,
    "Q5_0": 1 / 16,
    "Q5_1": 1 / 31,
    "Q4_0": 1 / 8,
    "Q4_1": 1 / 15,
}


def require_near(read: npt.NDArray[np.float32], written: npt.NDArray[np.float32], type: str) -> None:
    assert read.shape == written.shape
    width = 32 if type.startswith("Q") else 1
    blocks = written.reshape(-1, width)
    allowed = np.abs(blocks).max(axis=1, keepdims=True) * (STEPS[type] + 2**-9) + 2**-24 if type != "F32" else 0.0
    assert (np.abs(read.reshape(-1, width) - blocks) <= allowed).all()


def test_fallbacks_are_said(tmp_path: Path) -> None:
    ones = [
        Tensor("norm", (64,), lambda: np.ones(64, np.float32)),
        Tensor("odd", (4, 33), lambda: np.ones((4, 33), np.float32)),
        Tensor("even", (4, 64), lambda: np.ones((4, 64), np.float32)),
        Tensor("router", (4, 64), lambda: np.ones((4, 64), np.float32), exact=True),
    ]
    written = write_gguf(tmp_path / "m.gguf", "llama", {}, ones, "Q4_0")
    assert written.types == {"norm": "F32", "odd": "F16", "even": "Q4_0", "router": "F32"}
    assert written.fallbacks == ("odd",)
    assert write_gguf(tmp_path / "n.gguf", "llama", {}, ones, "F16").fallbacks == ()


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    def fail() -> npt.NDArray[np.float32]:
        raise OSError("no space left")

    good = Tensor("a", (2, 2), lambda: np.ones((2, 2), np.float32))
    with pytest.raises(OSError, match="no space left"):
        write_gguf(tmp_path / "m.gguf", "llama", {}, [good, Tensor("b", (2, 2), fail)])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"mine")
    with pytest.raises(InputError, match="already exists"):
        write_gguf(tmp_path / "m.gguf", "llama", {}, [])
    assert (tmp_path / "m.gguf").read_bytes() == b"mine"
    write_gguf(tmp_path / "m.gguf", "llama", {}, [], replace=True)
    assert not GgufFile(tmp_path / "m.gguf").tensors


TWO = np.ones((2, 2), np.float32)
LARGE = np.array([[1.0, 70_000.0]], np.float32)


@pytest.mark.parametrize(
    ("tensors", "metadata", "quantization", "message"),
    [
        ([Tensor("a", (2, 2), from_file(TWO))] * 2, {}, "F32", "'a': is the name of two tensors"),
        ([Tensor("x" * 64, (2, 2), from_file(TWO))], {}, "F32", "is no name of 1 to 63 bytes"),
        ([Tensor("a", (), from_file(TWO))], {}, "F32", r"has the shape \(\), which GGUF cannot hold"),
        ([Tensor("a", (2, 0), from_file(TWO))], {}, "F32", "which GGUF cannot hold"),
        ([Tensor("a", (1, 1, 1, 2, 2), from_file(TWO))], {}, "F32", "which GGUF cannot hold"),
        ([Tensor("a", (3, 2), from_file(TWO))], {}, "F32", r"'a': has the shape \(2, 2\) instead of \(3, 2\)"),
        ([Tensor("a", (1, 2), from_file(LARGE))], {}, "F16", "'a': has numbers beyond 65,504"),
        ([Tensor("a", (1, 2), from_file(LARGE * np.nan))], {}, "F16", "or such that are none"),
        ([], {}, "Q4_K", r"there is no quantisation 'Q4_K'\. Did you mean 'Q4_"),
        ([], {"general.alignment": 64}, "F32", "general.alignment: is not for the caller to say"),
        ([], {"a": {}}, "F32", "a: cannot be written to GGUF: dict"),
        ([], {"a": [1, 2]}, "F32", "a: cannot be written to GGUF: list"),
        ([], {"a": 2**64}, "F32", "a: cannot be written to GGUF: int"),
        ([], {"a": np.zeros((2, 2))}, "F32", "a: cannot be written to GGUF: ndarray"),
    ],
)
def test_what_cannot_be_written_is_said(
    tmp_path: Path, tensors: list[Tensor], metadata: dict[str, Any], quantization: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_gguf(tmp_path / "m.gguf", "llama", metadata, tensors, quantization)
    assert list(tmp_path.iterdir()) == []


def test_large_numbers_can_be_written_as_they_are(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", {}, [Tensor("a", (1, 2), from_file(LARGE))], "BF16")
    assert GgufFile(tmp_path / "m.gguf").tensor("a").tolist() == [[1.0, 70144.0]]


WRITE = """
import resource, sys
from pathlib import Path
import gguf
import numpy as np
from rhapsode.exchange.gguf_file import Tensor, write_gguf

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

tensors = [Tensor(f"t{n}", (4096, 1024), lambda: np.ones((4096, 1024), np.float32)) for n in range(12)]
before = peak()
write_gguf(Path(sys.argv[1]), "llama", {}, tensors, sys.argv[2])
print(peak() - before)
"""


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_writing_takes_the_memory_of_one_tensor(tmp_path: Path, quantization: str) -> None:
    command = [sys.executable, "-c", WRITE, str(tmp_path / "m.gguf"), quantization]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    one = 4096 * 1024 * 4
    assert int(done.stdout) < 2.5 * one + 20e6  # of twelve: the tensor, the stored one, what a part needs
