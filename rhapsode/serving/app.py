"""The API: routes of the OpenAI dialect, and a few of our own. `rhapsode serve runs/mytext` runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from rhapsode import __version__
from rhapsode.base.errors import InputError, RhapsodeError
from rhapsode.inference.engine import QueueFullError, TooLateError
from rhapsode.inference.sampling import Sampling
from rhapsode.inference.styles import STYLES
from rhapsode.serving import chats, completions, looks
from rhapsode.serving.answers import SHAPING, answered
from rhapsode.serving.bodies import StrictRoute
from rhapsode.serving.embeddings import embeddings
from rhapsode.serving.guard import RETRY_SECONDS, Guard, Recorder, refusal
from rhapsode.serving.limits import Limits
from rhapsode.serving.messages import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    NextRequest,
    TokenizeRequest,
)
from rhapsode.serving.metrics import Metrics
from rhapsode.serving.models import Models, NoRoomError, UnknownModelError, described
from rhapsode.serving.page import add_page
from rhapsode.serving.records import Log, record_of
from rhapsode.serving.worker import Worker

LONGEST_PLACE = 200  # characters of a field's name in a message: it may be the client's own


class Mistake(BaseModel):
    """What was wrong, and where."""

    message: str
    type: str
    param: str | None
    code: None


class Refused(BaseModel):
    """What is answered instead, in the dialect's form."""

    error: Mistake


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A field is unknown, unsupported or wrong, or the prompt does not fit."},
    401: {"description": "The API key is missing or wrong."},
    403: {"description": "Pages of that site may not ask."},
    404: {"description": "There is no such model or route."},
    413: {"description": "The body is too large."},
    421: {"description": "The server does not answer to that name."},
    429: {"description": "The key asks too often; `Retry-After` says when it may again."},
    503: {"description": "There is no room now; `Retry-After` says when to ask again."},
    504: {"description": "The answer was not there within the server's deadline."},
    "4XX": {"description": "Other requests that cannot be answered."},
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer; events if `stream` is true.", "content": {"text/event-stream": {}}}
}


@dataclass(frozen=True)
class Access:
    """Who may ask, and how much."""

    hosts: frozenset[str] = frozenset()
    """Values of a Host header that are answered; empty for any."""
    origins: frozenset[str] = frozenset()
    """Pages of these sites may ask, besides the server's own."""
    keys: tuple[str, ...] = ()
    """One of which a request must carry; none for nothing."""
    limits: Limits = field(default_factory=Limits)
    """What each key may ask for."""


def application(models: Models, access: Access, log: Log | None = None) -> FastAPI:
    """The application that serves these models.

    Args:
        log: told of each request; None for no log.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await models.stop()

    app = FastAPI(
        title="Rhapsode",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={status: {"model": Refused, **told} for status, told in REFUSALS.items()},
    )
    app.router.route_class = StrictRoute
    add_page(app)
    limits = access.limits

    async def leased(request: Request, name: str) -> Worker:
        """The model asked for, until the request is over."""
        lease = await models.lease(name)
        record = record_of(request)
        record.model = name
        record.held.callback(lease.end)
        return lease.worker

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server answers; needs no key."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """What the server has done and is doing, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """All models, loaded or not."""
        return {"object": "list", "data": [described(served) for served in models]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        """One model."""
        return described(models[name])

    @app.get("/v1/styles")
    async def styles() -> dict[str, Any]:
        """The sampling settings of this project, and what each style sets."""
        names = (*SHAPING, "temperature", "max_new_tokens")
        default = {each.name: each.default for each in fields(Sampling) if each.name in names}
        return {"default": default, "styles": STYLES}

    @app.post("/v1/completions", response_model=None, responses=STREAMED)
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        """Continue texts."""
        worker = await leased(request, asked.model)
        return await answered(await completions.completion(worker, asked, record_of(request), limits), request)

    @app.post("/v1/chat/completions", response_model=None, responses=STREAMED)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Answer in a conversation, through the model's own template."""
        worker = await leased(request, asked.model)
        return await answered(await chats.chat(worker, asked, record_of(request), limits), request)

    @app.post("/v1/embeddings")
    async def embed(asked: EmbeddingRequest, request: Request) -> dict[str, Any]:
        """Vectors for texts."""
        worker = await leased(request, asked.model)
        return await embeddings(worker, asked, record_of(request), limits)

    @app.post("/v1/tokenize")
    async def tokenize(asked: TokenizeRequest, request: Request) -> dict[str, Any]:
        """The tokens of a text or a conversation, and how many fit."""
        worker = await leased(request, asked.model)
        return await looks.tokens(worker, asked, record_of(request))

    @app.post("/v1/next")
    async def next_token(asked: NextRequest, request: Request) -> dict[str, Any]:
        """What may come next, at several temperatures, after each step of sampling."""
        worker = await leased(request, asked.model)
        return await looks.next_token(worker, asked, record_of(request), limits)

    _add_error_handlers(app)
    metrics = Metrics(models)
    over = [metrics.count] if log is None else [metrics.count, log.write]
    app.add_middleware(Guard, hosts=access.hosts, origins=access.origins, keys=access.keys, limits=limits)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(Recorder, over=over)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Everything that goes wrong, in the dialect's form."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        field = errors[0]["loc"][1:2]
        # Of a field that may be of several kinds, the one that fits best has its mistake deepest inside.
        told = max((each for each in errors if each["loc"][1:2] == field), key=lambda each: len(each["loc"]))
        if not field:
            return refusal(400, "the body must be a JSON object, sent as application/json")
        # Between the names stand the kinds a value might be of, which are no part of the request.
        parts = [str(part) for part in told["loc"][1:] if isinstance(part, int) or part.isidentifier()]
        place = ".".join(parts)[:LONGEST_PLACE]
        return refusal(400, f"{place}: {told['msg']}" if place else told["msg"], place or None)

    @app.exception_handler(InputError)
    async def wrong(_: Request, error: InputError) -> JSONResponse:
        return refusal(404 if isinstance(error, UnknownModelError) else 400, error.message, error.where)

    @app.exception_handler(RhapsodeError)
    async def failed(_: Request, error: RhapsodeError) -> JSONResponse:
        later = isinstance(error, QueueFullError | NoRoomError)
        headers: Mapping[str, str] | None = {"Retry-After": str(RETRY_SECONDS)} if later else None
        status = 503 if later else 504 if isinstance(error, TooLateError) else 500
        return refusal(status, error.message, headers=headers)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return refusal(error.status_code, str(error.detail), headers=error.headers)
