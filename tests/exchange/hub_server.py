"""A hub on this machine: the few requests that huggingface_hub makes to fetch a model, answered from memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Files by commit, and the commit of each branch; or the error with which the hub answers."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    error: tuple[int, str] | None = None


@dataclass
class Hub:
    """The hub: its address, what it has, and the files that were asked for."""

    address: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def put(self, name: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit; its number."""
        repository = self.repositories.setdefault(name, Repository())
        digest = hashlib.sha1(b"".join(file.encode() + data for file, data in sorted(files.items())))
        commit = digest.hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        return commit


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the block ends."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            rest: list[str] = []
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            if parts[:2] == ["api", "models"]:
                name, rest = "/".join(parts[2:4]), parts[4:]
                revision = rest[1] if rest else "main"
                file = None
            elif "resolve" not in parts:  # what the library asks besides
                return self.refuse(404, "EntryNotFound")
            else:
                name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            repository = hub.repositories.get(name)
            if repository is None:
                return self.refuse(404, "RepoNotFound")
            if repository.error is not None:
                return self.refuse(*repository.error)
            commit = repository.branches.get(revision, revision)
            files = repository.commits.get(commit)
            if files is None:
                return self.refuse(404, "RevisionNotFound")
            if file is None and rest[:1] == ["tree"]:
                found = [
                    {"type": "file", "path": one, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for one, data in files.items()
                ]
                return self.send(json.dumps(found).encode(), commit)
            if file is None:
                siblings = [{"rfilename": one, "size": len(data)} for one, data in files.items()]
                return self.send(json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode(), commit)
            hub.asked.append(file)
            if file not in files:
                return self.refuse(404, "EntryNotFound")
            return self.send(files[file], commit)

        def send(self, data: bytes, commit: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.send_header("X-Error-Code", code)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)  # seconds until it sees that it shall end
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
