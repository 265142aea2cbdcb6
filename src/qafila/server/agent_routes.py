"""``/v1/agent``: runs of an agent, worked on in the background, watched, steered and allowed from elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any, cast

from fastapi import APIRouter, Request, Response

from qafila.errors import AgentError, SandboxError
from qafila.server.agent_bodies import DecideBody, ForkBody, ResumeBody, RunBody, SayBody, StopBody, UndoBody
from qafila.server.errors import ApiError
from qafila.server.json_response import Json
from qafila.server.service import Caller, caller_of, service_of
from qafila.server.streaming import EVENT_STREAM, Streamed, unless_gone

if TYPE_CHECKING:
    from qafila.agent.journal import Recorded, RunLine
    from qafila.server.agent_runs import Agents

router = APIRouter()

_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
# Seconds that a run gets to come to rest once its last event is there.
_REST = 5.0
# Words that were said to a run and not read yet.
_MOST_UNREAD = 64
_MOST_APPROVALS = 100


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


@router.get("/v1/agent", summary="What the agent can do")
async def get_agent(request: Request) -> Response:
    """Its tools, the models that it may think with, and how the first of them chooses tools (null: not loaded yet).

    Where there is none, ``enabled`` is false: pages ask this of every server, and browsers report a 404 as an error.
    """
    check_query(request)
    if getattr(request.app.state, "agents", None) is None:
        return Json({"object": "agent", "enabled": False, "tools": [], "models": [], "choosing": None})
    agents, models = agents_of(request), service_of(request).models
    first = next(iter(models.entries.values()))
    choosing = None if first.client is None else await asyncio.to_thread(_choosing, first.client)
    tools = [
        {"name": one.name, "description": one.schema.description, "effect": one.effect, "origin": one.origin}
        for one in agents.tools.by_name.values()
    ]
    return Json({"object": "agent", "enabled": True, "tools": tools, "models": list(models.entries),
                 "choosing": choosing})  # fmt: skip


def _choosing(client: Any) -> str:
    from qafila.agent.choose import settled

    return settled(client, None, option="choosing")[0]


@router.post("/v1/agent/runs", summary="Begin a run", status_code=201, responses=_STREAM)
async def create_run(request: Request, body: RunBody) -> Response:
    """Begin a run and work on it in the background; with ``stream`` its events follow, after one that is the run."""
    from qafila.agent.events import Budget, Prices
    from qafila.agent.loop import Settings

    agents, caller, models = agents_of(request), caller_of(request), service_of(request).models
    model = body.model or next(iter(models.entries))
    models.find(model)
    budget = Budget() if body.budget is None else Budget(**body.budget.model_dump())
    if budget.cost is not None and agents.prices == Prices():
        message = "budget.cost: this server knows no prices (its agent.toml has no [prices]); bound tokens instead"
        raise ApiError(400, message, param="budget.cost")
    settings = Settings(
        budget=budget,
        prices=agents.prices,
        seed=body.seed,
        temperature=body.temperature,
        answer_tokens=body.max_tokens,
        instructions=body.instructions,
    )
    await _admitted(request, caller)
    run = await agents.begin(caller, body.goal, model, body.tools, body.choosing, settings)
    line = await _line(request, run)
    told = await _told(agents, line)
    if not body.stream:
        return Json(told, 201)
    return Streamed(_events(request, line, -1, told), EVENT_STREAM)


@router.get(
    "/v1/agent/runs",
    summary="The caller's runs",
    openapi_extra={
        "parameters": [
            _parameter("limit", {"type": "integer", "minimum": 1, "maximum": 100}),
            _parameter("after", {"type": "string"}),
        ]
    },
)
async def list_runs(request: Request) -> Response:
    """Runs, newest first; ``limit`` (1 to 100, by default 20) and ``after`` (a run's id) choose among them.

    Of each: its id, goal, state, reason, when it was created and how many events it has; the rest by its id.
    """
    from qafila.server.agent_runs import owner_of
    from qafila.server.agent_views import run_row

    query = check_query(request, "limit", "after")
    agents, caller = agents_of(request), caller_of(request)
    limit = _number(query, "limit", 20, least=1, most=100)
    before = None
    if (after := query.get("after")) is not None:
        before = await asyncio.to_thread(agents.journal.line, after, owner_of(caller))
        if before is None:
            raise ApiError(400, f"after: there is no run {after!r:.80}", param="after")
    active = agents.active()  # asked first: a run that ends after this is read as ended

    def look() -> tuple[list[dict[str, Any]], bool]:
        journal = agents.journal
        found = journal.runs(limit + 1, owner=owner_of(caller), before=before, parts=False)
        rows = [
            run_row(one, working=one.id in active or (one.status == "running" and journal.worked_on(one.id)))
            for one in found[:limit]
        ]
        return rows, len(found) > limit

    data, more = await asyncio.to_thread(look)
    return Json({"object": "list", "data": data, "has_more": more})


@router.get("/v1/agent/runs/{run_id}", summary="A run as it is now")
async def get_run(request: Request, run_id: str) -> Response:
    """A run: how it stands, its answer, and what it waits for."""
    check_query(request)
    return Json(await _told(agents_of(request), await _line(request, run_id)))


@router.get(
    "/v1/agent/runs/{run_id}/events",
    summary="What happens in a run",
    responses=_STREAM,
    openapi_extra={"parameters": [_parameter("after", {"type": "integer", "minimum": -1})]},
)
async def get_events(request: Request, run_id: str) -> Response:
    """The events of a run as server-sent events, those to come too, until it ends or waits; then ``event: end``.

    ``after`` or the header Last-Event-ID names the last event that is known already. With ``Accept: application/json``
    it is a list of what there is now. Where a stream ends without ``event: end``, come back with the last event's
    number.
    """
    from qafila.server.agent_views import event_objects

    query = check_query(request, "after")
    agents, line = agents_of(request), await _line(request, run_id)
    if (last := request.headers.get("last-event-id")) is not None:
        query["after"] = last
    after = _number(query, "after", -1, least=-1, most=10**9)
    accepted = request.headers.get("accept", "")
    if "application/json" in accepted and "text/event-stream" not in accepted:
        told = await asyncio.to_thread(lambda: event_objects(agents.journal.events(line.id)))
        return Json({"object": "list", "data": [one for one in told if one["number"] > after]})
    return Streamed(_events(request, line, after), EVENT_STREAM)


@router.post("/v1/agent/runs/{run_id}/decide", summary="Allow what a run asked for, or not")
async def decide(request: Request, run_id: str, body: DecideBody) -> Response:
    """Say whether calls that wait may be carried out; the run goes on. It is written down before this answers.

    A run may wait for several calls at once; those that are not named here wait on.
    """
    from qafila.agent.events import Decided
    from qafila.agent.subrun import waiting

    agents, caller, line = agents_of(request), caller_of(request), await _line(request, run_id)
    async with agents.deciding(line.id):
        await _at_rest(agents, line)
        asked = {one.answer_to(line.id) for one in await asyncio.to_thread(waiting, agents.journal, line.id)}
        unknown = next((one for one in body.calls if one not in asked), None)
        if unknown is not None:
            raise ApiError(409, f"call {unknown!r:.64} of run {line.id} waits for nobody's word", code="not_waiting")
        await _admitted(request, caller)
        decided = {one: Decided(call=one, allowed=body.allowed, by="api", reason=body.reason) for one in body.calls}
        return await _went_on(agents, line, agents.go_on(line, caller, decided=decided))


@router.post("/v1/agent/runs/{run_id}/say", summary="Tell a run something")
async def say(request: Request, run_id: str, body: SayBody) -> Response:
    """Tell a run something: it reads it before its next step, or when it goes on."""
    agents, line = agents_of(request), await _line(request, run_id)
    await _admitted(request, caller_of(request))

    def leave() -> None:
        if len(agents.journal.wishes(line.id)) >= _MOST_UNREAD:
            raise ApiError(409, f"run {line.id} has {_MOST_UNREAD} messages that it has not read yet; wait for it")
        agents.journal.ask(line.id, "steer", body.text)

    await asyncio.to_thread(leave)
    return Json(await _told(agents, line))


@router.post("/v1/agent/runs/{run_id}/stop", summary="Stop a run")
async def stop(request: Request, run_id: str, body: StopBody | None = None) -> Response:
    """Stop a run that is worked on, at its next chance; it can be resumed."""
    agents, line = agents_of(request), await _line(request, run_id)
    await _at_rest(agents, line)  # a run that has just ended is not stopped once more
    if not agents.is_active(line.id) and not await asyncio.to_thread(agents.journal.worked_on, line.id):
        raise ApiError(409, f"run {line.id} cannot be stopped: nobody works on it", code="not_running")
    await asyncio.to_thread(agents.journal.ask, line.id, "cancel")
    return Json(await _told(agents, line))


@router.post("/v1/agent/runs/{run_id}/resume", summary="Go on with a run")
async def resume(request: Request, run_id: str, body: ResumeBody | None = None) -> Response:
    """Go on with a run that ended, was stopped or interrupted; ``text`` says what is to be done now."""
    agents, caller, line = agents_of(request), caller_of(request), await _line(request, run_id)
    text = None if body is None else body.text
    await _admitted(request, caller)
    await _at_rest(agents, line)
    return await _went_on(agents, line, agents.go_on(line, caller, say=text))


@router.post("/v1/agent/runs/{run_id}/undo", summary="Take back what a run changed")
async def undo(request: Request, run_id: str, body: UndoBody | None = None) -> Response:
    """Take back the changes of the run's last call that made some, or ``all`` of them."""
    from qafila.agent.show import edits
    from qafila.agent.undo import undo as take_back

    agents, line = agents_of(request), await _line(request, run_id)
    everything = body is not None and body.all
    await _at_rest(agents, line)
    try:
        taken = await asyncio.to_thread(lambda: take_back(agents.journal, line.id, everything=everything))
    except (AgentError, SandboxError) as error:
        raise ApiError(409, str(error), code="not_undone") from None
    agents.changed(line.id)
    return Json({"object": "agent.undo", "edits": edits(taken)})


@router.post("/v1/agent/runs/{run_id}/fork", summary="Another run with the same beginning")
async def fork(request: Request, run_id: str, body: ForkBody) -> Response:
    """A new run that begins as this one did, up to and with an event; ``resume`` goes on with it."""
    agents, line = agents_of(request), await _line(request, run_id)
    new = await asyncio.to_thread(agents.journal.fork, line.id, body.event)
    return Json(await _told(agents, await _line(request, new)))


@router.get("/v1/agent/runs/{run_id}/explain/{event}", summary="Why a step did what it did")
async def explain(request: Request, run_id: str, event: int) -> Response:
    """What each part of what the model was told did to an answer, measured by leaving it out; greatest first."""
    from qafila.agent.explain import explain as causes_of

    check_query(request)
    agents, caller, line = agents_of(request), caller_of(request), await _line(request, run_id)
    client, recorded = await agents.model(line, caller)

    async def measured() -> list[dict[str, Any]]:
        async with service_of(request).gate.admit(caller):
            causes = [cause async for cause in causes_of(client, recorded, event)]
        return [cause.to_dict() for cause in sorted(causes, key=lambda one: -one.change)]

    causes = await unless_gone(request, measured())
    return Json({"object": "agent.explanation", "run": line.id, "event": event, "causes": causes})


@router.get("/v1/agent/approvals", summary="What waits for a word")
async def list_approvals(request: Request) -> Response:
    """The calls of all of the caller's runs that wait for a word, newest runs first."""
    from qafila.server.agent_runs import owner_of
    from qafila.server.agent_views import approvals

    check_query(request)
    agents, owner = agents_of(request), owner_of(caller_of(request))

    def look() -> list[dict[str, Any]]:
        lines = agents.journal.runs(_MOST_APPROVALS, owner=owner, status="waiting", parts=False)
        return [one for line in lines for one in approvals(agents.journal, line)]

    return Json({"object": "list", "data": await asyncio.to_thread(look)})


# What requests name.


def agents_of(request: Request) -> Agents:
    """The app's agents.

    Raises:
        ApiError: 404, it has none.
    """
    agents = cast("Agents | None", getattr(request.app.state, "agents", None))
    if agents is None:
        raise ApiError(
            404, "no agent works here; `qafila serve --agent FOLDER` gives it a folder to work in", code="no_agent"
        )
    return agents


async def _line(request: Request, run_id: str) -> RunLine:
    """The caller's run of that id.

    Raises:
        ApiError: 404, they have none.
    """
    from qafila.server.agent_runs import owner_of

    agents = agents_of(request)
    line = await asyncio.to_thread(agents.journal.line, run_id, owner_of(caller_of(request)))
    if line is None:
        raise ApiError(404, f"there is no run {run_id!r:.80}", param="run_id")
    return line


def check_query(request: Request, *known: str) -> dict[str, str]:
    """The query's options.

    Raises:
        ApiError: one that there is not.
    """
    for name in request.query_params:
        if name not in known:
            raise ApiError(400, f"{name[:80]}: unknown option", param=name[:80])
    return dict(request.query_params)


def _number(query: dict[str, str], name: str, default: int, *, least: int, most: int) -> int:
    text = query.get(name, str(default))
    digits = text.removeprefix("-")
    number = int(text) if digits.isascii() and digits.isdecimal() and len(digits) <= 10 else least - 1
    if not least <= number <= most:
        raise ApiError(400, f"{name}: {text!r:.80} is no number from {least} to {most}", param=name)
    return number


async def _admitted(request: Request, caller: Caller) -> None:
    """Count a request that makes a run work against its key's rates; its steps find room for themselves."""
    async with service_of(request).gate.admit(caller):
        pass


# What is told.


async def _told(agents: Agents, line: RunLine) -> dict[str, Any]:
    from qafila.server.agent_stream import told

    return await told(agents, line)


async def _at_rest(agents: Agents, line: RunLine) -> list[Recorded]:
    """The events of a run; where it is about to come to rest, once it has: its last event is seen before that."""
    from qafila.agent.events import Asked, Ended

    recorded = await asyncio.to_thread(agents.journal.events, line.id)
    if isinstance(recorded[-1].event, Asked | Ended):
        await agents.settled(line.id, _REST)
        recorded = await asyncio.to_thread(agents.journal.events, line.id)
    return recorded


async def _went_on(agents: Agents, line: RunLine, going_on: Coroutine[Any, Any, None]) -> Response:
    try:
        await going_on
    except AgentError as error:
        raise ApiError(409, str(error), code="conflict") from None
    return Json(await _told(agents, line))


def _events(
    request: Request, line: RunLine, after: int, first: dict[str, Any] | None = None
) -> AsyncGenerator[bytes, None]:
    from qafila.server.agent_stream import events, sent

    state = request.app.state
    begun = b"" if first is None else sent("run", first)
    seconds = state.settings.timeout
    return events(agents_of(request), line, after, state.lifecycle, seconds=seconds, first=begun)
