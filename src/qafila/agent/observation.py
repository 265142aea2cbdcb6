"""What came of a call, as the model is told: bounded text that says whether it worked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from qafila.agent.reasons import Coded, coded

#: Characters that an observation shows of a longer text; the journal keeps `MOST_KEPT` of it.
MOST_SHOWN = 2000
MOST_KEPT = 1 << 20
# What neither a terminal nor a model should get from a tool: controls but tab and line feed, and lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_HALVES = re.compile("[\ud800-\udfff]")

Status = Literal["ok", "error", "timeout", "refused", "unknown"]


class Observation(BaseModel):
    """What a call came to.

    Attributes:
        status: ``ok``; ``error``: the tool said why not; ``timeout``; ``refused``: it did not run; ``unknown``: it was
            interrupted, and nobody knows whether it was done.
        text: for the model. whole: all of it, where ``text`` leaves some out (itself cut at `MOST_KEPT`).
        coded: what the text was made of, where it is a reason of ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status
    text: str
    whole: str | None = None
    coded: Coded | None = None

    def told(self) -> str:
        """The text of the tool's message."""
        return self.text if self.status == "ok" else f"{self.status}: {self.text}"


def observation(value: Any, status: Status = "ok", *, most: int = MOST_SHOWN) -> Observation:
    """An observation out of whatever a tool returned: text, bytes, or a JSON value.

    Args:
        value: what was returned. status: of the call.
        most: characters shown; of a longer text the beginning and the end are.
    """
    text = _text(value)
    whole = _clean(text[:MOST_KEPT])
    if len(text) <= MOST_KEPT and len(whole) <= most:
        return Observation(status=status, text=whole or "(nothing)", coded=coded(text))
    head = whole[: most * 2 // 3]
    # Of what is too long to be kept, the end is shown all the same: it says how it ended.
    end = whole if len(text) <= MOST_KEPT else _clean(text[-most:])
    tail = end[len(end) - min(len(end), most - len(head)) :]
    length = len(whole) if len(text) <= MOST_KEPT else len(text)
    gap = f"\n[... {length - len(head) - len(tail):,} characters left out ...]\n"
    return Observation(status=status, text=head + gap + tail, whole=whole)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Iterable) and not isinstance(value, list | dict | tuple):
        return _shown(value)
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return _shown(value)


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # somebody's own __repr__
        return f"<{type(value).__name__}>"


def whole_letters(text: str) -> str:
    """Text without halves of surrogate pairs, which JSON can bring along and nothing can write down."""
    return _HALVES.sub("\ufffd", text)


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))
