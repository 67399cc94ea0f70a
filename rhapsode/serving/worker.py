"""One model's engine in a thread of its own, for many asynchronous readers.

worker = Worker(model, longest_queue=256); reader = await worker.submit(ids, [Sampling()])
async for piece in reader.pieces(): ...
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

from rhapsode.base.errors import RhapsodeError
from rhapsode.inference.engine import Request
from rhapsode.inference.language_model import LanguageModel
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.text import Piece

log = logging.getLogger(__name__)


class Reader:
    """The pieces of one request, as they come from the engine's thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._loop = worker, asyncio.get_running_loop()
        # No longer than the texts can become: who reads slowly holds up nobody.
        self._pieces: asyncio.Queue[tuple[list[Piece], bool]] = asyncio.Queue()
        self.request: Request

    def deliver(self, pieces: list[Piece], last: bool) -> None:
        """Hand over what was written; called by the engine's thread."""
        with suppress(RuntimeError):  # the loop has been closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, (pieces, last))

    async def pieces(self) -> AsyncGenerator[Piece]:
        """Each piece as it is written. Who stops reading cancels this request, and no other.

        Raises:
            RhapsodeError: the request could not be finished.
        """
        last = False
        try:
            while not last:
                pieces, last = await self._pieces.get()
                for piece in pieces:
                    yield piece
            if self.request.error is not None:
                raise self.request.error
        finally:
            if not last:
                self._worker.cancel(self.request)


class Worker:
    """Writes what it is asked for, in one thread.

    Args:
        longest_queue: texts that may wait for their turn.
    """

    def __init__(self, model: LanguageModel, *, longest_queue: int) -> None:
        self.model = model
        self._engine = model.engine()
        self._engine.longest_queue = longest_queue
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._readers: dict[Request, Reader] = {}
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when all that was asked for is written."""
        self._orders.put(None)
        self._thread.join()

    async def submit(
        self,
        prompt: Sequence[int],
        samplings: Sequence[Sampling],
        *,
        log_probabilities: int | None = None,
        deadline: float | None = None,
    ) -> Reader:
        """Ask for texts from one prompt; arguments and errors as `Engine.submit`."""
        reader, begun = Reader(self), Future[Request]()
        ask = partial(
            self._engine.submit,
            prompt,
            samplings,
            self.model.end_ids,
            deadline=deadline,
            log_probabilities=log_probabilities,
        )
        self._orders.put(partial(self._begin, reader, begun, ask))
        reader.request = await asyncio.wrap_future(begun)
        return reader

    def cancel(self, request: Request) -> None:
        """Stop writing what a request asked for."""
        self._orders.put(partial(self._cancel, request))

    def _begin(self, reader: Reader, begun: Future[Request], ask: Callable[[], Request]) -> None:
        if not begun.set_running_or_notify_cancel():  # whoever asked has gone already
            return
        try:
            request = ask()
        except RhapsodeError as error:
            begun.set_exception(error)
            return
        self._readers[request] = reader
        begun.set_result(request)

    def _cancel(self, request: Request) -> None:
        self._engine.cancel(request)
        self._readers.pop(request, None)

    def _work(self) -> None:
        stopping = False
        while True:
            with suppress(Empty):
                wait = self._engine.idle and not stopping
                while True:
                    order = self._orders.get(block=wait)
                    wait = False
                    if order is None:
                        stopping = True
                    else:
                        order()
            if stopping and self._engine.idle:
                return
            try:
                self._engine.step()
            except Exception as error:  # one step holds all texts: none of them can go on
                log.exception("a step failed")
                for request in list(self._readers):
                    request.error = error if isinstance(error, RhapsodeError) else RhapsodeError("a step failed here")
                    self._engine.cancel(request)
            for request, reader in list(self._readers.items()):
                pieces = list(request.waiting)
                request.waiting.clear()
                if pieces or request.finished:
                    reader.deliver(pieces, request.finished)
                if request.finished:
                    del self._readers[request]
