"""What models write, as the chat page shows it: Markdown, both directions, probabilities, and hostile answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scripted_client import ScriptedClient

Open = Callable[..., Any]
Serve = Callable[..., tuple[str, ScriptedClient]]


def test_each_paragraph_goes_its_own_way(open_page: Open, scripted_server: Serve) -> None:
    text = "مرحبًا بك\n\nHello\n\n- أولًا\n- ثانيًا\n\n1. one\n\n   two\n\n| أ | ب |\n|---|---|\n| ١ | B |\n\n`x`\n"
    page = open_page(scripted_server([text])[0])
    page.ask("?")

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
    page.ask("?")
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
    page.wait_for_selector(".prose .code-copy:has-text('Copied')")  # once the clipboard has it
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
    page.ask("<img src=x onerror=\"document.title='owned'\">")
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


def test_probabilities_are_shown_on_hover_and_by_keyboard(open_page: Open, base_url: str) -> None:
    page = open_page(base_url)
    page.click("#settings-open")
    page.fill("#max-tokens", "10")
    page.click("#settings-close")
    page.ask("Say hello.")
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
