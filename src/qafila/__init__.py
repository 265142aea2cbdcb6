"""Qafila: load any Llama, run it, adapt it, train it, serve it, put it to work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qafila.chat.llama import Llama as Llama

__version__ = "0.1.0"
__all__ = ["Llama", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when first asked for, so that `import qafila` costs nothing.
    if name == "Llama":
        from qafila.chat.llama import Llama

        return Llama
    raise AttributeError(f"module 'qafila' has no attribute {name!r}")
