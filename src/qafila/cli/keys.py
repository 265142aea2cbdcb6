"""`qafila keys`: the API keys of this machine's server."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qafila.errors import UsageError

if TYPE_CHECKING:
    from qafila.server.keys import Key, KeyStore

command = typer.Typer(add_completion=False, rich_markup_mode=None, help="The API keys of `qafila serve`.")
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="What the key is called.")]
_Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        envvar="QAFILA_DATABASE",
        help="Where keys are kept (default: SQLite in QAFILA_HOME).",
    ),
]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@command.command("create")
def _create(
    name: _Name,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope", help="inference, models, agent, metrics or admin; may be repeated (default: the first two)."
        ),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Most requests a minute.")] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Most tokens a minute, read and written.")
    ] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Most requests at once.")] = None,
    expires: Annotated[str | None, typer.Option(metavar="TIME", help="Worthless after 30d, 12h, 90m, ...")] = None,
    database: _Database = None,
    as_json: _JSON = False,
) -> None:
    """Make a key; it is shown once, and only its hash is kept."""
    lifetime = None if expires is None else seconds(expires, "--expires")
    text, key = _store(database).create(
        name,
        scopes=scope or (),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
        lifetime=lifetime,
    )
    _show_secret(text, key, as_json)


@command.command("list")
def _list(database: _Database = None, as_json: _JSON = False) -> None:
    """List the keys: what they may do, until when, and the first letters of each."""
    keys, now = _store(database).listed(), time.time()
    if as_json:
        typer.echo(json.dumps([_row(key, now) for key in keys], ensure_ascii=False, indent=2))
        return
    if not keys:
        typer.echo("no keys here yet; `qafila keys create NAME` makes one", err=True)
        return
    table = [("NAME", "KEY", "SCOPES", "STATE", "CREATED", "EXPIRES", "LIMITS")]
    for key in keys:
        row = _row(key, now)
        limits = ", ".join(f"{row[field]} {unit}" for field, unit in _UNITS.items() if row[field] is not None)
        expires = (row["expires"] or "never")[:16].replace("T", " ")
        created = row["created"][:16].replace("T", " ")
        table.append((key.name, row["prefix"] + "…", ",".join(row["scopes"]), row["state"], created, expires, limits))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@command.command("revoke")
def _revoke(name: _Name, database: _Database = None, as_json: _JSON = False) -> None:
    """Make a key worthless, for ever; a running server refuses it a second later."""
    key = _store(database).revoke(name)
    if as_json:
        typer.echo(json.dumps(_row(key, time.time()), ensure_ascii=False))
    else:
        typer.echo(f"revoked {key.name}")


@command.command("rotate")
def _rotate(name: _Name, database: _Database = None, as_json: _JSON = False) -> None:
    """Give a key a new secret; the old one is worthless from then on."""
    _show_secret(*_store(database).rotate(name), as_json)


_UNITS = {"requests_per_minute": "requests/min", "tokens_per_minute": "tokens/min", "max_concurrent": "at once"}


def seconds(text: str, option: str) -> float:
    """A length of time such as ``30d``, ``12h``, ``90m`` or ``45s``, in seconds.

    Raises:
        UsageError: it is none; the message names ``option``.
    """
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", text.strip())
    if match is None or not int(match[1]):
        raise UsageError(f"{option}: {text!r:.40} is no length of time; write 30d, 12h, 90m or 45s")
    return float(int(match[1]) * _SECONDS[match[2]])


def _store(database: str | None) -> KeyStore:
    try:
        from qafila.database import default_url, open_database
        from qafila.server.keys import KeyStore
    except ModuleNotFoundError as error:
        raise UsageError(f"keys: {error.name} is missing; `pip install 'qafila[serve]'` brings it") from None
    return KeyStore(open_database(database or default_url("server")))


def _show_secret(text: str, key: Key, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"key": text, **_row(key, time.time())}, ensure_ascii=False))
        return
    typer.echo(text)
    typer.echo(f"this is the key {key.name}; keep it, it is not shown again", err=True)


def _row(key: Key, now: float) -> dict[str, Any]:
    def at(when: float | None) -> str | None:
        return None if when is None else datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")

    return {
        "name": key.name,
        "prefix": f"qfl_{key.id}",
        "scopes": sorted(key.scopes),
        "state": key.state(now),
        "created": at(key.created),
        "expires": at(key.expires),
        "revoked": at(key.revoked),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "max_concurrent": key.max_concurrent,
    }
