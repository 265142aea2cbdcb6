"""The agent's settings file, `agent.toml`: what its tools may reach, when it works by itself, what its tokens cost.

timezone = "Africa/Cairo"            # default: this machine's

[web]
allow = ["example.org", "*.example.org"]     # hosts that may be fetched; none by default

[calendar]
file = "calendar.ics"                # in the workspace; or a server:
caldav = "https://cal.example.org/salma/"
user = "salma"
password_env = "CALDAV_PASSWORD"     # the variable that holds the password

[schedules]
quiet = "22:00-07:00"                # nothing begins by itself in these hours

[prices]                             # of a million tokens each, in any currency; budgets of cost go by them
read = 0.10
generated = 0.40
cached = 0.02                        # of those that were read before; without it, as those read

[mcp.files]                          # a server of tools, called `files`
command = ["my-mcp-server", "--root", "."]   # or: url = "http://127.0.0.1:9000/mcp"
env = ["HOME"]                       # variables that it may see
effects = { read = "read" }          # what its tools do; what is not named is irrevocable
"""

from __future__ import annotations

import re
import tomllib
import zoneinfo
from datetime import tzinfo
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from qafila.agent.events import Prices
from qafila.agent.tool import Effect
from qafila.errors import FormatError

#: What is wrong, by pydantic's names for it.
_WORDS = {
    "extra_forbidden": "there is no such setting",
    "tuple_type": 'is no list; write one as ["a", "b"]',
    "string_type": "is no text; write it in quotes",
    "dict_type": "is no table",
    "model_type": "is no table",
    "float_type": "is no number; write one as 0.4",
    "missing": "is missing",
}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _known_zone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise ValueError(f"{name!r:.60} is no time zone; write one as Africa/Cairo") from None
    return name


def _hours(text: str) -> str:
    if re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d", text, re.ASCII) is None:
        raise ValueError(f"{text!r:.40} are no hours; write them as 22:00-07:00")
    return text


class Web(_Section):
    """``allow``: hosts that may be fetched, by name; ``*.`` before one stands for all below it."""

    allow: tuple[str, ...] = ()


class Calendar(_Section):
    """Where events are kept: ``file`` in the workspace, or a CalDAV server's collection."""

    file: str = "calendar.ics"
    caldav: str | None = None
    user: str | None = None
    password_env: str | None = None


class Schedules(_Section):
    """``quiet``: hours in which nothing begins by itself, as ``22:00-07:00``; None for none."""

    quiet: Annotated[str, AfterValidator(_hours)] | None = None


_Price = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class TokenPrices(_Section):
    """Cost of a million tokens, in any currency; ``cached``: of those read before, None for as much as the others."""

    read: _Price
    generated: _Price
    cached: _Price | None = None

    @model_validator(mode="after")
    def _something_costs(self) -> TokenPrices:
        if not (self.read or self.generated or self.cached):
            raise ValueError("all are 0; leave the table out where nothing costs")
        return self


class Server(_Section):
    """An MCP server: a ``command`` that speaks on standard input and output, or a ``url``.

    Attributes:
        env: variables that the command may see. token_env: the variable that holds the bearer token of the URL.
        effects: what its tools do, by their names; what is not named is irrevocable.
    """

    command: tuple[str, ...] = ()
    url: str | None = None
    env: tuple[str, ...] = ()
    token_env: str | None = None
    effects: dict[str, Effect] = {}

    @model_validator(mode="after")
    def _one_way(self) -> Server:
        if bool(self.command) == (self.url is not None):
            raise ValueError("give it a command or a url")
        if (self.command and self.token_env is not None) or (self.url is not None and self.env):
            raise ValueError("token_env goes with a url, and env with a command")
        if any(effect == "write" for effect in self.effects.values()):
            raise ValueError("effects: what a server writes cannot be taken back here; say egress or irrevocable")
        return self


class Config(_Section):
    """All of it; see the module's words."""

    timezone: Annotated[str, AfterValidator(_known_zone)] | None = None
    web: Web = Web()
    calendar: Calendar = Calendar()
    schedules: Schedules = Schedules()
    prices: TokenPrices | None = None
    mcp: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")], Server] = {}

    @property
    def zone(self) -> tzinfo | None:
        """The user's time zone; None for this machine's."""
        return zoneinfo.ZoneInfo(self.timezone) if self.timezone is not None else None

    @property
    def token_prices(self) -> Prices:
        """What tokens cost; nothing where no prices are set."""
        if self.prices is None:
            return Prices()
        cached = self.prices.read if self.prices.cached is None else self.prices.cached
        return Prices(read=self.prices.read, cached=cached, generated=self.prices.generated)


def read_config(path: Path) -> Config:
    """Settings out of a file.

    Raises:
        FormatError: it is none; the message names the key and what is wrong there.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, RecursionError, UnicodeError) as error:
        raise FormatError(path, f"is no TOML ({error})") from None
    except OSError as error:
        raise FormatError(path, f"cannot be read ({error.strerror})") from None
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, found["loc"])) or "settings"
        words = _WORDS.get(found["type"], found["msg"].removeprefix("Value error, "))
        raise FormatError(path, f"{where}: {words}") from None
