"""Entries of models that run in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qafila.chat.client import ChatClient
from qafila.server.models import Entry


def local_entry(name: str, source: str | Path, options: Mapping[str, Any]) -> Entry:
    """A model that `qafila.Llama.load` opens with these options on first use."""

    async def load() -> ChatClient:
        from qafila.chat.llama import Llama
        from qafila.chat.local import LocalClient

        llama = await asyncio.to_thread(lambda: Llama.load(source, **options))
        return LocalClient(llama, name)

    return Entry(name, str(source), load)
