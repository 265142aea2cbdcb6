"""Files of raw text and of people's examples, read one by one: every mistake has a file and a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from qafila.data.forms import Example, check_form, example
from qafila.data.problems import ExampleError, Origin, Problem, Problems
from qafila.data.records import Record, kind_of, list_files, read_records

__all__ = ["Example", "Origin", "parse_record", "read_examples"]


def read_examples(
    path: str | Path,
    form: str = "auto",
    problems: Problems | None = None,
    *,
    fields: Mapping[str, str] | None = None,
) -> Iterator[Example]:
    """All examples of a file or folder.

    Args:
        path: text, ``.jsonl``, ``.json`` (``.gz``, ``.xz`` or ``.bz2`` may follow), ``.parquet``, or a folder of them.
        form: how records are written, one of `qafila.data.forms.FORMS`.
        problems: counts what cannot be used; without it the first mistake is raised.
        fields: the form's own names for fields -> what the files call them.

    Raises:
        DataError: nothing to read, a record that cannot be used (without ``problems``), or too many of them.
        FormatError: a damaged file.
        UsageError: there is no such form or field.
    """
    check_form(form, fields or {})
    for file in list_files(path):
        for record in read_records(file, as_text=form == "text" and kind_of(file) is None):
            if problems is not None:
                problems.seen += 1
            try:
                yield parse_record(record, form, fields)
            except ExampleError as error:
                if problems is None:
                    raise
                problems.add(Problem(error.kind, error.origin or record.origin, error.reason))
                problems.check(str(path), final=False)
    if problems is not None:
        problems.check(str(path))


def parse_record(record: Record, form: str = "auto", fields: Mapping[str, str] | None = None) -> Example:
    """One record as an example.

    Raises:
        ExampleError: it is none of this form; kind, reason and origin are told.
    """
    try:
        if record.kind == "fault":
            raise ExampleError("malformed", record.raw.decode(errors="replace"))
        if record.kind == "text":
            return _text(record)
        made = example(_json(record.raw), record.origin, form, fields)
        _check_unicode(made)
        return made
    except ExampleError as error:
        raise ExampleError(error.kind, error.reason, error.origin or record.origin) from None


def _text(record: Record) -> Example:
    try:
        text = record.raw.decode()
    except UnicodeDecodeError as error:
        # A text has many lines, and it is told which one; the portion that it is in begins at its origin's.
        line = record.origin.line + record.raw.count(b"\n", 0, error.start)
        raise ExampleError(
            "malformed",
            f"not UTF-8 text (byte 0x{record.raw[error.start]:02x}); convert the file",
            replace(record.origin, line=line),
        ) from None
    if not text.strip():
        raise ExampleError("empty", "empty")
    return Example("text", record.origin, text=text, first=record.first, last=record.last)


def _json(raw: bytes) -> object:
    try:
        value: object = json.loads(raw)
    except UnicodeDecodeError as error:
        raise ExampleError("malformed", f"not UTF-8 text (byte {error.start + 1} of the line)") from None
    except RecursionError:
        raise ExampleError("malformed", "JSON nested too deeply") from None
    except json.JSONDecodeError as error:
        # Its own words end in a line of the record, which is always 1 and not the file's.
        raise ExampleError("malformed", f"not valid JSON ({error.msg}, at character {error.pos + 1})") from None
    except ValueError as error:
        raise ExampleError("malformed", f"not valid JSON ({str(error)[:100]})") from None
    return value


def _check_unicode(made: Example) -> None:
    """JSON can write half a surrogate pair, which is no text."""
    texts = [made.text]
    texts += [
        m.text for turns in (made.messages, made.chosen, made.rejected) for m in turns if isinstance(m.content, str)
    ]
    for text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                code = ord(text[error.start])
                raise ExampleError("malformed", f"half a surrogate pair (U+{code:04X}), which is no text") from None
