"""The API against its own OpenAPI document: whatever is sent, nothing breaks, and answers are as the document says."""

from __future__ import annotations

import asyncio

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

CHECKS = [
    schemathesis.checks.not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]


@pytest.fixture
def document(scripted_server, tmp_path):
    from qafila.server.responses_store import ResponseStore

    store = ResponseStore.open(f"sqlite:///{tmp_path}/server.sqlite3")
    url, client = scripted_server(responses=store)
    yield schemathesis.openapi.from_url(f"{url}/openapi.json")
    assert client.running == 0


schema = schemathesis.pytest.from_fixture("document")


@pytest.mark.slow
@schema.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_sent(case):
    case.call_and_validate(checks=CHECKS)


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
