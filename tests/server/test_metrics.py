"""What is counted, and the traces."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from scripted_client import ScriptedClient

from qafila.errors import ChatError, UsageError
from qafila.server.assemble import assemble
from qafila.server.models import Entry, Models
from qafila.server.settings import Settings
from qafila.server.traces import Tracer

BODY = {"model": "scripted", "messages": [{"role": "user", "content": "a secret of mine"}]}
CHAT = "/v1/chat/completions"


def served(client: ScriptedClient, settings: Settings | None = None, tracer: Tracer | None = None) -> Any:
    async def load() -> ScriptedClient:
        return client

    return assemble(Models({"scripted": Entry("scripted", "scripted", load)}), settings or Settings(), tracer=tracer)


def ask(app: Any, *bodies: dict[str, Any], headers: dict[str, str] | None = None) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return [await client.post(CHAT, json=body, headers=headers) for body in bodies] + [
                await client.get("/metrics")
            ]

    return asyncio.run(ask())


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and labels' values."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[(sample.name, *(value for _, value in sorted(sample.labels.items())))] = sample.value
    return found


def test_requests_tokens_and_times() -> None:
    app = served(ScriptedClient(["a", "b", "c"], delay=0.02))
    *_, answer = ask(app, BODY, {**BODY, "n": 2}, {**BODY, "stream": True}, {**BODY, "model": "no"}, {"model": 5})
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.text)
    assert found["qafila_http_requests_total", CHAT, "POST", "200"] == 3
    assert found["qafila_http_requests_total", CHAT, "POST", "404"] == 1
    assert found["qafila_http_requests_total", CHAT, "POST", "400"] == 1
    assert found["qafila_generations_total", "scripted", "finished"] == 3
    assert found["qafila_prompt_tokens_total", "scripted"] == 15
    assert found["qafila_generated_tokens_total", "scripted"] == 12
    assert found["qafila_cached_prompt_tokens_total", "scripted"] == 9
    assert found["qafila_prefix_hit_ratio", "scripted"] == pytest.approx(0.6)
    assert found["qafila_time_to_first_token_seconds_count", "scripted"] == 3
    assert 0.06 <= found["qafila_time_to_first_token_seconds_sum", "scripted"] < 0.6
    # Each later token took 20 ms, whether one answer or two were made.
    assert found["qafila_time_per_output_token_seconds_count", "scripted"] == 3
    assert 0.06 <= found["qafila_time_per_output_token_seconds_sum", "scripted"] < 0.3
    assert found["qafila_model_load_seconds", "scripted"] >= 0
    assert (found["qafila_requests_running",], found["qafila_queue_depth",]) == (0, 0)
    assert found["process_resident_memory_bytes",] > 1e6


def test_failures_and_what_was_sent_away_are_counted_and_labels_are_ours_alone() -> None:
    app = served(ScriptedClient(error=ChatError("it broke")), Settings(requests_per_minute=2))
    *_, answer = ask(app, BODY, BODY, BODY)
    found = samples(answer.text)
    assert found["qafila_generations_total", "scripted", "failed"] == 2
    assert found["qafila_rejected_total", "requests"] == 1

    async def strange() -> str:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for i in range(20):
                await client.request(f"M{i}", f"/made/up/{i}")
                await client.get(f"/v1/models/made-up-{i}")
                await client.post(CHAT, json={**BODY, "model": f"made-up-{i}"})
            return (await client.get("/metrics")).text

    text = asyncio.run(strange())
    assert "made" not in text
    assert "M7" not in text
    assert samples(text)["qafila_http_requests_total", "/v1/models/{name:path}", "GET", "404"] == 20


def test_two_servers_in_one_process_count_for_themselves() -> None:
    first, second = served(ScriptedClient()), served(ScriptedClient())
    ask(first, BODY)
    assert ("qafila_generations_total", "scripted", "finished") not in samples(ask(second)[-1].text)


def test_the_engine_is_seen_through_its_client(base_url_of_assembled: str) -> None:
    body = {**BODY, "model": "default", "max_tokens": 4}
    for _ in range(2):
        assert httpx.post(base_url_of_assembled + CHAT, json=body, timeout=60).status_code == 200
    found = samples(httpx.get(base_url_of_assembled + "/metrics").text)
    assert found["qafila_engine_steps_total", "default"] >= 8
    assert found["qafila_engine_kv_blocks", "default"] > 100
    assert 0 < found["qafila_engine_kv_blocks_cached", "default"] < 100
    assert found["qafila_engine_prefix_hit_tokens_total", "default"] > 0
    assert (
        found["qafila_cached_prompt_tokens_total", "default"]
        == found["qafila_engine_prefix_hit_tokens_total", "default"]
    )
    assert (found["qafila_engine_running", "default"], found["qafila_engine_kv_use_ratio", "default"]) == (0, 0)


@pytest.fixture
def base_url_of_assembled(default_gguf):
    import socket
    import threading
    import time

    import uvicorn

    from qafila.server.local_models import local_entry

    listener = socket.create_server(("127.0.0.1", 0))
    app = assemble(Models({"default": local_entry("default", default_gguf, {"threads": 1})}), Settings())
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


def test_spans_follow_the_conventions_and_hold_no_texts_unless_asked() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind, StatusCode

    for told in (False, True):
        exporter = InMemorySpanExporter()
        tracer = Tracer(exporter)
        parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        ask(served(ScriptedClient(), Settings(log_prompts=told), tracer), BODY, headers=parent)
        ask(served(ScriptedClient(error=ChatError("of a secret")), None, tracer), BODY)
        tracer.close()
        good, bad = exporter.get_finished_spans()
        assert (good.name, good.kind) == ("chat scripted", SpanKind.SERVER)
        assert f"{good.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
        assert f"{good.parent.span_id:016x}" == "b7ad6b7169203331"
        attributes = dict(good.attributes)
        assert attributes["gen_ai.operation.name"] == "chat"
        assert attributes["gen_ai.request.model"] == "scripted"
        assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (5, 2)
        assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
        assert 0 < attributes["gen_ai.response.time_to_first_chunk"] < (good.end_time - good.start_time) / 1e9 + 1e-3
        assert ("secret" in json.dumps(attributes)) is told
        assert ("Hello" in json.dumps(attributes)) is told
        assert bad.status.status_code is StatusCode.ERROR
        assert bad.attributes["error.type"] == "ChatError"
        assert "secret" not in json.dumps(dict(bad.attributes)) + str(bad.status.description)


def test_an_endpoint_that_is_no_url() -> None:
    with pytest.raises(UsageError, match="--otlp-endpoint: 'localhost:4318' is no URL"):
        Tracer.over_http("localhost:4318")
