"""The API against its own OpenAPI document: whatever is sent, nothing breaks, and answers are as the document says."""

from __future__ import annotations

import asyncio

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from qafila.server.responses_store import ResponseStore

CHECKS = [
    schemathesis.checks.not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]


@pytest.mark.slow
def test_whatever_is_sent(scripted_server, tmp_path):
    store = ResponseStore.open(f"sqlite:///{tmp_path}/server.sqlite3")
    url, client = scripted_server(responses=store)
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    tried, failed = set(), []
    for found in schema.get_all_operations():
        operation = found.ok()
        tried.add(operation.path)

        @settings(
            max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy(GenerationMode.POSITIVE) | operation.as_strategy(GenerationMode.NEGATIVE))
        def send(case):
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = "scripted"  # or all were about a model that there is not
            case.call_and_validate(checks=CHECKS)

        try:
            send()
        except Exception as error:
            failed.append(f"{operation.label}: {error}")
    assert not failed, "\n\n".join(failed)
    assert {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize"} <= tried
    assert client.asked, "no body was good enough to reach the model"
    assert client.running == 0


def test_the_document(scripted):
    http, _ = scripted()

    async def ask():
        async with http:
            return (await http.get("/openapi.json")).json()

    told = asyncio.run(ask())
    assert "HTTPValidationError" not in told["components"]["schemas"]
    for path in (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/tokenize",
        "/detokenize",
    ):
        responses = told["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "default"}
        assert responses["default"]["content"]["application/json"]["schema"]["$ref"].endswith("OpenAIError")
    stream = told["paths"]["/v1/responses"]["post"]["responses"]["200"]["content"]
    assert set(stream) == {"application/json", "text/event-stream"}
    assert told["paths"]["/v1/messages"]["post"]["responses"]["default"]["content"]["application/json"]["schema"][
        "$ref"
    ].endswith("AnthropicError")
