"""The chat page: ``/`` and the files it is made of, served from memory and forbidden to ask anything of other hosts."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from qafila.server.errors import ApiError

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent
#: What a browser is told about each kind of file; files of other kinds are not served.
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Scripts, styles and connections of this server alone, nothing inline, and no frame around the page.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Kept, and asked about each time: after an upgrade no old module runs beside a new one.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    packed: bytes
    media_type: str
    tag: str


@cache
def _files() -> dict[str, _File]:
    """Every file of the page by its path below this folder. Only these are served, so no path can lead elsewhere."""
    files = {}
    for path in FOLDER.rglob("*"):
        if path.suffix in MEDIA_TYPES and path.is_file():
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            name = path.relative_to(FOLDER).as_posix()
            files[name] = _File(body, gzip.compress(body, mtime=0), MEDIA_TYPES[path.suffix], tag)
    return files


def _answer(request: Request, name: str) -> Response:
    file = _files().get(name)
    if file is None:
        raise ApiError(404, f"there is no file {name} in the chat page")
    headers = {**HEADERS, "ETag": file.tag}
    if request.headers.get("If-None-Match") == file.tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        return Response(file.packed, media_type=file.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(file.body, media_type=file.media_type, headers=headers)


@router.get("/")
async def index(request: Request) -> Response:
    """The chat page."""
    return _answer(request, "index.html")


@router.get("/pages/{name:path}")
async def file(request: Request, name: str) -> Response:
    """A script, stylesheet or picture of the chat page."""
    return _answer(request, name)
