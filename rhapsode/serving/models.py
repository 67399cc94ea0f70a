"""The models of one server, each under its name: loaded when one is asked for, put away when another needs the room.

models = Models({"mytext": Path("runs/mytext")}, device="auto", memory=8 << 30, queue=256)
lease = await models.lease("mytext"); ...; lease.end()
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhapsode.base.errors import InputError, RhapsodeError, nearest
from rhapsode.base.machine import give_back_freed_memory
from rhapsode.exchange.opening import outline
from rhapsode.inference.cache_type import NUMBER_BYTES, CacheType
from rhapsode.inference.chat import is_tuned_for_chat
from rhapsode.inference.language_model import load
from rhapsode.inference.step import block_bytes
from rhapsode.model.config import Kind
from rhapsode.serving.worker import Worker

log = logging.getLogger(__name__)


class UnknownModelError(InputError):
    """No model has that name."""


class BrokenModelError(RhapsodeError):
    """A model that there was when the server started cannot be opened any more."""


class NoRoomError(RhapsodeError):
    """The model fits only when others are put away, and they are in use."""


@dataclass
class Served:
    """A model that can be asked for.

    Attributes:
        weights: bytes of memory that its weights take.
        needed: bytes that it takes with its cache; 0 before that is known.
        taken: bytes that it takes now; 0 when it is not loaded.
        users: requests that hold it.
        facts: what is known of it since it was first loaded.
    """

    name: str
    path: Path
    kind: Kind
    weights: int
    worker: Worker | None = None
    needed: int = 0
    taken: int = 0
    users: int = 0
    used: float = 0.0
    facts: Facts | None = None


@dataclass(frozen=True)
class Facts:
    """What clients may want to know of a model."""

    chat: bool
    context_length: int


class Lease:
    """A model that is not put away before `end`."""

    def __init__(self, served: Served) -> None:
        assert served.worker is not None
        self._served: Served | None = served
        self.worker = served.worker
        served.users += 1

    def end(self) -> None:
        """Let it be put away."""
        if self._served is not None:
            self._served.users -= 1
            self._served.used = time.monotonic()
            self._served = None


class Models:
    """All models of a server.

    Args:
        paths: of each model, by the name it is asked for by.
        memory: bytes that all that are loaded may take, with their caches; each cache takes at most a quarter of it.
        queue: texts that may wait for each model.
        cache_type: what keys and values are kept in.

    Raises:
        InputError: there is no model at a path, or it is larger than the memory.
    """

    def __init__(
        self, paths: Mapping[str, Path], *, device: str, memory: int, queue: int, cache_type: CacheType = "float32"
    ) -> None:
        self._device, self._memory, self._queue, self._cache_type = device, memory, queue, cache_type
        self._served = {}
        for name, path in paths.items():
            seen = outline(path)
            if seen.kind == "encoder-decoder":
                raise InputError("a server has decoders and encoders; this is an encoder-decoder", where=str(path))
            if seen.weights > memory:
                raise InputError(
                    f"its weights take {seen.weights / 1e9:.2f} GB, more than the {memory / 1e9:.2f} GB for models",
                    where=str(path),
                    todo="Give more with --memory.",
                )
            self._served[name] = Served(name, path, seen.kind, seen.weights)
        self._loading = asyncio.Lock()

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __getitem__(self, name: str) -> Served:
        if name not in self._served:
            raise UnknownModelError(f"there is no model {name[:200]!r}", todo=nearest(name[:200], self._served))
        return self._served[name]

    async def lease(self, name: str) -> Lease:
        """A model, loaded.

        Raises:
            UnknownModelError: there is none of that name.
            NoRoomError: others would have to be put away, and are in use.
            BrokenModelError: it cannot be opened any more, or it alone does not fit.
        """
        served = self[name]
        if served.worker is None:
            async with self._loading:
                if served.worker is None:
                    await self._load(served)
        return Lease(served)

    async def load_first(self) -> None:
        """Load the model that was named first; errors as `lease`."""
        (await self.lease(next(iter(self._served)))).end()

    async def stop(self) -> None:
        """Put all away, when what was accepted is written."""
        for served in self:
            if served.worker is not None:
                await asyncio.to_thread(served.worker.stop)

    async def _load(self, served: Served) -> None:
        await self._make_room(served, served.needed or served.weights)
        try:
            model = await asyncio.to_thread(load, served.path, self._device)
        except (RhapsodeError, OSError) as error:  # it tells where the model lies, which is nobody's business
            log.error("%s cannot be opened any more: %s", served.name, error)
            raise BrokenModelError("cannot be opened any more; the server's log says why", where=served.name) from None
        model.where = served.name
        model.cache_type = self._cache_type
        model.cache_bytes = min(self._memory // 4, self._memory - served.weights)
        cache = 0
        if served.kind == "decoder":
            cache = model.engine().pool.count * block_bytes(model.config, NUMBER_BYTES[model.cache_type])
        served.needed = max(served.weights, model.weight_bytes) + cache
        await self._make_room(served, served.needed)
        served.worker, served.taken = Worker(model, longest_queue=self._queue), served.needed
        served.facts = Facts(is_tuned_for_chat(model), model.config.context_length)

    async def _make_room(self, wanted: Served, size: int) -> None:
        """Put models away, the longest unused first, until `size` bytes are free."""
        if size > self._memory:
            raise BrokenModelError(
                f"takes {size / 1e9:.2f} GB with the cache for one text; models may take {self._memory / 1e9:.2f} GB",
                where=wanted.name,
                todo="Give more with --memory.",
            )
        while sum(served.taken for served in self) + size > self._memory:
            idle = [served for served in self if served.worker is not None and served.users == 0]
            if not idle:
                raise NoRoomError(
                    f"there is no room for {wanted.name} while others are in use",
                    todo="Try again later, or give the server more memory.",
                )
            oldest = min(idle, key=lambda served: served.used)
            assert oldest.worker is not None
            worker, oldest.worker, oldest.taken = oldest.worker, None, 0
            await asyncio.to_thread(worker.stop)
            del worker
            gc.collect()
            give_back_freed_memory()


def described(served: Served) -> dict[str, Any]:
    """A model as the dialect lists it; what is not known before it is loaded is null."""
    facts = served.facts
    return {
        "id": served.name,
        "object": "model",
        "created": 0,
        "owned_by": "rhapsode",
        "kind": served.kind,
        "chat": facts and facts.chat,
        "max_model_len": facts and facts.context_length,
        "loaded": served.worker is not None,
    }
