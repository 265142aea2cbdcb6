"""``/v1/responses``, as OpenAI's clients expect it: answers that are kept and can be continued."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from qafila.chat.client import ChatClient, ChatRequest, Event
from qafila.server.errors import ApiError, as_api_error
from qafila.server.json_response import Json
from qafila.server.responses_bodies import ResponseBody, TokenCountBody, check_include
from qafila.server.responses_items import items_of, messages_of
from qafila.server.responses_store import BrokenConversationError, Kept, ResponseStore
from qafila.server.responses_stream import Answer, sent
from qafila.server.service import Caller, Service, caller_of, service_of
from qafila.server.streaming import EVENT_STREAM, Streamed, unless_gone
from qafila.text.messages import Message

router = APIRouter()


@router.post("/v1/responses", summary="Answer, and keep the answer")
async def create_response(request: Request, body: ResponseBody) -> Response:
    """Answer a conversation, whole or as a stream of server-sent events.

    A response is kept (unless ``store`` is false, or the server keeps none) for 30 days after its conversation was
    last continued, for the caller alone. One that fails, or whose client goes away, is not.
    """
    body.check()
    service, caller, store = service_of(request), caller_of(request), _store_of(request)
    service.models.find(body.model)
    items, messages = await _conversation(body, caller, store)
    asked = body.request(messages)
    if body.truncation == "auto":
        asked = await unless_gone(request, _truncated(service, body.model, asked))
    _, events = await unless_gone(request, service.run(caller, body.model, asked))
    keeper = _Keeper(store if body.store is not False else None, caller, items, body.previous_response_id)
    answer = Answer(body, store=keeper.store is not None)
    if body.stream:
        return Streamed(_stream(answer, events, keeper), EVENT_STREAM)
    return Json(await unless_gone(request, _whole(answer, events, keeper)))


@router.post("/v1/responses/input_tokens", summary="Count what a response would read")
async def count_input_tokens(request: Request, body: TokenCountBody) -> Response:
    """The tokens of the prompt that the same body would make of ``POST /v1/responses``."""
    service, caller = service_of(request), caller_of(request)
    service.models.find(body.model)
    _, messages = await _conversation(body, caller, _store_of(request))
    tools = body.functions() if body.choice()[0] != "none" else ()

    async def count() -> int:
        async with service.lease(caller, body.model) as client:
            return await client.count(messages, tools)

    return Json({"object": "response.input_tokens", "input_tokens": await unless_gone(request, count())})


@router.get("/v1/responses/{response_id}", summary="A kept response")
async def get_response(request: Request, response_id: str) -> Response:
    """A response as it was told when it was made."""
    query = _query(request, ("include", "include[]", "stream", "include_obfuscation"))
    if query.get("stream", "false") != "false":
        raise ApiError(400, "stream: only responses in the background are streamed, and there are none", param="stream")
    return Json((await _kept(request, response_id)).body)


@router.delete("/v1/responses/{response_id}", summary="Forget a response")
async def delete_response(request: Request, response_id: str) -> Response:
    """Forget a response; what continues it can then no longer be continued."""
    _query(request, ())
    store, caller = _store_of(request), caller_of(request)
    if store is None or not await asyncio.to_thread(store.delete, caller.tenant, caller.name, response_id):
        raise _unknown(response_id)
    return Json({"id": response_id, "object": "response", "deleted": True})


@router.get(
    "/v1/responses/{response_id}/input_items",
    summary="What a response was made from",
    openapi_extra={
        "parameters": [
            {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
            {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100}},
            {"name": "after", "in": "query", "schema": {"type": "string"}},
        ]
    },
)
async def list_input_items(request: Request, response_id: str) -> Response:
    """The items of a response's own input (not those of the responses it continues), the latest first.

    ``order`` (asc, desc), ``limit`` (1 to 100, by default 20) and ``after`` (an item's id) choose among them.
    """
    query = _query(request, ("include", "include[]", "order", "limit", "after"))
    order, limit = query.get("order", "desc"), query.get("limit", "20")
    if order not in ("asc", "desc"):
        raise ApiError(400, f"order: {order!r:.80} is neither asc nor desc", param="order")
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= 100):
        raise ApiError(400, f"limit: {limit!r:.80} is no number from 1 to 100", param="limit")
    items = (await _kept(request, response_id)).input
    if order == "desc":
        items = items[::-1]
    if (after := query.get("after")) is not None:
        place = next((i for i, item in enumerate(items) if item["id"] == after), None)
        if place is None:
            raise ApiError(400, f"after: there is no item {after!r:.80} in this response's input", param="after")
        items = items[place + 1 :]
    page = items[: int(limit)]
    first, last = (page[0]["id"], page[-1]["id"]) if page else ("", "")
    more = len(items) > len(page)
    return Json({"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": more})


@router.post("/v1/responses/{response_id}/cancel", summary="Cancel a response in the background")
async def cancel_response(request: Request, response_id: str) -> Response:
    """Always an error: no response is made in the background. Closing the connection cancels."""
    await _kept(request, response_id)
    raise ApiError(400, "only a response in the background can be cancelled; to cancel, close the connection")


# What a request asks.


async def _conversation(
    body: TokenCountBody, caller: Caller, store: ResponseStore | None
) -> tuple[list[dict[str, Any]], list[Message]]:
    """The items of the input, and all messages that are answered: instructions, what went before, and the input."""
    if body.input is None:
        raise ApiError(400, "input: missing", param="input")
    items = items_of(body.input)
    if not items:
        raise ApiError(400, "input: the list is empty; give at least one item", param="input")
    messages = [Message("system", body.instructions)] if body.instructions is not None else []
    previous = body.previous_response_id
    if previous is not None:
        if store is None:
            message = "previous_response_id: this server keeps no responses; send the whole conversation in input"
            raise ApiError(400, message, param="previous_response_id")
        try:
            messages += await asyncio.to_thread(store.conversation, caller.tenant, caller.name, previous)
        except BrokenConversationError as error:
            message = f"previous_response_id: {previous!r:.160}: {error}"
            raise ApiError(404, message, param="previous_response_id", code="previous_response_not_found") from None
    return items, [*messages, *messages_of(items)]


async def _truncated(service: Service, model: str, asked: ChatRequest) -> ChatRequest:
    async with service.models.lease(model) as client:
        return await truncated(client, asked)


async def truncated(client: ChatClient, asked: ChatRequest) -> ChatRequest:
    """A conversation without its oldest turns, as many as it takes to fit.

    A turn is a user's message and what follows it; the system messages in front and the last turn stay. Room is left
    for the tokens that may be generated, or for a quarter of the context where no limit is given (never more than
    half of it).
    """
    context = client.context_length
    if context is None:
        return asked
    limit = asked.generation.max_tokens
    room = context - min(context // 4 if limit is None else limit, context // 2)
    messages = asked.messages
    front = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    turns = [i for i, message in enumerate(messages) if message.role == "user" and i >= front]
    starts = [front, *(i for i in turns if i > front)]
    tools = asked.tools if asked.tool_mode != "none" else ()

    def kept(dropped: int) -> tuple[Message, ...]:
        return (*messages[:front], *messages[starts[dropped] :])

    # The fewest dropped turns that fit, by halving: each try writes the whole prompt.
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2 if low else 0  # first of all, whether anything must go
        if await client.count(kept(middle), tools) <= room:
            high = middle
        else:
            low = middle + 1
    return replace(asked, messages=kept(low))


# Answers.


class _Keeper:
    """Keeps a response when it is whole; does nothing without a store."""

    def __init__(
        self, store: ResponseStore | None, caller: Caller, items: list[dict[str, Any]], previous: str | None
    ) -> None:
        self.store = store
        self._caller, self._items, self._previous = caller, items, previous

    async def keep(self, answer: Answer) -> None:
        """Raises StorageError."""
        if self.store is None or answer.message is None:
            return
        messages = (*messages_of(self._items), answer.message)
        kept = Kept(answer.response, self._items, messages, self._previous)
        await asyncio.to_thread(self.store.save, self._caller.tenant, self._caller.name, kept)


async def _whole(answer: Answer, events: AsyncGenerator[Event, None], keeper: _Keeper) -> dict[str, Any]:
    async with aclosing(events):
        async for event in events:
            for _ in answer.add(event):
                pass
    answer.finish()
    await keeper.keep(answer)
    return answer.response


async def _stream(answer: Answer, events: AsyncGenerator[Event, None], keeper: _Keeper) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        try:
            for told in answer.begin():
                yield sent(told)
            async for event in events:
                for told in answer.add(event):
                    yield sent(told)
            answer.finish()
            await keeper.keep(answer)  # before its client can ask for it
        except Exception as error:
            for told in answer.fail(as_api_error(error)):
                yield sent(told)
            return
        for told in answer.end():
            yield sent(told)


# What is kept.


def _store_of(request: Request) -> ResponseStore | None:
    return cast("ResponseStore | None", getattr(request.app.state, "responses", None))


async def _kept(request: Request, response_id: str) -> Kept:
    store, caller = _store_of(request), caller_of(request)
    kept = None if store is None else await asyncio.to_thread(store.get, caller.tenant, caller.name, response_id)
    if kept is None:
        raise _unknown(response_id)
    return kept


def _unknown(response_id: str) -> ApiError:
    return ApiError(404, f"there is no response {response_id!r:.160}, or no longer", param="response_id")


def _query(request: Request, known: Sequence[str]) -> dict[str, str]:
    """The query's options.

    Raises:
        ApiError: one that there is not.
    """
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise ApiError(400, f"{name[:80]}: unknown option", param=name[:80])
        if name.startswith("include") and name != "include_obfuscation":
            check_include([value])
    return dict(request.query_params)
