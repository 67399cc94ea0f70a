"""The sockets: an application behind uvicorn, bounded in all that a client can make it hold."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import uvicorn
from fastapi import FastAPI

from rhapsode.base.errors import InputError
from rhapsode.serving.guard import LARGEST_HEADERS, MOST_CONNECTIONS, Impatient


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any that is free.

    Raises:
        InputError: the address is none of this machine's, or in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except socket.gaierror:
        raise InputError(f"{host!r} is no address", where="--host", todo="As in: --host 0.0.0.0") from None
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
        raise InputError(
            f"cannot listen on {host}, port {port} ({reason})", todo="Choose another --port or --host."
        ) from None


def server_for(app: FastAPI) -> uvicorn.Server:
    """A server, ready to run on sockets."""
    _allow_files(2 * MOST_CONNECTIONS + 1000)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Impatient,
            ws="none",
            log_level="error",
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=LARGEST_HEADERS,
            timeout_keep_alive=30,
        )
    )


def _allow_files(count: int) -> None:
    """Let this process have so many files and sockets open, as far as the system lets it decide."""
    try:
        import resource
    except ImportError:
        return  # Windows has no such limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
