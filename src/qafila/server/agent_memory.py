"""``/v1/agent/memory``: what the agent remembers of the caller, to be seen, put right, kept and forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from qafila.errors import AgentError
from qafila.server.agent_bodies import EntryBody, RememberBody
from qafila.server.agent_routes import agents_of, check_query
from qafila.server.errors import ApiError
from qafila.server.json_response import Json
from qafila.server.service import caller_of

if TYPE_CHECKING:
    from qafila.agent.memory.store import Entry, Memory

router = APIRouter()


@router.get("/v1/agent/memory", summary="What is remembered of the caller")
async def list_memory(request: Request) -> Response:
    """All entries, newest first; those that are only proposed are told to no model."""
    check_query(request)
    memory, owner = _memory(request)
    found = await asyncio.to_thread(memory.list, owner)
    return Json({"object": "list", "data": [_told(one) for one in found]})


@router.post("/v1/agent/memory", summary="Remember something", status_code=201)
async def remember(request: Request, body: RememberBody) -> Response:
    """Keep a fact, or a line of the caller's profile."""
    memory, owner = _memory(request)
    return Json(await _changed(memory.add, owner, body.kind, body.text), 201)


@router.patch("/v1/agent/memory/{entry}", summary="Put an entry right, or keep it")
async def change(request: Request, entry: str, body: EntryBody) -> Response:
    """Replace an entry's ``text`` by the caller's words, or keep what was proposed (``state``: kept)."""
    memory, owner = await _with_entry(request, entry)
    if body.text is None and body.state is None:
        raise ApiError(400, "text or state: give what is to change", param="text")
    if body.text is not None:  # the caller's own words are kept
        return Json(await _changed(memory.edit, owner, entry, body.text))
    return Json(await _changed(memory.keep, owner, entry))


@router.delete("/v1/agent/memory/{entry}", summary="Forget an entry")
async def forget(request: Request, entry: str) -> Response:
    """Forget an entry; the run that it came from still tells of it, until that is erased."""
    check_query(request)
    memory, owner = await _with_entry(request, entry)
    await asyncio.to_thread(memory.forget, owner, entry)
    return Json({"object": "agent.memory", "id": entry, "deleted": True})


def _memory(request: Request) -> tuple[Memory, str]:
    agents = agents_of(request)
    from qafila.server.agent_runs import owner_of

    return agents.memory, owner_of(caller_of(request))


async def _with_entry(request: Request, entry: str) -> tuple[Memory, str]:
    """The memory and its owner.

    Raises:
        ApiError: 404, the caller has no such entry.
    """
    memory, owner = _memory(request)
    if all(one.id != entry for one in await asyncio.to_thread(memory.list, owner)):
        raise ApiError(404, f"there is no entry {entry!r:.80}", param="entry")
    return memory, owner


async def _changed(change: Callable[..., Entry], *arguments: str) -> dict[str, Any]:
    """The entry after a change.

    Raises:
        ApiError: the memory does not take it.
    """
    try:
        return _told(await asyncio.to_thread(change, *arguments))
    except AgentError as error:
        raise ApiError(400, str(error), param="text") from None


def _told(entry: Entry) -> dict[str, Any]:
    return {"object": "agent.memory", **entry.to_dict()}
