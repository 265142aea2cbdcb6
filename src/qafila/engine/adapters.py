"""The adapters an engine knows, by name, and who uses them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qafila.engine.runner import Runner
from qafila.errors import UsageError


@dataclass(slots=True)
class Adapter:
    """One adapter under a name: the runner's number for it, and how many requests under way use it.

    ``serial`` is never used twice, unlike numbers and names: nobody reads another adapter's keys and values.
    """

    number: int
    serial: int
    users: int = 0


class Adapters:
    """Names of a runner's adapters."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._known: dict[str, Adapter] = {}
        self._serial = 0

    def add(self, name: str, path: Path) -> None:
        """Read an adapter.

        Raises:
            QafilaError: the name is taken, or the adapter is damaged or made for another model.
        """
        if not isinstance(name, str) or not name:
            raise UsageError(f"an adapter needs a name, not {name!r:.40}")
        if name in self._known:
            raise UsageError(f"there is an adapter {name!r} already; remove it first or choose another name")
        number = self._runner.load_adapter(path)
        self._serial += 1
        self._known[name] = Adapter(number, self._serial)

    def remove(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            UsageError: it is not there, or requests under way use it.
        """
        adapter = self.find(name)
        assert adapter is not None
        if adapter.users:
            raise UsageError(f"the adapter {name!r} is in use by {adapter.users} requests; let them end first")
        del self._known[name]
        self._runner.unload_adapter(adapter.number)

    def find(self, name: str | None) -> Adapter | None:
        """The adapter of this name; None for no name.

        Raises:
            UsageError: there is none.
        """
        if name is None:
            return None
        adapter = self._known.get(name) if isinstance(name, str) else None
        if adapter is None:
            known = ", ".join(sorted(self._known)) or "none"
            raise UsageError(f"there is no adapter {name!r:.80}; known are: {known}")
        return adapter
