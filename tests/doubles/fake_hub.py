"""A small server on 127.0.0.1 that speaks the Hugging Face hub's protocol, with faults that can be switched on."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class FakeRepo:
    files: dict[str, bytes]
    commit: str = "a" * 40
    branches: tuple[str, ...] = ("main",)
    gated: bool = False
    token: str | None = None
    license: str | None = None
    listing_changes: dict[str, Any] = field(default_factory=dict)

    def listing(self) -> dict[str, Any]:
        siblings = []
        for path, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content)}
            if path.endswith((".safetensors", ".gguf", ".bin", ".pth")):
                entry["blobId"] = "0" * 40  # the id of the pointer, not of the content
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            else:
                entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            siblings.append(entry)
        card = {"license": self.license} if self.license else None
        return {"sha": self.commit, "siblings": siblings, "gated": self.gated, "cardData": card, **self.listing_changes}


class FakeHub:
    """Repositories by ``owner/name``; ``cut`` and ``served`` change what comes for a path, ``log`` keeps requests."""

    def __init__(self) -> None:
        self.repos: dict[str, FakeRepo] = {}
        self.cut: dict[str, list[int]] = {}  # path -> after how many bytes each of the next answers breaks off
        self.statuses: dict[str, list[int]] = {}  # path -> statuses of the next answers
        self.served: dict[str, bytes] = {}  # path -> other bytes than the listing promises
        self.elsewhere: dict[str, str] = {}  # path -> another server that the answer sends to
        self.prefix = ""  # the path of the endpoint
        self.tokens: list[str | None] = []  # the Authorization of every request
        self.ignore_range = False
        self.held: str | None = None  # the answer for this path waits in the middle for `released`
        self.halfway = threading.Event()
        self.released = threading.Event()
        self.log: list[tuple[str, str, str | None]] = []  # method, path, Range
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                try:
                    hub._answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fetched(self, path: str) -> list[str | None]:
        """The Range of every request for a file."""
        return [r for _, p, r in self.log if p.endswith(f"/{path}")]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        wanted = handler.headers.get("Range")
        self.log.append((handler.command, path, wanted))
        self.tokens.append(handler.headers.get("Authorization"))
        if not path.startswith(self.prefix + "/"):
            return self._fail(handler, 404, "")
        path = path.removeprefix(self.prefix)
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = listing or file
        repo = self.repos.get(match[1]) if match else None
        if match is None or repo is None:
            return self._fail(handler, 401, "RepoNotFound")
        if match[2] not in (*repo.branches, repo.commit):
            return self._fail(handler, 404, "RevisionNotFound")
        if repo.token and handler.headers.get("Authorization") != f"Bearer {repo.token}" and (file or not repo.gated):
            signed_in = "Authorization" in handler.headers
            return self._fail(handler, 403 if signed_in else 401, "GatedRepo" if repo.gated else "RepoNotFound")
        if listing:
            return self._send(handler, 200, json.dumps(repo.listing()).encode(), {"Content-Type": "application/json"})
        assert file is not None
        name = file[3]
        if name not in repo.files:
            return self._fail(handler, 404, "EntryNotFound")
        if name in self.elsewhere:
            return self._send(handler, 302, b"", {"Location": self.elsewhere[name] + handler.path})
        if self.statuses.get(name):
            return self._fail(handler, self.statuses[name].pop(0), "")
        content = self.served.get(name, repo.files[name])
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": repo.commit}
        start = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        if start and not self.ignore_range:
            first = int(start[1])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            return self._send(handler, 206, content[first:], headers, name)
        return self._send(handler, 200, content, headers, name)

    def _fail(self, handler: BaseHTTPRequestHandler, status: int, code: str) -> None:
        self._send(handler, status, b"", {"X-Error-Code": code, "X-Error-Message": "no"})

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], name: str = ""
    ) -> None:
        handler.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        cuts = self.cut.get(name)
        if cuts:
            handler.wfile.write(body[: cuts.pop(0)])
            handler.close_connection = True
            return
        if name and name == self.held and not self.released.is_set():
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            self.halfway.set()
            self.released.wait(30)
            body = body[len(body) // 2 :]
        handler.wfile.write(body)


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub at HF_ENDPOINT, an empty cache at QAFILA_HOME, no token and no saved login."""
    hub = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("QAFILA_HOME", str(tmp_path / "home"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "QAFILA_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    hub.close()
