"""iCalendar files: read with their lines, changed in place, and refused in a line where they are damaged."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import icalendar
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qafila.agent.agenda.ics import EMPTY, Ics, escaped, plain_text, read_ics
from qafila.agent.agenda.values import length, line, times, zone_lines
from qafila.errors import FormatError

CAIRO, NEW_YORK = ZoneInfo("Africa/Cairo"), ZoneInfo("America/New_York")
FILE = (
    "\ufeffBEGIN:VCALENDAR\r\nPRODID:-//Other//EN\r\nX-WR-CALNAME:منزل\r\nBEGIN:VTIMEZONE\r\nTZID:My Zone\r\n"
    "X-LIC-LOCATION:Africa/Cairo\r\nEND:VTIMEZONE\r\nBEGIN:VEVENT\r\nUID:a\r\nSUMMARY;LANGUAGE=ar;X-P=\"a:b;c\":اجتماع\r\n"
    "  عمل\\, مهم\r\nX-KEPT;Y=1:anything\r\nDTSTART:20261129T150000Z\r\nCOMMENT:one\r\nCOMMENT:two\r\n"
    "BEGIN:VALARM\r\nTRIGGER:-PT15M\r\nEND:VALARM\r\nEND:VEVENT\r\nBEGIN:X-OTHER\r\nA:b\r\nEND:X-OTHER\r\nEND:VCALENDAR\r\n"
).encode()  # fmt: skip


def wrong(content: bytes | str) -> str:
    with pytest.raises(FormatError) as caught:
        read_ics("c.ics", content.encode() if isinstance(content, str) else content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_read() -> None:
    ics = read_ics("c.ics", FILE)
    assert [item.name for item in ics.items] == ["VTIMEZONE", "VEVENT", "X-OTHER"]
    (event,) = ics.named("VEVENT")
    assert event.text("SUMMARY") == "اجتماع عمل, مهم"
    summary = event.get("SUMMARY")
    assert summary is not None
    assert summary.params == {"LANGUAGE": "ar", "X-P": "a:b;c"}
    assert (summary.first, summary.last) == (9, 11)
    assert [one.value for one in event.all("COMMENT")] == ["one", "two"]
    assert event.get("TRIGGER") is None
    assert event.within[0].text("TRIGGER") == "-PT15M"


def test_changes_touch_their_own_lines_alone() -> None:
    ics = read_ics("c.ics", FILE)
    (event,) = ics.named("VEVENT")
    changed = ics.edited(ics.set(event, {"SUMMARY": "SUMMARY:x", "COMMENT": None, "STATUS": "STATUS:CONFIRMED"}))
    before, after = FILE.decode().splitlines(), changed.decode().splitlines()
    assert [text for text in after if text not in before] == ["SUMMARY:x", "STATUS:CONFIRMED"]
    assert [text for text in before if text not in after] == [*before[9:11], "COMMENT:one", "COMMENT:two"]
    assert after[after.index("STATUS:CONFIRMED") + 1] == "BEGIN:VALARM"
    assert changed.count(b"\r\n") == changed.count(b"\n")
    assert ics.edited([]) == FILE
    assert (
        ics.edited([(event.first, event.last, ())])
        == FILE[: FILE.index(b"BEGIN:VEVENT")] + FILE[FILE.index(b"BEGIN:X-OTHER") :]
    )


def test_new_items_end_their_lines_as_the_file_does() -> None:
    ics = read_ics("c.ics", FILE.replace(b"\r\n", b"\n"))
    added = ics.edited([ics.added(["BEGIN:VEVENT", "SUMMARY:" + "س" * 60, "END:VEVENT"])])
    assert b"\r" not in added
    assert max(len(text) for text in added.split(b"\n")) <= 75
    assert read_ics("c.ics", added).named("VEVENT")[1].text("SUMMARY") == "س" * 60
    assert read_ics("c.ics", b" \r\n").edited([]) == EMPTY
    with pytest.raises(FormatError, match="no BEGIN:VCALENDAR"):
        read_ics("c.ics", b"BEGIN:VCARD\nEND:VCARD\n").added([])


def test_a_copy_has_all_but_what_is_left_out() -> None:
    ics = read_ics("c.ics", FILE)
    copied = ics.copied(ics.named("VEVENT")[0], ("UID", "COMMENT"))
    assert copied == [
        "BEGIN:VEVENT", 'SUMMARY;LANGUAGE=ar;X-P="a:b;c":اجتماع عمل\\, مهم', "X-KEPT;Y=1:anything",
        "DTSTART:20261129T150000Z", "BEGIN:VALARM", "TRIGGER:-PT15M", "END:VALARM", "END:VEVENT",
    ]  # fmt: skip


def test_a_line_that_is_folded_within_a_letter_is_read() -> None:
    content = b"BEGIN:VCALENDAR\nBEGIN:VEVENT\nSUMMARY:\xd8\n \xb3x\nEND:VEVENT\nEND:VCALENDAR\n"
    ics = read_ics("c.ics", content)
    assert ics.named("VEVENT")[0].text("SUMMARY") == "سx"
    assert ics.copied(ics.named("VEVENT")[0], ())[1] == "SUMMARY:سx"


def test_damaged_files_are_refused_with_the_line() -> None:
    start = "BEGIN:VCALENDAR\nBEGIN:VEVENT\n"
    assert wrong(start + "END:VTODO\n") == "c.ics: line 3: END:VTODO does not end the VEVENT of line 2"
    assert wrong(start) == "c.ics: line 2: the VEVENT that begins here has no end"
    assert wrong(start + "what is this\n") == "c.ics: line 3: is no property; they are written as NAME:value"
    assert wrong(start + 'A;B="c:d\n').startswith("c.ics: line 3: is no property")
    assert wrong("SUMMARY:x\n") == "c.ics: line 1: SUMMARY stands outside of a calendar"
    assert wrong("END:VCALENDAR\n") == "c.ics: line 1: END stands outside of a calendar"
    assert wrong(start.encode() + b"SUMMARY:\xff\n") == "c.ics: line 3: is no UTF-8 text"
    assert wrong("BEGIN:A\n" * 13) == "c.ics: line 13: components stand too deep in one another"
    assert wrong("A:b\n" * 200_001).endswith("200001 lines are more than the 200000 that are read")
    assert wrong(b"\x00\x01\x02") == "c.ics: line 1: is no property; they are written as NAME:value"


def event(*lines: str) -> Ics:
    return read_ics(
        "c.ics", "\n".join(["BEGIN:VCALENDAR", "BEGIN:VEVENT", *lines, "END:VEVENT", "END:VCALENDAR"]).encode()
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (";VALUE=DATE:20261129", date(2026, 11, 29)), (":20261129T150000Z", datetime(2026, 11, 29, 15, tzinfo=UTC)),
        (":20261129T150000", datetime(2026, 11, 29, 15, tzinfo=CAIRO)),
        (";TZID=America/New_York:20261129T150000", datetime(2026, 11, 29, 15, tzinfo=NEW_YORK)),
        (";TZID=Eastern Standard Time:20261129T150000", datetime(2026, 11, 29, 15, tzinfo=NEW_YORK)),
        (';TZID="/example.org/20200101/America/New_York":20261129T150000', datetime(2026, 11, 29, 15, tzinfo=NEW_YORK)),
        (";TZID=America/New_York:20260308T023000", datetime(2026, 3, 8, 3, 30, tzinfo=NEW_YORK)),
        (":20261129T235960", datetime(2026, 11, 29, 23, 59, 59, tzinfo=CAIRO)),
    ],
)  # fmt: skip
def test_times_are_read_in_their_zones(written: str, meant: date) -> None:
    ics = event("DTSTART" + written)
    (found,) = times(ics, ics.items[0].properties[0], CAIRO)
    assert found == meant
    assert type(found) is type(meant)


def test_a_zone_that_the_file_names_otherwise() -> None:
    ics = read_ics("c.ics", FILE.replace(b"DTSTART:20261129T150000Z", b"DTSTART;TZID=My Zone:20261129T150000"))
    start = ics.named("VEVENT")[0].get("DTSTART")
    assert start is not None
    assert times(ics, start, NEW_YORK) == [datetime(2026, 11, 29, 15, tzinfo=CAIRO)]


@pytest.mark.parametrize(
    "written",
    [
        "DTSTART:tomorrow", "DTSTART:20261301", "DTSTART:20261129T250000", "DTSTART:", "DTSTART:10000101T000000Z",
        "DTSTART:٢٠٢٦١١٢٩", "DTSTART;TZID=Mars/Base:20261129T150000", "DTSTART;TZID=../../etc/passwd:20261129T150000",
        "DTSTART;TZID=Africa:20261129T150000", "EXDATE:20261129,x",
    ],
)  # fmt: skip
def test_times_that_are_none_are_told_with_their_line(written: str) -> None:
    ics = event("UID:x", written)
    with pytest.raises(FormatError, match=r"^c\.ics: line 4: (DTSTART|EXDATE): "):
        times(ics, ics.items[0].properties[1], CAIRO)


def test_lengths_are_read_as_icalendar_reads_them() -> None:
    for text in ("PT15M", "-P1DT2H", "P2W", "+PT1H30M5S", "PT0S"):
        ics = event(f"DURATION:{text}")
        assert length(ics, ics.items[0].properties[0]) == icalendar.vDuration.from_ical(text)
    for text in ("P", "", "1H", "PT", "P1H", "PT9999999999S"):
        ics = event(f"DURATION:{text}")
        with pytest.raises(FormatError, match="line 3: DURATION"):
            length(ics, ics.items[0].properties[0])


@given(st.text(max_size=300))
def test_texts_come_back_and_icalendar_reads_them(text: str) -> None:
    ics = read_ics("c.ics", EMPTY)
    content = ics.edited([ics.added(["BEGIN:VEVENT", f"SUMMARY:{escaped(text)}", "END:VEVENT"])])
    kept = text.encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\x7f", "")
    kept = "".join(sign for sign in kept if sign >= " " or sign in "\n\t")
    assert read_ics("c.ics", content).items[0].text("SUMMARY") == kept
    assert plain_text(escaped(kept)) == kept
    parsed = icalendar.Calendar.from_ical(content).walk("VEVENT")[0]
    assert str(parsed.get("SUMMARY")) == kept


@given(st.binary(max_size=200))
def test_any_bytes_are_kept_or_refused_in_a_line(content: bytes) -> None:
    for whole in (content, b"BEGIN:VCALENDAR\n" + content + b"\nEND:VCALENDAR"):
        kept, said = b"", ""
        try:
            kept = read_ics("c.ics", whole).edited([])
        except FormatError as error:
            said = str(error)
        assert said.count("\n") == 0
        assert said or kept == (whole if whole.strip() else EMPTY)


def test_zones_are_written_as_they_are() -> None:
    """What a reader of the definition alone makes of it is what the zone is, hour by hour where clocks change."""
    for zone in (CAIRO, NEW_YORK, ZoneInfo("Asia/Riyadh"), ZoneInfo("Australia/Lord_Howe"), ZoneInfo("Europe/Dublin")):
        text = "\r\n".join(zone_lines(zone, 2026)).replace(zone.key, f"Made/{zone.key[-4:]}") + "\r\n"
        there = icalendar.Timezone.from_ical(text).to_tz()
        for day in (date(2026, 3, 7), date(2026, 4, 23), date(2026, 10, 29), date(2026, 10, 31), date(2030, 11, 2)):
            for hour in range(72):
                local = datetime(day.year, day.month, day.day) + timedelta(hours=hour)
                moment = local.replace(tzinfo=UTC)
                ours, theirs = moment.astimezone(zone), moment.astimezone(there)
                assert ours.utcoffset() == theirs.utcoffset(), (zone.key, moment)


def test_times_are_written_so_that_they_mean_the_same() -> None:
    assert line("DTSTART", date(2026, 11, 29)) == "DTSTART;VALUE=DATE:20261129"
    assert line("DTSTART", datetime(2026, 11, 29, 15, tzinfo=CAIRO)) == "DTSTART;TZID=Africa/Cairo:20261129T150000"
    assert line("DTSTART", datetime(2026, 11, 29, 15, tzinfo=UTC)) == "DTSTART:20261129T150000Z"
    assert line("DTSTART", datetime(2026, 11, 29, 15, tzinfo=ZoneInfo("UTC"))) == "DTSTART:20261129T150000Z"
    assert line("DTSTART", datetime(2026, 11, 1, 1, 30, fold=1, tzinfo=NEW_YORK)) == "DTSTART:20261101T063000Z"
