"""Choosing by likelihood: what is taken off as habit, and what is not."""

from __future__ import annotations

import asyncio

import pytest
from scripted_agent import ScriptedAgent

from qafila.agent.calibration import NEUTRAL_GOAL
from qafila.agent.choose import Chooser
from qafila.chat.client import Abilities, ChatRequest, ToolOdds
from qafila.text.messages import Message, ToolCall, ToolSchema

TOOLS = (ToolSchema("read", "Read.", {"type": "object"}), ToolSchema("delete", "Delete.", {"type": "object"}))


@pytest.mark.parametrize("said", ["Now delete it.", "والآن احذفه."])
def test_what_the_user_says_later_is_no_habit(said: str) -> None:
    asked: list[ChatRequest] = []

    def odds(request: ChatRequest) -> ToolOdds:
        asked.append(request)
        wished = any(message.text == said for message in request.messages)
        return (
            ToolOdds(0.9, (("read", 0.1), ("delete", 0.9)))
            if wished
            else ToolOdds(0.2, (("read", 0.5), ("delete", 0.5)))
        )

    call = ToolCall("0.0", "read", {})
    messages = (
        Message("system", "You help."),
        Message("user", "What is in it?"),
        Message("assistant", tool_calls=(call,)),
        Message("tool", "Nothing.", name="read", tool_call_id="0.0"),
        Message("assistant", "It is empty."),
        Message("user", said),
    )
    found = asyncio.run(
        Chooser().odds(ScriptedAgent([], abilities=Abilities(), odds=odds), ChatRequest(messages, TOOLS))
    )
    assert found.call == pytest.approx(0.9)
    assert dict(found.tools)["delete"] == pytest.approx(0.9)
    without = [request for request in asked if request.messages[1].text == NEUTRAL_GOAL]
    assert {m.text for request in without for m in request.messages if m.role == "user"} == {NEUTRAL_GOAL}
