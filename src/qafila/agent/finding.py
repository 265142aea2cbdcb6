"""Tools that are found on demand: the prompt tells of a few, and one of these finds the others by words.

What is found is told in the result of the call, so that the prompt only ever grows; from then on it can be called.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qafila.agent.finding_words import words_of
from qafila.agent.observation import observation
from qafila.agent.result import Result
from qafila.agent.tool import FIND, Tool, Toolbox, ToolError, tool
from qafila.text.messages import ToolSchema

#: Tools that one call finds, and characters that are told of each.
MOST_FOUND, MOST_CHARACTERS = 4, 400
#: Of what is found, all have at least this share of the best one's score.
_NEAR = 0.4
# Characters of a description that are read.
_MOST_READ = 2000
# BM25 (Robertson and Zaragoza 2009, section 3.4) with its usual constants; names weigh as much as so many mentions.
_K1, _B, _NAME_WEIGHT = 1.2, 0.75, 3


def on_demand(told: Sequence[Tool], more: Sequence[Tool]) -> Toolbox:
    """A toolbox of which the prompt tells a part; where there are more, `find_tools` comes along to find them."""
    if not more:
        return Toolbox(tuple(told))
    every = {one.name: one.schema for one in more}

    def find_tools(words: str) -> Result:
        """Find other tools for other work."""
        names = ranked(words, tuple(every.values()))
        if not names:
            known = ", ".join(every)
            raise ToolError(f"no tool is about these words; there are {known}")
        lines = ["You can call these now:", *(signature(every[name]) for name in names)]
        return Result(observation("\n".join(lines)), found=tuple(names))

    finder = tool(find_tools, effect="pure", name=FIND, origin="built-in")
    return Toolbox((*told, finder), tuple(more))


def without(toolbox: Toolbox, name: str) -> Toolbox:
    """The same tools but one, which cannot be found either."""
    if name not in toolbox.by_name:
        return toolbox
    told = [one for one in toolbox.tools if one.name not in (name, FIND)]
    return on_demand(told, [one for one in toolbox.more if one.name != name])


def ranked(words: str, tools: Sequence[ToolSchema], most: int = MOST_FOUND) -> list[str]:
    """Names of the tools that some words are about, best first: by BM25 over names, descriptions and parameters."""
    wanted = set(words_of(words))
    texts = [Counter(_words(one)) for one in tools]
    mean = max(1.0, sum(map(Counter.total, texts)) / max(1, len(texts)))
    scores: list[tuple[float, int]] = []
    for place, text in enumerate(texts):
        length = _K1 * (1 - _B + _B * text.total() / mean)
        score = 0.0
        for word in sorted(wanted & text.keys()):
            holding = sum(word in other for other in texts)
            rarity = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            score += rarity * text[word] * (_K1 + 1) / (text[word] + length)
        if score:
            scores.append((-score, place))
    scores.sort()
    return [tools[place].name for score, place in scores[:most] if score <= _NEAR * scores[0][0]]


def _words(schema: ToolSchema) -> list[str]:
    parameters = schema.parameters.get("properties", {})
    described = [str(inner.get("description", "")) for inner in parameters.values() if isinstance(inner, Mapping)]
    text = " ".join([*[schema.name] * _NAME_WEIGHT, schema.description[:_MOST_READ], *parameters, *described])
    return words_of(text[: 2 * _MOST_READ])


def signature(schema: ToolSchema) -> str:
    """A tool on one line: ``name(parameter: type, other?: type): what it does``."""
    parameters = schema.parameters.get("properties", {})
    required = schema.parameters.get("required", ())
    told = [f"{name}{'' if name in required else '?'}: {_type(inner)}" for name, inner in parameters.items()]
    line = " ".join(f"{schema.name}({', '.join(told)}): {schema.description}".split())
    return line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 1]}…"


def _type(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(values := schema.get("enum"), list):
        kind = "|".join(map(str, values))
    elif isinstance(ways := schema.get("anyOf"), list):
        kind = "|".join(_type(way) for way in ways)
    else:
        kind = str(schema.get("type", "any"))
    if kind == "array":
        kind = f"[{_type(schema.get('items'))}]"
    return f"{kind} ({schema['description']})" if schema.get("description") else kind


def found_in(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the tools, in OpenAI's shape, that a result of `find_tools` describes: for results that were edited."""
    names = [ToolSchema.from_dict(one).name for one in tools]
    return tuple(name for name in names if re.search(rf"^{re.escape(name)}\(", text, re.MULTILINE))
