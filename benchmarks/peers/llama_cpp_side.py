"""llama.cpp by its own interface: prompts are read and several texts written at once, and nothing is drawn.

    side = LlamaCpp(Path("model.gguf"), threads=2); room = side.rooms(texts=8, tokens=256)["flash attention"]
    room.read(0, ids); room.write([5, 6, 7, 8, 9, 10, 11, 12], past=len(ids)); room.logits()

What `rooms` gives is a `Room` of sides.py.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from rhapsode.exchange.gguf_file import GgufFile

PADDING = 256
"""llama.cpp's caches are of multiples of so many tokens."""
AT_ONCE = 512
"""Tokens of a prompt that are computed together, its default (n_ubatch)."""
FLASH = {
    "flash attention": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "plain attention": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}

_SILENCE = llama_cpp.llama_log_callback(lambda level, text, data: None)  # called to the end of the process


def about() -> str:
    """The version, and what of this processor it was built for."""
    parts = llama_cpp.llama_print_system_info().decode().split("|")
    features = [part.split(":")[-1].split("=")[0].strip() for part in parts if part.strip().endswith("= 1")]
    return f"llama-cpp-python {llama_cpp.__version__} ({', '.join(features)})"


class LlamaCpp:
    """A GGUF file, open.

    Args:
        threads: for prompts as for single tokens.

    Attributes:
        weight_bytes: of all tensors that a step reads; of an embedding that is no head it is only a row a token.
        number_bytes: of a number in the cache, 16 bits by llama.cpp's default.
    """

    number_bytes: float = 2

    def __init__(self, path: Path, threads: int) -> None:
        llama_cpp.llama_log_set(_SILENCE, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp does not open {path}")
        weakref.finalize(self, llama_cpp.llama_model_free, self.model)
        self.threads = threads
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary_size = int(llama_cpp.llama_vocab_n_tokens(vocabulary))
        sizes = {name: info.size for name, info in GgufFile(path).tensors.items()}
        if "output.weight" in sizes:
            del sizes["token_embd.weight"]
        self.weight_bytes = sum(sizes.values())

    def rooms(self, texts: int, tokens: int) -> dict[str, LlamaCppRoom]:
        """Room for so many texts of so many tokens, for each way to compute attention."""
        return {name: LlamaCppRoom(self, texts, tokens, flash) for name, flash in FLASH.items()}


class Batch:
    """What a call of llama.cpp reads, in arrays of ours; `of` holds it as llama.cpp wants it."""

    def __init__(self, size: int) -> None:
        self.ids, self.places, self.texts, self.counts = (np.ones(size, dtype=np.int32) for _ in range(4))
        self.wanted = np.ones(size, dtype=np.int8)
        self._owners = (self.texts.ctypes.data + self.texts.itemsize * np.arange(size)).astype(np.uintp)
        self.of = llama_cpp.llama_batch(
            n_tokens=size,
            token=_pointer(self.ids, llama_cpp.llama_token),
            pos=_pointer(self.places, llama_cpp.llama_pos),
            n_seq_id=_pointer(self.counts, ctypes.c_int32),
            seq_id=_pointer(self._owners, ctypes.POINTER(llama_cpp.llama_seq_id)),
            logits=_pointer(self.wanted, ctypes.c_int8),
        )


class LlamaCppRoom:
    """A context: the keys and values of some texts, and what was computed last.

    The texts' caches are apart, as llama.cpp advises for texts without a common beginning.
    """

    def __init__(self, side: LlamaCpp, texts: int, tokens: int, flash: int) -> None:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_seq_max = texts
        parameters.n_ctx = texts * -(-tokens // PADDING) * PADDING
        parameters.n_batch = max(AT_ONCE, tokens)
        parameters.n_ubatch = AT_ONCE
        parameters.n_threads = parameters.n_threads_batch = side.threads
        parameters.flash_attn_type = flash
        parameters.kv_unified = False
        self._context = llama_cpp.llama_init_from_model(side.model, parameters)
        if not self._context:
            raise SystemExit(f"llama.cpp has no room for {texts} texts of {tokens} tokens")
        weakref.finalize(self, llama_cpp.llama_free, self._context)
        self._side = side  # whose model must outlive this
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._reading, self._writing = Batch(parameters.n_batch), Batch(texts)
        self._writing.texts[:] = np.arange(texts)
        self._texts, self._length, self._rows = texts, 0, 0
        self._logits: Any = None

    def read(self, text: int, ids: Sequence[int], wanted: int = 1) -> None:
        """Read a text from its start; of so many of its last tokens the logits are wanted."""
        llama_cpp.llama_memory_seq_rm(self._memory, text, -1, -1)
        batch, count = self._reading, len(ids)
        batch.of.n_tokens = count
        batch.ids[:count] = ids
        batch.places[:count] = np.arange(count)
        batch.texts[:count] = text
        batch.wanted[:count] = 0
        batch.wanted[count - wanted : count] = 1
        self._compute(batch, wanted)
        self._length = count

    def write(self, ids: Sequence[int], past: int) -> None:
        """Read one more token of each text, after its first `past`; what else came after those is forgotten."""
        if past < self._length:
            for text in range(self._texts):
                llama_cpp.llama_memory_seq_rm(self._memory, text, past, -1)
        batch = self._writing
        batch.ids[:] = ids
        batch.places[:] = past
        self._compute(batch, self._texts)
        self._length = past + 1

    def logits(self) -> npt.NDArray[np.float32]:
        """(rows, vocabulary) of the last call: the wanted ones, or one for each text."""
        return np.ctypeslib.as_array(self._logits, shape=(self._rows, self._side.vocabulary_size)).copy()

    def _compute(self, batch: Batch, rows: int) -> None:
        if code := llama_cpp.llama_decode(self._context, batch.of):
            raise SystemExit(f"llama_decode answers {code}")
        self._logits, self._rows = llama_cpp.llama_get_logits(self._context), rows  # waits until it is computed


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
