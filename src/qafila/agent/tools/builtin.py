"""All built-in tools, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qafila.agent.config import Config
from qafila.agent.finding import on_demand
from qafila.agent.memory.store import Memory
from qafila.agent.policy import Policy
from qafila.agent.tool import FIND, Tool, Toolbox
from qafila.agent.tools import (
    analyse,
    calculate,
    calendar,
    commands,
    delegate,
    documents,
    files,
    notes,
    remember,
    tasks,
    translate,
    units,
    web,
)
from qafila.errors import UsageError

#: The tools that the prompt tells of where none are named; with `find_tools`, which finds the others, they are ten.
TOLD = (
    *("list_files", "read_file", "search_files", "write_file", "edit_file", "delete_file"),
    *("calculate", "run_command", "run_python"),
)

#: Tools that make no sense outside a run with a model.
OF_A_RUN = frozenset((FIND, "delegate", "ask_documents", "translate"))


@dataclass(frozen=True, slots=True)
class Resources:
    """What tools work with besides a run's surroundings.

    Attributes:
        config: the user's settings. memory: what is remembered. owner: by whom.
        others: tools beside the built-in ones, of MCP servers.
    """

    config: Config = field(default_factory=Config)
    memory: Memory | None = None
    owner: str = ""
    others: tuple[Tool, ...] = ()


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
    given = resources or Resources()
    every = _every(given)
    allow = given.config.web.allow
    lacking = {"query_data": analyse.lacking(), "plot": analyse.lacking(), "fetch": web.lacking(allow)}
    by_name = {one.name: one for one in every}
    wanted = (*TOLD, FIND) if names is None else names
    told = [name for name in dict.fromkeys(wanted) if name != FIND]
    if more is None:
        more = [name for name in by_name if name not in told] if FIND in wanted else []
    unknown = [name for name in (*told, *more) if name not in by_name]
    if unknown:
        if why := lacking.get(unknown[0]):
            raise UsageError(f"tool {unknown[0]}: {why}")
        raise UsageError(f"there is no tool {unknown[0]!r:.40}; there are {', '.join((*by_name, FIND))}")
    return on_demand([by_name[name] for name in told], [by_name[name] for name in more])


def rules_of_nothing(policy: Policy, resources: Resources) -> list[str]:
    """A note for each rule that names a tool which there is not: it allows, and denies, nothing."""
    known = {FIND, *(one.name for one in _every(resources))}
    return [
        f"{policy.source}, line {rule.line}: there is no tool {rule.tool!r:.40} here, so that this rule does nothing"
        for rule in policy.rules
        if rule.tool not in known and not any(sign in rule.tool for sign in "*?[")
    ]


def outside_runs(names: Sequence[str] | None, resources: Resources) -> Toolbox:
    """The built-in tools for whoever calls them outside a run, such as an MCP client: all, or those of these names.

    Raises:
        UsageError: a name that none has.
    """
    every = [one for one in _every(resources) if one.name not in OF_A_RUN]
    known = {one.name: one for one in every}
    for name in names or ():
        if name not in known:
            raise UsageError(f"there is no tool {name!r:.40} outside runs; there are {', '.join(known)}")
    return Toolbox(tuple(known[name] for name in dict.fromkeys(known if names is None else names)))


def _every(given: Resources) -> tuple[Tool, ...]:
    """All tools that there are with these resources."""
    config = given.config
    every = (*files.tools(), *calculate.tools(), *commands.tools(), *units.tools(), *web.tools(config.web.allow))
    every += (*notes.tools(), *tasks.tools(config), *calendar.tools(config))
    every += (*documents.tools(), *translate.tools(), *delegate.tools())
    if not analyse.lacking():
        every += analyse.tools()
    if given.memory is not None:
        every += remember.tools(given.memory, given.owner)
    return (*every, *given.others)
