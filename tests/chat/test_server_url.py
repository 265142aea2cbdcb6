"""URLs of servers, as users name them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.chat.server_url import is_loopback, server_url
from qafila.errors import UsageError


def read(url: str) -> tuple[str, str | None, int | None, str]:
    parts = server_url(url, "--server", example="https://host/x", instead="use a variable instead")
    return parts.scheme, parts.hostname, parts.port, parts.path


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://Localhost:8000", ("http", "localhost", 8000, "")),
        ("https://[::1]/a/b", ("https", "::1", None, "/a/b")),
        ("https://مثال.example/قافلة", ("https", "مثال.example", None, "/قافلة")),
    ],
)
def test_parts_of_a_url(url: str, parts: tuple[str, str, int | None, str]) -> None:
    assert read(url) == parts


@pytest.mark.parametrize(
    "url",
    [
        "", "host", "host:80", "ftp://host/", "file:///etc/passwd", "http://", "https:///path", "https://host/#x",
        "http://host:0/", "http://host:65536/", "http://host:x/", "https://[x/", "https://[::1", "http://host:-1/",
    ],
)  # fmt: skip
def test_what_is_none_is_said_in_one_line(url: str) -> None:
    with pytest.raises(UsageError, match=r"^--server: .*is no URL of a server; write it as https://host/x$"):
        read(url)


@pytest.mark.parametrize("url", ["http://me:secret@host/", "http://me@host:x/", "http://:secret@/", "ftp://a:secret@b"])
def test_a_password_is_not_shown(url: str) -> None:
    with pytest.raises(UsageError, match=r"^--server: its URL holds a user or password; use a variable instead$"):
        read(url)
    with pytest.raises(UsageError) as caught:
        read("https://me:secret@[x/")
    assert "secret" not in str(caught.value)


@settings(derandomize=True, deadline=None)
@given(text=st.text(alphabet="htps:/@[]#?.0129xم\u202e \n", max_size=20))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    try:
        scheme, host, port, _ = read(f"http://{text}")
    except UsageError:
        return
    assert scheme == "http"
    assert host
    assert port is None or 0 < port < 65536


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("0.0.0.0", False),
        ("localhost.example", False), ("127.0.0.1.example", False), ("10.0.0.1", False), ("", False),
    ],
)  # fmt: skip
def test_which_hosts_are_this_machine(host: str, ours: bool) -> None:
    assert is_loopback(host) is ours
