"""Translation by the model itself."""

from __future__ import annotations

from typing import Annotated

from qafila.agent.tool import Tool, ToolError, tool
from qafila.chat.client import ChatClient, ChatRequest, Generation, whole
from qafila.text.messages import Message

#: Characters that are translated at once, and tokens of a translation for each of them at most.
MOST, _TOKENS = 4000, 1.0


def tools(client: ChatClient) -> tuple[Tool, ...]:
    """The tools of this module, with a model that translates."""

    async def translate(text: str, to: Annotated[str, "a language, as Arabic"]) -> str:
        """Translate a text."""
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
        (answer,), _ = await whole(client.chat(request))
        return answer.text.strip()

    return (tool(translate, effect="pure", origin="built-in", seconds=120),)
