"""The models that requests may name: loaded on first use, one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from qafila.chat.client import ChatClient
from qafila.server.errors import ApiError


@dataclass(slots=True)
class Entry:
    """One registered model.

    Attributes:
        name: what requests call it. source: what an operator would call it (a path, ``default``, a URL).
        load: opens it; raises QafilaError.
        client: the open one. users: requests under way. used: when one last ended, by `time.monotonic`.
        created: when it was registered, seconds since 1970.
    """

    name: str
    source: str
    load: Callable[[], Awaitable[ChatClient]]
    client: ChatClient | None = None
    users: int = 0
    used: float = 0.0
    created: int = field(default_factory=lambda: int(time.time()))
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


class Models:
    """Names to models. A request's model is one of these names, never a path or a download.

    Args:
        entries: what is registered; the first is the default one.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = dict(entries)

    def find(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            ApiError: 404, there is none.
        """
        entry = self.entries.get(name)
        if entry is None:
            known = ", ".join(self.entries)
            raise ApiError(404, f"model {name!r:.120}: not served here; there are {known}", param="model",
                           code="model_not_found")  # fmt: skip
        return entry

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[ChatClient]:
        """The client of a model, which stays open for the length of the block."""
        entry = self.find(name)
        entry.users += 1
        try:
            if entry.client is None:
                async with entry.opening:
                    if entry.client is None:
                        entry.client = await entry.load()
            yield entry.client
        finally:
            entry.users -= 1
            entry.used = time.monotonic()

    async def close(self) -> None:
        """Close what is open."""
        for entry in self.entries.values():
            if entry.client is not None:
                client, entry.client = entry.client, None
                await client.close()
