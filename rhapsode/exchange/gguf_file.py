"""GGUF files: the container that llama.cpp reads. Metadata by key, tensors by name; nothing here knows of models.

    file = GgufFile(path)
    file.metadata.integer("llama.block_count")
    file.tensor("token_embd.weight")

A file is not trusted: every count, size, offset and name is checked against the file's size before anything is made
from it, and what its metadata takes in memory is bounded by that size. Tensors stay in the file until asked for.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from rhapsode.base.errors import DamagedError, InputError, nearest
from rhapsode.base.files import new_file

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

Floats = npt.NDArray[np.float32]
Value = Any  # bool, int, float, str, a list of str or of lists, or an array of numbers

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # they differ in what 3 allows: big-endian files, which llama.cpp writes on no machine of today
ALIGNMENT = 32  # bytes, where `general.alignment` says nothing else
LONGEST_NAME = 65535  # bytes of a key or of a tensor's name
DEEPEST_ARRAY = 4  # arrays in arrays; published files have none
MOST_DIMENSIONS = 4
ROOM = 64 * 2**20  # bytes that metadata may take in memory beyond the size of its file
CHUNK = 2**18  # numbers that are quantised or dequantised at a time; a multiple of every type's block

STRING, ARRAY, BOOL = 8, 9, 7
U32, U64, F32 = "<I", "<Q", "<f"  # numpy and struct write these alike
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: U32, 5: "<i", 6: F32, BOOL: "<B", 10: U64, 11: "<q", 12: "<d"}

# What a model can be written as, and the number by which `general.file_type` calls it.
QUANTIZATIONS = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q5_1": 9, "Q5_0": 8, "Q4_1": 3, "Q4_0": 2}
LARGEST_HALF = 65504.0  # of 16-bit floats: the scales of all other types
LONGEST_WRITTEN_NAME = 63  # bytes; llama.cpp refuses longer names of tensors


class Metadata(Mapping[str, Value]):
    """The metadata of a GGUF file, or what is to become it.

    Args:
        values: by key.
        where: where they come from, for messages.
    """

    def __init__(self, values: Mapping[str, Value], where: str) -> None:
        self._values, self.where = values, where

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Without a default the key must be there, here and below.

        Raises:
            DamagedError: the key is missing, or its value is of another type.
        """
        value = self._get(key, default)
        return value if isinstance(value, str) else self._refuse(key, "a string")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        return int(value) if _is_integer(value) else self._refuse(key, "an integer")

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, float | np.floating) or _is_integer(value):
            return float(value)
        return self._refuse(key, "a number")

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._get(key, default)
        return bool(value) if isinstance(value, bool | np.bool_) else self._refuse(key, "true or false")

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        """An array of strings. Empty ones are those of any type: writers differ."""
        value = self._get(key, default)
        if isinstance(value, np.ndarray) and not value.size:
            return []
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            return value
        return self._refuse(key, "an array of strings")

    def numbers(self, key: str, default: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """An array of numbers, in the type in which they are stored."""
        value = self._get(key, default)
        if isinstance(value, list) and not value:
            return np.zeros(0)
        return value if isinstance(value, np.ndarray) else self._refuse(key, "an array of numbers")

    def _get(self, key: str, default: Value) -> Value:
        value = self._values.get(key, default)
        if value is None:
            raise DamagedError(f"has no {key!r}", where=self.where)
        return value

    def _refuse(self, key: str, wanted: str) -> NoReturn:
        found = self._values.get(key)
        kind = f"an array of {found.dtype}" if isinstance(found, np.ndarray) else type(found).__name__
        raise DamagedError(f"{key!r} must be {wanted}, and is {kind}", where=self.where)


class TensorInfo(NamedTuple):
    """Where a tensor lies in its file.

    Args:
        shape: outermost dimension first, as numpy and torch have it (the file has it the other way round).
        type: how its numbers are stored, such as "F16" or "Q4_K".
        offset: of its first byte in the file.
        size: bytes.
    """

    shape: tuple[int, ...]
    type: str
    offset: int
    size: int


class GgufFile:
    """A GGUF file of version 2 or 3, opened: its metadata read, its tensors mapped.

    Attributes:
        metadata: what the file says of the model.
        tensors: what it says of each tensor, by name, in the order of the file.
        version: of the format.
        alignment: bytes; every tensor's offset is a multiple of it.

    Raises:
        InputError: there is no such file, or it is no GGUF file of these versions.
        DamagedError: the file is cut short or contradicts itself.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        where = str(path)
        try:
            with self.path.open("rb") as file:
                head = file.read(8)
                size = file.seek(0, 2)
        except FileNotFoundError:
            raise InputError("the file does not exist", where=where) from None
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=where) from None
        self.version = _version(head, where)
        self._bytes: npt.NDArray[np.uint8] = np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r"))
        if len(self._bytes) != size:
            raise DamagedError("changes while it is read", where=where)
        cursor = _Cursor(self._bytes, where)
        cursor.position = 8
        tensor_count, key_count = cursor.number(U64), cursor.number(U64)
        self.metadata = Metadata(dict(cursor.entries(key_count)), where)
        self.alignment = self._alignment()
        self.tensors = cursor.tensors(tensor_count, self.alignment)

    def tensor(self, name: str) -> Floats:
        """The numbers of a tensor, dequantised.

        What is stored as F32 is mapped: read-only, without a copy. Everything else is computed anew at each call.

        Raises:
            InputError: there is no such tensor, or its type is one that cannot be dequantised.
        """
        info = self.tensors.get(name)
        if info is None:
            raise InputError(f"has no tensor {name!r}", where=str(self.path), todo=nearest(name, self.tensors))
        stored = self._bytes[info.offset : info.offset + info.size]
        if info.type == "F32":
            mapped = stored.view("<f4").reshape(info.shape)
            return mapped if mapped.flags.aligned and sys.byteorder == "little" else mapped.astype(np.float32)
        return self._dequantised(name, info, stored)

    def _dequantised(self, name: str, info: TensorInfo, stored: npt.NDArray[np.uint8]) -> Floats:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

        type = GGMLQuantizationType[info.type]
        block_length, block_size = GGML_QUANT_SIZES[type]
        numbers = np.empty(prod(info.shape), dtype=np.float32)
        step = CHUNK // block_length * block_size
        try:
            with np.errstate(all="ignore"):  # a damaged scale may be infinite: so are then its numbers
                for start in range(0, info.size, step):
                    part = quants.dequantize(stored[start : start + step].reshape(1, -1), type)
                    numbers[start // block_size * block_length :][: part.size] = part[0]
        except NotImplementedError:
            raise InputError(
                f"the tensor {name!r} is stored as {info.type}, which cannot be dequantised", where=str(self.path)
            ) from None
        return numbers.reshape(info.shape)

    def _alignment(self) -> int:
        alignment = self.metadata.integer("general.alignment", ALIGNMENT)
        if alignment <= 0 or alignment & (alignment - 1):
            raise DamagedError(f"its alignment, {alignment}, is no power of two", where=str(self.path))
        return alignment


class _Cursor:
    """Reads the head of a GGUF file from front to back, and never past its end."""

    def __init__(self, data: npt.NDArray[np.uint8], where: str) -> None:
        self._view, self._where = memoryview(data.data), where
        self._size = len(data)
        self._room = self._size + ROOM
        self.position = 0

    def number(self, format: str) -> Any:
        """One number."""
        try:
            (number,) = struct.unpack_from(format, self._view, self.position)
        except struct.error:
            raise self._damaged("ends where a number should follow", "Is the file cut short?") from None
        self.position += struct.calcsize(format)
        return number

    def entries(self, count: int) -> Iterator[tuple[str, Value]]:
        """The keys and values of the metadata."""
        self._require(count, 13, "keys")  # a key's length, a value's type, at least one byte of value
        seen: set[str] = set()
        for _ in range(count):
            key = self._name("key", seen)
            yield key, self._value(self.number(U32), key)

    def tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        """What the file says of its tensors, checked against each other and the file's size."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        self._require(count, 24, "tensors")
        described: dict[str, tuple[tuple[int, ...], GGMLQuantizationType, int]] = {}
        seen: set[str] = set()
        for _ in range(count):
            name = self._name("tensor", seen)
            dimensions = self.number(U32)
            if dimensions > MOST_DIMENSIONS:
                raise self._damaged(f"the tensor {name!r} has {dimensions} dimensions")
            shape = tuple(self._array(U64, dimensions)[::-1].tolist())
            number = self.number(U32)
            try:
                described[name] = shape, GGMLQuantizationType(number), self.number(U64)
            except ValueError:
                raise self._damaged(f"the tensor {name!r} is of type {number}, which is not known") from None
        start = -(-self.position // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, (shape, type, offset) in described.items():
            block_length, block_size = GGML_QUANT_SIZES[type]
            if (shape[-1] if shape else 1) % block_length:
                raise self._damaged(f"the tensor {name!r} has rows of other lengths than {type.name} allows: {shape}")
            size = prod(shape) // block_length * block_size
            if not size:
                raise self._damaged(f"the tensor {name!r} has the shape {shape}: it holds nothing")
            if offset % alignment:
                raise self._damaged(f"the tensor {name!r} begins at no multiple of {alignment}")
            if start + offset + size > self._size:
                raise self._damaged(
                    f"the tensor {name!r} would end at byte {start + offset + size:,} of {self._size:,}",
                    "Is the file cut short?",
                )
            tensors[name] = TensorInfo(shape, type.name, start + offset, size)
        self._require_apart(tensors)
        return tensors

    def _require_apart(self, tensors: dict[str, TensorInfo]) -> None:
        end, before = 0, ""
        for name, info in sorted(tensors.items(), key=lambda item: item[1].offset):
            if info.offset < end:
                raise self._damaged(f"the tensors {before!r} and {name!r} overlap")
            end, before = info.offset + info.size, name

    def _name(self, what: str, seen: set[str]) -> str:
        length = self.number(U64)
        if length > LONGEST_NAME:
            raise self._damaged(f"a {what} has a name of {length:,} bytes")
        self._spend(400)  # for what is kept beside the name
        name = self._text(length)
        if name in seen:
            raise self._damaged(f"has the {what} {name!r} twice")
        seen.add(name)
        return name

    def _value(self, type: int, key: str, depth: int = 0) -> Value:
        if type == STRING:
            return self._text(self.number(U64))
        if type == ARRAY:
            return self._values(key, depth)
        if type not in NUMBERS:
            raise self._damaged(f"{key!r} is of type {type}, which does not exist")
        if type == BOOL:
            return bool(self._flags(key, 1)[0])
        value = self.number(NUMBERS[type])
        # The shortest decimal number that gives these 32 bits: 1e-05 comes back as it was configured.
        return float(str(np.float32(value))) if NUMBERS[type] == F32 else value

    def _values(self, key: str, depth: int) -> Value:
        if depth == DEEPEST_ARRAY:
            raise self._damaged(f"{key!r} has arrays nested deeper than {DEEPEST_ARRAY}")
        type, count = self.number(U32), self.number(U64)
        if type == STRING:
            return self._texts(key, count)
        if type == ARRAY:
            self._require(count, 12, f"arrays in {key!r}")
            self._spend(200 * count)
            return [self._value(ARRAY, key, depth + 1) for _ in range(count)]
        if type not in NUMBERS:
            raise self._damaged(f"{key!r} is an array of type {type}, which does not exist")
        if type == BOOL:
            return self._flags(key, count)
        array = self._array(NUMBERS[type], count)
        self._spend(array.nbytes)
        return array.copy()

    def _texts(self, key: str, count: int) -> list[str]:
        self._require(count, 8, f"strings in {key!r}")
        texts = []
        for _ in range(count):  # a vocabulary: a quarter of a million turns
            start = self.position + 8
            if start > self._size:
                raise self._damaged(f"ends within {key!r}", "Is the file cut short?")
            texts.append(self._text(struct.unpack_from(U64, self._view, self.position)[0], start))
        return texts

    def _text(self, length: int, start: int | None = None) -> str:
        start = self.position if start is None else start
        end = start + length
        if end > self._size:
            raise self._damaged(f"has a string of {length:,} bytes, more than are left", "Is the file cut short?")
        try:
            text = str(self._view[start:end], "utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"has a string at byte {start:,} that is not UTF-8") from None
        self._spend(sys.getsizeof(text) + 8)
        self.position = end
        return text

    def _flags(self, key: str, count: int) -> npt.NDArray[np.bool_]:
        bytes = self._array("<B", count)
        self._spend(count)
        if count and bytes.max() > 1:
            raise self._damaged(f"{key!r} must be true or false, and is {bytes.max()}")
        return bytes.astype(np.bool_)

    def _array(self, dtype: str, count: int) -> npt.NDArray[Any]:
        """`count` numbers, still in the file."""
        size = np.dtype(dtype).itemsize * count
        if self.position + size > self._size:
            raise self._damaged(f"ends where {size:,} bytes more should follow", "Is the file cut short?")
        array = np.frombuffer(self._view, dtype, count, self.position) if count else np.zeros(0, dtype)
        self.position += size
        return array

    def _require(self, count: int, least: int, what: str) -> None:
        """Refuse a count of things, each of `least` bytes or more, that cannot be in the rest of the file."""
        if count * least > self._size - self.position:
            raise self._damaged(f"says that it has {count:,} {what}, more than fit into it")

    def _spend(self, size: int) -> None:
        """Refuse metadata that takes more memory than any model's: its size in the file is little evidence of it."""
        self._room -= size
        if self._room < 0:
            raise self._damaged("its metadata would take too much memory: no model has so much")

    def _damaged(self, what: str, todo: str | None = None) -> DamagedError:
        return DamagedError(what, where=self._where, todo=todo)


def _version(head: bytes, where: str) -> int:
    if head[:4] != MAGIC or len(head) < 8:
        raise InputError("is not a GGUF file", where=where)
    little, big = struct.unpack("<I", head[4:])[0], struct.unpack(">I", head[4:])[0]
    if little not in VERSIONS and big in VERSIONS:
        raise InputError("is a GGUF file for big-endian machines", where=where, todo="Convert it with gguf-py.")
    if little not in VERSIONS:
        raise InputError(f"is version {little} of GGUF; versions 2 and 3 can be read", where=where)
    return int(little)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


class Tensor(NamedTuple):
    """A tensor to be written.

    Args:
        name: at most 63 bytes.
        shape: outermost dimension first.
        values: gives its numbers, of that shape; called once, when they are written.
        exact: whether it stays F32 whatever the rest is.
        stored: the type in which `values` gives it, as bytes; None where it gives numbers.
    """

    name: str
    shape: tuple[int, ...]
    values: Callable[[], npt.NDArray[Any]]
    exact: bool = False
    stored: str | None = None


@dataclass(frozen=True)
class Written:
    """What `write_gguf` wrote.

    Args:
        size: of the file, in bytes.
        types: how each tensor is stored.
        fallbacks: the matrices that are of a larger type because their rows do not divide into blocks.
    """

    size: int
    types: dict[str, str]
    fallbacks: tuple[str, ...]


def stored_type(shape: tuple[int, ...], quantization: str, *, exact: bool = False) -> str:
    """How a tensor is stored in a file of this quantisation.

    Vectors stay F32, for they are small and matter; rows that do not divide into blocks are F16.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if exact or len(shape) < 2:
        return "F32"
    block_length, _ = GGML_QUANT_SIZES[GGMLQuantizationType[quantization]]
    return "F16" if shape[-1] % block_length else quantization


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Value],
    tensors: Sequence[Tensor],
    quantization: str = "F32",
    *,
    replace: bool = False,
) -> Written:
    """Write a GGUF file, version 3, one tensor at a time: wholly or not at all.

    Args:
        architecture: llama.cpp's name of the model's family.
        metadata: Python integers become 32 bits where they fit, unsigned unless negative; floats become 32 bits;
            numpy's numbers and arrays keep their types. File type and quantisation version are added.
        quantization: a name in `QUANTIZATIONS`; `stored_type` says what it means for each tensor.
        replace: whether a file of that name may be replaced.

    Raises:
        InputError: the file exists and `replace` is false, there is no such quantisation, a tensor cannot be named or
            held as asked, or two have one name.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if quantization not in QUANTIZATIONS:
        raise InputError(f"there is no quantisation {quantization!r}", todo=nearest(quantization, QUANTIZATIONS))
    _check_tensors(tensors)
    for key in ("general.architecture", "general.alignment"):
        if key in metadata:
            raise InputError("is not for the caller to say", where=key)
    types = {
        tensor.name: tensor.stored or stored_type(tensor.shape, quantization, exact=tensor.exact) for tensor in tensors
    }
    added = {"general.file_type": QUANTIZATIONS[quantization], "general.quantization_version": 2}
    with new_file(path, replace=replace) as temporary:
        writer = _writer(temporary, architecture)
        for key, value in (added | dict(metadata)).items():
            writer.add_key_value(key, *_typed(key, value))
        for tensor in tensors:
            type = GGMLQuantizationType[types[tensor.name]]
            block_length, block_size = GGML_QUANT_SIZES[type]
            size = prod(tensor.shape) // block_length * block_size
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=type)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors:
                writer.write_tensor_data(_quantised(tensor, types[tensor.name]))
        finally:
            writer.close()
        written = temporary.stat().st_size
    fallbacks = tuple(
        tensor.name for tensor in tensors if types[tensor.name] == "F16" != quantization and not tensor.exact
    )
    return Written(written, types, fallbacks)


def _writer(path: Path, architecture: str) -> GGUFWriter:
    from gguf import GGUFValueType, GGUFWriter

    class Writer(GGUFWriter):
        """The package's writer, and empty arrays: it refuses them, llama.cpp reads them (bytes have no merges)."""

        def _pack_val(
            self, val: Any, vtype: GGUFValueType, add_vtype: bool, sub_type: GGUFValueType | None = None
        ) -> bytes:
            if vtype == GGUFValueType.ARRAY and sub_type is not None and not len(val):
                return struct.pack("<IIQ", vtype, sub_type, 0)
            return super()._pack_val(val, vtype, add_vtype, sub_type)

    return Writer(path, architecture)


def _check_tensors(tensors: Sequence[Tensor]) -> None:
    seen = set()
    for name, shape, *_ in tensors:
        if name in seen:
            raise InputError("is the name of two tensors", where=repr(name))
        seen.add(name)
        if not 0 < len(name.encode("utf-8")) <= LONGEST_WRITTEN_NAME:
            raise InputError(f"is no name of 1 to {LONGEST_WRITTEN_NAME} bytes", where=f"tensor {name!r}")
        if not 1 <= len(shape) <= MOST_DIMENSIONS or min(shape) < 1:
            raise InputError(f"has the shape {shape}, which GGUF cannot hold", where=f"tensor {name!r}")


def _quantised(tensor: Tensor, type: str) -> npt.NDArray[Any]:
    """The numbers of a tensor as they are stored, of the size that was announced."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    values = tensor.values()
    if tensor.stored is not None:
        return np.ascontiguousarray(values, dtype=np.uint8).reshape(-1)
    if values.shape != tensor.shape:
        raise InputError(f"has the shape {values.shape} instead of {tensor.shape}", where=f"tensor {tensor.name!r}")
    if type == "F32":
        return np.ascontiguousarray(values, dtype="<f4")
    kind = GGMLQuantizationType[type]
    block_length, block_size = GGML_QUANT_SIZES[kind]
    numbers = np.ascontiguousarray(values).reshape(-1)
    stored = np.empty(numbers.size // block_length * block_size, dtype=np.uint8)
    for start in range(0, numbers.size, CHUNK):
        part = numbers[start : start + CHUNK].astype(np.float32).reshape(1, -1)
        if type != "BF16" and not np.abs(part).max() <= LARGEST_HALF:
            raise InputError(
                f"has numbers beyond {LARGEST_HALF:,.0f}, or such that are none: {type} cannot hold them",
                where=f"tensor {tensor.name!r}",
                todo="Write F32.",
            )
        with np.errstate(all="ignore"):  # the scale of a block of nearly zeros
            bytes = quants.quantize(part, kind).view(np.uint8)[0]
        stored[start // block_length * block_size :][: bytes.size] = bytes
    return stored


def _typed(key: str, value: Value) -> tuple[Any, GGUFValueType, GGUFValueType | None]:
    """A metadata value as the `gguf` package wants it: value, type, type of the elements."""
    from gguf import GGUFValueType

    by_name = {np.dtype(name): GGUFValueType(number) for number, name in NUMBERS.items() if number != BOOL}
    by_name[np.dtype(np.bool_)] = GGUFValueType.BOOL
    if isinstance(value, bool):
        return value, GGUFValueType.BOOL, None
    if isinstance(value, str):
        return value, GGUFValueType.STRING, None
    if isinstance(value, np.generic):
        return value.item(), by_name[value.dtype], None
    if isinstance(value, int):
        fitting = [dtype for dtype in (U32, "<i", U64, "<q") if _fits(value, dtype)]
        if fitting:
            return value, by_name[np.dtype(fitting[0])], None
    if isinstance(value, float):
        return value, GGUFValueType.FLOAT32, None
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype in by_name:
        return value.tolist(), GGUFValueType.ARRAY, by_name[value.dtype]
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value, GGUFValueType.ARRAY, GGUFValueType.STRING
    raise InputError(f"cannot be written to GGUF: {type(value).__name__}", where=key)


def _fits(value: int, dtype: str) -> bool:
    limits = np.iinfo(dtype)
    return int(limits.min) <= value <= int(limits.max)
