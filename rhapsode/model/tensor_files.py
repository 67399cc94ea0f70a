"""safetensors files: tensors by name. Read without holding more than is used, written one tensor at a time.

The library reads, and checks every offset. What is added here: a header too large to be one is refused before it is
parsed; a file whose tensors are converted is let go of in between, so that its pages do not stay in memory beside the
converted ones; and a file is written without holding its tensors twice, with the bytes that the library would write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rhapsode.base.errors import DamagedError, InputError, shown
from rhapsode.base.progress import Progress

LARGEST_HEADER = 32 * 2**20  # bytes; that of a file with 100,000 tensors has 15 MB
CONVERTED_AT_ONCE = 64 * 2**20  # bytes of a file that may stay mapped after they were converted
LONGEST_REASON = 200  # characters of what the library says
ALIGNMENT = 8  # of the first tensor, as the library writes it

READABLE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that are numbers by themselves. Eight bits and fewer need scales beside them."""


class TensorFiles:
    """The tensors of several files, by name.

    Args:
        paths: the files.
        where: the folder, for messages.

    Raises:
        InputError: a file is missing.
        DamagedError: a file is not what it should be, or a name is in two of them.
    """

    def __init__(self, paths: Sequence[Path], where: str) -> None:
        self.where = where
        self._path_of: dict[str, Path] = {}
        self._handles: dict[Path, Any] = {}
        self._passing: tuple[Path, Any] | None = None
        self._converted = 0
        for path in paths:
            _check_header(path)
            with _damage(path):
                handle = self._handles[path] = safe_open(str(path), framework="pt")
                for name in handle.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118  # not a dict
                    if name in self._path_of:
                        raise DamagedError(
                            f"tensor {shown(name)} is also in {self._path_of[name].name}", where=str(path)
                        )
                    self._path_of[name] = path

    @property
    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._path_of)

    @property
    def numbers(self) -> int:
        """In all tensors together."""
        return sum(math.prod(self.shape(name)) for name in self._path_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        path = self._path_of[name]
        with _damage(path):
            return tuple(self._handles[path].get_slice(name).get_shape())

    def kind(self, name: str) -> str:
        """How the numbers of a tensor are stored, such as "F16"."""
        path = self._path_of[name]
        with _damage(path):
            return str(self._handles[path].get_slice(name).get_dtype())

    def metadata(self) -> dict[str, str]:
        """What the files say of themselves."""
        said: dict[str, str] = {}
        for path, handle in self._handles.items():
            with _damage(path):
                said |= handle.metadata() or {}
        return said

    def mapped(self, name: str) -> Tensor:
        """A tensor as it lies in its file, mapped into memory; what is written to it stays in memory."""
        path = self._path_of[name]
        with _damage(path):
            mapped: Tensor = self._handles[path].get_tensor(name)
        return mapped

    def tensor(self, name: str, *, as_it_is: bool) -> Tensor:
        """The numbers of a tensor, in fp32.

        Args:
            as_it_is: it is used in the layout of the file: where it is fp32 there, it is `mapped`. Otherwise it is
                read, and the file is let go of.

        Raises:
            InputError: it is of a type that needs more than itself to be understood.
        """
        path, kind = self._path_of[name], self.kind(name)
        if kind not in READABLE:
            raise InputError(
                f"tensor {shown(name)} is of the type {kind}; {', '.join(READABLE)} can be read",
                where=str(path),
                todo="Name a folder with weights that are not quantised, or a GGUF file of the model.",
            )
        if as_it_is and kind == "F32":
            return self.mapped(name)
        with _damage(path):
            if self._passing is None or self._passing[0] != path or self._converted > CONVERTED_AT_ONCE:
                self._passing, self._converted = (path, safe_open(str(path), framework="pt")), 0
            tensor: Tensor = self._passing[1].get_tensor(name)
        self._converted += tensor.nbytes
        return tensor.clone() if kind == "F32" else tensor.to(torch.float32)


def _check_header(path: Path) -> None:
    """Refuse a file that cannot be one before the library parses it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
    except FileNotFoundError:
        raise InputError("the file with the weights does not exist", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    if size < 8 or header > size - 8:
        raise _damaged(path, "it is cut short, or no safetensors file")
    if header > LARGEST_HEADER:
        raise _damaged(path, f"its header would have {header:,} bytes")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever the library says of a broken file, as our error."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise _damaged(path, str(error).partition("\n")[0][:LONGEST_REASON]) from None


def _damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(f"is damaged ({why})", where=str(path), todo="Copy or download it again.")


def encoded_header(
    tensors: Iterable[tuple[str, str, Sequence[int], int]], metadata: dict[str, str], alignment: int = ALIGNMENT
) -> bytes:
    """What stands in a file before the tensors.

    Args:
        tensors: name, type, shape and bytes of each, in the order in which they follow.
        alignment: of the first one, in bytes.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, kind, shape, size in tensors:
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text


class Written(NamedTuple):
    """A tensor to be written, in fp32.

    Args:
        make: gives it; called once, when its turn has come.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """In bytes."""
        return 4 * math.prod(self.shape)


def write_tensors(path: Path, tensors: Sequence[Written], progress: Progress) -> None:
    """Write a safetensors file of fp32 tensors, byte for byte as the library does.

    Args:
        progress: advances by the bytes of each tensor.

    Raises:
        OSError: it could not be written.
    """
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    with path.open("wb") as file:
        described = ((tensor.name, "F32", tensor.shape, tensor.size) for tensor in ordered)
        file.write(encoded_header(described, {"format": "pt"}))
        for tensor in ordered:
            values = tensor.make().detach().to(device="cpu", dtype=torch.float32).contiguous()
            assert tuple(values.shape) == tensor.shape
            file.write(values.numpy().data)
            progress.advance(tensor.size)
