"""One response on its way: a client's events in, the events of ``/v1/responses`` and the whole response out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from qafila.chat.client import CallPiece, Event, Finished, TextPiece, TokenInfo, Usage
from qafila.server.errors import ApiError
from qafila.server.json_response import encoded
from qafila.server.openai_chat import token_logprob
from qafila.server.responses_bodies import ResponseBody
from qafila.server.responses_items import new_id
from qafila.text.messages import Message


def sent(event: dict[str, Any]) -> bytes:
    """An event as a stream sends it."""
    return f"event: {event['type']}\ndata: ".encode() + encoded(event) + b"\n\n"


class Answer:
    """Collects a response.

    Each method gives the events that are to be sent, in order and numbered.

    Args:
        body: what was asked for. store: whether the response will be kept.
    """

    def __init__(self, body: ResponseBody, *, store: bool) -> None:
        self.message: Message | None = None
        self.response: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": None,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": None,
            "service_tier": "default",
            "store": store,
            "temperature": body.temperature,
            "text": {"format": body.text.format.to_dict()},
            "tool_choice": body.told_choice(),
            "tools": body.told_tools(),
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": body.truncation,
            "usage": None,
            "user": None,
        }
        self._logprobs = body.logprobs() is not None
        self._number = 0
        # What is under way: the item, its text or arguments so far, and the call's number among the calls.
        self._item: dict[str, Any] | None = None
        self._pieces: list[str] = []
        self._tokens: list[dict[str, Any]] = []
        self._call: int | None = None

    def begin(self) -> Iterator[dict[str, Any]]:
        """The response was accepted."""
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def add(self, event: Event) -> Iterator[dict[str, Any]]:
        """More of the answer."""
        if isinstance(event, TextPiece):
            if event.text or event.tokens:
                yield from self._text(event)
        elif isinstance(event, CallPiece):
            yield from self._arguments(event)
        elif isinstance(event, Finished):
            self.message = event.message
            cut = event.reason == "length"
            if not self.response["output"] and self._item is None:
                yield from self._open_message()
            yield from self._close("incomplete" if cut else "completed")
            if cut:
                self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        elif isinstance(event, Usage):
            self.response["usage"] = {
                "input_tokens": event.prompt,
                "input_tokens_details": {"cached_tokens": event.cached, "cache_write_tokens": 0},
                "output_tokens": event.generated,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": event.prompt + event.generated,
            }

    def finish(self) -> None:
        """The answer is whole: the response is as it will be told."""
        cut = self.response["incomplete_details"] is not None
        self.response["status"] = "incomplete" if cut else "completed"
        self.response["completed_at"] = None if cut else int(time.time())

    def end(self) -> Iterator[dict[str, Any]]:
        """The last event of a response that is finished."""
        yield self._event(f"response.{self.response['status']}", response=self.response)

    def fail(self, error: ApiError) -> Iterator[dict[str, Any]]:
        """The answer failed after it had begun."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        if error.status < 500 and error.status != 429:
            code = "invalid_prompt"
        self.response["status"] = "failed"
        self.response["error"] = {"code": code, "message": error.message}
        yield self._event("response.failed", response=self.response)

    # Items.

    def _text(self, event: TextPiece) -> Iterator[dict[str, Any]]:
        if self._item is None or self._item["type"] != "message":
            if self._item is not None:
                yield from self._close("completed")
            yield from self._open_message()
        told = [token_logprob(info) for info in event.tokens] if self._logprobs else []
        self._pieces.append(event.text)
        self._tokens += [_with_bytes(one) for one in told]
        yield self._place("response.output_text.delta", content_index=0, delta=event.text,
                          logprobs=[_brief(info) for info in event.tokens] if self._logprobs else [])  # fmt: skip

    def _arguments(self, event: CallPiece) -> Iterator[dict[str, Any]]:
        if self._item is None or self._call != event.index:
            if self._item is not None:
                yield from self._close("completed")
            self._call = event.index
            item = {"id": new_id("fc"), "type": "function_call", "status": "in_progress", "arguments": "",
                    "call_id": event.id, "name": event.name}  # fmt: skip
            yield from self._open(item)
        if event.arguments:
            self._pieces.append(event.arguments)
            yield self._place("response.function_call_arguments.delta", delta=event.arguments)

    def _open_message(self) -> Iterator[dict[str, Any]]:
        item: dict[str, Any] = {"id": new_id("msg"), "type": "message", "status": "in_progress", "role": "assistant",
                                "content": []}  # fmt: skip
        yield from self._open(item)
        yield self._place("response.content_part.added", content_index=0, part=self._part("", []))

    def _open(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._item, self._pieces, self._tokens = item, [], []
        yield self._event("response.output_item.added", output_index=len(self.response["output"]), item=dict(item))

    def _close(self, status: str) -> Iterator[dict[str, Any]]:
        item = self._item
        if item is None:
            return
        text = "".join(self._pieces)
        if item["type"] == "message":
            part = self._part(text, self._tokens)
            brief = [{name: one[name] for name in ("token", "logprob", "top_logprobs")} for one in self._tokens]
            yield self._place("response.output_text.done", content_index=0, text=text, logprobs=brief)
            yield self._place("response.content_part.done", content_index=0, part=part)
            item = {**item, "status": status, "content": [part]}
        else:
            yield self._place("response.function_call_arguments.done", arguments=text)
            item = {**item, "status": status, "arguments": text}
        yield self._event("response.output_item.done", output_index=len(self.response["output"]), item=item)
        self.response["output"].append(item)
        self._item = self._call = None

    def _part(self, text: str, tokens: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(tokens)}

    # Events.

    def _place(self, kind: str, **fields: Any) -> dict[str, Any]:
        assert self._item is not None
        return self._event(kind, item_id=self._item["id"], output_index=len(self.response["output"]), **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        number = self._number
        self._number += 1
        return {"type": kind, "sequence_number": number, **fields}


def _brief(info: TokenInfo) -> dict[str, Any]:
    """A token as events of pieces tell it."""
    top = [{"token": text, "logprob": logprob} for _, text, _, logprob in info.top]
    return {"token": info.text, "logprob": info.logprob, "top_logprobs": top}


def _with_bytes(told: dict[str, Any]) -> dict[str, Any]:
    """A token as the whole response tells it, where bytes are never null."""
    tokens = [told, *told["top_logprobs"]]
    for one in tokens:
        one["bytes"] = one["bytes"] or []
    return told
