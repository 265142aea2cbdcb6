"""Choosing the next tool by what the model itself finds likely, over exactly the tools that may be called."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from qafila.agent.calibration import NEUTRAL_GOAL, Calibration
from qafila.agent.events import Candidate
from qafila.chat.client import ChatClient, ChatRequest, ToolOdds
from qafila.text.messages import Message


@dataclass(slots=True)
class Chooser:
    """Turns a model's odds into probabilities, by the ``calibration`` of this model."""

    calibration: Calibration = field(default_factory=Calibration)
    _neutral: ToolOdds | None = None

    async def odds(self, client: ChatClient, request: ChatRequest) -> ToolOdds:
        """Calibrated probabilities of a call, and of each tool where there is one.

        What the model does out of habit is asked for once: the system message and the tools stay the same in a run.
        """
        own = await client.tool_odds(request)
        if not self.calibration.call_prior and not self.calibration.tool_prior:
            return self.calibration.apply(own, own)
        if self._neutral is None:
            system = [message for message in request.messages[:1] if message.role == "system"]
            self._neutral = await client.tool_odds(replace(request, messages=(*system, Message("user", NEUTRAL_GOAL))))
        return self.calibration.apply(own, self._neutral)


def candidates(odds: ToolOdds) -> tuple[Candidate, ...]:
    """What the model could do next, likeliest first: each tool, and "" for an answer in words."""
    every = [Candidate(name="", probability=max(0.0, 1 - odds.call))]
    every += [Candidate(name=name, probability=odds.call * share) for name, share in odds.tools]
    return tuple(sorted(every, key=lambda one: -one.probability))
