"""What a grammar lets a model write as a date is one."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, grammar_from

from qafila.agent.agenda.dates import Clock, read_when
from qafila.agent.agenda.patterns import written
from qafila.agent.tool import ToolError

CLOCK = Clock(lambda: datetime(2026, 11, 29, 9, 30, tzinfo=UTC), UTC)
FORMS = {
    "words": written(words=True)["pattern"],
    "no words": written(words=False)["pattern"],
    "optional": written(words=True, empty=True, alone=True)["pattern"],
    "days": written(words=False, time=False)["pattern"],
}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_all_that_can_be_written_is_read(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(sorted(FORMS)))
    text = data.draw(st.from_regex(FORMS[form], fullmatch=True))
    if not text:
        assert form == "optional"
        return
    said = ""
    try:
        found = read_when(text, CLOCK, date(2026, 12, 1))
    except ToolError as error:
        said = str(error)
    # The 31st of a month that has 30 days, or a year outside of the tables.
    assert not said or re.search("no such day|1343 to 1500", said), text
    assert said or not (found.relative and form in ("no words", "days"))
    assert said or isinstance(found.when, datetime) == bool(re.search(r"\d:\d", text))


@pytest.mark.parametrize(
    "text",
    ["2026-11-29", "2026-11-29 15:00", "1448-06-09 AH", "1448-06-09 هـ", "tomorrow 15:00", "next Monday", "غدا 09:00",
     "الاثنين القادم", "1 رمضان", "29 November", "بعد 3 أيام"],
)  # fmt: skip
def test_usual_dates_can_be_written(text: str) -> None:
    assert re.fullmatch(FORMS["words"], text)
    assert re.fullmatch(FORMS["no words"], text) or read_when(text, CLOCK).relative


def test_what_is_no_date_cannot_be_written() -> None:
    for text in ("", "soon", "15:00", "2026-13-01", "2026-11-29T15:00", "2026-11-29 25:00", "https://example.org"):
        assert not re.fullmatch(FORMS["words"], text), text
    assert not re.fullmatch(FORMS["no words"], "tomorrow")
    assert re.fullmatch(FORMS["optional"], "")
    assert re.fullmatch(FORMS["optional"], "15:00")


def test_grammars_take_the_patterns() -> None:
    for pattern in FORMS.values():
        schema = {"type": "object", "properties": {"start": {"type": "string", "pattern": pattern}}}
        assert not LLMatcher.validate_grammar(grammar_from("json_schema", json.dumps(schema)))


def test_a_week_of_words_stands_for_a_week_of_days() -> None:
    days = [
        read_when(name, CLOCK).when for name in ("الاثنين", "Tuesday", "الأربعاء", "Thursday", "الجمعة", "Saturday")
    ]
    assert days == [date(2026, 11, 29) + timedelta(days=number) for number in range(1, 7)]
