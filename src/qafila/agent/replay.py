"""Replaying a run: the model is asked again, its tools are not; or one of them is made to have said something else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from qafila.agent.ask_model import Step, UnsureError, ask_model
from qafila.agent.choose import Chooser
from qafila.agent.events import Answered, Observed
from qafila.agent.finding import found_in
from qafila.agent.journal import Journal, Recorded
from qafila.agent.observation import observation
from qafila.agent.state import State
from qafila.agent.tool import FIND
from qafila.chat.client import ChatClient
from qafila.errors import AgentError
from qafila.text.messages import ToolSchema


@dataclass(frozen=True, slots=True)
class Check:
    """One answer, asked for again.

    Attributes:
        number: of the event. tokens: how many were compared. difference: what is not the same; None where all is.
    """

    number: int
    tokens: int
    difference: str | None


async def verify(client: ChatClient, recorded: Sequence[Recorded]) -> AsyncIterator[Check]:
    """Ask for every answer of a run again, from what the model had been told then, and compare token by token.

    Equal tokens are promised for equal weights on one instruction set, whatever the number of threads and whatever else
    is under way; nothing is promised of models that run elsewhere.

    Raises:
        AgentError: the client gives no token ids, or other weights or another instruction set than the run's.
    """
    first = State.of(recorded).began
    if not client.abilities.exact_likelihood:
        raise AgentError("replay: this model gives no token ids; only runs of a model in this process can be verified")
    if first.fingerprint != client.fingerprint:
        raise AgentError(
            f"replay: the run was made by {first.model} ({first.fingerprint or 'unknown weights'}), and this is "
            f"{client.name} ({client.fingerprint or 'unknown weights'})"
        )
    tools = tuple(ToolSchema.from_dict(tool) for tool in first.tools)
    chooser = Chooser(first.calibration)
    state = State.of(recorded[:1])
    for one in recorded[1:]:
        if isinstance(one.event, Answered):
            try:
                again = await ask_model(client, state, Step(tools, one.event.options, chooser, state.untold))
                yield Check(one.number, len(one.event.message.get("ids") or ()), _difference(one.event, again))
            except UnsureError as error:
                yield Check(one.number, 0, str(error))
        state.add(one.event)


def _difference(before: Answered, again: Answered) -> str | None:
    if before.decision.prompt_sha256 != again.decision.prompt_sha256:
        return "the prompt is another one"
    if before.message != again.message:
        old, new = before.message.get("ids") or [], again.message.get("ids") or []
        at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        return f"the answer differs from its token {at} on"
    if before.decision != again.decision:
        return "the probabilities are others"
    return None


def what_if(journal: Journal, run: str, number: int, text: str) -> str:
    """A new run that begins as another did, but in which one call came to something else; gives its id.

    Args:
        journal: where it is. run: its id. number: of the event that tells what the call came to.
        text: what it is to have come to.

    Raises:
        AgentError: no such run, or another kind of event.
    """
    recorded = journal.events(run)
    if not 0 <= number < len(recorded) or not isinstance(recorded[number].event, Observed):
        results = [str(one.number) for one in recorded if isinstance(one.event, Observed)]
        raise AgentError(
            f"event {number} of run {run} is no result of a call; those are {', '.join(results) or 'none'}"
        )
    event = recorded[number].event
    assert isinstance(event, Observed)
    changes: dict[str, object] = {"observation": observation(text)}
    if event.name == FIND:  # what can be called from then on is what the new words tell of
        changes["found"] = found_in(text, State.of(recorded[:1]).began.more)
    return journal.fork(run, number, event.model_copy(update=changes))
