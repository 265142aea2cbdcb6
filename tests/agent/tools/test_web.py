"""Fetching pages: from allowed hosts alone, never from inside, bounded, and as people would read them."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from agent_place import Place, ended, told
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from web_site import Sent, Site, response, serving

from qafila.agent.config import Config, Web
from qafila.agent.observation import MOST_SHOWN
from qafila.agent.policy import Policy, Rule
from qafila.agent.tool import ToolError
from qafila.agent.tools import web
from qafila.agent.tools.builtin import Resources, builtin
from qafila.agent.tools.web import FetchLimits, Page, fetched
from qafila.agent.tools.web_hosts import Hosts, target_of
from qafila.errors import UsageError

T = TypeVar("T")
QUICK = FetchLimits(seconds=5.0, body_bytes=100_000, redirects=3)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 20))


def get(
    pages: dict[str, Sent], path: str = "/", *, limits: FetchLimits = QUICK, host: str = "127.0.0.1"
) -> tuple[Page, Site]:
    """What is fetched of a server that is listed by its address or as localhost."""

    async def main() -> tuple[Page, Site]:
        async with serving(pages) as site:
            hosts = Hosts([f"127.0.0.1:{site.port}", f"localhost:{site.port}"])
            return await fetched(f"http://{host}:{site.port}{path}", hosts, limits), site

    return run(main())


def refused(pages: dict[str, Sent], path: str = "/", *, limits: FetchLimits = QUICK) -> str:
    with pytest.raises(ToolError) as error:
        get(pages, path, limits=limits)
    return str(error.value)


HTML = "Content-Type: text/html; charset=utf-8"


def test_a_page_is_text_as_people_read_it() -> None:
    page = """<!doctype html><html><head><title> أهلا &amp; welcome\n</title><style>p {}</style></head><body>
        <h1>عنوان</h1><p>one <b>bold</b>word<br>two</p>tail <script>alert('no')</script><div hidden>no</div>
        <div style="color: red; DISPLAY : none">no</div><p aria-hidden="true">no</p><template>no</template>
        <table><tr><td>a</td><td>b</td></tr><tr><td>١</td><td>٢</td></tr></table><ul><li>x<li>y</ul><!-- no -->
        <a href="https://evil.example/">link</a></body></html>"""
    found, site = get({"/": response(page.encode(), HTML)})
    assert found.title == "أهلا & welcome"
    assert found.text == "عنوان\none boldword\ntwo\ntail\na | b\n١ | ٢\nx\ny\nlink"
    (request,) = site.asked
    assert request.startswith("GET / HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{site.port}\r\n" in request
    assert "cookie" not in request.lower()
    assert "authorization" not in request.lower()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html; charset=windows-1256", "<p>مرحبا بالعالم".encode("cp1256")),
        ("text/html", "<meta charset='windows-1256'><p>مرحبا بالعالم".encode("cp1256")),
        # What the server says is wrong, and what the page says is right.
        ("text/html; charset=utf-8", "<meta charset=windows-1256><p>مرحبا بالعالم".encode("cp1256")),
        ("text/html; charset=none-such", "<p>مرحبا بالعالم".encode()),
        ("text/html; charset=unicode_escape", "<p>مرحبا بالعالم".encode()),
        ("text/html; charset=iso-8859-6", "<p>مرحبا بالعالم".encode("iso8859-6")),
        ("text/html", "\ufeff<p>مرحبا بالعالم".encode("utf-16-le")),
        ("text/plain; charset=utf-16", "\ufeffمرحبا بالعالم".encode("utf-16-be")),
        ("application/xhtml+xml", "<p>مرحبا بالعالم</p>".encode()),
        ("text/plain", "مرحبا بالعالم".encode()),
    ],
)
def test_letters_in_many_encodings(content_type: str, body: bytes) -> None:
    assert get({"/": response(body, f"Content-Type: {content_type}")})[0].text == "مرحبا بالعالم"


def test_bytes_that_fit_no_encoding_are_replaced() -> None:
    assert get({"/": response(b"a \xff b", "Content-Type: text/plain; charset=utf-8")})[0].text == "a � b"


def test_data_is_text_and_pictures_are_not() -> None:
    assert get({"/": response(b'{"a": "<b>"}', "Content-Type: application/ld+json")})[0].text == '{"a": "<b>"}'
    assert "is image/png, no text" in refused({"/": response(b"\x89PNG", "Content-Type: image/png")})
    assert "is no text" in refused({"/": response(b"a\0b", "Content-Type: text/plain")})
    assert "is no text" in refused({"/": response(b"\x7fELF\0\0")})


def test_an_error_of_the_server_is_told() -> None:
    assert refused({}, "/gone").endswith("/gone: status 404 Not Found")
    assert "status 304" in refused({"/": response(status="304 Not Modified")})
    assert "cannot be fetched" in refused({"/": b"SSH-2.0-OpenSSH_9.2\r\n"})
    assert "cannot be fetched" in refused({"/": b""})


def test_a_body_is_read_to_a_limit() -> None:
    assert len(get({"/": response(b"x" * 100_000)})[0].text) == 100_000
    assert "larger than 100,000 bytes" in refused({"/": response(b"x" * 100_001)})

    async def endless() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"2000\r\n" + b"x" * 0x2000 + b"\r\n"

    assert "larger than 100,000 bytes" in refused({"/": endless})


def test_a_packed_body_is_unpacked_to_a_limit() -> None:
    packed = "Content-Encoding: gzip"
    assert get({"/": response(gzip.compress(b"small"), packed)})[0].text == "small"
    assert len(get({"/": response(gzip.compress(b"x" * 100_000), packed)})[0].text) == 100_000
    bomb = gzip.compress(bytes(60_000_000))
    assert len(bomb) < 100_000
    assert "larger than 100,000 bytes" in refused({"/": response(bomb, packed)})
    assert "is no gzip" in refused({"/": response(b"plain", packed)})
    assert "packed with br" in refused({"/": response(b"plain", "Content-Encoding: br")})


def test_a_slow_body_is_given_up() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
        for _ in range(100):
            await asyncio.sleep(0.05)
            yield b"x"

    assert "took longer than 0.4 seconds" in refused({"/": slow}, limits=FetchLimits(seconds=0.4))


def test_a_page_that_is_made_to_take_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_READING_SECONDS", 1.0)
    deep = response(b"<div>" * 200_000 + b"x", HTML)
    assert "nested too deeply" in refused({"/": deep}, limits=FetchLimits(seconds=10))


def test_redirects_stay_on_allowed_hosts() -> None:
    async def main() -> None:
        async with serving({"/": response(b"secret")}) as inner:
            moved = {
                "/a": response(b"", "Location: b?q=1#part", status="302 Found"),
                "/b?q=1": response(b"here"),
                "/out": response(b"", f"Location: http://127.0.0.1:{inner.port}/", status="301 Moved"),
                "/away": response(b"", "Location: https://evil.example/?secret", status="307 Temporary Redirect"),
                "/file": response(b"", "Location: file:///etc/passwd", status="302 Found"),
                "/login": response(b"", "Location: http://user:word@localhost/", status="302 Found"),
                "/loop": response(b"", "Location: /loop", "Set-Cookie: a=b", status="303 See Other"),
                "/nowhere": response(b"none", status="302 Found"),
            }
            async with serving(moved) as site:
                base, hosts = f"http://127.0.0.1:{site.port}", Hosts([f"127.0.0.1:{site.port}", "localhost"])
                assert await fetched(f"{base}/a", hosts, QUICK) == Page(f"{base}/b?q=1", "", "here")
                for path, why in (
                    ("/out", "is not among the hosts"),
                    ("/away", "evil.example is not among the hosts"),
                    ("/file", "must begin with https:// or http://"),
                    ("/login", "no user or password"),
                    ("/loop", "redirects more than 3 times"),
                    ("/nowhere", "status 302"),
                ):
                    with pytest.raises(ToolError, match=why):
                        await fetched(base + path, hosts, QUICK)
                assert not any("cookie" in request.lower() for request in site.asked)
            assert inner.asked == []

    run(main())


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://other.org/", "other.org is not among the hosts that may be fetched: example.org"),
        ("https://example.org.evil.org/", "is not among"),
        ("https://badexample.org/", "is not among"),
        ("https://sub.example.org/", "is not among"),
        ("https://wild.org/", "is not among"),
        ("https://example.org:8443/", "example.org:8443 is not among"),
        ("http://localhost:1234/", "is not among"),
        ("https://example.org@evil.org/", "no user or password"),
        ("https://user:word@example.org/", "no user or password"),
        ("ftp://example.org/", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("//example.org/", "must begin with https://"),
        ("example.org", "must begin with https://"),
        ("", "must begin with https://"),
        ("https://", "must begin with https://"),
        ("https://example.org:99999999/", "is none"),
        ("https://[::1/", "is none"),
        ("https://example.org/\x00", "is none"),
        ("https://example.org/" + "a" * 2000, "more than 2000 characters"),
    ],
)
def test_urls_that_are_not_allowed(url: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    hosts = Hosts(["example.org", "*.wild.org", "bücher.example"])
    with pytest.raises(ToolError, match=why.replace("[", r"\[")):
        run(fetched(url, hosts, QUICK))


@pytest.mark.parametrize(
    "url",
    [
        "https://EXAMPLE.org./x",
        "http://example.org:80/",
        "https://a.b.wild.org/",
        "https://xn--bcher-kva.example/",
        "https://bücher.example/",
        "https://مثال.إختبار/",
    ],
)
def test_urls_that_are_allowed(url: str) -> None:
    Hosts(["example.org", "*.wild.org", "bücher.example", "مثال.إختبار"]).check(target_of(url))


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "",
        "https://example.org",
        "example.org/path",
        "user@example.org",
        "*.*.org",
        "*.127.0.0.1",
        "a b",
        "a:port",
        "example.org:99999999",
        "*.",
        "exa*mple.org",
    ],
)
def test_an_entry_that_is_no_host_is_refused(entry: str) -> None:
    with pytest.raises(UsageError, match=r"web\.allow"):
        Hosts([entry])


INSIDE = (
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1",
    "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1",
    "fe80::1%eth0", "::127.0.0.1",
)  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_a_name_that_leads_inside_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", 443))
    inside = (family, socket.SOCK_STREAM, 6, "", (address, 443))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [public, inside])
    with pytest.raises(ToolError, match=r"leads to .* inside this machine or its network"):
        run(fetched("https://example.org/", Hosts(["example.org", "127.0.0.1", "localhost"]), QUICK))


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "2606:2800:21f:cb07::1", "64:ff9b::5db8:d70e", "2002:5db8:d70e::"]
)
def test_public_addresses_pass(address: str) -> None:
    Hosts(["example.org"]).check_address(target_of("https://example.org/"), address)


def test_an_address_inside_is_reached_only_where_it_is_listed_itself() -> None:
    hosts = Hosts(["10.0.0.1", "localhost", "[::1]"])
    for url, address in (("http://10.0.0.1/", "10.0.0.1"), ("http://localhost/", "::1"), ("http://[::1]/", "::1")):
        target = target_of(url)
        hosts.check(target)
        hosts.check_address(target, address)
    with pytest.raises(ToolError, match="leads to 10"):
        hosts.check_address(target_of("http://localhost/"), "10.0.0.1")
    for written in ("http://167772161/", "http://0xa.0.0.1/", "http://10.1/"):  # forms of 10.0.0.1 that inet_aton takes
        with pytest.raises(ToolError, match="is not among"):
            hosts.check(target_of(written))


def test_the_address_that_was_checked_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere when it is looked up again is not looked up again."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def recording(host: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(str(host))
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", recording)
    page, site = get({"/": response(b"here")}, host="localhost")
    assert page.text == "here"
    assert f"Host: localhost:{site.port}\r\n" in site.asked[0]
    assert [name for name in asked if not _is_address(name)] == ["localhost"]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get({"/": response(b"here")})[0].text == "here"


@pytest.mark.parametrize(("name", "said"), [("localhost", None), ("other.example", "certificate|CERTIFICATE")])
def test_the_certificate_must_be_the_hosts(
    name: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "both.pem"
    _write_certificate(name, certificate)
    monkeypatch.setattr("certifi.where", lambda: str(certificate))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)

    async def main() -> Page:
        async with serving({"/": response(b"safe")}, tls) as site:
            return await fetched(f"https://localhost:{site.port}/", Hosts([f"localhost:{site.port}"]), QUICK)

    if said is None:
        assert run(main()).text == "safe"
    else:
        with pytest.raises(ToolError, match=said):
            run(main())


def _write_certificate(name: str, path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))


def test_the_tool_is_offered_where_hosts_are_listed() -> None:
    assert "fetch" not in builtin().by_name
    with pytest.raises(UsageError, match=r"tool fetch: no host may be fetched; .*\[web\] allow"):
        builtin(["fetch"])
    made = builtin(["fetch"], Resources(config=Config(web=Web(allow=("example.org",))))).by_name["fetch"]
    assert (made.effect, made.controls) == ("egress", {"url"})


def test_a_long_page_is_read_in_portions() -> None:
    text = "".join(f"{i:05} سطر\n" for i in range(1000))

    async def main() -> str:
        pages: dict[str, Sent] = {"/": response(f"<title>Long</title><pre>{text}".encode(), HTML)}
        async with serving(pages) as site:
            (tool,) = web.tools((f"localhost:{site.port}",))
            read, at = "", 0
            while True:
                said = await tool.run({"url": f"http://localhost:{site.port}/", "start": at}, None)  # type: ignore[arg-type]
                assert len(said) <= MOST_SHOWN
                title, _, rest = said.partition("\n")
                assert title == "Long"
                if not rest.endswith("]"):
                    return read + rest
                read += rest.rpartition("\n[")[0]
                at = int(rest.rpartition("from start ")[2].rstrip("]"))

    assert run(main()).split() == text.split()


def test_who_must_say_that_a_page_may_be_fetched(place: Place) -> None:
    """An address that a text brought along is asked about, whatever the rules allow."""

    async def main() -> None:
        async with serving({"/": response(b"here")}) as site:
            url = f"http://localhost:{site.port}/"
            tools = web.tools((f"localhost:{site.port}",))
            allowed = Policy((Rule(1, "allow", effect="egress"),))
            free = Policy((Rule(1, "allow", tool="fetch", untrusted=True),))
            for policy, goal, fetches in (
                (Policy(), f"read {url}", False),
                (allowed, f"read {url}", True),
                (allowed, "read the page", False),
                (free, "read the page", True),
            ):
                agent = place.agent([[("fetch", {"url": url})]], tools, policy=policy)
                run_id = agent.begin(goal)
                events = [one.event async for one in agent.work(run_id)]
                assert told(events) == ([("ok", "here")] if fetches else [])
                assert ended(events).reason == ("done" if fetches else "waiting"), goal
            assert len(site.asked) == 2

    run(main())
