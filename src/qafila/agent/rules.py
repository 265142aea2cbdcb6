"""Which calls may be carried out, and which a person is asked about first. Enforced here, whatever the model says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from qafila.agent.tool import Effect

Verdict: TypeAlias = Literal["allow", "ask", "deny"]

DEFAULTS: Mapping[Effect, Verdict] = {
    "pure": "allow",
    "read": "allow",
    "write": "ask",
    "egress": "ask",
    "irrevocable": "ask",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What is allowed by effect; an effect that is not named is denied."""

    by_effect: Mapping[Effect, Verdict] = field(default_factory=lambda: dict(DEFAULTS))

    def verdict(self, effect: Effect) -> tuple[Verdict, str]:
        """Whether a call with this effect may be carried out, and why so, in words."""
        verdict = self.by_effect.get(effect, "deny")
        words = {"allow": "are allowed", "ask": "are asked about", "deny": "are not allowed"}[verdict]
        return verdict, f"calls with the effect {effect} {words}"
