"""Commands and Python in the sandbox: they see a copy of the workspace; what they change there becomes edits."""

from __future__ import annotations

from qafila.agent.edits import edits_of
from qafila.agent.sandbox.sandbox import Limits, Outcome
from qafila.agent.tool import Draft, Surroundings, Tool, tool

_SECONDS = 20.0
#: Words by which a user asks for it.
_RUN = ("run", "execute", "شغل", "نفذ")


def run_command(place: Surroundings, command: str) -> Draft:
    """Run a shell command beside the files."""
    return _run(place, ["sh", "-c", command])


def run_python(place: Surroundings, code: str) -> Draft:
    """Run a Python program beside the files; print the result."""
    return _run(place, ["python3", "-I", "-c", code])


def _run(place: Surroundings, argv: list[str]) -> Draft:
    outcome = place.sandbox().run(argv, workspace=place.workspace, limits=Limits(seconds=_SECONDS))
    return Draft(_told(outcome), edits_of(place.workspace, outcome.changes))


def _told(outcome: Outcome) -> str:
    if outcome.timed_out:
        return f"{outcome.output}\n[stopped after {_SECONDS:g} seconds]".lstrip()
    return outcome.output if outcome.status == 0 else f"{outcome.output}\n[exit status {outcome.status}]".lstrip()


def tools() -> tuple[Tool, ...]:
    """The tools of this module."""
    return (
        tool(run_command, effect="write", seconds=2 * _SECONDS, origin="built-in", asked_by=_RUN),
        tool(run_python, effect="write", seconds=2 * _SECONDS, origin="built-in", asked_by=_RUN),
    )
