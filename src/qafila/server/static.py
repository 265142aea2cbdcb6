"""The chat page's files, with ETags; text is compressed once and kept."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

PAGES = Path(__file__).parent / "pages"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}
_COMPRESSED = (".html", ".js", ".mjs", ".css", ".json", ".svg", ".txt", ".webmanifest")


@dataclass(frozen=True, slots=True)
class _File:
    stamp: tuple[int, int]
    media_type: str
    etag: str
    data: bytes
    zipped: bytes | None


class Pages:
    """The files of a folder by their path in it; a file is read again when it has changed.

    Args:
        folder: nothing outside it is ever read.
    """

    def __init__(self, folder: Path = PAGES) -> None:
        self._folder = folder.resolve()
        self._files: dict[str, _File] = {}

    def router(self) -> APIRouter:
        """``/`` is index.html, ``/pages/PATH`` any file."""
        router = APIRouter(include_in_schema=False)

        @router.api_route("/", methods=["GET", "HEAD"])
        async def index(request: Request) -> Response:
            return self.respond(request, "index.html")

        @router.api_route("/favicon.ico", methods=["GET", "HEAD"])
        async def icon(request: Request) -> Response:
            return self.respond(request, "favicon.svg")

        @router.api_route("/pages/{path:path}", methods=["GET", "HEAD"])
        async def page(request: Request, path: str) -> Response:
            return self.respond(request, path)

        return router

    def respond(self, request: Request, path: str) -> Response:
        """The file, or 304 where the client has it.

        Raises:
            HTTPException: 404, there is no such file.
        """
        file = self._find(path)
        # Names carry no version: the browser asks each time, and mostly hears that nothing has changed.
        headers = {"ETag": file.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if file.etag in [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        if file.zipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
            return Response(file.zipped, media_type=file.media_type, headers={**headers, "Content-Encoding": "gzip"})
        return Response(file.data, media_type=file.media_type, headers=headers)

    def _find(self, path: str) -> _File:
        target = self._folder / path
        try:
            whole = target.resolve(strict=True)
            stat = whole.stat()
        except (OSError, ValueError):
            raise HTTPException(404, "no such file") from None
        media_type = _TYPES.get(whole.suffix)
        if media_type is None or not whole.is_relative_to(self._folder) or not whole.is_file():
            raise HTTPException(404, "no such file")
        stamp = (stat.st_mtime_ns, stat.st_size)
        key = str(whole)
        file = self._files.get(key)
        if file is None or file.stamp != stamp:
            data = whole.read_bytes()
            zipped = gzip.compress(data, 6, mtime=0) if whole.suffix in _COMPRESSED and len(data) > 1024 else None
            etag = f'"{hashlib.sha256(data).hexdigest()[:24]}"'
            file = self._files[key] = _File(stamp, media_type, etag, data, zipped)
        return file
