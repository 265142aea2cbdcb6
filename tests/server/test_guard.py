"""Who gets in: Host, Origin, keys and scopes, bodies; and what every answer carries."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted_client import ScriptedClient

from qafila.database import open_database
from qafila.errors import UsageError
from qafila.server.assemble import assemble
from qafila.server.guard import PAGE_POLICY, Guard
from qafila.server.keys import Key, Keyring, KeyStore, digest
from qafila.server.limits import Limits
from qafila.server.logs import ACCESS, JsonLines, Lines
from qafila.server.models import Entry, Models
from qafila.server.settings import Settings

BODY = {"model": "scripted", "messages": [{"role": "user", "content": "a secret of mine"}]}
LOCAL = "http://127.0.0.1:8000"
CHAT = "/v1/chat/completions"


class Served:
    """An application over a scripted client, asked without a socket."""

    def __init__(self, settings: Settings | None = None, keys: tuple[Key, ...] = (), **scripted: Any) -> None:
        self.client = ScriptedClient(**scripted)
        self.settings = settings or Settings()

        async def load() -> ScriptedClient:
            return self.client

        models = Models({"scripted": Entry("scripted", "scripted", load)})
        self.app = assemble(models, self.settings, keyring=Keyring(keys) if keys else None)

    def ask(self, method: str, path: str, *, base: str = LOCAL, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())

    def chat(self, headers: dict[str, str] | None = None, **options: Any) -> httpx.Response:
        return self.ask("POST", CHAT, json=BODY, headers=headers or {}, **options)


def key(name: str, text: str, *scopes: str, **limits: int) -> Key:
    return Key(name[:10], name, digest(text), frozenset(scopes), **limits)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


# Host: a name that an attacker's DNS points at this machine is not ours.


@pytest.mark.parametrize(
    "base",
    [LOCAL, "http://localhost:8000", "http://[::1]:8000", "http://LOCALHOST", "http://a.localhost", "http://10.1.2.3"],
)
def test_hosts_that_are_served(base: str) -> None:
    assert Served().chat(base=base).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "a b",
             "127.0.0.1@evil.example", "evil.example#localhost", "localhost:8000:1"],
)  # fmt: skip
def test_hosts_that_are_not(host: str) -> None:
    served = Served()
    for path in ("/", "/v1/models", "/healthz"):
        answer = served.ask("GET", path, headers={"Host": host})
        assert answer.status_code == 421, path
        assert answer.json()["error"]["code"] == "host_not_allowed"
    assert served.chat({"Host": host}).status_code == 421
    assert served.client.asked == []


def test_a_host_that_the_operator_names_is_served() -> None:
    served = Served(Settings(allowed_hosts=("llama.example",)))
    assert served.chat({"Host": "llama.example:443"}).status_code == 200
    assert served.chat({"Host": "Llama.Example."}).status_code == 200
    assert served.chat({"Host": "x.llama.example"}).status_code == 421


# Origin: pages of other origins may not call, unless they are listed.


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Origin": "http://localhost:8000"},  # the same machine, another origin
        {"Origin": "null"},
        {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_foreign_origins_are_refused(headers: dict[str, str]) -> None:
    served = Served()
    answer = served.chat(headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in answer.headers
    assert served.ask("GET", "/v1/models", headers=headers).status_code == 403
    assert served.client.asked == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": LOCAL},
        {"Origin": LOCAL, "Sec-Fetch-Site": "same-origin"},
        {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_our_own_page_and_programs_may_call(headers: dict[str, str]) -> None:
    assert Served().chat(headers).status_code == 200


def test_a_link_may_lead_to_the_page_and_to_nothing_else() -> None:
    served = Served()
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert served.ask("GET", "/", headers=link).status_code == 200
    assert served.ask("GET", "/v1/models", headers=link).status_code == 403
    assert served.ask("GET", "/pages/js/api.js", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_cors_for_the_origins_that_are_listed_alone() -> None:
    served = Served(Settings(cors_origins=("https://app.example",)))
    ours = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    answer = served.chat(ours)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "Origin" in answer.headers["vary"]
    asked = {
        **ours,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os",
    }
    preflight = served.ask("OPTIONS", CHAT, headers=asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (
        204,
        "authorization,x-stainless-os",
    )
    assert "access-control-allow-credentials" not in preflight.headers
    for origin in ("https://app.example.evil", "http://app.example", "https://app.example:444"):
        refused = served.ask("OPTIONS", CHAT, headers={**asked, "Origin": origin})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
    # Errors are readable by the page, too.
    broken = served.ask("POST", CHAT, headers=ours, json={"model": "scripted"})
    assert broken.status_code == 400
    assert broken.headers["access-control-allow-origin"] == "https://app.example"


# Keys.


def test_requests_without_a_good_key_are_refused_in_the_apis_own_shape() -> None:
    served = Served(keys=(key("ann", "k" * 20, "inference"),))
    for headers in ({}, bearer("wrong"), bearer(""), {"x-api-key": "k" * 19}, {"Authorization": "Basic " + "k" * 20}):
        answer = served.chat(headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"
        assert "k" * 19 not in answer.text
    told = served.ask("POST", "/v1/messages", json={}).json()
    assert (told["type"], told["error"]["type"]) == ("error", "authentication_error")
    assert isinstance(served.ask("POST", "/api/chat", json={}).json()["error"], str)
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing", "//v1/models", "/pages", "/healthz/"):
        assert served.ask("GET", path).status_code == 401, path
    for path in ("/", "/healthz", "/readyz", "/pages/js/api.js", "/favicon.ico"):
        assert served.ask("GET", path).status_code in (200, 503), path
    assert served.client.asked == []
    for headers in (bearer("k" * 20), {"x-api-key": "k" * 20}, {"authorization": "bearer " + "k" * 20}):
        assert served.chat(headers).status_code == 200


def test_scopes() -> None:
    keys = (key("ann", "a" * 20, "inference"), key("mo", "m" * 20, "models"), key("pro", "p" * 20, "metrics"),
            key("root", "r" * 20, "admin"))  # fmt: skip
    served = Served(keys=keys)
    seen = {}
    for name, letter in (("ann", "a"), ("mo", "m"), ("pro", "p"), ("root", "r")):
        headers = bearer(letter * 20)
        statuses = [
            served.ask("GET", path, headers=headers).status_code for path in ("/v1/models", "/metrics", "/admin/x")
        ]
        seen[name] = [served.chat(headers).status_code, *statuses]
    assert seen == {
        "ann": [200, 200, 403, 403],
        "mo": [403, 200, 403, 403],
        "pro": [403, 403, 200, 403],
        "root": [200, 200, 200, 404],
    }
    answer = served.chat(bearer("m" * 20))
    assert answer.json()["error"]["message"] == f"mo: its key lacks the scope 'inference', which {CHAT} needs"


def test_a_revoked_key_is_refused_a_second_later_and_its_last_one_opens_nothing(tmp_path: Path) -> None:
    now = [1000.0]
    store = KeyStore(open_database(f"sqlite:///{tmp_path / 'k.sqlite3'}"), lambda: now[0])
    served = Served()
    served.app.state.keyring = Keyring((), store, clock=lambda: now[0])
    assert served.chat().status_code == 200  # no keys yet: a machine of one's own
    text, _ = store.create("ann")
    now[0] += 1
    assert served.chat().status_code == 401
    assert served.chat(bearer(text)).status_code == 200
    store.revoke("ann")
    now[0] += 1
    answer = served.chat(bearer(text))
    assert answer.status_code == 401
    assert "is revoked" in answer.json()["error"]["message"]


def test_prompts_are_shared_within_a_key_only_unless_the_operator_says_so() -> None:
    keys = (key("ann", "a" * 20, "inference"), key("bob", "b" * 20, "inference"))
    tenants = {}
    for shared in (False, True):
        served = Served(Settings(share_cache=shared), keys)
        for letter in "aab":
            served.chat(bearer(letter * 20))
        tenants[shared] = [request.generation.tenant for request in served.client.asked]
    first, second, third = tenants[False]
    assert first == second != third
    assert "" not in tenants[False]
    assert len(set(tenants[True])) == 1


def test_anonymous_requests_where_they_are_allowed_may_not_see_the_metrics() -> None:
    served = Served(Settings(host="0.0.0.0", allow_anonymous=True), (key("ann", "a" * 20, "metrics"),))
    assert served.chat().status_code == 200
    assert served.chat(bearer("whatever-a-client-sends")).status_code == 200
    assert served.ask("GET", "/metrics").status_code == 403
    assert served.ask("GET", "/metrics", headers=bearer("a" * 20)).status_code == 200


def test_rates_are_told_and_kept() -> None:
    served = Served(keys=(key("ann", "a" * 20, "inference", requests_per_minute=2, tokens_per_minute=1000),))
    first = served.chat(bearer("a" * 20))
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-limit-tokens"] == "1000"
    assert served.chat(bearer("a" * 20)).status_code == 200
    answer = served.chat(bearer("a" * 20))
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"


# Bodies.


def test_only_json_is_read() -> None:
    served = Served()
    text = json.dumps(BODY)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"):
        answer = served.ask("POST", CHAT, content=text, headers={"Content-Type": kind})
        assert answer.status_code == 415, kind
    assert served.client.asked == []
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        assert served.ask("POST", CHAT, content=text, headers={"Content-Type": kind}).status_code == 200


def test_bodies_that_are_too_large_with_and_without_a_length() -> None:
    served = Served(Settings(max_body=1000))
    padded = {**BODY, "user": "x" * 1000}
    told = served.ask("POST", CHAT, json=padded)
    assert told.status_code == 413
    assert told.json()["error"]["message"] == "the body is larger than the 1,000 bytes that are taken here; send less"
    assert told.headers["connection"] == "close"

    async def pieces() -> Any:
        for _ in range(30):
            yield b" " * 100

    assert served.ask("POST", CHAT, content=pieces(), headers={"Content-Type": "application/json"}).status_code == 413
    assert served.client.asked == []
    assert served.chat().status_code == 200


def raw(served: Served, receive: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What the application sends for a POST whose body comes out of ``receive``."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"",
             "headers": headers, "http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1), "root_path": "",
             "server": ("127.0.0.1", 8000)}  # fmt: skip
    asyncio.run(served.app(scope, receive, send))
    return sent


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def receive() -> Any:
        await asyncio.sleep(60)

    sent = raw(Served(Settings(body_timeout=0.05)), receive)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_who_leaves_before_the_body_is_there_gets_nothing() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    served = Served()
    assert raw(served, receive) == []
    assert served.client.asked == []


def test_an_answer_that_takes_too_long_ends_in_an_error_whole_and_streamed() -> None:
    served = Served(Settings(timeout=0.2), pieces=["a"] * 50, delay=0.05)
    answer = served.chat()
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "timeout_error"
    streamed = served.ask("POST", CHAT, json={**BODY, "stream": True})
    assert streamed.status_code == 200
    last = [line for line in streamed.text.splitlines() if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    assert served.client.running == 0


# What every answer carries.


def test_headers_of_pages_and_of_the_api() -> None:
    served = Served()
    page, api, missing = served.ask("GET", "/"), served.chat(), served.ask("GET", "/v1/nothing")
    for answer in (page, api, missing):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["x-request-id"].startswith("req_")
    assert page.headers["content-security-policy"] == PAGE_POLICY
    assert "unsafe" not in PAGE_POLICY
    assert api.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert missing.status_code == 404


def test_request_ids_are_echoed_if_they_are_harmless() -> None:
    served = Served()
    assert served.chat({"X-Request-Id": "trace-7:a.b"}).headers["x-request-id"] == "trace-7:a.b"
    for bad in ("a b", "x" * 129, "<script>", ""):
        assert served.chat({"X-Request-Id": bad}).headers["x-request-id"].startswith("req_")
    assert served.ask("POST", "/v1/messages", json={}).headers["request-id"].startswith("req_")


def test_the_pages_files(tmp_path: Path) -> None:
    served = Served()
    whole = served.ask("GET", "/", headers={"Accept-Encoding": "identity"})
    packed = served.ask("GET", "/", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.text == whole.text
    assert int(packed.headers["content-length"]) < len(whole.content) / 2
    again = served.ask("GET", "/", headers={"If-None-Match": f'"x", W/{whole.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert served.ask("HEAD", "/").content == b""
    assert served.ask("GET", "/pages/js/api.js").headers["content-type"].startswith("text/javascript")
    outside = ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "js/../../app.py", "/etc/passwd", "%00")
    for path in ("", "js", "js/none.js", "vendor/dompurify/LICENSE", *outside):
        assert served.ask("GET", f"/pages/{path}").status_code == 404, path


# Failures nobody foresaw, and the log.


class Capture(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.lines: list[str] = []  # formatted at once, as a handler does: the request is known then

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.lines.append(JsonLines().format(record))

    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def log():
    capture, logger = Capture(), logging.getLogger("qafila")
    before = logger.level
    logger.addHandler(capture)
    logger.setLevel(logging.INFO)
    yield capture
    logger.removeHandler(capture)
    logger.setLevel(before)


def test_the_access_log_knows_everything_but_the_texts_and_the_key(log: Capture) -> None:
    served = Served(keys=(key("ann", "very-secret-key-of-ann", "inference"),), pieces=["the ", "answer"])
    served.chat({**bearer("very-secret-key-of-ann"), "X-Request-Id": "r1"}, params={"api_key": "in-the-query"})
    (line,) = [line for line in log.json() if line["logger"] == ACCESS.name]
    assert 0 < line.pop("ttft") <= line.pop("seconds") < 5
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info", "logger": "qafila.access", "id": "r1", "key": "ann", "method": "POST", "path": CHAT,
        "status": 200, "model": "scripted", "prompt_tokens": 5, "cached_tokens": 3, "generated_tokens": 2,
    }  # fmt: skip
    served.chat(bearer("another-secret-key"))
    text = "".join(formatter.format(record) for record in log.records for formatter in (JsonLines(), Lines()))
    for secret in ("very-secret", "a secret of mine", "answer", "another-secret", "in-the-query"):
        assert secret not in text
    assert f"401 POST {CHAT} -" in Lines().format(log.records[-1])


def test_texts_are_logged_where_the_operator_asks_for_it(log: Capture) -> None:
    Served(Settings(log_prompts=True), pieces=["the ", "answer"]).chat()
    (line,) = [line for line in log.json() if line["logger"] == ACCESS.name]
    assert json.loads(line["request"]) == BODY
    assert line["answer"] == "the answer"


def test_what_nobody_foresaw_is_a_500_that_tells_the_client_nothing_and_the_log_where(log: Capture) -> None:
    served = Served(refusal=ValueError("it quotes a secret of mine"))
    answer = served.chat({"X-Request-Id": "r2"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "r2"
    (failure,) = [line for line in log.json() if line["level"] == "error"]
    assert (failure["id"], failure["path"], failure["exception"]) == ("r2", CHAT, "ValueError")
    assert any("scripted_client.py" in place for place in failure["trace"])
    (record,) = [record for record in log.records if record.levelname == "ERROR"]
    assert "secret" not in Lines().format(record)
    for formatter in (JsonLines(told=True), Lines(told=True)):
        assert "ValueError: it quotes a secret of mine" in formatter.format(record)


def test_an_answer_that_breaks_in_the_middle_is_logged_too(log: Capture) -> None:
    served = Served(error=ValueError("it quotes a secret of mine"))
    answer = served.ask("POST", CHAT, json={**BODY, "stream": True})
    assert "secret" not in answer.text
    assert [line["exception"] for line in log.json() if line["level"] == "error"] == ["ValueError"]
    assert served.app.state.service.gate.running == 0


def test_a_path_cannot_forge_a_line(log: Capture) -> None:
    Served().ask("GET", "/a%0a12:00:00 200 GET /forged%1b[31m")
    (record,) = [record for record in log.records if record.name == ACCESS.name]
    line = Lines().format(record)
    assert line.isprintable()
    assert "\\n12:00:00" in line


def test_a_websocket_is_turned_away() -> None:
    async def check() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await Guard(Served().app, Settings())({"type": "websocket", "headers": []}, None, send)  # type: ignore[arg-type]
        return sent

    assert asyncio.run(check()) == [{"type": "websocket.close", "code": 1008}]


def test_a_full_queue_is_told_as_each_api_tells_it() -> None:
    async def check() -> None:
        served = Served(Settings(max_running=1, max_waiting=0), delay=0.2)
        transport = httpx.ASGITransport(served.app)
        async with httpx.AsyncClient(transport=transport, base_url=LOCAL) as client:
            first = asyncio.ensure_future(client.post(CHAT, json=BODY))
            await asyncio.sleep(0.1)
            second = await client.post("/v1/messages", json={**BODY, "max_tokens": 5})
            assert second.status_code == 429
            assert second.json()["error"]["type"] == "rate_limit_error"
            assert int(second.headers["retry-after"]) >= 1
            assert (await client.get("/v1/models")).status_code == 200
            assert (await first).status_code == 200
            assert isinstance(served.app.state.service.gate, Limits)
            assert served.app.state.service.gate.running == 0

    asyncio.run(check())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cors_origins": ("*",)}, "--cors-origin: a wildcard"),
        ({"cors_origins": ("https://*.example",)}, "--cors-origin: a wildcard"),
        ({"cors_origins": ("https://a.example/",)}, "--cors-origin: .* is no origin"),
        ({"cors_origins": ("a.example",)}, "--cors-origin: .* is no origin"),
        ({"cors_origins": ("https://a:b@c.example",)}, "--cors-origin: .* is no origin"),
        ({"cors_origins": ("null",)}, "--cors-origin: .* is no origin"),
        ({"cors_origins": ("http://a:port",)}, "--cors-origin: .* is no origin"),
        ({"allowed_hosts": ("http://a.example",)}, "--allowed-host: .* is no name"),
        ({"allowed_hosts": ("*",)}, "--allowed-host: .* is no name"),
        ({"host": " "}, "--host: an address is missing"),
        ({"max_running": 0}, "--max-running: must be 1 or more"),
        ({"max_waiting": -1}, "--max-waiting: must be 0 or more"),
        ({"timeout": float("nan")}, "--timeout: must be a number of seconds"),
        ({"timeout": 0.0}, "--timeout: must be a number of seconds"),
        ({"grace": -1.0}, "--grace: must be a number of seconds"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**options)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("192.168.1.2", False), ("myhost", False), ("", False)],
)  # fmt: skip
def test_addresses_of_this_machine_alone(host: str, loopback: bool) -> None:
    from qafila.server.settings import is_loopback

    assert is_loopback(host) is loopback
