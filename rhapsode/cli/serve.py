"""`rhapsode serve MODEL...`: models behind an API that the OpenAI clients speak."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter, validators

from rhapsode.base.errors import InputError
from rhapsode.inference.cache_type import CacheType

if TYPE_CHECKING:
    from socket import socket

    from rhapsode.serving.app import Access
    from rhapsode.serving.records import Log

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORT = 8000
KEY = "RHAPSODE_API_KEY"
QUEUE = 256
LIMITS, LOG = Group.create_ordered("Who may ask, and how much"), Group.create_ordered("What is written down")


def serve(
    *models: Path,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=65535))] = PORT,
    memory: Annotated[float | None, Parameter(validator=validators.Number(gt=0))] = None,
    device: str = "auto",
    cache_type: CacheType = "float32",
    api_key: Annotated[Path | None, Parameter(group=LIMITS)] = None,
    allow_origin: Annotated[tuple[str, ...], Parameter(group=LIMITS)] = (),
    queue: Annotated[int, Parameter(group=LIMITS, validator=validators.Number(gte=1, lte=100_000))] = QUEUE,
    key_queue: Annotated[int | None, Parameter(group=LIMITS, validator=validators.Number(gte=1))] = None,
    key_rate: Annotated[int | None, Parameter(group=LIMITS, validator=validators.Number(gte=1))] = None,
    deadline: Annotated[float | None, Parameter(group=LIMITS, validator=validators.Number(gt=0))] = None,
    log: Annotated[Path | None, Parameter(group=LOG)] = None,
    log_texts: Annotated[bool, Parameter(group=LOG)] = False,
) -> None:
    """Serve models to the programs that speak the OpenAI dialect, and a page to talk with them.

    The page is at http://127.0.0.1:8000, the API at /v1, its description at /docs. Only this machine can reach it,
    unless --host names another address, which needs an API key. Ctrl-C ends it after what it has accepted is written.

        rhapsode serve runs/mytext

        curl localhost:8000/v1/completions -d '{"model": "mytext", "prompt": "Once"}' -H content-type:application/json

    Parameters
    ----------
    models: Path
        Model folders, runs, GGUF files, each served under its name. The first is loaded at once, the others when they
        are asked for.
    host: str
        The address to listen on.
    port: int
        The port to listen on.
    memory: float
        GB that models may take together, with their caches: three quarters of what is free unless given. The longest
        unused is put away when another one needs the room.
    device: str
        auto, cpu, cuda or mps.
    cache_type: CacheType
        What keys and values are kept in: float16 takes half the memory, int8 a quarter, on a processor.
    api_key: Path
        A file with the keys, one in a line, of which requests must carry one; the environment variable
        RHAPSODE_API_KEY does the same for a single one.
    allow_origin: tuple
        Pages of this site, as https://example.org, may use the API from a browser.
    queue: int
        Texts that may wait for their turn, for each model; more are told to come back (503).
    key_queue: int
        Texts that each key may have waiting or being written; more are told to come back (503).
    key_rate: int
        Requests that each key may make in a minute; more are told to come back (429).
    deadline: float
        Seconds in which an answer must be there; one that is not is given up (504, or an error in its stream).
    log: Path
        Append a line of JSON for each request to this file, instead of standard error.
    log_texts: bool
        Prompts and answers are in those lines too.
    """
    from rhapsode.serving.app import Access
    from rhapsode.serving.limits import Limits
    from rhapsode.serving.records import Log
    from rhapsode.serving.server import listening

    if not models:
        raise InputError("there is no model to serve", todo="As in: rhapsode serve runs/mytext")
    keys = _keys(api_key)
    if host not in LOOPBACK and not keys:
        raise InputError(
            f"others could use {host} without a key",
            where="--host",
            todo=f"Give --api-key FILE, or set {KEY}.",
        )
    for origin in allow_origin:
        if not re.fullmatch(r"https?://[^/\s*]+", origin):
            raise InputError(f"{origin!r} is no site", where="--allow-origin", todo="As in: https://example.org")
    with listening(host, port) as listening_socket:
        run_server(
            models,
            listening_socket,
            device=device,
            memory=memory,
            queue=queue,
            cache_type=cache_type,
            access=Access(origins=frozenset(allow_origin), keys=keys, limits=Limits(key_rate, key_queue, deadline)),
            log=Log(log, texts=log_texts),
        )


def run_server(
    models: Sequence[Path],
    listening_socket: socket,
    *,
    device: str,
    memory: float | None = None,
    queue: int = QUEUE,
    cache_type: CacheType = "float32",
    access: Access | None = None,
    log: Log | None = None,
    browser: bool = False,
) -> None:
    """Serve models until Ctrl-C.

    Args:
        listening_socket: where requests come in.
        memory: GB that models may take together; None for three quarters of what is free.
        cache_type: what keys and values are kept in.
        access: who may ask, besides the hosts; None for everybody on this machine.
        log: told of each request; None for no log.
        browser: show the page in the browser.
    """
    import asyncio
    import webbrowser
    from dataclasses import replace

    from rhapsode.base.machine import memory_bytes, prepare
    from rhapsode.base.progress import note
    from rhapsode.serving.app import Access, application
    from rhapsode.serving.models import Models
    from rhapsode.serving.server import server_for

    names = [_name(path) for path in models]
    if len(set(names)) < len(names):
        raise InputError(f"two models have the name {max(names, key=names.count)!r}", todo="Rename one of the folders.")
    host, port = listening_socket.getsockname()[:2]
    prepare(device)
    limit = int(memory * 1e9) if memory is not None else memory_bytes() * 3 // 4
    paths = dict(zip(names, models, strict=True))
    served = Models(paths, device=device, memory=limit, queue=queue, cache_type=cache_type)
    asyncio.run(served.load_first())  # whatever is wrong with it is told now
    hosts = frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")) if host in LOOPBACK else None
    app = application(served, replace(access or Access(), hosts=hosts or frozenset()), log)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    note(f"Serving {', '.join(names)} on {address} (API: /v1, described at /docs). Ctrl-C ends.")
    if browser:
        webbrowser.open(address)  # the socket listens: what comes before the server runs waits
    # uvicorn raises the signal that ended it once more, when all is written: asked to end is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server_for(app).run(sockets=[listening_socket])


def _name(path: Path) -> str:
    """What requests call a model: its folder's or file's name; of a run's `model` folder, the run's."""
    path = path.resolve()
    return path.parent.name if path.name == "model" and path.parent.name else path.stem if path.is_file() else path.name


def _keys(path: Path | None) -> tuple[str, ...]:
    """The keys in a file, or the one in the environment."""
    if path is None:
        key = os.environ.get(KEY, "").strip()
        return (key,) if key else ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=str(path)) from None
    keys = tuple(dict.fromkeys(key for line in lines if (key := line.strip())))
    if not keys:
        raise InputError("the file is empty", where=str(path))
    return keys
