"""What a file is, by its content: its name proves nothing. Done without torch, which takes a second to import."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rhapsode.base.errors import InputError
from rhapsode.exchange import gguf_file, hub, llama2c

Kind = Literal["GGUF", "llama2.c", "pickle", "JSON", "safetensors", "unknown"]

HEAD = 512  # bytes of a file that tell what it is
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How files begin that torch.save writes, packed or not."""


def is_model(name: Path) -> bool:
    """Whether a path, or the name of a model on the hub, is for `open_model`: a folder, or a file of a model."""
    if name.exists():
        return name.is_dir() or kind_of(name) in ("GGUF", "llama2.c")
    return hub.is_name(name.as_posix())


def kind_of(path: Path) -> Kind:
    """What a file is.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head, size = file.read(HEAD), path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    if head[:4] == gguf_file.MAGIC:
        return "GGUF"
    if head.startswith(PICKLES):
        return "pickle"
    if head.lstrip()[:1] == b"{":
        return "JSON"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "safetensors"
    return "llama2.c" if llama2c.recognise(head, size) else "unknown"
