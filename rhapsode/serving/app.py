"""The API: routes of the OpenAI dialect, and what guards them. `rhapsode serve runs/mytext` runs it."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from rhapsode import __version__
from rhapsode.base.errors import InputError, RhapsodeError, nearest
from rhapsode.inference.engine import QueueFullError
from rhapsode.inference.language_model import LanguageModel
from rhapsode.serving import answers
from rhapsode.serving.messages import ChatRequest, CompletionRequest
from rhapsode.serving.page import add_page
from rhapsode.serving.worker import Worker

LARGEST_BODY = 4 << 20  # bytes
QUEUE = 256  # texts that wait
BODY_SECONDS = 20  # without a byte of a body
CLIENT_GONE = 499  # as nginx has it; nobody reads it


def application(
    models: Mapping[str, LanguageModel], *, hosts: frozenset[str], api_key: str | None = None, queue: int = QUEUE
) -> FastAPI:
    """The application that serves these models.

    Args:
        models: each under the name by which requests ask for it.
        hosts: the values of a Host header that are answered, so that no web page can reach the server by a name of
            its own; empty for any.
        api_key: what requests must carry; None for nothing.
        queue: texts that may wait for each model.
    """
    workers = {name: Worker(model, longest_queue=queue) for name, model in models.items()}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for worker in workers.values():  # whatever was accepted is finished
            await asyncio.to_thread(worker.stop)

    app = FastAPI(title="Rhapsode", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, hosts=hosts, api_key=api_key)
    add_page(app)

    def worker(name: str) -> Worker:
        if name not in workers:
            raise HTTPException(404, f"there is no model {name!r}. {nearest(name, workers)}")
        return workers[name]

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "rhapsode"} for name in workers]
        return {"object": "list", "data": listed}

    @app.post("/v1/completions", response_model=None)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        return await answered(await answers.completion(worker(asked.model), asked), request)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        return await answered(await answers.chat(worker(asked.model), asked), request)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        field = errors[0]["loc"][1:2]
        # Of a field that may be of several kinds, the one that fits best has its mistake deepest inside.
        told = max((each for each in errors if each["loc"][1:2] == field), key=lambda each: len(each["loc"]))
        parts = [str(part) for part in told["loc"][1:] if isinstance(part, int) or part.isidentifier()]
        place = ".".join(parts)
        return refusal(400, f"{place}: {told['msg']}" if place else told["msg"], place or None)

    @app.exception_handler(InputError)
    async def wrong(_: Request, error: InputError) -> JSONResponse:
        return refusal(400, error.message, error.where)

    @app.exception_handler(QueueFullError)
    async def full(_: Request, error: QueueFullError) -> JSONResponse:
        return refusal(503, error.message, headers={"Retry-After": "5"})

    @app.exception_handler(RhapsodeError)
    async def failed(_: Request, error: RhapsodeError) -> JSONResponse:
        return refusal(500, error.message)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return refusal(error.status_code, str(error.detail))

    return app


async def answered(answer: answers.Answer, request: Request) -> Response:
    """The answer as a stream, or whole; nothing more is written for a client that has gone."""
    if answer.asked.stream:
        return StreamingResponse(answer.events(), media_type="text/event-stream")
    whole, gone = asyncio.create_task(answer.whole()), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((whole, gone), return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(whole.result()) if whole.done() else Response(status_code=CLIENT_GONE)
    finally:
        whole.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 413: "request_too_large"}


def refusal(
    status: int, message: str, place: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error in the dialect's form."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": place, "code": None}
    return JSONResponse({"error": error}, status, headers)


class Guard:
    """Refuses what must not reach a route: a strange Host or Origin, a wrong key, a body that is too large."""

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, hosts: frozenset[str], api_key: str | None
    ) -> None:
        self._app, self._hosts, self._api_key = app, hosts, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope["path"], headers)
        if refused is not None:
            await refused(scope, receive, send)
            return
        body, more = b"", True
        while more:
            try:
                message = await asyncio.wait_for(receive(), BODY_SECONDS)
            except TimeoutError:
                await refusal(408, f"nothing came for {BODY_SECONDS} seconds")(scope, receive, send)
                return
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > LARGEST_BODY:
                await refusal(413, f"the body is larger than {LARGEST_BODY:,} bytes")(scope, receive, send)
                return
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, whole, send)

    def _refused(self, path: str, headers: Mapping[str, str]) -> JSONResponse | None:
        if self._hosts and headers.get("host", "") not in self._hosts:
            return refusal(421, "this server does not answer to that name (Host)")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
            return refusal(403, "requests from other sites are not answered (Origin)")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            return refusal(413, f"the body is larger than {LARGEST_BODY:,} bytes")
        if self._api_key is not None and path != "/health":
            scheme, _, key = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(key.strip().encode("utf-8"), self._api_key.encode("utf-8"))
            if scheme.lower() != "bearer" or not right:
                return refusal(401, "the API key is missing or wrong")
        return None
