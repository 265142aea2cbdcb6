"""Which tools of MCP servers the user has seen and trusts: kept in ``QAFILA_HOME/mcp_pins.json`` with their hashes.

What a model is told of a server is told from here, never from the server: what it changes later is refused until the
user has seen it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qafila.agent.mcp.definition import Definition
from qafila.errors import FormatError, StorageError
from qafila.weights.cache import home
from qafila.weights.storage import staging


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pinned(_Kept):
    """A trusted tool, and what it is known by (`Definition.sha256`)."""

    definition: Definition
    sha256: str


class PinnedServer(_Kept):
    """A trusted server: how it was reached, what it called itself, and its tools by their names there."""

    reached: str
    server_name: str
    tools: dict[str, Pinned]

    @classmethod
    def of(cls, reached: str, server_name: str, definitions: Mapping[str, Definition]) -> PinnedServer:
        """A server as it is now."""
        tools = {
            name: Pinned(definition=one, sha256=one.sha256(reached, server_name)) for name, one in definitions.items()
        }
        return cls(reached=reached, server_name=server_name, tools=tools)


class Pins(_Kept):
    """All trusted servers, by their names in the settings."""

    version: Literal[1] = 1
    servers: dict[str, PinnedServer] = {}


def pins_path() -> Path:
    """Where the pins are kept."""
    return home() / "mcp_pins.json"


def read_pins(path: Path) -> Pins:
    """The pins out of their file; none where there is no file.

    Raises:
        FormatError: the file is damaged, or was changed by somebody else.
    """
    try:
        pins = Pins.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Pins()
    except OSError as error:
        raise FormatError(path, f"cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise FormatError(
            path, f"holds no trusted tools ({error.errors()[0]['msg']}); delete it and trust anew"
        ) from None
    for server in pins.servers.values():
        for name, pinned in server.tools.items():
            if name != pinned.definition.name or pinned.sha256 != pinned.definition.sha256(
                server.reached, server.server_name
            ):
                raise FormatError(path, f"the hash of the tool {name!r:.60} is another; delete it and trust anew")
    return pins


def pin(path: Path, name: str, server: PinnedServer | None) -> None:
    """Trust a server as it is now, or no more where it is None; the file is written whole or not at all.

    Raises:
        FormatError: the file is damaged. StorageError: it cannot be written.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path.parent}: {error.strerror}") from None
    try:
        with FileLock(path.with_suffix(".lock"), timeout=10):
            servers = dict(read_pins(path).servers)
            servers.pop(name, None)
            if server is not None:
                servers[name] = server
            text = Pins(servers=servers).model_dump_json(indent=1) + "\n"
            with staging(path.parent) as stage, stage.open(path.name) as write:
                write(text.encode())
    except Timeout:
        raise StorageError(f"{path}: another process holds it; try again") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
