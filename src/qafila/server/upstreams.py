"""Entries of models that another server answers for: the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qafila.chat.client import ChatClient
from qafila.chat.dialects import DIALECTS
from qafila.chat.remote import RemoteClient
from qafila.chat.upstream import Address, Connection, Offered, all_offered, read_key
from qafila.errors import UsageError
from qafila.server.models import Entry


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server with OpenAI's API.

    Attributes:
        url: of the server (``http://host:8000``) or of its API (``https://host/api/v1``).
        models: names here to names there; empty for all that it lists, by the names they have there.
        key_env: environment variable with its API key. key_file: or the file that holds it.
        kind: what it is (a name of `qafila.chat.dialects.DIALECTS`); None for what its list of models says.
        timeout: seconds that it may be silent in the middle of an answer.

    Raises:
        UsageError: a URL, kind or timeout that makes no sense.
    """

    url: str
    models: Mapping[str, str] = field(default_factory=dict)
    key_env: str | None = None
    key_file: str | Path | None = None
    kind: str | None = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        Address.parse(self.url)
        if self.kind is not None and self.kind not in DIALECTS:
            raise UsageError(f"upstream {self.url}: kind {self.kind!r:.40} is none of {', '.join(DIALECTS)}")
        if not 0 < self.timeout < 1e6:
            raise UsageError(f"upstream {self.url}: timeout must be a number of seconds above 0, not {self.timeout!r}")

    def connection(self, where: str) -> Connection:
        """A connection with the key that is there now.

        Raises:
            UsageError: there is no key where one should be.
        """
        key = read_key(self.key_env, self.key_file)
        return Connection(Address.parse(self.url), key=key, where=where, timeout=self.timeout)


def upstream_entries(upstream: Upstream) -> list[Entry]:
    """Entries of a server's models. It is asked for its list when models are not named, or not what kind it is.

    Raises:
        UsageError: a key that is not there. UpstreamError: it does not answer, or lacks a model that was named.
    """
    if upstream.models and upstream.kind is not None:
        known = {there: Offered(there, DIALECTS[upstream.kind], None) for there in upstream.models.values()}
    else:
        where = f"upstream {upstream.url}"
        known = all_offered(upstream.connection(where), where)
    names = dict(upstream.models) or {name: name for name in known}
    missing = sorted(set(names.values()) - set(known))
    if missing:
        raise UsageError(
            f"upstream {upstream.url}: has no model {missing[0]!r:.120}; it has {', '.join(list(known)[:20])}"
        )
    return [_entry(name, upstream, known[there]) for name, there in names.items()]


def _entry(name: str, upstream: Upstream, model: Offered) -> Entry:
    dialect = model.dialect if upstream.kind is None else DIALECTS[upstream.kind]

    async def load() -> ChatClient:
        connection = upstream.connection(f"model {name!r}")
        return RemoteClient(connection, model.name, name, dialect=dialect, context_length=model.context_length)

    return Entry(name, upstream.url, load)
