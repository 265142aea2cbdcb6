"""The chat page as it is served: which files, with which headers, and no others."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from qafila.server import errors, pages


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()
    errors.install(app)
    app.include_router(pages.router)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def test_the_page_and_all_that_it_names_are_served(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="(pages/[^"]+)"', page.text)
    assert len(named) > 5
    for name in named:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["Content-Security-Policy"] == pages.CONTENT_SECURITY_POLICY


def test_modules_find_each_other(client: TestClient) -> None:
    for path in (pages.FOLDER / "js").glob("*.js"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r'(?:from |import |import\()"(\.[^"]+)"', text):
            target = (path.parent / name).resolve().relative_to(pages.FOLDER).as_posix()
            answer = client.get(f"/pages/{target}")
            assert answer.status_code == 200, f"{path.name} imports {name}"
            assert answer.headers["Content-Type"].startswith("text/javascript")


def test_an_unchanged_file_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/pages/js/main.js")
    again = client.get("/pages/js/main.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_files_are_packed_for_who_can_unpack_them(client: TestClient) -> None:
    body = (pages.FOLDER / "js" / "main.js").read_bytes()
    plain = client.get("/pages/js/main.js", headers={"Accept-Encoding": "identity"})
    assert plain.content == body
    assert "Content-Encoding" not in plain.headers
    with client.stream("GET", "/pages/js/main.js", headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert gzip.decompress(raw) == body


@pytest.mark.parametrize(
    "name", ["__init__.py", "../app.py", "%2e%2e/app.py", "..%2fapp.py", "js", "", "vendor/vendor.json", "/etc/passwd"]
)
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    answer = client.get(f"/pages/{name}")
    assert answer.status_code == 404
    assert b"import" not in answer.content


def test_every_file_is_part_of_the_page() -> None:
    kinds = {*pages.MEDIA_TYPES, ".py", ".json", ""}
    for path in pages.FOLDER.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert Path(path.name).suffix in kinds, path
