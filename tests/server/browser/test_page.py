"""The chat page in a real browser, over a real server: with the default model, and with answers written down here."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_client import ScriptedClient

from qafila.errors import ContextLengthError

Open = Callable[..., Any]
Serve = Callable[..., tuple[str, ScriptedClient]]

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DONE = ".message.assistant[aria-busy=false]"


def ask(page: Any, text: str) -> None:
    """Write and send, and wait for the whole answer."""
    page.fill("#prompt", text)
    page.click("#send")
    page.wait_for_selector(".message.assistant")
    page.wait_for_selector(".message.assistant[aria-busy=true]", state="detached")


def until(page: Any, condition: str) -> None:
    """Wait for an expression to become true (`wait_for_function` needs eval, which the page's policy forbids)."""
    end = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(30)


def answer(page: Any) -> str:
    return page.locator(".message.assistant .answer").last.inner_text()


def test_a_chat_in_english_with_the_default_model(open_page: Open, base_url: str) -> None:
    page = open_page(base_url)
    assert page.locator("html").get_attribute("dir") == "ltr"
    assert page.locator(".example").count() == 4
    page.wait_for_selector("#model option[value=default]", state="attached")
    page.click("#settings-open")
    page.fill("#max-tokens", "24")
    page.fill("#seed", "1")
    page.click("#settings-close")
    ask(page, "What is the capital of Japan? One word.")
    assert "Tokyo" in answer(page)
    figures = page.locator(".figures").inner_text()
    assert re.search(r"\d+ tokens?", figures)
    assert "to first token" in figures
    assert page.title().startswith("What is the capital of Japan?")
    # The second question is asked with the first in view of the model.
    ask(page, "And of Italy?")
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
    ask(page, "مرحبًا")
    assert page.locator(".bubble p").evaluate("element => getComputedStyle(element).direction") == "rtl"
    assert re.search(r"رم", page.locator(".figures").inner_text())
    page.click("#language-switch")
    assert (html.get_attribute("dir"), html.get_attribute("lang")) == ("ltr", "en")
    assert page.locator("#prompt").get_attribute("placeholder") == "Write a message…"


def test_each_paragraph_goes_its_own_way(open_page: Open, scripted_server: Serve) -> None:
    text = "مرحبًا بك\n\nHello\n\n- أولًا\n- ثانيًا\n\n1. one\n\n   two\n\n| أ | ب |\n|---|---|\n| ١ | B |\n\n`x`\n"
    page = open_page(scripted_server([text])[0])
    ask(page, "?")

    def ways(selector: str) -> list[str]:
        elements = page.locator(f".prose {selector}")
        return elements.evaluate_all("all => all.map((element) => getComputedStyle(element).direction)")

    assert ways("> p") == ["rtl", "ltr", "ltr"]
    assert ways("ul") == ["rtl"]
    assert ways("ul li") == ["rtl", "rtl"]
    assert ways("ol") == ["ltr"]
    assert ways("table") == ["rtl"]
    assert page.locator(".prose > p").first.get_attribute("dir") == "auto"


def test_markdown_is_rendered_as_it_streams(open_page: Open, scripted_server: Serve) -> None:
    text = (
        "# Title\n\nSome **bold** text and $x^2$ and a price of $5 or $6.\n\n```python\nprint('hi')\n```\n\n"
        "| a | b |\n|:-:|--:|\n| 1 | 2 |\n\n$$\n\\frac{1}{2}\n$$\n\n1. one\n2. two\n3. three\n\nsee [here]\n\n"
        "[here]: https://example.org/x\n"
    )
    # Pieces of three letters: every construct is seen half-written.
    pieces = [text[i : i + 3] for i in range(0, len(text), 3)]
    page = open_page(scripted_server(pieces, delay=0.004)[0])
    ask(page, "?")
    prose = page.locator(".prose")
    assert prose.locator("h1").inner_text() == "Title"
    assert prose.locator("strong").inner_text() == "bold"
    page.wait_for_selector(".prose .hljs-built_in")
    page.wait_for_selector(".prose .math.display math mfrac")
    assert prose.locator("math").count() == 2
    assert "$5 or $6" in prose.inner_text()
    assert prose.locator("td.align-center").inner_text() == "1"
    assert prose.locator("ol").count() == 1
    assert prose.locator("ol li").count() == 3
    link = prose.get_by_role("link", name="here")
    assert link.get_attribute("href") == "https://example.org/x"
    assert "noopener" in link.get_attribute("rel")
    prose.locator(".code-copy").click()
    assert "Copied" in prose.locator(".code-copy").inner_text()
    # What has grown piece by piece is what comes of the whole text.
    grown = prose.inner_html()
    page.reload()
    page.wait_for_selector(".prose .math.display math mfrac")
    page.wait_for_selector(".prose .hljs-built_in")
    assert page.locator(".prose").inner_html() == grown.replace("Copied", "Copy")


HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<svg onload=\"document.title='owned'\"><style>*{display:none}</style></svg>",
    "[click](javascript:document.title='owned')",
    "[click](JaVaScRiPt&#58;document.title='owned')",
    "[click](data:text/html,<script>1</script>) [local](/v1/models) [file](file:///etc/passwd)",
    "![pixel](https://tracker.invalid/pixel.png) ![inline](data:image/svg+xml,<svg onload=alert(1)>)",
    "<iframe src=https://tracker.invalid></iframe><base href=https://tracker.invalid>",
    "`<img src=x onerror=alert(1)>` **<b onclick=alert(1)>x</b>**",
    '```html"><script>document.title="owned"</script>\n<script>document.title="owned"</script>\n```',
    "$\\href{javascript:alert(1)}{x}$ $\\htmlStyle{color:red}{y}$ $\\includegraphics{https://tracker.invalid/a.png}$",
    "$$\n\\unicode{<img src=x onerror=alert(1)>}\n$$",
    "$\\text{<script>alert(1)</script>}$ $\\boxed{z}$ $\\rule{1em}{1em}$",
    "| <img src=x onerror=alert(1)> |\n|---|\n| <script>alert(1)</script> |",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    '<a href="https://tracker.invalid" style="position:fixed;inset:0" onmouseover=alert(1)>x</a>',
    "https://example.org/\"onmouseover='alert(1)' <https://example.org/'onclick=alert(1)>",
]


def test_hostile_answers_stay_text(open_page: Open, scripted_server: Serve) -> None:
    text = "\n\n".join(HOSTILE)
    page = open_page(scripted_server([text[i : i + 7] for i in range(0, len(text), 7)])[0])
    ask(page, "<img src=x onerror=\"document.title='owned'\">")
    page.wait_for_timeout(500)  # for formulas, and for whatever might have been set off
    assert "owned" not in page.title().removeprefix("<img src=x onerror=\"document.title='owned'\">")
    prose = page.locator(".prose")
    shown = prose.inner_text()
    assert "<script>document.title = 'owned'</script>" in shown
    assert "<iframe src=https://tracker.invalid>" in shown
    for tag in ("script", "img", "iframe", "style", "base", "svg:not(.icon)", "object", "form"):
        assert prose.locator(tag).count() == 0, tag
    attributes = prose.evaluate(
        "root => [...root.querySelectorAll('*')].flatMap((element) => element.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc")]
    links = prose.evaluate("root => [...root.querySelectorAll('a')].map((a) => [a.getAttribute('href'), a.rel])")
    assert links
    for href, rel in links:
        assert href.startswith(("https://", "mailto:"))
        assert "noopener" in rel
    picture = prose.get_by_role("link", name="Picture: pixel")
    assert picture.get_attribute("href") == "https://tracker.invalid/pixel.png"
    page.click("#probabilities")
    page.wait_for_selector(".token")
    assert page.locator(".tokens img, .tokens script").count() == 0


def test_stop_keeps_what_was_written(open_page: Open, scripted_server: Serve) -> None:
    url, client = scripted_server([f"word{i} " for i in range(2000)], delay=0.02)
    page = open_page(url)
    page.fill("#prompt", "go on")
    page.keyboard.press("Enter")
    page.get_by_text("word10").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("You stopped this answer.").wait_for()
    stopped = answer(page)
    assert 10 < len(stopped.split()) < 1000
    assert page.locator("#send").get_attribute("aria-label") == "Send"
    page.wait_for_timeout(300)
    assert answer(page) == stopped
    assert (client.running, client.cancelled) == (0, 1), "the server goes on writing for nobody"


def test_edit_branch_regenerate_and_reload(open_page: Open, scripted_server: Serve) -> None:
    url, client = scripted_server(["An answer."])
    page = open_page(url)
    ask(page, "first question")
    ask(page, "second question")
    first = page.locator(".message.user").first
    first.hover()
    first.locator(".edit").click()
    page.locator(".editor textarea").fill("another first question")
    page.keyboard.press("Enter")
    page.get_by_text("2 / 2").wait_for()
    assert page.locator(".message.user").count() == 1
    assert client.asked[-1].messages[-1].text == "another first question"
    page.wait_for_selector(DONE)
    page.click(".regenerate")
    page.wait_for_selector(".assistant .branches")
    page.wait_for_selector(DONE)
    assert page.locator(".assistant .branch-number").inner_text() == "2 / 2"
    seeds = [request.generation.sampling.seed for request in client.asked]
    assert len(set(seeds)) == len(seeds), "each answer is drawn anew"
    first.get_by_role("button", name="Previous version").click()
    page.get_by_text("second question").wait_for()
    assert page.locator(".message").count() == 4
    page.reload()
    page.get_by_text("second question").wait_for()
    assert page.locator(".message").count() == 4
    assert page.locator(".message.user .branch-number").inner_text() == "1 / 2"


def test_conversations_are_kept_searched_renamed_exported_and_deleted(
    open_page: Open, scripted_server: Serve, tmp_path: Path
) -> None:
    page = open_page(scripted_server(["Nothing special."])[0])
    ask(page, "How tall is a giraffe?")
    page.click("#new-chat")
    ask(page, "ما عاصمة الأُردن؟")
    page.click("#new-chat")
    until(page, "document.querySelectorAll('.conversation').length === 2")
    page.fill("#search", "GIRAFFE")
    until(page, "document.querySelectorAll('.conversation').length === 1")
    page.fill("#search", "الاردن")  # without the hamza and the vowel mark that were written
    page.get_by_role("button", name="ما عاصمة الأُردن؟", exact=False).first.wait_for()
    page.fill("#search", "special giraffe")
    until(page, "document.querySelectorAll('.conversation').length === 1")
    page.locator(".conversation").click()
    page.get_by_text("Nothing special.").wait_for()
    page.fill("#search", "")
    until(page, "document.querySelectorAll('.conversation').length === 2")

    row = page.locator(".conversation-row", has_text="giraffe")
    row.hover()
    row.locator(".more").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.locator(".rename").fill("Tall animals")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Tall animals", exact=True).wait_for()

    row = page.locator(".conversation-row", has_text="Tall animals")
    row.hover()
    row.locator(".more").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Export as Markdown").click()
    assert download.value.suggested_filename == "Tall animals.md"
    download.value.save_as(tmp_path / "export.md")
    assert "How tall is a giraffe?" in (tmp_path / "export.md").read_text(encoding="utf-8")

    row.hover()
    row.locator(".more").click()
    page.get_by_role("menuitem", name="Delete").click()
    page.locator("#confirm-action").click()
    until(page, "document.querySelectorAll('.conversation').length === 1")
    assert page.locator(".message").count() == 0


def test_ratings_and_choices_are_exported_for_training(open_page: Open, scripted_server: Serve, tmp_path: Path) -> None:
    url, client = scripted_server(["The ", "answer."])
    page = open_page(url)
    page.click("#settings-open")
    page.fill("#system", "Be brief.")
    page.click("#settings-close")
    ask(page, "question")
    page.click(".rate.up")
    assert page.locator(".rate.up").get_attribute("aria-pressed") == "true"
    page.click(".compare")
    page.wait_for_selector(".pair .choose:not([disabled])")
    assert page.locator(".pair .message").count() == 2
    client.pieces = ["unused"]
    page.locator(".pair .choose").nth(1).click()
    page.wait_for_selector(".pair", state="detached")
    assert page.locator(".assistant .branch-number").inner_text() == "2 / 2"
    page.click("#settings-open")
    with page.expect_download() as download:
        page.click("#export-ratings")
    assert download.value.suggested_filename.endswith(".jsonl")
    download.value.save_as(tmp_path / "ratings.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "ratings.jsonl").read_text(encoding="utf-8").splitlines()]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "question"}]
    completion = [{"role": "assistant", "content": "The answer."}]
    assert lines == [
        {"prompt": prompt, "chosen": completion, "rejected": completion},
        {"prompt": prompt, "completion": completion, "label": True},
    ]


def test_attached_files_go_into_the_message(open_page: Open, scripted_server: Serve) -> None:
    url, client = scripted_server(["Read."])
    page = open_page(url)
    files = [
        {"name": "notes.md", "mimeType": "text/markdown", "buffer": "نص\n```\ncode\n```\n".encode()},
        {"name": "picture.png", "mimeType": "image/png", "buffer": b"\x89PNG\x00\xff"},
        {"name": "big.txt", "mimeType": "text/plain", "buffer": b"x" * 300_000},
    ]
    page.set_input_files("#file-input", files)
    page.wait_for_selector(".composer .chip")
    until(page, "document.getElementById('toast').textContent.includes('big.txt is too large')")
    assert page.locator(".composer .chip").count() == 1
    ask(page, "Summarise")
    assert client.asked[-1].messages[-1].text == "notes.md:\n````md\nنص\n```\ncode\n```\n````\n\nSummarise"
    assert page.locator(".bubble .chip-name").inner_text() == "notes.md"


def test_sampling_controls_are_sent_only_when_set(open_page: Open, scripted_server: Serve) -> None:
    url, client = scripted_server(["Yes."])
    page = open_page(url)
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    ask(page, "one")
    assert {"temperature", "top_p", "max_completion_tokens"} & set(bodies[0]) == set()
    assert bodies[0]["stream_options"] == {"include_usage": True}
    page.click("#settings-open")
    page.locator("#temperature").fill("0.5")
    page.locator("#top-p").fill("0.9")
    page.fill("#max-tokens", "7")
    page.fill("#seed", "42")
    page.click("#settings-close")
    ask(page, "two")
    sent = {key: bodies[1][key] for key in ("temperature", "top_p", "max_completion_tokens", "seed")}
    assert sent == {"temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 7, "seed": 42}
    page.reload()
    page.click("#settings-open")
    assert page.input_value("#seed") == "42"
    page.click("#reset")
    page.click("#settings-close")
    ask(page, "three")
    assert "temperature" not in bodies[2]
    assert len(client.asked) == 3


def test_probabilities_are_shown_on_hover_and_by_keyboard(open_page: Open, base_url: str) -> None:
    page = open_page(base_url)
    page.click("#settings-open")
    page.fill("#max-tokens", "10")
    page.click("#settings-close")
    ask(page, "Say hello.")
    page.click("#probabilities")
    token = page.locator(".token")
    token.first.wait_for()
    assert token.count() >= 2
    token.first.hover()
    card = page.locator("#token-card")
    card.wait_for()
    assert card.locator(".row").count() >= 5
    assert "%" in card.inner_text()
    token.first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.token')[1]")


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
    ask(page, "z" * 300)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator(".prose").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.click("#sidebar-toggle")
    page.locator(".conversation").wait_for()
    page.locator("#veil").click(position={"x": 380, "y": 400})
    assert not page.locator("#sidebar").is_visible()


def test_errors_are_told_in_plain_words(open_page: Open, scripted_server: Serve) -> None:
    url, client = scripted_server(["Fine."])
    page = open_page(url, expected=["Failed to load resource"])
    client.refusal = ContextLengthError("the prompt has 9000 tokens, the model reads 2048")
    ask(page, "long")
    notice = page.locator(".notice.error")
    assert "too long for the model" in notice.inner_text()
    assert "9000 tokens" in notice.inner_text()

    client.refusal = None
    notice.get_by_role("button", name="Try again").click()
    page.get_by_text("Fine.").wait_for()
    assert notice.count() == 0

    busy = {"error": {"message": "busy", "type": "rate_limit_error", "param": None, "code": None}}
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "2"}, json=busy),
        times=1,
    )
    ask(page, "again")
    assert "The server is busy" in notice.inner_text()
    button = notice.get_by_role("button")
    assert button.is_disabled()
    page.get_by_role("button", name="Try again", exact=True).click()  # waits until it can be pressed
    notice.wait_for(state="detached")

    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"), times=1)
    ask(page, "anyone there?")
    assert "isn’t answering" in notice.inner_text()


def test_a_key_is_asked_for_and_kept_for_the_tab(open_page: Open, scripted_server: Serve) -> None:
    page = open_page(scripted_server(["Welcome."])[0], expected=["Failed to load resource"])
    refusal = {"error": {"message": "no key", "type": "authentication_error", "param": None, "code": "invalid_api_key"}}

    def guard(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            route.fulfill(status=401, json=refusal)

    page.route("**/v1/**", guard)
    page.reload()
    page.locator("#key-input").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("didn’t accept that key").wait_for()
    page.locator("#key-input").fill("right")
    page.keyboard.press("Enter")
    page.wait_for_selector("#model option[value=scripted]", state="attached")
    ask(page, "hello")
    assert answer(page) == "Welcome."
    assert page.evaluate("[sessionStorage.getItem('qafila.key'), localStorage.getItem('qafila.key')]") == [
        "right",
        None,
    ]


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
    ask(page, "hello")
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
    until(page, f"{distance} < 60")
    page.mouse.move(700, 400)
    page.mouse.wheel(0, -600)
    until(page, f"{distance} > 300")
    top = page.evaluate("document.getElementById('scroller').scrollTop")
    page.get_by_text("line 120", exact=True).wait_for(state="attached")
    assert page.evaluate("document.getElementById('scroller').scrollTop") == top
    page.click("#jump")
    until(page, f"{distance} < 60")
    page.keyboard.press("Escape")
