"""Logs: an access log, and what the server has to say, as lines for people or as JSON lines for machines.

No line holds a key. Prompts and answers are in them only where the operator asked for that (``--log-prompts``); what an
unforeseen exception says may quote a prompt, so that without it only its type and place are told.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, TypeAlias

from qafila.server.record import CURRENT, Record

Format: TypeAlias = Literal["human", "json"]

ACCESS = logging.getLogger("qafila.access")
SERVER = logging.getLogger("qafila.server")

_FAILED = 500
_REFUSED = 400
# Of a traceback, the innermost.
_FRAMES = 8
# Asked for every few seconds by machines, or by the dozen by one page.
_HEALTH = ("/healthz", "/readyz")
_QUIET = ("/metrics", "/pages/{path:path}")


def access(record: Record) -> None:
    """Log a request that was answered."""
    quiet = record.endpoint in _HEALTH or (record.endpoint in _QUIET and record.status < _REFUSED)
    level = logging.DEBUG if quiet else logging.WARNING if record.status >= _FAILED else logging.INFO
    if ACCESS.isEnabledFor(level):
        ACCESS.log(level, "", extra={"fields": access_fields(record)})


def access_fields(record: Record) -> dict[str, Any]:
    """What the access log tells of a request; seconds are rounded to a tenth of a millisecond."""
    fields: dict[str, Any] = {
        "id": record.id,
        "key": record.caller,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "seconds": round(time.perf_counter() - record.started, 4),
    }
    if not record.whole:
        fields["broken_off"] = True
    if record.model is not None:
        fields |= {
            "model": record.model,
            "prompt_tokens": record.prompt,
            "cached_tokens": record.cached,
            "generated_tokens": record.generated,
        }
        if record.first:
            fields["ttft"] = round(record.first - record.started, 4)
    if record.body is not None:
        fields["request"] = record.body
    if record.answer is not None:
        fields["answer"] = "".join(record.answer)
    return fields


def failure(error: BaseException) -> None:
    """Log an exception that nobody foresaw."""
    SERVER.error("a request failed", exc_info=error)


class JsonLines(logging.Formatter):
    """One JSON object a line.

    Args:
        told: whether what exceptions say is told, too; it may quote a prompt.
    """

    def __init__(self, *, told: bool = False) -> None:
        super().__init__()
        self._told = told

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if message := record.getMessage():
            line["message"] = message
        line |= getattr(record, "fields", {})
        line |= _exception(record, self._told)
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"), default=str)


class Lines(logging.Formatter):
    """One line for people; what comes from outside cannot begin another.

    Args:
        told: whether what exceptions say is told, too.
    """

    def __init__(self, *, told: bool = False) -> None:
        super().__init__()
        self._told = told

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        fields = {**getattr(record, "fields", {}), **_exception(record, self._told)}
        words = [at]
        if record.name == ACCESS.name:
            words += [str(fields.pop(name)) for name in ("status", "method", "path", "key")]
            words.append(f"{fields.pop('seconds'):.3f}s")
        else:
            words += [record.levelname.lower(), record.getMessage()]
        words += [f"{name}={value}" for name, value in fields.items()]
        text = " ".join(words)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _exception(record: logging.LogRecord, told: bool) -> dict[str, Any]:
    """What, where, and in which request; nothing for a record without an exception."""
    if not record.exc_info or record.exc_info[1] is None:
        return {}
    error = record.exc_info[1]
    frames = traceback.extract_tb(error.__traceback__)
    request = CURRENT.get()
    return {
        "exception": f"{type(error).__name__}: {error}" if told else type(error).__name__,
        "trace": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-_FRAMES:]],
        **({} if request is None else {"id": request.id, "path": request.path}),
    }


class _Noise(logging.Filter):
    """Keeps out what uvicorn says of answers that we broke off on purpose, and said so ourselves."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is worth a line."""
        return not record.getMessage().startswith(("ASGI callable returned without", "Cancel ", "Exception in ASGI"))


def set_up(format: Format, level: str, *, told: bool = False, stream: TextIO | None = None) -> None:
    """Send the server's logs to ``stream`` (standard error by default), from ``level`` on.

    Args:
        format: of the lines. level: debug, info, warning or error. told: whether what exceptions say is told.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines(told=told) if format == "json" else Lines(told=told))
    handler.addFilter(_Noise())
    for name in ("qafila", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
