"""All built-in tools, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qafila.agent.config import Config
from qafila.agent.tool import Tool, Toolbox
from qafila.agent.tools import calculate, commands, files
from qafila.chat.client import ChatClient
from qafila.errors import UsageError


@dataclass(frozen=True, slots=True)
class Resources:
    """What tools work with besides a run's surroundings.

    Attributes:
        config: the user's settings. client: a model, for tools that ask one. database: the URL of what is remembered.
        others: tools beside the built-in ones, of MCP servers.
    """

    config: Config = field(default_factory=Config)
    client: ChatClient | None = None
    database: str | None = None
    others: tuple[Tool, ...] = ()


def builtin(names: Sequence[str] | None = None, resources: Resources | None = None) -> Toolbox:
    """The built-in tools: all that these resources allow, or those of these names in this order.

    Raises:
        UsageError: a name that none has.
    """
    others = resources.others if resources is not None else ()
    every: tuple[Tool, ...] = (*files.tools(), *calculate.tools(), *commands.tools(), *others)
    if names is None:
        return Toolbox(every)
    by_name = {one.name: one for one in every}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise UsageError(f"there is no tool {unknown[0]!r:.40}; there are {', '.join(by_name)}")
    return Toolbox(tuple(by_name[name] for name in dict.fromkeys(names)))
