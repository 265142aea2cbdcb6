"""All built-in tools, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qafila.agent.config import Config
from qafila.agent.memory.store import Memory
from qafila.agent.tool import Tool, Toolbox
from qafila.agent.tools import (
    analyse,
    calculate,
    calendar,
    commands,
    documents,
    files,
    notes,
    remember,
    tasks,
    translate,
    units,
    web,
)
from qafila.chat.client import ChatClient
from qafila.errors import UsageError


@dataclass(frozen=True, slots=True)
class Resources:
    """What tools work with besides a run's surroundings.

    Attributes:
        config: the user's settings. client: a model, for tools that ask one. memory: what is remembered, and whose.
        others: tools beside the built-in ones, of MCP servers.
    """

    config: Config = field(default_factory=Config)
    client: ChatClient | None = None
    memory: Memory | None = None
    owner: str = ""
    others: tuple[Tool, ...] = ()


def builtin(names: Sequence[str] | None = None, resources: Resources | None = None) -> Toolbox:
    """The built-in tools: all that these resources allow, or those of these names in this order.

    Raises:
        UsageError: a name that none has.
    """
    given = resources or Resources()
    every = _every(given)
    allow = given.config.web.allow
    lacking = {"query_data": analyse.lacking(), "plot": analyse.lacking(), "fetch": web.lacking(allow)}
    if names is None:
        return Toolbox(every)
    by_name = {one.name: one for one in every}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        if why := lacking.get(unknown[0]):
            raise UsageError(f"tool {unknown[0]}: {why}")
        raise UsageError(f"there is no tool {unknown[0]!r:.40}; there are {', '.join(by_name)}")
    return Toolbox(tuple(by_name[name] for name in dict.fromkeys(names)))


def _every(given: Resources) -> tuple[Tool, ...]:
    """All tools that there are with these resources."""
    config, client = given.config, given.client
    every = (*files.tools(), *calculate.tools(), *commands.tools(), *units.tools(), *web.tools(config.web.allow))
    every += (*notes.tools(), *tasks.tools(config), *calendar.tools(config), *documents.tools(client))
    if not analyse.lacking():
        every += analyse.tools()
    if client is not None:
        every += translate.tools(client)
    if given.memory is not None:
        every += remember.tools(given.memory, given.owner)
    return (*every, *given.others)
