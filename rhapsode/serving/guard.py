"""What must not reach a route does not: a strange Host or Origin, a wrong key, too many requests, an endless body.

Also begins and ends the record of each request. `Impatient` is the same for what comes before a request is one:
connections on which nothing comes, or nothing is read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from rhapsode.serving.limits import Limits, TooOftenError
from rhapsode.serving.records import Record, Writer

LARGEST_BODY = 4 << 20  # bytes
BODY_SECONDS = 60  # for a whole body
HEADER_SECONDS = 30  # until a connection has sent a whole request
READ_SECONDS = 60  # that a client may read nothing of what waits for it
KEYLESS = ("/health",)

log = logging.getLogger(__name__)

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def refusal(
    status: int, message: str, place: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error in the dialect's form."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": place, "code": None}
    return JSONResponse({"error": error}, status, headers)


class Guard:
    """Stands before all routes.

    Args:
        hosts: the values of a Host header that are answered, so that no web page can reach the server by a name of
            its own; empty for any.
        origins: pages of these sites are answered too, besides the server's own.
        keys: one of which requests must carry; none for nothing.
        over: told of each request when it is over.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        hosts: frozenset[str],
        origins: frozenset[str],
        keys: Sequence[str],
        limits: Limits,
        over: Sequence[Writer],
    ) -> None:
        self._app, self._hosts, self._origins, self._limits, self._over = app, hosts, origins, limits, over
        self._keys = [key.encode("utf-8") for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope["record"] = Record(scope["method"], scope["path"])

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", record.id.encode("ascii"))]
            await send(message)

        try:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            refused = self._refused(scope["path"], headers, record)
            body = b""
            if refused is None:
                try:
                    async with asyncio.timeout(BODY_SECONDS):
                        body, refused = await _body(receive)
                except TimeoutError:
                    refused = refusal(408, f"the body took longer than {BODY_SECONDS} seconds")
            if refused is not None:
                await refused(scope, receive, noted)
                return
            await self._app(scope, _given(body, receive), noted)
        finally:
            record.route = getattr(scope.get("route"), "path", None)
            await record.held.aclose()
            for write in self._over:
                write(record)

    def _refused(self, path: str, headers: Mapping[str, str], record: Record) -> JSONResponse | None:
        if self._hosts and headers.get("host", "") not in self._hosts:
            return refusal(421, "this server does not answer to that name (Host)")
        origin = headers.get("origin")
        own = origin is None or origin.partition("://")[2] == headers.get("host", "")
        if not own and origin not in self._origins:
            return refusal(403, "requests from other sites are not answered (Origin)")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()) or len(length) > 20 or int(length) > LARGEST_BODY:
            return refusal(413, f"the body is larger than {LARGEST_BODY:,} bytes")
        if self._keys and path not in KEYLESS:
            record.key = self._key(headers.get("authorization", ""))
            if record.key is None:
                ask = {"WWW-Authenticate": 'Basic realm="Rhapsode", charset="UTF-8"'}
                return refusal(401, "the API key is missing or wrong", headers=ask)
        if path not in KEYLESS:
            try:
                self._limits.ask(record.key)
            except TooOftenError as error:
                return refusal(429, error.message, headers={"Retry-After": str(error.seconds)})
        return None

    def _key(self, authorization: str) -> int | None:
        """The number of the key in an Authorization header; every key is compared, in constant time."""
        scheme, _, given = authorization.partition(" ")
        key = given.strip().encode("latin-1")
        if scheme.lower() == "basic":  # a browser, which has asked its user for a name and a password
            try:
                key = base64.b64decode(key, validate=True).partition(b":")[2]
            except binascii.Error:
                return None
        elif scheme.lower() != "bearer":
            return None
        equal = [hmac.compare_digest(key, own) for own in self._keys]
        return equal.index(True) if True in equal else None


async def _body(receive: Receive) -> tuple[bytes, JSONResponse | None]:
    """All of a body, or why it is refused."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"", refusal(400, "the client has gone")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > LARGEST_BODY:
            return b"", refusal(413, f"the body is larger than {LARGEST_BODY:,} bytes")
    return b"".join(parts), None


def _given(body: bytes, receive: Receive) -> Receive:
    """A body that is there already, and after it what comes."""
    given = False

    async def whole() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return whole


class Impatient(H11Protocol):
    """A connection that is ended when it sends no whole request in time, or does not read what it has asked for."""

    _unread: asyncio.TimerHandle | None = None
    _looking: asyncio.TimerHandle | None = None
    _served: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._looking = self.loop.call_later(HEADER_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._unread, self._looking):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _look(self) -> None:
        """End a connection that has begun no request since the last look."""
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self.cycle is self._served:
            self.transport.abort()
            return
        self._served = self.cycle if waiting else self._served
        self._looking = self.loop.call_later(HEADER_SECONDS, self._look)
