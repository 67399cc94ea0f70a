"""One model's engine in a thread of its own, for many asynchronous readers.

worker = Worker(model, longest_queue=256); reader = await worker.submit([ids], [Sampling()])
async for piece in reader.pieces(): ...
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from rhapsode.base.errors import RhapsodeError
from rhapsode.inference.beams import BeamSearch
from rhapsode.inference.chat import ChatTemplate
from rhapsode.inference.engine import Look, Request
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.text import Piece
from rhapsode.inference.tools import ToolFormat

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Reader:
    """The pieces of what was asked for together, as they come from the engine's thread.

    Attributes:
        requests: one for each prompt.
    """

    def __init__(self, worker: Worker, texts_of_one: int) -> None:
        self._worker, self._loop, self._texts_of_one = worker, asyncio.get_running_loop(), texts_of_one
        # No longer than the texts can become: who reads slowly holds up nobody.
        self._pieces: asyncio.Queue[tuple[int, list[Piece], bool]] = asyncio.Queue()
        self.requests: list[Request] = []

    def deliver(self, number: int, pieces: list[Piece], last: bool) -> None:
        """Hand over what was written after a prompt; called by the engine's thread."""
        with suppress(RuntimeError):  # the loop has been closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, (number, pieces, last))

    async def pieces(self) -> AsyncGenerator[Piece]:
        """Each piece as it is written; rows count on from prompt to prompt. Who stops reading cancels all of it.

        Raises:
            RhapsodeError: one of the requests could not be finished.
        """
        left = len(self.requests)
        try:
            while left:
                number, pieces, last = await self._pieces.get()
                for piece in pieces:
                    yield replace(piece, row=number * self._texts_of_one + piece.row)
                left -= last
                error = self.requests[number].error
                if last and error is not None:
                    raise error
        finally:
            if left:
                self.cancel()

    def cancel(self) -> None:
        """Stop writing what was asked for."""
        for request in self.requests:
            self._worker.cancel(request)


class Worker:
    """Writes what it is asked for, in one thread.

    Args:
        longest_queue: texts that may wait for their turn.
    """

    def __init__(self, model: LanguageModel, *, longest_queue: int) -> None:
        self.model = model
        self.engine = model.engine() if model.config.kind == "decoder" else None
        if self.engine is not None:
            self.engine.longest_queue = longest_queue
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._readers: dict[Request, tuple[Reader, int]] = {}
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when all that was asked for is written."""
        self._orders.put(None)
        self._thread.join()

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's chat template; errors as its own."""
        return ChatTemplate(self.model)

    @cached_property
    def tool_format(self) -> ToolFormat:
        """How the model calls tools; errors as `ToolFormat.of`."""
        return ToolFormat.of(self.template)

    async def submit(
        self,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        *,
        look: Look = Look(),  # noqa: B008  # frozen
        deadline: float | None = None,
        search: BeamSearch | None = None,
    ) -> Reader:
        """Ask for texts from prompts, for each as many as `samplings`; arguments and errors as `Engine.submit`.

        With `search` they are searched for: the first of `samplings` says what they must be, as in `Engine.search`.
        """
        reader = Reader(self, len(samplings))
        try:
            await self.run(partial(self._begin, reader, prompts, samplings, look, search, deadline))
        except asyncio.CancelledError:  # whoever asked has gone, perhaps when it had begun
            self._orders.put(reader.cancel)
            raise
        return reader

    async def run(self, do: Callable[[], Result]) -> Result:
        """Do something in the engine's thread, between two steps; what it raises is raised here."""
        done = Future[Result]()

        def order() -> None:
            if not done.set_running_or_notify_cancel():  # whoever asked has gone already
                return
            try:
                done.set_result(do())
            except Exception as error:
                done.set_exception(error)

        self._orders.put(order)
        return await asyncio.wrap_future(done)

    def cancel(self, request: Request) -> None:
        """Stop writing what a request asked for."""
        self._orders.put(partial(self._cancel, request))

    def _begin(
        self,
        reader: Reader,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        look: Look,
        search: BeamSearch | None,
        deadline: float | None,
    ) -> None:
        self.model.require_decoder()
        assert self.engine is not None
        engine, ends, count = self.engine, self.model.end_ids, len(samplings)
        try:
            for prompt in prompts:
                reader.requests.append(
                    engine.submit(prompt, samplings, ends, look=look, deadline=deadline)
                    if search is None
                    else engine.search(prompt, search, ends, sampling=samplings[0], count=count, deadline=deadline)
                )
        except RhapsodeError:
            for request in reader.requests:
                self.engine.cancel(request)
            raise
        self._readers.update((request, (reader, number)) for number, request in enumerate(reader.requests))

    def _cancel(self, request: Request) -> None:
        assert self.engine is not None
        self.engine.cancel(request)
        self._readers.pop(request, None)

    def _work(self) -> None:
        stopping = False
        while True:
            idle = self.engine is None or self.engine.idle
            with suppress(Empty):
                wait = idle and not stopping
                while True:
                    order = self._orders.get(block=wait)
                    wait = False
                    if order is None:
                        stopping = True
                    else:
                        order()
            if self.engine is None or self.engine.idle:
                if stopping:
                    return
                continue
            try:
                self.engine.step()
            except Exception as error:  # one step holds all texts: none of them can go on
                log.exception("a step failed")
                for request in list(self._readers):
                    request.error = error if isinstance(error, RhapsodeError) else RhapsodeError("a step failed here")
                    self.engine.cancel(request)
            for request, (reader, number) in list(self._readers.items()):
                pieces = list(request.waiting)
                request.waiting.clear()
                if pieces or request.finished:
                    reader.deliver(number, pieces, request.finished)
                if request.finished:
                    del self._readers[request]
