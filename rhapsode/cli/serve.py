"""`rhapsode serve MODEL...`: models behind an API that the OpenAI clients speak."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY = "RHAPSODE_API_KEY"
LARGEST_HEADERS = 64 << 10  # bytes


def serve(
    *models: Path,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=65535))] = 8000,
    api_key: Path | None = None,
    queue: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=100_000))] = 256,
    device: str = "auto",
) -> None:
    """Serve models to the programs that speak the OpenAI dialect.

    Answers /v1/chat/completions, /v1/completions, /v1/models and /health; /docs describes them. Only this machine can
    reach it, unless --host names another address, which needs an API key. Ctrl-C ends it after what it has accepted is
    written.

        rhapsode serve runs/mytext

        curl localhost:8000/v1/completions -d '{"model": "mytext", "prompt": "Once"}' -H content-type:application/json

    Parameters
    ----------
    models: Path
        Model folders, runs, GGUF files; each is served under its name.
    host: str
        The address to listen on.
    port: int
        The port to listen on.
    api_key: Path
        A file with the key that requests must carry; the environment variable RHAPSODE_API_KEY does the same.
    queue: int
        Texts that may wait for their turn, for each model; more are told to come back.
    device: str
        auto, cpu, cuda or mps.
    """
    import os

    import uvicorn

    from rhapsode.base.errors import InputError
    from rhapsode.base.machine import prepare
    from rhapsode.base.progress import note
    from rhapsode.inference.language_model import load
    from rhapsode.serving.app import application

    if not models:
        raise InputError("there is no model to serve", todo="As in: rhapsode serve runs/mytext")
    key = _key(api_key) if api_key else os.environ.get(KEY) or None
    if host not in LOOPBACK and key is None:
        raise InputError(
            f"others could use {host} without a key",
            where="--host",
            todo=f"Give --api-key FILE, or set {KEY}.",
        )
    names = [_name(path) for path in models]
    if len(set(names)) < len(names):
        raise InputError(f"two models have the name {max(names, key=names.count)!r}", todo="Rename one of the folders.")
    prepare(device)
    served = {name: load(path, device) for name, path in zip(names, models, strict=True)}
    for model in served.values():
        model.decoder()
    hosts = frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")) if host in LOOPBACK else ()
    app = application(served, hosts=frozenset(hosts), api_key=key, queue=queue)
    address = f"[{host}]" if ":" in host else host
    note(f"Serving {', '.join(names)} on http://{address}:{port}/v1. Ctrl-C ends.")
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=LARGEST_HEADERS,
        timeout_keep_alive=30,
    )


def _name(path: Path) -> str:
    """What requests call a model: its folder's or file's name; of a run's `model` folder, the run's."""
    path = path.resolve()
    return path.parent.name if path.name == "model" and path.parent.name else path.stem if path.is_file() else path.name


def _key(path: Path) -> str:
    from rhapsode.base.errors import InputError

    try:
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=str(path)) from None
    if not key:
        raise InputError("the file is empty", where=str(path))
    return key
