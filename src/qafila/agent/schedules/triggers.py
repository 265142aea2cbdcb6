"""What sets a schedule off, as a user writes it and as it is kept."""

from __future__ import annotations

import os
import re
import unicodedata
import zoneinfo
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from qafila.errors import UsageError

_SPAN = re.compile(r"(\d{1,5})\s*([mhd])")
_UNITS = {"m": 1, "h": 60, "d": 24 * 60}
#: Minutes that a schedule may run before an event: as far as a week.
_MOST_LEAD = 7 * 24 * 60
_NAME = re.compile(r"[\w.-]{1,60}")


class _Trigger(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cron(_Trigger):
    """Times by five fields: minute, hour, day of the month, month, day of the week (crontab(5)); in a zone."""

    kind: Literal["cron"] = "cron"
    fields: str
    zone: str

    def __str__(self) -> str:
        return f"cron {self.fields} ({self.zone})"


class Once(_Trigger):
    """One time, without a zone's name in it: as the clocks of ``zone`` show it."""

    kind: Literal["once"] = "once"
    at: datetime
    zone: str

    def __str__(self) -> str:
        return f"at {self.at:%Y-%m-%d %H:%M} ({self.zone})"


class BeforeEvents(_Trigger):
    """So many minutes before what stands in the calendar and among the tasks, and when they remind."""

    kind: Literal["calendar"] = "calendar"
    minutes: int
    zone: str

    def __str__(self) -> str:
        return f"{self.minutes} min before events"


class OnFile(_Trigger):
    """A file of the workspace appears or changes whose path fits a pattern (``*`` stands for slashes too)."""

    kind: Literal["file"] = "file"
    pattern: str

    def __str__(self) -> str:
        return f"on file {self.pattern}"


class OnName(_Trigger):
    """Somebody announces it: `qafila agent schedule fire NAME`."""

    kind: Literal["event"] = "event"
    name: str

    def __str__(self) -> str:
        return f"on {self.name}"


Trigger: TypeAlias = Annotated[Cron | Once | BeforeEvents | OnFile | OnName, Field(discriminator="kind")]
TRIGGER: TypeAdapter[Trigger] = TypeAdapter(Trigger)


def cron(fields: str, zone: str) -> Cron:
    """A trigger of cron fields, in digits of any script.

    Raises:
        UsageError: they are none, or never come.
    """
    from cronsim import CronSim, CronSimError

    written = " ".join(_digits(fields).split())
    if len(written.split(" ")) != 5:
        raise UsageError(f'--cron {fields!r:.60}: has five fields, as in "0 7 * * *"')
    try:
        next(CronSim(written, datetime.now(UTC)))
    except CronSimError as error:
        raise UsageError(f"--cron {fields!r:.60}: {str(error).lower()}") from None
    except StopIteration:
        raise UsageError(f"--cron {fields!r:.60}: such a time never comes") from None
    return Cron(fields=written, zone=known_zone(zone))


def once(at: str, zone: str) -> Once:
    """A trigger of one time, as ``2026-12-01 09:00``.

    Raises:
        UsageError: it is none.
    """
    try:
        moment = datetime.fromisoformat(_digits(at).strip())
    except ValueError:
        raise UsageError(f"--at {at!r:.60}: is no time; write it as 2026-12-01 09:00") from None
    if moment.tzinfo is not None:
        raise UsageError(f"--at {at!r:.60}: leave its offset out; --zone names the time zone")
    if not 1970 < moment.year < 9000:
        raise UsageError(f"--at {at!r:.60}: is too far away")
    return Once(at=moment, zone=known_zone(zone))


def before_events(span: str, zone: str) -> BeforeEvents:
    """A trigger of a span before events, as ``15m``, ``2h`` or ``1d``.

    Raises:
        UsageError: it is none.
    """
    found = _SPAN.fullmatch(_digits(span).strip())
    if found is None or int(found[1]) * _UNITS[found[2]] > _MOST_LEAD:
        raise UsageError(f"--before-events {span!r:.40}: is no span up to 7d; write it as 15m, 2h or 1d")
    return BeforeEvents(minutes=int(found[1]) * _UNITS[found[2]], zone=known_zone(zone))


def on_file(pattern: str) -> OnFile:
    """A trigger of files in the workspace.

    Raises:
        UsageError: the pattern can fit no path there.
    """
    path = PurePosixPath(pattern)
    if not pattern or path.is_absolute() or ".." in path.parts or not pattern.isprintable():
        raise UsageError(f"--on-file {pattern!r:.60}: is a pattern for paths in the workspace, as inbox/*.pdf")
    return OnFile(pattern=str(path))


def on_name(name: str) -> OnName:
    """A trigger of a name that is announced.

    Raises:
        UsageError: it is no name.
    """
    return OnName(name=known_name("--on", name))


def known_name(option: str, name: str) -> str:
    """A name of letters, digits, ``.``, ``_`` and ``-``.

    Raises:
        UsageError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{option} {name!r:.70}: a name is of letters, digits, `.`, `_` and `-`, 60 at most")
    return name


def known_zone(name: str) -> str:
    """A name of a time zone.

    Raises:
        UsageError: there is no such zone.
    """
    try:
        zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise UsageError(f"--zone {name!r:.60}: is no time zone; write one as Africa/Cairo") from None
    return name


def machine_zone() -> str:
    """The name of this machine's time zone: of ``TZ``, or of what ``/etc/localtime`` links to; else UTC."""
    names = [os.environ.get("TZ", "").lstrip(":")]
    if Path("/etc/localtime").is_symlink():
        names.append(str(Path("/etc/localtime").readlink()).rpartition("zoneinfo/")[2])
    for name in names:
        try:
            return zoneinfo.ZoneInfo(name).key
        except (OSError, ValueError, KeyError):
            continue
    return "UTC"


def lead(trigger: BeforeEvents) -> timedelta:
    """How long before an event."""
    return timedelta(minutes=trigger.minutes)


def _digits(text: str) -> str:
    return "".join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in text)
