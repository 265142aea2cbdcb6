"""Values as JSON, as every endpoint sends them."""

from __future__ import annotations

import json
from typing import Any

from fastapi.responses import JSONResponse


def encoded(value: object) -> bytes:
    """A value as JSON in UTF-8.

    A client can send half a surrogate pair (``"\\ud800"``), which JSON knows and UTF-8 does not; it goes back as the
    escape that it came as.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


class Json(JSONResponse):
    """A body of JSON."""

    def render(self, content: Any) -> bytes:
        """The bytes of the body."""
        return encoded(content)
