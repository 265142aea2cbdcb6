"""Prometheus metrics of one server, and the observer that hears of every event of every request."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qafila.chat.client import ChatClient, Event, Finished, Started, TextPiece, Usage
from qafila.server.limits import Limits
from qafila.server.models import Models
from qafila.server.record import CURRENT, Record
from qafila.server.service import Caller

if TYPE_CHECKING:
    from qafila.server.traces import Tracer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds; from a cached prompt on a fast machine to a long one on a slow machine.
_FIRST_TOKEN = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_EACH_TOKEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
_REQUEST = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """What one server counts. Nothing is global: each server has a registry of its own.

    Args:
        models: whose engines tell of themselves. limits: whose queue does.
    """

    def __init__(self, models: Models, limits: Limits) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"qafila_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, label: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"qafila_{name}_seconds", text, (label,), buckets=buckets, registry=registry)

        self.requests = counter("http_requests", "HTTP requests answered.", "endpoint", "method", "status")
        self.seconds = histogram("http_request", "Until an answer's last byte.", "endpoint", _REQUEST)
        self.first = histogram("time_to_first_token", "From a request's arrival.", "model", _FIRST_TOKEN)
        self.each = histogram("time_per_output_token", "Mean of a request, after its first.", "model", _EACH_TOKEN)
        self.finished = counter("generations", "Requests that a model answered.", "model", "outcome")
        self.prompt = counter("prompt_tokens", "Tokens of prompts.", "model")
        self.cached = counter("cached_prompt_tokens", "Tokens of prompts found in the cache.", "model")
        self.generated = counter("generated_tokens", "Tokens generated.", "model")
        self.hits = Gauge(
            "qafila_prefix_hit_ratio", "Share of all prompt tokens found in the cache.", ("model",), registry=registry
        )
        self.agent_runs = counter("agent_runs", "Runs of agents that stopped.", "reason")
        self.agent_steps = counter("agent_steps", "Answers of models in runs of agents.")
        self.agent_waiting = Gauge("qafila_agent_waiting", "Runs that wait for a person's word.", registry=registry)
        self._read: dict[str, tuple[int, int]] = {}
        self.load = Gauge(
            "qafila_model_load_seconds",
            "How long the model took to load, the last time.",
            ("model",),
            registry=registry,
        )
        self.registry.register(_Picture(models, limits))
        ProcessCollector(registry=self.registry)
        for entry in models.entries.values():
            entry.load = self._timed(entry.name, entry.load)

    def _timed(self, name: str, load: Callable[[], Awaitable[ChatClient]]) -> Callable[[], Awaitable[ChatClient]]:
        async def timed() -> ChatClient:
            began = time.perf_counter()
            client = await load()
            self.load.labels(name).set(time.perf_counter() - began)
            return client

        return timed

    def read(self, model: str, prompt: int, cached: int) -> None:
        """Count the tokens of a prompt, and those of them that were in the cache."""
        self.prompt.labels(model).inc(prompt)
        self.cached.labels(model).inc(cached)
        before = self._read.get(model, (0, 0))
        tokens, found = self._read[model] = (before[0] + prompt, before[1] + cached)
        if tokens:
            self.hits.labels(model).set(found / tokens)

    def answered(self, record: Record) -> None:
        """Count an HTTP request that is over."""
        self.requests.labels(record.endpoint, record.method, str(record.status)).inc()
        self.seconds.labels(record.endpoint).observe(time.perf_counter() - record.started)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)


class _EngineStats(Protocol):
    """What `qafila.engine.stats.EngineStats` has: the server sees engines through their clients alone."""

    waiting: int
    running: int
    blocks: int
    blocks_used: int
    blocks_cached: int
    prefix_hit_tokens: int
    preemptions: int
    steps: int


class _Picture(Collector):
    """What the queue and the engines say of themselves when they are asked."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self._models, self._limits = models, limits

    def collect(self) -> Iterator[Metric]:
        limits = self._limits
        yield GaugeMetricFamily("qafila_requests_running", "Requests let in.", limits.running)
        yield GaugeMetricFamily("qafila_queue_depth", "Requests that wait to be let in.", limits.waiting)
        rejected = CounterMetricFamily("qafila_rejected", "Requests answered 429.", labels=["reason"])
        for reason, count in sorted(limits.rejected.items()):
            rejected.add_metric([reason], count)
        yield rejected
        stats = {entry.name: found for entry in self._models.entries.values() if (found := _stats(entry.client))}
        gauges: tuple[tuple[str, str, Callable[[_EngineStats], float]], ...] = (
            ("running", "Answers under way in the engine.", lambda s: s.running),
            ("waiting", "Answers that wait in the engine.", lambda s: s.waiting),
            ("kv_blocks", "Blocks of the KV cache.", lambda s: s.blocks),
            ("kv_blocks_used", "Blocks held by answers under way.", lambda s: s.blocks_used),
            ("kv_blocks_cached", "Blocks kept for prompts to come.", lambda s: s.blocks_cached),
            ("kv_use_ratio", "Share of the KV cache held by answers under way.", lambda s: s.blocks_used / s.blocks),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(f"qafila_engine_{name}", text, labels=["model"])
            for model, each in stats.items():
                gauge.add_metric([model], value(each))
            yield gauge
        counters: tuple[tuple[str, str, Callable[[_EngineStats], float]], ...] = (
            ("steps", "Batches computed.", lambda s: s.steps),
            ("preemptions", "Answers that gave their blocks back and were computed again.", lambda s: s.preemptions),
            ("prefix_hit_tokens", "Prompt tokens found in the cache.", lambda s: s.prefix_hit_tokens),
        )
        for name, text, value in counters:
            counter = CounterMetricFamily(f"qafila_engine_{name}", text, labels=["model"])
            for model, each in stats.items():
                counter.add_metric([model], value(each))
            yield counter


def _stats(client: ChatClient | None) -> _EngineStats | None:
    """Of the engine behind a client, if it is in this process."""
    llama = getattr(client, "llama", None)
    return None if llama is None else cast("_EngineStats", llama.engine.stats())


class Watcher:
    """Hears of every event of every request, for metrics, the access log and traces.

    Args:
        metrics: what is counted. tracer: makes a span a request; None for none. texts: whether answers are kept, for
            the log and the span.
    """

    def __init__(self, metrics: Metrics, tracer: Tracer | None = None, *, texts: bool = False) -> None:
        self._metrics, self._tracer, self._texts = metrics, tracer, texts

    async def watch(self, caller: Caller, model: str, events: AsyncIterator[Event]) -> AsyncGenerator[Event, None]:
        """The same events, seen."""
        whole = CURRENT.get()
        # One request of HTTP may run several: each is counted for itself, and then together for the log.
        record = Record("-", "-", "-") if whole is None else replace(whole, prompt=0, cached=0, generated=0, first=0.0)
        record.model, record.answer = model, [] if self._texts else None
        span = self._tracer.start(record, model) if self._tracer is not None else None
        reasons: list[str] = []
        last = 0.0
        outcome = "cancelled"
        failure: Exception | None = None
        try:
            async with aclosing(cast("AsyncGenerator[Event, None]", events)) as source:
                async for event in source:
                    kind = type(event)
                    if kind is Finished:
                        reasons.append(cast(Finished, event).reason)
                        last = time.perf_counter()
                    elif kind is Started:
                        record.prompt = cast(Started, event).prompt_tokens
                    elif kind is Usage:
                        usage = cast(Usage, event)
                        record.prompt, record.cached, record.generated = usage.prompt, usage.cached, usage.generated
                        outcome = "finished"
                    else:
                        record.generated += 1  # at least; `Usage` knows it exactly
                        if not record.first:
                            record.first = time.perf_counter()
                        if record.answer is not None and kind is TextPiece:
                            record.answer.append(cast(TextPiece, event).text)
                    yield event
        except Exception as error:
            outcome, failure = "failed", error
            raise
        finally:
            self._count(record, model, outcome, last, len(reasons))
            if whole is not None:
                whole.add(record)
            if span is not None:
                span.end(record, reasons, failure)

    def _count(self, record: Record, model: str, outcome: str, last: float, answers: int) -> None:
        metrics = self._metrics
        metrics.finished.labels(model, outcome).inc()
        metrics.read(model, record.prompt, record.cached)
        metrics.generated.labels(model).inc(record.generated)
        if record.first:
            metrics.first.labels(model).observe(record.first - record.started)
        # Answers to one request are generated side by side: each waits for its own tokens alone.
        steps = record.generated / answers - 1 if answers else 0
        if outcome == "finished" and steps > 0 and record.first:
            metrics.each.labels(model).observe((last - record.first) / steps)
