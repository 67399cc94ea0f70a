"""The sockets: an application behind uvicorn, bounded in all that a client can make it hold."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from rhapsode.serving.guard import Impatient

LARGEST_HEADERS = 64 << 10  # bytes
MOST_CONNECTIONS = 1024


def server_for(app: FastAPI, host: str, port: int) -> uvicorn.Server:
    """A server, ready to run."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=Impatient,
            ws="none",
            log_level="error",
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=LARGEST_HEADERS,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=30,
        )
    )
