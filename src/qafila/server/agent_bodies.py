"""Bodies of ``/v1/agent``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from qafila.server.body import Body

# Characters of what people say to an agent; more belongs into a file of its workspace.
_MOST = 100_000


def _is_text(text: str) -> str:
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("holds what is no text (NUL, or half a surrogate pair)")
    return text


def _says_something(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; say something")
    return text


_Text = Annotated[str, Field(max_length=_MOST), AfterValidator(_is_text)]
_Words = Annotated[_Text, AfterValidator(_says_something)]
_Call = Annotated[str, Field(max_length=64)]


class BudgetBody(Body):
    """What a run may use; what is not given is not bounded, but for steps, of which there are 12."""

    steps: int = Field(12, ge=1, le=1000)
    tokens: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0, allow_inf_nan=False)
    cost: float | None = Field(None, gt=0, allow_inf_nan=False)


class RunBody(Body):
    """``POST /v1/agent/runs``."""

    goal: _Words
    model: str | None = None
    tools: list[str] | None = Field(None, max_length=128)
    budget: BudgetBody | None = None
    instructions: _Text = ""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    temperature: float = Field(0.0, ge=0, le=2)
    max_tokens: int = Field(512, ge=1, le=1 << 20)
    choosing: Literal["free", "likelihood"] | None = None
    stream: bool = False


class DecideBody(Body):
    """``POST /v1/agent/runs/{id}/decide``."""

    calls: list[_Call] = Field(min_length=1, max_length=1024)
    allowed: bool
    reason: _Text = ""


class SayBody(Body):
    """``POST /v1/agent/runs/{id}/say``."""

    text: _Words


class StopBody(Body):
    """``POST /v1/agent/runs/{id}/stop``."""


class ResumeBody(Body):
    """``POST /v1/agent/runs/{id}/resume``."""

    text: _Words | None = None


class UndoBody(Body):
    """``POST /v1/agent/runs/{id}/undo``."""

    all: bool = False


class ForkBody(Body):
    """``POST /v1/agent/runs/{id}/fork``."""

    event: int = Field(ge=0, le=10**9)


class RememberBody(Body):
    """``POST /v1/agent/memory``."""

    kind: Literal["profile", "fact"]
    text: _Words


class EntryBody(Body):
    """``PATCH /v1/agent/memory/{id}``."""

    text: _Words | None = None
    state: Literal["kept"] | None = None
