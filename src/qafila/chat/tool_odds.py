"""How likely a model is to call each of its tools: exact, by its own log-probabilities, before it answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qafila.chat.client import ChatRequest, ToolOdds
from qafila.errors import ChatError

if TYPE_CHECKING:
    from qafila.chat.llama import Llama
    from qafila.text.messages import ToolSchema
    from qafila.text.tokenizer import Tokenizer
    from qafila.text.tool_grammar import CallStyle


@dataclass(frozen=True, slots=True)
class Opening:
    """How a call begins, and what may come next: a token can reach from the one into the other."""

    text: str
    next: tuple[str, ...]

    def tokens(self, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
        """The tokens that begin in the text, one sequence for each way in which the last may reach beyond it."""
        length = len(self.text.encode())
        found = []
        for more in self.next:
            # Special tokens among them are tokens.
            ids = tokenizer.encode(self.text + more, special=True)
            sizes = [len(tokenizer.token_bytes(i)) for i in ids]
            # Where the first token brings a space along that is not in the text, it does not count.
            size = len((self.text + more).encode()) - sum(sizes)
            kept = 0
            while size < length and kept < len(ids):
                size += sizes[kept]
                kept += 1
            found.append(tuple(ids[:kept]))
        return list(dict.fromkeys(found))


def openings(
    style: CallStyle, tools: Sequence[ToolSchema], call_token: str | None = None
) -> tuple[Opening, list[Opening]]:
    """How any call begins, and how a call of each tool does, up to where its arguments begin."""
    token = call_token or ""
    begun = []
    for tool in tools:
        parameters = tuple(tool.parameters.get("properties", {}))
        # A call without arguments may be one, too, where none is required.
        none = not tool.parameters.get("required") or not parameters
        match style:
            case "chatml":
                text, following = f'<tool_call>\n{{"name": "{tool.name}", "arguments":', (" {",)
            case "function":
                text = f"<function={tool.name}>"
                following = (*(f'{{"{name}"' for name in parameters), *(("{}</function>",) if none else ()))
            case "pythonic":
                text = f"{token}[{tool.name}("
                following = (*(f"{name}=" for name in parameters), *((")]", "),") if none else ()))
            case _:
                text = f'{token}{{"type": "function", "name": "{tool.name}", "parameters":'
                following = (" {",)
        begun.append(Opening(text, following))
    marker = {"chatml": "<tool_call>", "function": "<function=", "pythonic": f"{token}[", "json": f"{token}{{"}[style]
    return Opening(marker, tuple(one.text.removeprefix(marker) for one in begun)), begun


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
    listed = (*request.tools, *request.untold)
    allowed = [tool for tool in listed if request.tool_names is None or tool.name in request.tool_names]
    names = [tool.name for tool in allowed]
    if not names:
        raise ChatError("tools: there are none to choose from")
    ids = chat.render(request.messages, tools=request.tools).ids
    marker, begun = openings(style, allowed, chat.call_token)
    ways = [one.tokens(llama.tokenizer) for one in (marker, *begun)]
    every = [list(way) for way in dict.fromkeys(itertools.chain(*ways))]
    found = {
        tuple(one.ids): one.logprob
        for one in likelihood(llama.engine, ids, every, adapter=llama.adapter, tenant=request.generation.tenant)
    }
    call = min(1.0, math.fsum(math.exp(found[way]) for way in ways[0]))
    highest = max(found[way] for own in ways[1:] for way in own)
    weights = [math.fsum(math.exp(found[way] - highest) for way in own) for own in ways[1:]]
    total = math.fsum(weights)
    odds = tuple((name, weight / total) for name, weight in zip(names, weights, strict=True))
    return ToolOdds(call, odds)
