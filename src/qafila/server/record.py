"""What is known of one HTTP request while it is answered: the access log and the metrics are made of it."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True)
class Record:
    """One HTTP request.

    Attributes:
        id: of the request; the client's own where it sent one. caller: name of its key.
        endpoint: the route's pattern, or what it counts as in metrics. status: 0 until the answer begins.
        started: when it came, by `time.perf_counter`. first: when its first token was there; 0 for never.
        whole: whether the answer was sent to its end. traceparent: of the client's trace, as it sent it.
        model, prompt, cached, generated: of the request that a model answered; None and 0 where none did.
        body, answer: texts, kept only where the operator wants prompts in the log.
    """

    id: str
    method: str
    path: str
    caller: str = "-"
    endpoint: str = "other"
    status: int = 0
    started: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    whole: bool = False
    traceparent: str | None = None
    model: str | None = None
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    body: str | None = None
    answer: list[str] | None = None

    def add(self, run: Record) -> None:
        """Take in what a model did for this request."""
        self.model = run.model
        self.prompt += run.prompt
        self.cached += run.cached
        self.generated += run.generated
        self.first = self.first or run.first
        if run.answer is not None:
            self.answer = [*(self.answer or ()), *run.answer]


# The request that the running task answers; tasks that it starts inherit it.
CURRENT: ContextVar[Record | None] = ContextVar("qafila_request", default=None)
