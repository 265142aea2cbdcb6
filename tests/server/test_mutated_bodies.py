"""Bodies with something else in a place of theirs: an answer or an error in the API's shape, never a failure."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

JSON = {"Content-Type": "application/json"}
TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/messages": {
        "model": "scripted",
        "max_tokens": 5,
        "stream": False,
        "system": [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}],
        "stop_sequences": ["x"],
        "temperature": 0.5,
        "thinking": {"type": "disabled"},
        "tools": [{"name": "f", "description": "d", "input_schema": TOOL, "input_examples": [{"city": "a"}]}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "output_config": {"format": {"type": "json_schema", "schema": TOOL}, "effort": "low"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "t"}, {"type": "tool_use", "id": "a", "name": "f", "input": {}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "r"}]}],
            },
        ],
    },
    "/api/chat": {
        "model": "scripted",
        "stream": False,
        "format": TOOL,
        "keep_alive": "5m",
        "think": False,
        "logprobs": True,
        "top_logprobs": 2,
        "options": {"temperature": 0.5, "num_ctx": 4096, "stop": ["x"], "seed": 1, "mirostat": 0},
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": TOOL}}],
        "messages": [
            {"role": "user", "content": "hi", "images": []},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "tool", "tool_name": "f", "content": "r"},
        ],
    },
    "/api/generate": {
        "model": "scripted",
        "prompt": "hi",
        "suffix": "",
        "system": "",
        "raw": False,
        "stream": False,
        "context": [],
        "options": {"num_predict": 5},
        "logprobs": True,
    },
    "/api/embed": {"model": "scripted", "input": ["a", "b"], "truncate": True, "dimensions": 2, "options": {}},
    "/api/embeddings": {"model": "scripted", "prompt": "a", "options": {}},
    "/api/show": {"model": "scripted", "verbose": False, "options": {}},
}
BODIES["/v1/messages/count_tokens"] = {
    name: value
    for name, value in BODIES["/v1/messages"].items()
    if name not in ("max_tokens", "stream", "stop_sequences", "temperature")
}

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["text", "tool_use", "image", "none", "json", "\ud800", "a, b", "properties", "type"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "a", "\ud800"]), inner)
    ),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything inside of a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((*path, key), *places(inner, (*path, key)))]


def mutated(body: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    body = json.loads(json.dumps(body))
    for _ in range(data.draw(st.integers(1, 2))):
        found = places(body)
        *way, last = data.draw(st.sampled_from(found))
        holder = body
        for key in way:
            holder = holder[key]
        how = data.draw(st.sampled_from(["other", "other", "gone", "new"]))
        if how == "gone":
            del holder[last]
        elif how == "new" and isinstance(holder, dict):
            holder[data.draw(st.text(max_size=5))] = data.draw(VALUES)
        else:
            holder[last] = data.draw(VALUES)
    return body


@pytest.mark.parametrize("path", sorted(BODIES))
def test_mutated_bodies(scripted, path: str) -> None:
    client, _ = scripted()
    statuses: set[int] = set()
    # One loop for all examples: a client belongs to one.
    with asyncio.Runner() as runner:

        @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.data())
        def check(data: st.DataObject) -> None:
            body = mutated(BODIES[path], data)
            answer: httpx.Response = runner.run(client.post(path, content=json.dumps(body), headers=JSON))
            statuses.add(answer.status_code)
            assert answer.status_code in (200, 400, 404), answer.text
            # Without `stream`, Ollama's are lines.
            *pieces, told = [json.loads(line) for line in answer.text.splitlines()]
            assert not pieces or answer.headers["content-type"] == "application/x-ndjson"
            if answer.status_code == 200:
                assert not any("error" in piece for piece in (*pieces, told))
            elif path.startswith("/api/"):
                assert list(told) == ["error"]
                assert isinstance(told["error"], str)
            else:
                assert told["type"] == "error"
                assert isinstance(told["error"]["message"], str)

        unchanged = runner.run(client.post(path, json=BODIES[path]))
        assert unchanged.status_code == 200, unchanged.text
        check()
        runner.run(client.aclose())
    assert statuses >= {200, 400}
