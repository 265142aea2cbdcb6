"""What happened in a run: a run is nothing but the fold of its events (see `qafila.agent.state`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from qafila.agent.calibration import Calibration
from qafila.agent.edits import Edit
from qafila.agent.observation import Observation
from qafila.agent.reasons import Coded
from qafila.agent.tool import Options
from qafila.chat.client import Usage

Ending: TypeAlias = Literal[
    "done", "waiting", "steps", "tokens", "seconds", "cost", "circle", "cancelled", "handed over", "failed"
]
Choosing: TypeAlias = Literal["free", "likelihood"]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


class Budget(_Event):
    """What a run may use; None for no limit.

    Attributes:
        steps: answers of the model. tokens: read and generated, without those that were in the cache.
        seconds: by the clock, while the run is worked on. cost: in the currency of `Prices`.
    """

    steps: int | None = Field(default=12, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    cost: float | None = Field(default=None, gt=0)


class Prices(_Event):
    """Cost of a million tokens, in whatever currency the user counts in."""

    read: float = Field(default=0.0, ge=0)
    cached: float = Field(default=0.0, ge=0)
    generated: float = Field(default=0.0, ge=0)


class Thresholds(_Event):
    """From which probability on the model acts, a person is asked, and the run is handed over.

    Attributes:
        call: a call is made where it is at least this likely; else the model answers in words.
        ask: a person is asked before a call whose tool is less likely than this among the tools.
        hand_over: a run stops, for a person to take over, where the likeliest next thing is less likely than this.
    """

    call: float = Field(default=0.5, ge=0, le=1)
    ask: float = Field(default=0.0, ge=0, le=1)
    hand_over: float = Field(default=0.0, ge=0, le=1)


class Candidate(_Event):
    """One thing that the model could have done next: a tool by name, or "" for an answer in words."""

    name: str
    probability: float


class Decision(_Event):
    """Why a step did what it did.

    Attributes:
        prompt_sha256: of the prompt's token ids; "" where they are not known. choosing: how the tool was chosen.
        candidates: with their probabilities, likeliest first; none where the model chose freely.
        arguments_logprob: natural log-probability of the arguments' tokens; None where it is not known.
    """

    prompt_sha256: str = ""
    choosing: Choosing = "free"
    candidates: tuple[Candidate, ...] = ()
    arguments_logprob: float | None = None


class Spent(_Event):
    """What one answer took; ``cached`` are those of the ``read`` tokens that were computed in a step before."""

    read: int = 0
    cached: int = 0
    generated: int = 0
    first_token_seconds: float = 0.0
    seconds: float = 0.0

    def plus(self, more: Spent) -> Spent:
        """What both took; until its first token, as the latter."""
        return Spent(
            read=self.read + more.read,
            cached=self.cached + more.cached,
            generated=self.generated + more.generated,
            first_token_seconds=more.first_token_seconds,
            seconds=self.seconds + more.seconds,
        )


def spent_by(usage: Usage) -> Spent:
    """What an answer took, by what its client tells."""
    return Spent(
        read=usage.prompt,
        cached=usage.cached,
        generated=usage.generated,
        first_token_seconds=usage.prompt_seconds,
        seconds=usage.seconds,
    )


class Parent(_Event):
    """Where a sub-run comes from: a call of a run. ``depth``: 1 for a part of the user's run, 2 for a part of that."""

    run: str
    call: str
    depth: int = Field(ge=1)


class Began(_Event):
    """The first event.

    Attributes:
        tools: what the model is told. more: what it may find; in the shape of `ToolSchema.to_dict`.
        effects: of all of them. parent: of a sub-run, whose goal are a model's words and not the user's.
        remembers: a short note of the run is kept in the memory when it ends.
        remembered: the user's own words of before, which the system prompt repeats.
        foreign: the system prompt holds words that are not the user's.
        policy: the file that says what it may do, "" for none.
    """

    kind: Literal["began"] = "began"
    goal: str
    system: str
    model: str
    tools: tuple[dict[str, Any], ...]
    more: tuple[dict[str, Any], ...] = ()
    effects: dict[str, str]
    parent: Parent | None = None
    workspace: str
    budget: Budget
    prices: Prices
    choosing: Choosing
    thresholds: Thresholds = Thresholds()
    calibration: Calibration = Calibration()
    fingerprint: str | None = None
    seed: int
    temperature: float
    answer_tokens: int
    version: str
    remembers: bool = False
    remembered: tuple[str, ...] = ()
    foreign: bool = False
    policy: str = ""


class Answered(_Event):
    """The model answered: in words, or with calls.

    Attributes:
        message: in the shape of `Message.to_dict`. reason: why it ended. decision: why it is what it is.
        spent: what it took. options: what could be called.
    """

    kind: Literal["answered"] = "answered"
    options: Options = Options()
    message: dict[str, Any]
    reason: str
    decision: Decision
    spent: Spent


class Intended(_Event):
    """A call is about to be carried out; after this it may have happened.

    Attributes:
        call: its id. key: stands for it in every attempt. edits: all that it will do to the workspace.
        told: what the model is told once they are done; None for calls that are not edits.
    """

    kind: Literal["intended"] = "intended"
    call: str
    name: str
    arguments: dict[str, Any]
    effect: str
    key: str
    edits: tuple[Edit, ...] = ()
    told: str | None = None


class Source(_Event):
    """Where a value of a call that is not the user's comes from.

    Attributes:
        argument: the parameter. value: what stands there, or in it.
        told_by: the call whose result held it first, on one line; "" where the run began with it; None where nothing
            that the model was told holds it: it is the model's own, or put together.
        quote: the value with the words around it.
    """

    argument: str
    value: str
    told_by: str | None = None
    quote: str = ""


class Asked(_Event):
    """A person has to say whether a call may be carried out; nothing of it has happened.

    Attributes:
        why: which rule asks. coded: what that was made of, where it is a reason of ours.
        sources: where values come from that the call acts on and that are not the user's.
    """

    kind: Literal["asked"] = "asked"
    intent: Intended
    why: str
    coded: Coded | None = None
    sources: tuple[Source, ...] = ()


class Decided(_Event):
    """What was said. ``by``: who said it: ``terminal``, ``api``, ..."""

    kind: Literal["decided"] = "decided"
    call: str
    allowed: bool
    by: str
    reason: str = ""


class Observed(_Event):
    """What came of a call.

    Attributes:
        found: tools that can be called from now on. steps, spent: of a sub-run; they count as the run's own.
    """

    kind: Literal["observed"] = "observed"
    call: str
    name: str
    observation: Observation
    seconds: float = 0.0
    found: tuple[str, ...] = ()
    steps: int = 0
    spent: Spent = Spent()


class Steered(_Event):
    """The user said something while the run went on."""

    kind: Literal["steered"] = "steered"
    text: str


class Undone(_Event):
    """The edits of a call were taken back."""

    kind: Literal["undone"] = "undone"
    call: str


class Resumed(_Event):
    """Work goes on: in a new process, or with more budget."""

    kind: Literal["resumed"] = "resumed"
    budget: Budget


class Ended(_Event):
    """Work stops; `Resumed` may follow.

    Attributes:
        reason: ``done``, ``waiting`` (for a person's word), which part of the budget was used up, ``circle`` (the same
            call came to the same again and again), ``cancelled``, ``handed over`` (the model is too
            unsure), ``failed``.
        answer: the model's last words. detail: more about the reason. coded: what that was made of, if it is ours.
        seconds: by the clock, since the run began or was resumed.
    """

    kind: Literal["ended"] = "ended"
    reason: Ending
    answer: str = ""
    detail: str = ""
    coded: Coded | None = None
    seconds: float = 0.0


Event: TypeAlias = Annotated[
    Began | Answered | Intended | Asked | Decided | Observed | Steered | Undone | Resumed | Ended,
    Field(discriminator="kind"),
]
EVENT: TypeAdapter[Event] = TypeAdapter(Event)
