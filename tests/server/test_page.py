"""The chat page as the server gives it out: all its files, with the strict policy, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from scripted_client import ScriptedClient

from qafila.server.app import create_app
from qafila.server.models import Entry, Models
from qafila.server.service import Service
from qafila.server.static import PAGES


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    async def load() -> ScriptedClient:
        return ScriptedClient()

    app = create_app(Service(Models({"scripted": Entry("scripted", "scripted", load)})))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def test_the_page_and_all_that_it_names_are_served(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="(pages/[^"]+)"', page.text)
    assert len(named) > 5
    for name in named:
        assert client.get(f"/{name}").status_code == 200, name


def test_the_policy_allows_this_server_alone_and_nothing_inline(client: TestClient) -> None:
    policy = dict(part.split(None, 1) for part in client.get("/").headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"


def test_modules_find_each_other(client: TestClient) -> None:
    found = 0
    for path in (PAGES / "js").glob("*.js"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r'(?:from |import |import\()"(\.[^"]+)"', text):
            target = (path.parent / name).resolve().relative_to(PAGES.resolve()).as_posix()
            answer = client.get(f"/pages/{target}")
            assert answer.status_code == 200, f"{path.name} imports {name}"
            assert answer.headers["Content-Type"].startswith("text/javascript")
            found += 1
    assert found > 30


def test_an_unchanged_file_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/pages/js/main.js")
    again = client.get("/pages/js/main.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["../app.py", "%2e%2e/app.py", "..%2fapp.py", "js", "", "/etc/passwd", "js/%00"])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/pages/{name}").status_code == 404
