"""Translation by the model itself."""

from __future__ import annotations

from typing import Annotated

from qafila.agent.events import spent_by
from qafila.agent.observation import observation
from qafila.agent.result import Result
from qafila.agent.tool import Surroundings, Tool, ToolError, tool
from qafila.chat.client import ChatRequest, Generation, whole
from qafila.text.messages import Message

#: Characters that are translated at once, and tokens of a translation for each of them at most.
MOST, _TOKENS = 4000, 1.0


def tools() -> tuple[Tool, ...]:
    """The tools of this module."""

    async def translate(place: Surroundings, text: str, to: Annotated[str, "a language, as Arabic"]) -> Result:
        """Translate a text."""
        if place.client is None:
            raise ToolError("there is no model here that could translate")
        if not text.strip() or not to.strip():
            raise ToolError("text and to: neither may be empty")
        if len(text) > MOST:
            raise ToolError(f"text: {len(text):,} characters are too many at once; translate {MOST:,} at a time")
        if len(to) > 40 or not all(letter.isalpha() or letter in " -()" for letter in to):
            raise ToolError("to: give the name of a language")
        # The text is data: it is marked off, and the model is told what to do with it after it as well as before.
        request = ChatRequest(
            (
                Message("system", f"You translate into {to}. You give the translation and nothing else."),
                Message("user", f"{text}\n\n---\nTranslate the text above into {to}."),
            ),
            generation=Generation(max_tokens=max(64, int(_TOKENS * len(text))), temperature=0.0, seed=0),
        )
        (answer,), usage = await whole(place.client.chat(request))
        return Result(observation(answer.text.strip()), spent=spent_by(usage))

    return (tool(translate, effect="pure", origin="built-in", seconds=120),)
