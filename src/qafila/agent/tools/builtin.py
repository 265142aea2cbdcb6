"""All built-in tools, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qafila.agent.config import Config
from qafila.agent.finding import on_demand
from qafila.agent.tool import FIND, Tool, Toolbox
from qafila.agent.tools import calculate, commands, delegate, files
from qafila.chat.client import ChatClient
from qafila.errors import UsageError

#: The tools that the prompt tells of where none are named; with `find_tools`, which finds the others, they are ten.
TOLD = (
    *("list_files", "read_file", "search_files", "write_file", "edit_file", "delete_file"),
    *("calculate", "run_command", "run_python"),
)


@dataclass(frozen=True, slots=True)
class Resources:
    """What tools work with besides a run's surroundings.

    Attributes:
        config: the user's settings. client: a model, for tools that ask one. database: the URL of what is remembered.
    """

    config: Config = field(default_factory=Config)
    client: ChatClient | None = None
    database: str | None = None


def builtin(
    names: Sequence[str] | None = None, resources: Resources | None = None, more: Sequence[str] | None = None
) -> Toolbox:
    """The built-in tools that these resources allow.

    Args:
        names: those that the prompt tells of, in this order; ten by default. resources: what they work with.
        more: those that are found on demand; by default none but where `find_tools` is among the names, or no names
            are given: then all others.

    Raises:
        UsageError: a name that none has.
    """
    every: tuple[Tool, ...] = (*files.tools(), *calculate.tools(), *commands.tools(), *delegate.tools())
    by_name = {one.name: one for one in every}
    wanted = (*TOLD, FIND) if names is None else names
    told = [name for name in dict.fromkeys(wanted) if name != FIND]
    if more is None:
        more = [name for name in by_name if name not in told] if FIND in wanted else []
    unknown = [name for name in (*told, *more) if name not in by_name]
    if unknown:
        raise UsageError(f"there is no built-in tool {unknown[0]!r:.40}; there are {', '.join((*by_name, FIND))}")
    return on_demand([by_name[name] for name in told], [by_name[name] for name in more])
