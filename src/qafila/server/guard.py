"""`Guard`: stands before the application and decides who gets in.

Plain ASGI: a token on its way out passes one function call here. In this order a request has to show that it was meant
for this server (Host), that no page of another origin sent it (Origin, Sec-Fetch-Site), that it has a key with the
right scope, and that its body is JSON of a bearable size.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import secrets
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qafila.server import logs
from qafila.server.errors import ApiError, as_api_error, error_body
from qafila.server.health import Lifecycle
from qafila.server.keys import SCOPES, Keyring, Unknown
from qafila.server.limits import Limits
from qafila.server.metrics import Metrics
from qafila.server.record import CURRENT, Record
from qafila.server.service import Caller
from qafila.server.settings import Settings

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_API_POLICY = "default-src 'none'; frame-ancestors 'none'"
_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_EXPOSED = b"x-request-id, retry-after, x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens"

# What needs no key, and which scope the rest needs; what is not listed here is inference.
_OPEN = frozenset({"/", "/favicon.ico", "/healthz", "/readyz"})
_MODELS = ("/v1/models", "/api/tags", "/api/show", "/api/ps", "/api/version", "/openapi.json")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}(\s*,\s*[A-Za-z0-9-]{1,64}){0,63}")
# An answer that a time limit of its own should have ended is cut off so much later.
_SPARE_SECONDS = 10.0


class _GoneError(Exception):
    """The client left before its request was there."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the guard looks at of a request; header values by lower-case name, the last of each."""

    path: str
    method: str
    headers: Mapping[str, str]

    @property
    def is_page(self) -> bool:
        return self.path == "/" or self.path == "/favicon.ico" or self.path.startswith("/pages/")

    @property
    def scope(self) -> str | None:
        """What a key needs for it; None: no key is needed."""
        if self.path in _OPEN or self.is_page:
            return None
        if self.path == "/metrics":
            return "metrics"
        if self.path.startswith("/admin/"):
            return "admin"
        if self.path in _MODELS or self.path.startswith("/v1/models/"):
            return "models"
        if self.path == "/v1/agent" or self.path.startswith("/v1/agent/"):
            return "agent"  # which changes files, not only answers
        return "inference"


class Guard:
    """An ASGI application before another.

    Args:
        app: the other. settings: what is allowed. keyring: who is known; None: there are no keys.
        limits: tells what is left to a key. metrics: counts requests. lifecycle: whether the server is stopping.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        *,
        keyring: Keyring | None = None,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
        lifecycle: Lifecycle | None = None,
    ) -> None:
        self._app, self._settings, self._keyring = app, settings, keyring or Keyring()
        self._limits, self._metrics, self._lifecycle = limits, metrics, lifecycle or Lifecycle()
        self._hosts = {host.lower().strip("[]").rstrip(".") for host in (settings.host, *settings.allowed_hosts)}
        self._origins = {origin.lower() for origin in settings.cors_origins}
        # On a machine of one's own, whoever can connect may do everything.
        everything = settings.is_loopback and not settings.allow_anonymous
        self._anonymous = Caller(scopes=frozenset(SCOPES if everything else ("inference", "models")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Speak ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        asked = _Asked(scope["path"], scope["method"], headers)
        given = headers.get("x-request-id", "")
        record = Record(
            given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}",
            asked.method,
            asked.path,
            traceparent=headers.get("traceparent"),
        )
        await self._serve(scope, receive, send, asked, record)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, asked: _Asked, record: Record) -> None:
        token = CURRENT.set(record)
        extra = self._headers(asked, record)
        caller: Caller | None = None

        def passed(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                rates = self._limits.headers(caller) if self._limits is not None and caller is not None else []
                message = {**message, "headers": [*message["headers"], *extra, *rates]}
            elif not message.get("more_body", False):
                record.whole = True
            return send(message)

        try:
            self._check_host(asked)
            self._check_origin(asked)
            if asked.method == "OPTIONS":
                await _respond(passed, 204, b"", self._preflight(asked))
                return
            needed = asked.scope
            if needed is not None:
                known = scope["caller"] = await self._caller(asked, needed)
                record.caller = known.name
                caller = known if needed in ("inference", "agent") else None
            if asked.method in _WITH_BODY:
                receive = await self._with_body(asked, receive, record)
            async with asyncio.timeout(self._settings.timeout + _SPARE_SECONDS):
                await self._app(scope, receive, passed)
        except _GoneError:
            record.status = 499
        except TimeoutError:
            seconds = self._settings.timeout
            late = ApiError(504, f"the answer took longer than {seconds:g} seconds", code="timeout")
            await _refuse(passed, asked.path, late, record)
        except ApiError as error:
            await _refuse(passed, asked.path, error, record)
        except asyncio.CancelledError:
            # When the server stops, what is still running is cut off; anything else that cancels is not ours to stop.
            if not self._lifecycle.stopping:
                raise
        except Exception as error:
            # What was answered in full was logged where it was answered.
            if not record.status:
                await _refuse(passed, asked.path, as_api_error(error), record)
            elif not record.whole:
                logs.failure(error)
        finally:
            CURRENT.reset(token)
            self._note(scope, asked, record)

    def _note(self, scope: Scope, asked: _Asked, record: Record) -> None:
        """Tell log and metrics; only patterns of our own routes become labels, never what a client made up."""
        route = scope.get("route")
        if route is not None:
            record.endpoint = getattr(route, "path", "other")
        if asked.method not in _METHODS:
            record.method = "OTHER"
        if self._metrics is not None:
            self._metrics.answered(record)
        logs.access(record)

    def _headers(self, asked: _Asked, record: Record) -> list[tuple[bytes, bytes]]:
        policy = PAGE_POLICY if asked.is_page else _API_POLICY
        found = [*_ALWAYS, (b"content-security-policy", policy.encode()), (b"x-request-id", record.id.encode())]
        if asked.path.startswith("/v1/messages"):
            found.append((b"request-id", record.id.encode()))  # what Anthropic's clients show
        if self._origins:
            found.append((b"vary", b"Origin"))
            origin = asked.headers.get("origin", "")
            if origin.lower() in self._origins:
                found += [
                    (b"access-control-allow-origin", origin.encode("latin-1")),
                    (b"access-control-expose-headers", _EXPOSED),
                ]
        return found

    # Was it meant for us?

    def _check_host(self, asked: _Asked) -> None:
        given = asked.headers.get("host", "")
        host = _host_of(given)
        # Rebinding needs a name that an attacker controls: an address is no such name.
        if host in self._hosts or host == "localhost" or host.endswith(".localhost") or _is_address(host):
            return
        raise ApiError(
            421, f"host {given!r:.120} is not served here; if it is yours, add --allowed-host {host or 'NAME'}"[:300],
            code="host_not_allowed",
        )  # fmt: skip

    def _check_origin(self, asked: _Asked) -> None:
        headers = asked.headers
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and origin.lower() in self._origins:
            return
        if origin is not None and not (origin == "null" and site == "same-origin"):
            same = origin.lower().partition("://")[2] == headers.get("host", "").lower()
            if not same:
                raise _foreign(origin)
        if site in (None, "same-origin", "none"):
            return
        # A link on another site may lead to the page; that is all another site may do.
        if asked.is_page and asked.method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate":
            return
        raise _foreign(origin or f"a page of another origin (Sec-Fetch-Site: {site})")

    def _preflight(self, asked: _Asked) -> list[tuple[bytes, bytes]]:
        if asked.headers.get("origin", "").lower() not in self._origins:
            return []
        wanted = asked.headers.get("access-control-request-headers", "")
        names = wanted if _HEADER_NAMES.fullmatch(wanted) else "authorization, content-type"
        return [
            (b"access-control-allow-methods", b"GET, POST, PATCH, DELETE"),
            (b"access-control-allow-headers", names.encode("latin-1")),
            (b"access-control-max-age", b"600"),
        ]

    # Who is it?

    async def _caller(self, asked: _Asked, needed: str) -> Caller:
        presented = _presented(asked.headers)
        keyring = self._keyring
        fresh = keyring.fresh(presented)
        required = keyring.required() if fresh else await asyncio.to_thread(keyring.required)
        caller: Caller | None = None
        if required and presented is not None:
            found = keyring.recognise(presented) if fresh else await asyncio.to_thread(keyring.recognise, presented)
            if not isinstance(found, Unknown):
                caller = found.caller(share_cache=self._settings.share_cache)
            elif found.reason != "unknown" or not self._settings.allow_anonymous:
                what = "is not known here" if found.reason == "unknown" else f"is {found.reason}"
                raise _unauthorized(f"the API key {what}; `qafila keys create` makes one", "invalid_api_key")
        elif required and not self._settings.allow_anonymous:
            raise _unauthorized("an API key is needed: send it as `Authorization: Bearer KEY`", "missing_api_key")
        caller = caller or self._anonymous
        enough = {needed, "admin"} | ({"inference"} if needed == "models" else set())
        if not enough & caller.scopes:
            raise ApiError(
                403, f"{caller.name}: its key lacks the scope {needed!r}, which {asked.path:.120} needs",
                code="insufficient_scope",
            )  # fmt: skip
        return caller

    # Is it bearable?

    async def _with_body(self, asked: _Asked, receive: Receive, record: Record) -> Receive:
        """The body, read to its end here, where size and time are bounded; then what the client does next."""
        length = asked.headers.get("content-length", "")
        most = self._settings.max_body
        if length.isdecimal() and int(length) > most:
            raise _too_large(most)
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                more = True
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _GoneError
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise _too_large(most)
        except TimeoutError:
            seconds = self._settings.body_timeout
            raise ApiError(
                408, f"the body did not arrive within {seconds:g} seconds", headers={"Connection": "close"}
            ) from None
        if body and not _is_json(asked.headers.get("content-type", "")):
            # What a form of another site may send without asking first is never JSON.
            raise ApiError(
                415, "the body must be JSON: send `Content-Type: application/json`", code="unsupported_media_type"
            )
        if self._settings.log_prompts:
            record.body = body.decode("utf-8", "replace")
        whole: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            message, whole = whole, None
            return await receive() if message is None else message

        return replay


def _foreign(origin: str) -> ApiError:
    return ApiError(
        403, f"requests of {origin!r:.120} are not answered; if that page is yours, add it with --cors-origin",
        code="origin_not_allowed",
    )  # fmt: skip


def _unauthorized(message: str, code: str) -> ApiError:
    return ApiError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, f"the body is larger than the {most:,} bytes that are taken here; send less",
        code="body_too_large", headers={"Connection": "close"},
    )  # fmt: skip


def _presented(headers: Mapping[str, str]) -> str | None:
    """The key that a request shows: as Bearer, or as older clients of Anthropic's do, as x-api-key."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key", "").strip() or None


def _host_of(header: str) -> str:
    """The host of a Host header, in lower case, without port and brackets; empty where it makes no sense."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?", header)
    return "" if match is None else (match[1] or match[2]).lower().rstrip(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def _refuse(send: Send, path: str, error: ApiError, record: Record) -> None:
    """Answer with an error, unless an answer has begun: then the connection ends without its end."""
    if record.status:
        return
    body = json.dumps(error_body(path, error), ensure_ascii=False).encode()
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    await _respond(send, error.status, body, [(b"content-type", b"application/json"), *headers])


async def _respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = [(b"content-length", str(len(body)).encode())] if status != 204 else []
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
    await send({"type": "http.response.body", "body": body})
