"""Choosing the next tool by what the model itself finds likely, over exactly the tools that may be called."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from qafila.agent.calibration import NEUTRAL_GOAL, TINY, Calibration, calibration_of, logit, sigmoid
from qafila.agent.events import Candidate, Choosing
from qafila.chat.client import ChatClient, ChatRequest, ToolOdds
from qafila.errors import UsageError
from qafila.text.messages import Message


@dataclass(slots=True)
class Chooser:
    """Turns a model's odds into probabilities, by the ``calibration`` of this model."""

    calibration: Calibration = field(default_factory=Calibration)
    _neutral: dict[frozenset[str], ToolOdds] = field(default_factory=dict)

    async def odds(self, client: ChatClient, request: ChatRequest) -> ToolOdds:
        """Calibrated probabilities of a call, and of each tool where there is one.

        What the model does out of habit is asked for once for the same tools: the system message stays the same.
        """
        own = await client.tool_odds(request)
        if len(request.messages) > _OPENING:
            own = await self._without_habit(client, request, own)
        if not self.calibration.call_prior and not self.calibration.tool_prior:
            return self.calibration.apply(own, own)
        return self.calibration.apply(own, await self._at_start(client, request))

    async def _at_start(self, client: ChatClient, request: ChatRequest) -> ToolOdds:
        """Odds under a goal that asks for nothing, when nothing has happened yet; asked for once for the same tools.

        Tools that were found later are taken as if they had been told from the beginning, as those of the calibration's
        examples were: of what is not in its prompt at all, a model's habits say nothing.
        """
        every = (*request.tools, *request.untold)
        names = frozenset(tool.name for tool in every)
        if names not in self._neutral:
            told = replace(_neutral(request, _OPENING), tools=every, untold=(), tool_names=names)
            self._neutral[names] = await client.tool_odds(told)
        return self._neutral[names]

    async def _without_habit(self, client: ChatClient, request: ChatRequest, own: ToolOdds) -> ToolOdds:
        """Odds without what the calls made so far add whatever the goal is: models like to repeat themselves."""
        start = await self._at_start(client, request)
        now = await client.tool_odds(_neutral(request, len(request.messages)))
        call = sigmoid(logit(own.call) - (logit(now.call) - logit(start.call)))
        before, habit = dict(start.tools), dict(now.tools)
        weights = [max(p, TINY) * max(before[name], TINY) / max(habit[name], TINY) for name, p in own.tools]
        total = sum(weights)
        return ToolOdds(call, tuple((name, w / total) for (name, _), w in zip(own.tools, weights, strict=True)))


#: Messages of a run in which nothing has happened: the system's and the goal.
_OPENING = 2
#: Characters of a result that a conversation without a goal keeps.
_RESULT = 60


def _neutral(request: ChatRequest, messages: int) -> ChatRequest:
    """The same conversation with a user who asks for nothing, and with the beginnings of results alone.

    A habit is of the calls, not of what they came to; and a second conversation of full length beside the run's own
    would push that out of the KV cache.
    """
    kept = []
    for message in request.messages[:messages]:
        if message.role == "user":  # the goal, and what was said later
            message = Message("user", NEUTRAL_GOAL)
        elif message.role == "tool":
            message = replace(message, content=message.text[:_RESULT])
        kept.append(message)
    return replace(request, messages=tuple(kept))


def decided(odds: ToolOdds, call_from: float) -> str:
    """The tool that is called, or "" for an answer in words: a call is made where it is at least this likely."""
    return max(odds.tools, key=lambda one: one[1])[0] if odds.call >= call_from else ""


def candidates(odds: ToolOdds) -> tuple[Candidate, ...]:
    """What the model could do next, likeliest first: each tool, and "" for an answer in words."""
    every = [Candidate(name="", probability=max(0.0, 1 - odds.call))]
    every += [Candidate(name=name, probability=odds.call * share) for name, share in odds.tools]
    return tuple(sorted(every, key=lambda one: -one.probability))


def settled(
    client: ChatClient, wished: Choosing | None, given: Calibration | None = None, *, option: str
) -> tuple[Choosing, Calibration]:
    """How a client's tools are chosen, and the calibration for that.

    Args:
        client: the model. wished: how; None for by likelihood where the model's calibration is known. given: a
            calibration instead of the known one. option: what asked for it, for messages.

    Raises:
        UsageError: likelihoods are wished of a client that has none. FormatError: the known calibration is damaged.
    """
    if wished == "likelihood" and not client.abilities.exact_likelihood:
        raise UsageError(f"{option}: {client.name} gives no exact likelihoods; a model in this process does")
    known = given or calibration_of(client.fingerprint)
    likely = known is not None if wished is None else wished == "likelihood"
    return "likelihood" if likely else "free", known or Calibration()
