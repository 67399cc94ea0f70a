"""The body of a request as JSON that means one thing only, or one clear refusal of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from rhapsode.base.errors import shown

MOST_NAMES = 10_000  # in one object
MOST_CONTAINERS = 100_000  # lists and objects: a million of them take seconds to make
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)', re.DOTALL)


def strict_json(data: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        HTTPException: 400; it is no JSON, nested more than 200 deep or of too many parts, holds half a character, NaN
            or a number of more than 4,300 digits, or has a name twice in one object.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if _containers(data) > MOST_CONTAINERS and _containers(_STRING.sub(b"", data)) > MOST_CONTAINERS:
        raise HTTPException(400, f"the body has more than {MOST_CONTAINERS:,} lists and objects")
    try:
        from_json(data, allow_inf_nan=False)  # refuses much that Python's own reader lets pass, but not a name twice
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON in UTF-8: {error}") from None


def _containers(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_NAMES:
        raise HTTPException(400, f"an object in the body has more than {MOST_NAMES:,} names")
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise HTTPException(400, f"an object in the body has {shown(twice)} twice")
    return found


class StrictRequest(Request):
    """A request whose JSON is read strictly."""

    async def json(self) -> Any:
        return strict_json(await self.body())


class StrictRoute(APIRoute):
    """A route that reads its requests' JSON strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict
