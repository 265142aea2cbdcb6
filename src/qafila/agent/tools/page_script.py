"""What people would read of an HTML page: a program of its own, which is ended when a page is made to take long.

Started as ``python -I page_script.py`` with the page on standard input, in UTF-8; it imports nothing of Qafila and
writes a JSON list of title and text. Tags that are never closed take a parser time by the square of their number.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_SECONDS, _MEMORY = 5, 1 << 30
_DROPPED: Final = frozenset((
    "head", "script", "style", "noscript", "template", "svg", "math", "iframe", "object", "canvas", "audio", "video",
    "select", "textarea", "button",
))  # fmt: skip
_BLOCKS: Final = frozenset((
    "address", "article", "aside", "blockquote", "body", "br", "caption", "dd", "details", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li",
    "main", "nav", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
))  # fmt: skip
_UNSEEN = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|opacity\s*:\s*0(?:\.0*)?\s*(?:;|$)", re.I
)
_SPACES = re.compile(r"[^\S\n]+")
_LINES = re.compile(r" ?\n[ \n]*")


def readable(page: str) -> tuple[str, str]:
    """Title and text of an HTML page: a line for each block, cells of a table side by side, nothing that is hidden."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(page)
    heading = tree.css_first("head > title")
    title = " ".join(heading.text().split()) if heading is not None else ""
    text = "".join(_pieces(tree.body)) if tree.body is not None else ""
    return title, _LINES.sub("\n", _SPACES.sub(" ", text)).strip()


def _pieces(body: LexborNode) -> Iterator[str]:
    """The texts of a tree in order, with line feeds around blocks; without recursion, as pages nest as they like."""
    node: LexborNode | None = body
    while node is not None:
        if node.tag == "-text":
            yield _SPACES.sub(" ", (node.text_content or "").replace("\n", " "))
        elif node.tag in _BLOCKS:
            yield "\n"
        following = node.child if _shown(node) else None
        while following is None:
            if node.tag in _BLOCKS:
                yield "\n"
            elif node.tag in ("td", "th"):
                yield " | " if node.next is not None else ""
            if node.mem_id == body.mem_id:
                return
            following = node.next
            if following is None:
                parent = node.parent
                if parent is None:
                    return
                node = parent
        node = following


def _shown(node: LexborNode) -> bool:
    if node.tag in _DROPPED:
        return False
    attributes = node.attributes
    if "hidden" in attributes or attributes.get("aria-hidden") == "true":
        return False
    return not _UNSEEN.search(attributes.get("style") or "")


def main() -> None:
    """Read a page and write what people would read."""
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    page = sys.stdin.buffer.read().decode("utf-8", "replace")
    sys.stdout.write(json.dumps(readable(page)))


if __name__ == "__main__":
    main()
