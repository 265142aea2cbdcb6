"""OpenTelemetry traces: one span a generation, named as the conventions for generative AI say.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/. Prompts and answers are in a span only where the
operator asked for that (``--log-prompts``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qafila import __version__
from qafila.errors import UsageError
from qafila.server.errors import ApiError
from qafila.server.record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

_COMPLETES = ("/v1/completions", "/api/generate")


class Tracer:
    """Makes spans and exports them in batches, from a thread of its own.

    Args:
        exporter: where spans go.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "qafila", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("qafila.server", __version__)

    @classmethod
    def over_http(cls, endpoint: str) -> Tracer:
        """One that sends spans by OTLP over HTTP.

        Args:
            endpoint: base URL of a collector (``http://127.0.0.1:4318``), or the whole URL that ends in /v1/traces.

        Raises:
            UsageError: no URL, or the extra ``telemetry`` is not installed.
        """
        if not endpoint.startswith(("http://", "https://")):
            raise UsageError(f"--otlp-endpoint: {endpoint!r:.80} is no URL such as http://127.0.0.1:4318")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise UsageError("--otlp-endpoint: needs `pip install 'qafila[telemetry]'`") from None
        url = endpoint.rstrip("/")
        return cls(OTLPSpanExporter(url if url.endswith("/v1/traces") else f"{url}/v1/traces"))

    def start(self, record: Record, model: str) -> Generated:
        """The span of a request that a model begins to answer; part of the client's trace if it sent one."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {} if record.traceparent is None else {"traceparent": record.traceparent}
        operation = "text_completion" if record.path in _COMPLETES else "chat"
        late = time.perf_counter() - record.started  # the span begins when the request came
        span = self._tracer.start_span(
            f"{operation} {model}",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            start_time=time.time_ns() - int(late * 1e9),
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "qafila",
                "gen_ai.request.model": model,
                "http.request.method": record.method,
                "http.route": record.endpoint if record.endpoint != "other" else record.path,
                "qafila.request.id": record.id,
                "qafila.key": record.caller,
            },
        )
        return Generated(span)

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


class Generated:
    """The span of one generation."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self, record: Record, reasons: Sequence[str], failure: Exception | None) -> None:
        """End it with what the request took; a failure is told by its kind, not by its words."""
        from opentelemetry.trace import StatusCode

        span = self._span
        span.set_attribute("gen_ai.usage.input_tokens", record.prompt)
        span.set_attribute("gen_ai.usage.output_tokens", record.generated)
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", record.cached)
        if reasons:
            span.set_attribute("gen_ai.response.finish_reasons", list(reasons))
        if record.first:
            span.set_attribute("gen_ai.response.time_to_first_chunk", record.first - record.started)
        if record.body is not None:
            span.set_attribute("qafila.request.body", record.body)
        if record.answer is not None:
            parts = [{"type": "text", "content": "".join(record.answer)}]
            messages = [{"role": "assistant", "parts": parts}]
            span.set_attribute("gen_ai.output.messages", json.dumps(messages, ensure_ascii=False))
        if failure is not None:
            code = failure.code if isinstance(failure, ApiError) else None
            span.set_attribute("error.type", code or type(failure).__name__)
            span.set_status(StatusCode.ERROR)
        elif not reasons:
            span.set_attribute("error.type", "cancelled")
        span.end()
