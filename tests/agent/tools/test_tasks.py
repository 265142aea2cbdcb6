"""The tools for tasks: what is to be done, by when, and when to be reminded; and that it can be undone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import icalendar
import pytest
from agent_place import Place, told

from qafila.agent.agenda.dates import Clock
from qafila.agent.agenda.reminders import due
from qafila.agent.config import Config
from qafila.agent.edits import apply
from qafila.agent.sandbox.sandbox import find_sandbox
from qafila.agent.tool import Draft, Surroundings, ToolError
from qafila.agent.tools import tasks
from qafila.agent.tools.tasks import FILE, TaskTools
from qafila.agent.undo import undo

CAIRO = ZoneInfo("Africa/Cairo")
CLOCK = Clock(lambda: datetime(2026, 11, 29, 9, 30, tzinfo=CAIRO), CAIRO)
TOOLS = TaskTools(CLOCK)


@pytest.fixture
def here(tmp_path: Path) -> Surroundings:
    return Surroundings(tmp_path, find_sandbox, "k1")


def done(here: Surroundings, draft: Draft | str) -> str:
    assert isinstance(draft, Draft)
    apply(here.workspace, draft.edits)
    return draft.text


def test_a_task_is_added_listed_and_finished(here: Surroundings) -> None:
    assert TOOLS.list_tasks(here) == "(no tasks)"
    assert TOOLS.existing(here, []) is None
    assert done(here, TOOLS.add_task(here, "سداد الفاتورة", "غدا", "غدا الساعة ٩ صباحا")) == (
        "added 'سداد الفاتورة', due Monday 2026-11-30 (20 Jumada al-Akhirah 1448 AH), "
        "reminder Monday 2026-11-30 09:00 (20 Jumada al-Akhirah 1448 AH)"
    )
    later = Surroundings(here.workspace, find_sandbox, "k2")
    assert done(later, TOOLS.add_task(later, "call Omar")) == "added 'call Omar'"
    assert TOOLS.add_task(later, "call  Omar", "tomorrow") == "'call Omar' is among the tasks already"
    first, second = TOOLS.list_tasks(here).splitlines()
    assert first.endswith(": سداد الفاتورة, due Monday 2026-11-30 (20 Jumada al-Akhirah 1448 AH)")
    assert second.endswith(": call Omar")
    live = TOOLS.existing(here, [])
    assert live is not None
    assert set(live["id"]["enum"]) == {line.partition(":")[0] for line in (first, second)}

    text = (here.workspace / FILE).read_text()
    day = datetime(2026, 11, 30, tzinfo=CAIRO)
    assert [(one.kind, one.when.hour) for one in due(text, day, day.replace(hour=23))] == [("task", 0), ("reminder", 9)]
    assert done(here, TOOLS.finish_task(here, first.partition(":")[0])) == "done: 'سداد الفاتورة'"
    assert TOOLS.list_tasks(here) == second
    text = (here.workspace / FILE).read_text()
    assert due(text, day, day.replace(hour=23)) == []
    finished = icalendar.Calendar.from_ical(text).walk("VTODO")[0]
    assert finished["STATUS"] == "COMPLETED"
    assert finished["COMPLETED"].dt == CLOCK.now()
    with pytest.raises(ToolError, match="there is no"):
        TOOLS.finish_task(here, first.partition(":")[0])


def test_mistakes_are_told(here: Surroundings) -> None:
    with pytest.raises(ToolError, match="title"):
        TOOLS.add_task(here, " ")
    with pytest.raises(ToolError, match="give it a time"):
        TOOLS.add_task(here, "x", remind="tomorrow")
    with pytest.raises(ToolError, match="is no date"):
        TOOLS.add_task(here, "x", "later")
    with pytest.raises(ToolError, match="there is no"):
        TOOLS.finish_task(here, "x")
    (here.workspace / FILE).write_text(
        "BEGIN:VCALENDAR\nBEGIN:VTODO\nUID:a\nSUMMARY:one\nDUE:soon\nEND:VTODO\n"
        "BEGIN:VTODO\nUID:b\nSUMMARY:two\nRRULE:FREQ=DAILY\nEND:VTODO\nEND:VCALENDAR\n"
    )
    one, two = TOOLS.list_tasks(here).splitlines()
    assert one.endswith("one [not understood: tasks.ics: line 5: DUE: soon is no date or time]")
    with pytest.raises(ToolError, match="the task repeats"):
        TOOLS.finish_task(here, two.partition(":")[0])


def test_a_run_writes_tasks_that_can_be_undone(place: Place) -> None:
    run, events = place.begin(
        [[("add_task", {"title": "x", "due": "2026-12-01"})], "done"], tasks.tools(Config(), CLOCK)
    )
    assert [status for status, _ in told(events)] == ["ok"]
    assert "DUE;VALUE=DATE:20261201" in str(place.file(FILE))
    undo(place.journal, run)
    assert place.file(FILE) is None
