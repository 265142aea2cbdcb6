"""A headless Chromium, and pages in it that are watched: whatever the browser complains about fails the test."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Reports of the Content-Security-Policy, as lines that the watcher sees.
REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium (`apt install chromium`) under Playwright.

    Of one module: its thread counts as running an event loop until Playwright stops, and tests with loops follow.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here: apt install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


class Watched:
    """A context whose pages may not complain, nor ask anything of another origin."""

    def __init__(self, context: Any, url: str) -> None:
        self.context = context
        self.complaints: list[str] = []
        self.expected: list[str] = []
        origin = urlsplit(url)[:2]

        def request(request: Any) -> None:
            parts = urlsplit(request.url)
            if parts.scheme not in ("data", "blob") and parts[:2] != origin:
                self.complaints.append(f"asked for {request.url}")

        def console(message: Any) -> None:
            if message.type in ("error", "warning") and not any(text in message.text for text in self.expected):
                self.complaints.append(f"{message.type}: {message.text}")

        context.add_init_script(REPORT_VIOLATIONS)
        context.on("request", request)
        context.on("console", console)
        context.on("weberror", lambda error: self.complaints.append(f"exception: {error.error}"))
        context.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))


class ChatPage:
    """A Playwright page with what one does on a chat page."""

    def __init__(self, page: Any) -> None:
        self._page = page

    def __getattr__(self, name: str) -> Any:
        return getattr(self._page, name)

    def ask(self, text: str) -> None:
        """Write and send, and wait for the whole answer."""
        self.fill("#prompt", text)
        self.click("#send")
        self.wait_for_selector(".message.assistant")
        self.wait_for_selector(".message.assistant[aria-busy=true]", state="detached")

    def answer(self) -> str:
        """The text of the last answer."""
        return str(self.locator(".message.assistant .answer").last.inner_text())

    def until(self, condition: str) -> None:
        """Wait for an expression to become true (`wait_for_function` needs eval, which the page's policy forbids)."""
        end = time.monotonic() + 20
        while not self.evaluate(condition):
            assert time.monotonic() < end, condition
            self.wait_for_timeout(30)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the chat page of a server: ``open_page(url, locale="ar", viewport=..., expected=[...])``.

    `expected` holds parts of console lines that belong to the test, such as the browser's note of a refused request.
    """
    watched: list[Watched] = []

    def make(url: str, *, expected: list[str] | None = None, **options: Any) -> Any:
        options.setdefault("locale", "en-US")
        options.setdefault("viewport", {"width": 1280, "height": 860})
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        watcher = Watched(context, url)
        watcher.expected = expected or []
        watched.append(watcher)
        page = context.new_page()
        page.goto(url)
        return ChatPage(page)

    yield make
    complaints = [line for watcher in watched for line in watcher.complaints]
    for watcher in watched:
        watcher.context.close()
    assert complaints == []
