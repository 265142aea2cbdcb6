"""What goes wrong with a request, and the shape in which each API tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qafila.errors import ContextLengthError, ModelNotFoundError, QafilaError
from qafila.server.streaming import ClientGoneError


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP. message: one line: what is wrong, and the way out.
        param: the field it is about, as OpenAI writes it (``messages[0].content``).
        code: OpenAI's short name of it. headers: that go with it, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})


# OpenAI's and Anthropic's names of the kinds of errors (openai-python's and anthropic-python's exception classes).
_OPENAI_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "invalid_request_error",
    429: "rate_limit_error", 500: "server_error", 502: "server_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 500: "api_error", 502: "api_error", 503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip


def error_body(path: str, error: ApiError) -> dict[str, Any]:
    """The body in the shape of the API that ``path`` belongs to."""
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    if path.startswith("/api/"):
        return {"error": error.message}
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def as_api_error(error: BaseException) -> ApiError:
    """What a failure is to the client; what nobody foresaw tells nothing of the server's inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, ModelNotFoundError):
        return ApiError(404, str(error), param="model", code="model_not_found")
    if isinstance(error, QafilaError):
        return ApiError(400, str(error), param=_named(str(error)))
    return ApiError(500, "the server failed on this request; its log says more", code="internal_error")


def _named(message: str) -> str | None:
    """The field that a message of ours begins with, as in ``messages[0].role: ...``."""
    name, colon, _ = message.partition(":")
    return name if colon and name and len(name) < 80 and " " not in name else None


def _field(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def validation_error(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body, naming its field."""
    first = error.errors()[0]
    location = tuple(part for part in first["loc"] if part not in ("body", "query", "path"))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first.get('ctx', {}).get('error', 'it does not parse')}")
    # A part of a union names the member that was tried ("str", "list[str]", "NamedTool"): a client knows none of those.
    location = tuple(p for p in location if isinstance(p, int) or (p.islower() and p.isidentifier() and p != "str"))
    name = _field(location)
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown option"
    if message.startswith(f"{name}:") or not name:  # options that are refused name themselves
        return ApiError(400, message, param=name or _named(message))
    return ApiError(400, f"{name}: {message}", param=name)


def install(app: FastAPI) -> None:
    """Answer every failure of a handler in its API's own shape."""

    def respond(request: Request, error: Exception) -> JSONResponse:
        told = as_api_error(error)
        return JSONResponse(error_body(request.url.path, told), told.status, headers=told.headers)

    def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return respond(request, validation_error(error))

    def plain(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return respond(request, ApiError(error.status_code, str(error.detail), headers=error.headers))

    def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(ApiError, respond)
    app.add_exception_handler(QafilaError, respond)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, respond)
