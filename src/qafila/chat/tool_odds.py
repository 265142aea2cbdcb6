"""How likely a model is to call each of its tools: exact, by its own log-probabilities, before it answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qafila.chat.client import ChatRequest, ToolOdds
from qafila.errors import ChatError

if TYPE_CHECKING:
    from qafila.chat.llama import Llama
    from qafila.text.tool_grammar import CallStyle


def openings(style: CallStyle, names: Sequence[str], call_token: str | None = None) -> tuple[str, list[str]]:
    """How any call begins, and how a call of each tool does, up to where its arguments begin.

    The texts end where no tokenizer joins what follows to what stands before, so that their tokens are the ones that
    the model would write.
    """
    token = call_token or ""
    if style == "chatml":
        return "<tool_call>", [f'<tool_call>\n{{"name": "{name}", "arguments":' for name in names]
    if style == "function":
        return "<function=", [f"<function={name}>" for name in names]
    if style == "pythonic":
        return f"{token}[", [f"{token}[{name}(" for name in names]
    return f"{token}{{", [f'{token}{{"type": "function", "name": "{name}", "parameters":' for name in names]


def tool_odds(llama: Llama, request: ChatRequest) -> ToolOdds:
    """The odds of the tools that a request allows, under the prompt that it would be answered from.

    Raises:
        ChatError: no tools, or a model without a way to call them. ContextLengthError: the prompt does not fit.
    """
    from qafila.engine.score import likelihood

    chat = llama.format
    style = chat.call_style
    if style is None:
        raise ChatError(f"tools: format {chat.name} has no tool calls; choose another model")
    names = [tool.name for tool in request.tools if request.tool_names is None or tool.name in request.tool_names]
    if not names:
        raise ChatError("tools: there are none to choose from")
    ids = chat.render(request.messages, tools=request.tools).ids
    marker, begun = openings(style, names, chat.call_token)
    # Special tokens among them are tokens; `likelihood` would take their text for letters.
    texts = [llama.tokenizer.encode(text, special=True) for text in (marker, *begun)]
    same = [tail for i, tail in enumerate(texts) if tail not in texts[:i]]
    found = {
        tuple(one.ids): one.logprob
        for one in likelihood(llama.engine, ids, same, adapter=llama.adapter, tenant=request.generation.tenant)
    }
    logprobs = [found[tuple(text)] for text in texts[1:]]
    highest = max(logprobs)
    weights = [math.exp(value - highest) for value in logprobs]
    total = math.fsum(weights)
    odds = tuple((name, weight / total) for name, weight in zip(names, weights, strict=True))
    return ToolOdds(math.exp(found[tuple(texts[0])]), odds)
