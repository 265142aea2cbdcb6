"""What came of a call on another server, as text for a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qafila.agent.mcp.definition import described
from qafila.agent.observation import MOST_KEPT

if TYPE_CHECKING:
    from mcp_types import CallToolResult, ContentBlock

#: Parts of a result that are looked at.
MOST_PARTS = 200


def as_text(result: CallToolResult) -> str:
    """A result's text; images, sounds and files are described, and a structured result that is not in it is added."""
    parts = [_part(block) for block in result.content[:MOST_PARTS]]
    left = len(result.content) - len(parts)
    if left:
        parts.append(f"[{left} more parts left out]")
    if result.structured_content is not None and not _said(result.structured_content, parts):
        parts.append(_json(result.structured_content))
    return "\n".join(parts)[:MOST_KEPT]


def _part(block: ContentBlock) -> str:
    if block.type == "text":
        return block.text
    if block.type == "image" or block.type == "audio":
        return f"[{block.type}, {described(block.mime_type, 60)}, {_bytes(block.data)}, not shown]"
    if block.type == "resource_link":
        return f"[link: {described(block.name, 120)} {described(str(block.uri), 500)}]"
    inner = block.resource
    where = f"{described(str(inner.uri), 500)}"
    if hasattr(inner, "text"):
        return f"[{where}]\n{inner.text}"
    return f"[{where}, {described(inner.mime_type or 'bytes', 60)}, {_bytes(inner.blob)}, not shown]"


def _bytes(base64: str) -> str:
    return f"{len(base64) * 3 // 4:,} bytes"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _said(structured: Any, parts: list[str]) -> bool:
    """Whether a part is the structured result as JSON, as servers ought to send along for those who only read text.

    The official libraries put a result that is no object into ``{"result": ...}``, and its text stands for itself.
    """
    inner = structured["result"] if isinstance(structured, dict) and structured.keys() == {"result"} else structured
    for part in parts:
        if part == inner:
            return True
        try:
            if json.loads(part) in (structured, inner):
                return True
        except (ValueError, RecursionError):
            continue
    return False
