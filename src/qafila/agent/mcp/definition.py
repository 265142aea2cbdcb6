"""A tool as an MCP server describes it, what it is known by, and what of it a model may see."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import unicodedata
from typing import Any

from pydantic import BaseModel, ConfigDict

from qafila.agent.config import Server
from qafila.agent.tool import Effect

#: Bytes of one definition as JSON.
MOST_BYTES = 64 << 10
#: Characters of a description that a model is told: of a tool, and of one of its arguments.
MOST_DESCRIPTION, MOST_OF_ARGUMENT = 1000, 200
# OpenAI's API takes no longer names.
_MOST_NAME = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9]+")
# Letters that show nothing, besides those of the categories below: Hangul fillers, variation selectors, Braille blank.
_FILLERS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))


class Definition(BaseModel):
    """A tool as its server describes it (MCP specification, "Tools"): all that a change of could mislead somebody.

    Attributes:
        annotations: the server's own word for what the tool does, as in the specification.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str | None = None
    description: str | None = None
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None = None
    annotations: dict[str, Any] = {}

    def sha256(self, reached: str, server_name: str) -> str:
        """What the tool is known by: a hash of the definition, of how its server is reached, and of its name."""
        whole = {"reached": reached, "server": server_name, "tool": self.model_dump(mode="json")}
        return hashlib.sha256(canonical(whole).encode()).hexdigest()

    def effect(self, configured: Effect | None) -> Effect:
        """What a call does: as the user says, and else irrevocable. The server's word counts where it is stricter."""
        effect = configured or "irrevocable"
        reads_only, destroys = self.annotations.get("readOnlyHint"), self.annotations.get("destructiveHint")
        if reads_only is False or (destroys is True and reads_only is not True):
            return effect if effect == "egress" and destroys is not True else "irrevocable"
        if effect == "pure" and self.annotations.get("openWorldHint") is True:
            return "read"
        return effect

    def changes(self, now: Definition) -> list[str]:
        """What is different in a later definition of the same tool, as lines of a diff."""
        before, after = (
            json.dumps(one.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False).splitlines()
            for one in (self, now)
        )
        lines = difflib.unified_diff(before, after, "trusted", "now", lineterm="", n=1)
        return [cleaned(line, MOST_BYTES) for line in lines]

    def changed_parts(self, now: Definition) -> str:
        """The names of what is different in a later definition."""
        mine, its = self.model_dump(), now.model_dump()
        return ", ".join(key.replace("_", " ") for key in mine if mine[key] != its[key])


def canonical(value: Any) -> str:
    """JSON of which there is one for each value: sorted, without spaces, in ASCII.

    Raises:
        ValueError: the value holds a number that JSON does not have.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def reached(server: Server) -> str:
    """How a server is reached: what, changed, makes another server of it."""
    return canonical({"url": server.url} if server.url is not None else {"command": list(server.command)})


def cleaned(text: str, most: int) -> str:
    """Text from a server, for a person or a model: without letters that show nothing, cut at ``most`` characters."""
    shown = "".join(letter for letter in text[: most * 4] if letter in "\t\n" or not _hidden(letter))
    return shown if len(shown) <= most and len(text) <= most * 4 else shown[: most - 1] + "…"


def described(text: str, most: int) -> str:
    """As `cleaned`, on one line, with single spaces."""
    return cleaned(" ".join(text[: most * 8].split()), most)


def _hidden(letter: str) -> bool:
    return unicodedata.category(letter) in _HIDDEN or _FILLERS.match(letter) is not None


def told_name(server: str, tool: str) -> str:
    """A tool's name for models: ``SERVER_tool`` in letters that every chat format and API takes.

    A name that had to be changed ends in a part of its hash, so that two that become the same stay two.
    """
    safe = _UNSAFE.sub("_", tool).strip("_")
    name = f"{server}_{safe}" if safe else server
    if safe == tool and len(name) <= _MOST_NAME:
        return name
    mark = hashlib.sha256(tool.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{name[: _MOST_NAME - 7].rstrip('_')}_{mark}"
