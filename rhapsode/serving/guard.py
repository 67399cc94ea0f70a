"""What must not reach a route does not: a strange Host or Origin, a wrong key, too many requests, an endless body.

`Recorder` begins and ends the record of each request. `Impatient` is the guard of what comes before a request is one:
connections on which nothing comes, or nothing is read, or no HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import h11
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from rhapsode.serving.limits import Limits, TooOftenError
from rhapsode.serving.records import Record, Writer

LARGEST_HEADERS = 64 << 10  # bytes
LARGEST_BODY = 4 << 20
BODY_SECONDS = 60  # for a whole body
HEADER_SECONDS = 30  # until a connection has sent a whole request
READ_SECONDS = 60  # that a client may read nothing of what waits for it
MOST_CONNECTIONS = 1000  # beyond which they are told to come back; from twice as many on they are closed
RETRY_SECONDS = 5
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


class Recorder:
    """Stands before all else: begins the record of a request, and ends it, and with it what was held for the request.

    Args:
        over: told of each request when it is over.
    """

    def __init__(self, app: ASGIApp, *, over: Sequence[Writer]) -> None:
        self._app, self._over = app, over

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
            await self._app(scope, receive, noted)
        except Exception:
            if record.status is not None:  # too late for another answer: the connection ends
                raise
            log.exception("request %s failed", record.id)
            await refusal(500, f"the server failed; its log says why, under {record.id}")(scope, receive, noted)
        finally:
            record.route = getattr(scope.get("route"), "path", None)
            await record.held.aclose()
            for write in self._over:
                write(record)


class Guard:
    """Stands before all routes.

    Args:
        hosts: the values of a Host header that are answered, so that no web page can reach the server by a name of
            its own; empty for any.
        origins: pages of these sites are answered too, besides the server's own.
        keys: one of which requests must carry; none for nothing.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: frozenset[str],
        origins: frozenset[str],
        keys: Sequence[str],
        limits: Limits,
    ) -> None:
        self._app, self._hosts, self._origins, self._limits = app, hosts, origins, limits
        self._keys = [key.encode("utf-8") for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if scope.get("state", {}).get("crowded"):
            refused: JSONResponse | None = refusal(
                503, "too many connections", headers={"Retry-After": str(RETRY_SECONDS), "Connection": "close"}
            )
        else:
            refused = _too_large(scope) or self._refused(scope["path"], headers, scope["record"])
        body = b""
        if refused is None:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    body, refused = await _body(receive)
            except TimeoutError:
                refused = refusal(
                    408, f"the body took longer than {BODY_SECONDS} seconds", headers={"Connection": "close"}
                )
        if refused is not None:
            await refused(scope, receive, send)
            return
        await self._app(scope, _given(body, receive), send)

    def _refused(self, path: str, headers: Mapping[str, str], record: Record) -> JSONResponse | None:
        if self._hosts and headers.get("host", "") not in self._hosts:
            return refusal(421, "this server does not answer to that name (Host)")
        origin = headers.get("origin")
        own = origin is None or origin.partition("://")[2] == headers.get("host", "")
        if not own and origin not in self._origins:
            return refusal(403, "requests from other sites are not answered (Origin)")
        if "content-length" in headers and "transfer-encoding" in headers:  # what one takes for a body, another may not
            return refusal(
                400, "Content-Length and Transfer-Encoding: give one of them", headers={"Connection": "close"}
            )
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


def _too_large(scope: Scope) -> JSONResponse | None:
    """Refuse headers that came whole but are larger than those that would have been waited for."""
    sizes = (len(name) + len(value) + len(": \r\n") for name, value in scope["headers"])
    if sum(sizes) + len(scope["raw_path"]) + len(scope["query_string"]) > LARGEST_HEADERS:
        return refusal(431, f"the headers are larger than {LARGEST_HEADERS:,} bytes", headers={"Connection": "close"})
    return None


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
        if len(self.connections) > 2 * MOST_CONNECTIONS:
            transport.abort()
            return
        if len(self.connections) > MOST_CONNECTIONS:
            self.app_state = {**self.app_state, "crowded": True}
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

    def send_400_response(self, msg: str) -> None:
        """Say that something is no HTTP, in the dialect's form; uvicorn calls it where it has caught h11's error."""
        error = sys.exc_info()[1]
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is under way, or was the last one
            self.transport.close()
            return
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        told = refusal(status, f"this is no HTTP request: {error or msg}", headers={"Connection": "close"})
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
        for event in (
            h11.Response(status_code=status, headers=told.raw_headers),
            h11.Data(data=bytes(told.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _look(self) -> None:
        """End a connection that has begun no request since the last look."""
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self.cycle is self._served:
            self.transport.abort()
            return
        self._served = self.cycle if waiting else self._served
        self._looking = self.loop.call_later(HEADER_SECONDS, self._look)
