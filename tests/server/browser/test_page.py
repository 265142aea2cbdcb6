"""The chat page in a real browser over a real server: chats with the default model, and how the page behaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from scripted_client import ScriptedClient

Open = Callable[..., Any]
Serve = Callable[..., tuple[str, ScriptedClient]]

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def test_a_chat_in_english_with_the_default_model(open_page: Open, base_url: str) -> None:
    page = open_page(base_url)
    assert page.locator("html").get_attribute("dir") == "ltr"
    assert page.locator(".example").count() == 4
    page.wait_for_selector("#model option[value=default]", state="attached")
    page.click("#settings-open")
    page.fill("#max-tokens", "24")
    page.fill("#seed", "1")
    page.click("#settings-close")
    page.ask("What is the capital of Japan? One word.")
    assert "Tokyo" in page.answer()
    figures = page.locator(".figures").inner_text()
    assert re.search(r"\d+ tokens?", figures)
    assert "to first token" in figures
    assert page.title().startswith("What is the capital of Japan?")
    # The second question is asked with the first in view of the model.
    page.ask("And of Italy?")
    assert page.locator(".message").count() == 4


def test_a_chat_in_the_arabic_interface(open_page: Open, base_url: str) -> None:
    page = open_page(base_url, locale="ar")
    html = page.locator("html")
    assert (html.get_attribute("dir"), html.get_attribute("lang")) == ("rtl", "ar")
    assert page.locator(".brand-name").inner_text() == "قافلة"
    side, dock = page.locator("#sidebar").bounding_box(), page.locator("#composer").bounding_box()
    assert side["x"] > dock["x"], "the list is on the right"
    page.click("#settings-open")
    page.fill("#max-tokens", "12")
    page.click("#settings-close")
    page.ask("مرحبًا")
    assert page.locator(".bubble p").evaluate("element => getComputedStyle(element).direction") == "rtl"
    assert re.search(r"رم", page.locator(".figures").inner_text())
    page.click("#language-switch")
    assert (html.get_attribute("dir"), html.get_attribute("lang")) == ("ltr", "en")
    assert page.locator("#prompt").get_attribute("placeholder") == "Write a message…"


def test_stop_keeps_what_was_written(open_page: Open, scripted_server: Serve) -> None:
    url, client = scripted_server([f"word{i} " for i in range(2000)], delay=0.02)
    page = open_page(url)
    page.fill("#prompt", "go on")
    page.keyboard.press("Enter")
    page.get_by_text("word10").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("You stopped this answer.").wait_for()
    stopped = page.answer()
    assert 10 < len(stopped.split()) < 1000
    assert page.locator("#send").get_attribute("aria-label") == "Send"
    page.wait_for_timeout(300)
    assert page.answer() == stopped
    assert (client.running, client.cancelled) == (0, 1), "the server goes on writing for nobody"


def test_a_phone_has_a_drawer_and_nothing_wider_than_the_screen(open_page: Open, scripted_server: Serve) -> None:
    wide = (
        "```\n"
        + "x" * 400
        + "\n```\n\n"
        + "|a" * 30
        + "|\n"
        + "|-" * 30
        + "|\n"
        + "| long words " * 30
        + "|\n\n"
        + "y" * 300
    )
    page = open_page(scripted_server([wide])[0], **PHONE)
    assert not page.locator("#sidebar").is_visible()
    page.ask("z" * 300)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator(".prose").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.click("#sidebar-toggle")
    page.locator(".conversation").wait_for()
    page.locator("#veil").click(position={"x": 380, "y": 400})
    assert not page.locator("#sidebar").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_follows_the_system_until_it_is_chosen(open_page: Open, scripted_server: Serve, scheme: str) -> None:
    page = open_page(scripted_server()[0], color_scheme=scheme)

    def lightness() -> int:
        colour = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3])

    was = lightness()
    assert (was > 600) == (scheme == "light")
    page.click("#theme-switch")
    assert (lightness() > 600) == (scheme == "dark")
    page.reload()
    assert (lightness() > 600) == (scheme == "dark")


def test_everything_is_reached_by_keyboard(open_page: Open, scripted_server: Serve) -> None:
    page = open_page(scripted_server(["Short."])[0])
    page.ask("hello")
    wanted = {"new-chat", "search", "language-switch", "theme-switch", "model", "settings-open", "prompt", "attach"}
    seen, classes = set(), set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(40):
        page.keyboard.press("Tab")
        name, kind, outline = page.evaluate(
            "(() => { const e = document.activeElement; const box = e.closest('.composer, .search-field') ?? e;"
            " return [e.id, e.className, getComputedStyle(box).outlineStyle]; })()"
        )
        if kind.startswith("sidebar-shown"):
            continue  # the document itself, between the last stop and the first
        seen.add(name)
        classes |= set(kind.split())
        assert outline != "none", f"focus is not seen on {name or kind}"
    assert wanted <= seen
    assert {"edit", "regenerate", "up", "down", "compare", "more", "conversation"} <= classes
    page.keyboard.press("Control+/")
    assert page.locator("#shortcuts").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Control+K")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Control+Shift+O")
    assert page.locator(".message").count() == 0
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_scrolling_follows_only_a_reader_who_is_at_the_end(open_page: Open, scripted_server: Serve) -> None:
    url, _ = scripted_server([f"line {i}\n\n" for i in range(400)], delay=0.01)
    page = open_page(url)
    page.fill("#prompt", "go")
    page.keyboard.press("Enter")
    page.get_by_text("line 60", exact=True).wait_for()
    distance = "(() => { const s = scroller; return s.scrollHeight - s.scrollTop - s.clientHeight; })()"
    page.until(f"{distance} < 60")
    page.mouse.move(700, 400)
    page.mouse.wheel(0, -600)
    page.until(f"{distance} > 300")
    top = page.evaluate("document.getElementById('scroller').scrollTop")
    page.get_by_text("line 120", exact=True).wait_for(state="attached")
    assert page.evaluate("document.getElementById('scroller').scrollTop") == top
    page.click("#jump")
    page.until(f"{distance} < 60")
    page.keyboard.press("Escape")
