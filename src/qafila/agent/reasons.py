"""Reasons of our own: English words, and what they were made of, so that a page can say the same in another language.

A reason is its English words, wherever words are wanted. What tools, people and policy files say are plain texts, which
nobody translates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

Code: TypeAlias = Literal[
    # What a policy says of a call.
    "rule", "effect_allowed", "effect_asked", "effect_denied", "not_yours", "not_asked_for", "nobody_there",
    # What else comes of a call.
    "unsure_tool", "said_no", "no_tool", "took_too_long", "interrupted", "interrupted_changed",
    "too_few_steps", "no_pay", "too_many_parts",
    # Why work stops.
    "steps_used", "tokens_used", "seconds_used", "cost_used", "circle", "unsure", "stopped", "stopped_above",
    "answer_cut", "call_cut",
]  # fmt: skip
Value: TypeAlias = str | int | float | tuple[str, ...]

#: The words of each; braces are filled with its values.
ENGLISH: Mapping[Code, str] = {
    "rule": "{source}, line {line}",
    "effect_allowed": "calls with the effect {effect} are allowed",
    "effect_asked": "calls with the effect {effect} are asked about",
    "effect_denied": "calls with the effect {effect} are not allowed",
    "not_yours": "{arguments}: not from your words, but read somewhere or made up",
    "not_asked_for": "{tool}: your words do not ask for it, and something was read before it was chosen",
    "nobody_there": "it began by itself, and nobody is there",
    "unsure_tool": "the model is not sure that {tool} is the right tool",
    "said_no": "the user said no",
    "no_tool": "there is no tool {name!r:.80}; there are {tools}",
    "took_too_long": "{tool} took longer than {seconds:g} seconds and was stopped",
    "interrupted": "{tool} was interrupted, and nobody knows whether it was done; it is not done again by itself",
    "interrupted_changed": "interrupted, and the files were changed by somebody else meanwhile",
    "too_few_steps": "too few steps are left for a helper; go on without one",
    "no_pay": "the budget of {budget} is used up; no helper can be paid",
    "too_many_parts": "there were {most} helpers already; go on without one",
    "steps_used": "the budget of {most} steps is used up",
    "tokens_used": "the budget of {most:g} tokens is used up",
    "seconds_used": "the budget of {most:g} seconds is used up",
    "cost_used": "the budget of {most:g} cost is used up",
    "circle": "the same call came to the same result again and again",
    "unsure": "the likeliest next thing has a probability of {probability:.2f}, and a person is to take over",
    "stopped": "stopped by the user",
    "stopped_above": "the run that it is a part of was stopped",
    "answer_cut": "the answer was cut at {tokens} tokens",
    "call_cut": "a call was begun and not finished: the answer was cut at {tokens} tokens",
}


class Coded(BaseModel):
    """A reason as a program reads it: which, and the names and numbers in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: Code
    values: dict[str, Value] = {}


class Reason(str):
    """English words of ours that know what they were made of: ``coded``."""

    coded: Coded

    def __new__(cls, code: Code, **values: Value) -> Reason:
        """The words of a code, with the names and numbers in it."""
        told = {name: ", ".join(value) if isinstance(value, tuple) else value for name, value in values.items()}
        made = super().__new__(cls, ENGLISH[code].format_map(told))
        made.coded = Coded(code=code, values=values)
        return made


def coded(words: str) -> Coded | None:
    """What words were made of; None where they are somebody else's."""
    return words.coded if isinstance(words, Reason) else None
