"""Examples of goals and the tools that are right for them, and what a model makes of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qafila.agent.calibration import NEUTRAL_GOAL, Example
from qafila.agent.scaffold import system_prompt
from qafila.chat.client import ChatClient, ChatRequest
from qafila.errors import ChatError, DataError, UsageError
from qafila.text.messages import Message, ToolSchema


@dataclass(frozen=True, slots=True)
class Choice:
    """A goal, the tools there are, and the name of the right one; None where words are right."""

    goal: str
    tools: tuple[ToolSchema, ...]
    right: str | None


def read_choices(path: Path) -> list[Choice]:
    """Choices out of JSONL: ``{"goal": "...", "tools": [...], "tool": "name" or null}``, tools in OpenAI's shape.

    Raises:
        DataError: a line that is none; the message names file and line.
    """
    found = []
    with path.open(encoding="utf-8", errors="strict") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                goal, listed, right = record["goal"], record["tools"], record["tool"]
                tools = tuple(ToolSchema.from_dict(tool, f"tools[{i}]") for i, tool in enumerate(listed))
            except (ValueError, RecursionError, KeyError, TypeError) as error:
                raise DataError(f"{where}: is no object with goal, tools and tool ({error})") from None
            except ChatError as error:
                raise DataError(f"{where}: {error}") from None
            if not isinstance(goal, str) or not goal.strip() or not tools:
                raise DataError(f"{where}: needs a goal in words and at least one tool")
            if right is not None and right not in {tool.name for tool in tools}:
                raise DataError(f"{where}: tool {right!r:.60} is not among its tools")
            found.append(Choice(goal, tools, right))
    return found


async def odds_of(
    client: ChatClient, choices: Sequence[Choice], tell: Callable[[int], None] = lambda _: None
) -> list[Example]:
    """A model's odds for each choice, under its goal and under one that asks for nothing.

    Args:
        client: the model. choices: what it is asked. tell: gets how many are done.

    Raises:
        UsageError: the client has no exact likelihoods.
    """
    if not client.abilities.exact_likelihood:
        raise UsageError(f"{client.name}: gives no exact likelihoods; calibrate a model that runs in this process")
    found = []
    for number, choice in enumerate(choices, 1):
        system = Message("system", system_prompt())
        own, neutral = [
            await client.tool_odds(ChatRequest((system, Message("user", goal)), choice.tools))
            for goal in (choice.goal, NEUTRAL_GOAL)
        ]
        found.append(Example(own, neutral, choice.right))
        tell(number)
    return found
