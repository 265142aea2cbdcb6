"""Budgets: what is used up, what a run gets when it goes on, and what of it a sub-run may have."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qafila.agent.events import Budget, Ending
from qafila.agent.reasons import Code, Reason
from qafila.agent.state import State
from qafila.agent.tool import ToolError


def used_up(state: State, seconds: float) -> tuple[Ending, Reason] | None:
    """Which part of a run's budget is used up, and that in words; None where it may go on.

    Args:
        state: of the run. seconds: that it has worked, up to now.
    """
    budget = state.budget
    used: Sequence[tuple[Ending, Code, float, float | None]] = (
        ("tokens", "tokens_used", state.tokens, budget.tokens),
        ("seconds", "seconds_used", seconds, budget.seconds),
        ("cost", "cost_used", state.cost, budget.cost),
    )
    for name, code, spent, most in used:
        if most is not None and spent >= most:
            return name, Reason(code, most=most)
    # Calls of the last answer that the steps allow are still carried out.
    if budget.steps is not None and state.steps + state.delegated >= budget.steps and not state.pending:
        return "steps", Reason("steps_used", most=budget.steps)
    return None


def fresh(state: State) -> Budget:
    """As much again as a run was given at first, counted from what it has used; a person's word adds none."""
    given = state.began.budget
    if state.ended is not None and state.ended.reason == "waiting":
        return state.budget
    return Budget(
        steps=None if given.steps is None else state.steps + state.delegated + given.steps,
        tokens=None if given.tokens is None else state.tokens + given.tokens,
        seconds=None if given.seconds is None else state.seconds + given.seconds,
        cost=None if given.cost is None else state.cost + given.cost,
    )


def share(above: State, seconds: float, steps: int) -> Budget:
    """The budget of a sub-run out of what is left of its run's: half of the steps unless it asks for others.

    Args:
        above: the run. seconds: that it has worked, up to now. steps: that are asked for; 0 for none.

    Raises:
        ToolError: nothing is left to be shared; one step stays with the run, to make use of the answer.
    """
    budget = above.budget
    left = None if budget.steps is None else budget.steps - above.steps - above.delegated - 1
    if steps < 0:
        raise ToolError("steps: at least 1")
    if left is not None and left < 1:
        raise ToolError(Reason("too_few_steps"))
    tokens = None if budget.tokens is None else budget.tokens - above.tokens
    time = None if budget.seconds is None else budget.seconds - seconds
    cost = None if budget.cost is None else budget.cost - above.cost
    for name, rest in (("tokens", tokens), ("seconds", time), ("cost", cost)):
        if rest is not None and rest <= 0:
            raise ToolError(Reason("no_pay", budget=name))
    most = Budget().steps if left is None else min(steps or math.ceil(left / 2), left)
    return Budget(steps=steps or most if left is None else most, tokens=tokens, seconds=time, cost=cost)
