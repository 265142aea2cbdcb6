"""What an operator wrote on the command line to be served: names, sources, adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qafila.errors import UsageError
from qafila.server.local_models import adapter_entry, local_entry
from qafila.server.models import Entry

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:-]{0,127})=(.+)", re.DOTALL)
_ADAPTER = re.compile(r"([A-Za-z0-9][A-Za-z0-9._:-]{0,127})(?:@([^=]+))?=(.+)", re.DOTALL)


def split_name(text: str) -> tuple[str, str]:
    """``NAME=SOURCE`` as (name, source); a source alone gets a name that tells no path of this machine."""
    match = _NAMED.fullmatch(text)
    if match is not None and not Path(text).exists():
        return match[1], match[2]
    if text.startswith("hf:"):
        return text.removeprefix("hf:"), text
    path = Path(text)
    if path.exists() or len(path.parts) > 1:
        return path.name.removesuffix(".gguf") or path.resolve().name or "model", text
    return text, text


def local_entries(models: Sequence[str], adapters: Sequence[str], options: Mapping[str, Any]) -> dict[str, Entry]:
    """The entries of local models and of adapters on them, by name, in the order given.

    Args:
        models: ``SOURCE`` or ``NAME=SOURCE``. adapters: ``NAME=FOLDER`` (on the first model) or ``NAME@MODEL=FOLDER``.
        options: of `qafila.Llama.load`, for every model.

    Raises:
        UsageError: a name that is given twice, or of a model that is not there.
    """
    entries: dict[str, Entry] = {}
    for text in models:
        name, source = split_name(text)
        add(entries, local_entry(name, source, options))
    for text in adapters:
        match = _ADAPTER.fullmatch(text)
        if match is None:
            raise UsageError(f"--adapter: {text!r:.120} is neither NAME=FOLDER nor NAME@MODEL=FOLDER")
        name, base, folder = match.groups()
        found = entries.get(base) if base is not None else next(iter(entries.values()), None)
        if found is None or found.base is not None:
            raise UsageError(f"--adapter: {name} is for {base or 'a local model'!r:.80}, which is not served here")
        if (Path(found.source) / "adapter_config.json").is_file():
            raise UsageError(
                f"--adapter: {name} is for {found.name:.80}, which is an adapter itself; serve the base of both"
            )
        add(entries, adapter_entry(name, folder, found))
    return entries


def add(entries: dict[str, Entry], entry: Entry) -> None:
    """Register one more.

    Raises:
        UsageError: its name is taken.
    """
    if entry.name in entries:
        raise UsageError(f"two models are called {entry.name!r:.120}; give one another name: NAME={entry.source:.80}")
    entries[entry.name] = entry
