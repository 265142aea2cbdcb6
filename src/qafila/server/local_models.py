"""Entries of models that run in this process, and of adapters on them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qafila.chat.client import ChatClient
from qafila.server.models import Entry


def local_entry(name: str, source: str | Path, options: Mapping[str, Any]) -> Entry:
    """A model that `qafila.Llama.load` opens with these options on first use."""
    known: list[int] = []

    async def load() -> ChatClient:
        from qafila.chat.llama import Llama
        from qafila.chat.local import LocalClient

        llama = await asyncio.to_thread(lambda: Llama.load(source, **options))
        return LocalClient(llama, name, owns_model=True)

    async def size() -> int:
        from qafila.chat.footprint import model_bytes

        if not known:
            known.append(await asyncio.to_thread(model_bytes, source, options))
        return known[0]

    return Entry(name, str(source), load, size)


def adapter_entry(name: str, path: str | Path, base: Entry) -> Entry:
    """A LoRA adapter (PEFT) on a local model, whose engine and thread it shares.

    Args:
        name: what requests call it. path: the adapter's folder. base: made by `local_entry`.
    """

    async def load() -> ChatClient:
        from qafila.chat.local import LocalClient

        assert isinstance(base.client, LocalClient)  # `Models` opens the base first, and keeps it open meanwhile
        await asyncio.to_thread(base.client.llama.engine.add_adapter, name, Path(path))
        return LocalClient(base.client.llama, name, adapter=name, pump=base.client.pump)

    async def size() -> int:
        from qafila.chat.footprint import adapter_bytes

        return await asyncio.to_thread(adapter_bytes, path)

    return Entry(name, str(path), load, size, base)
