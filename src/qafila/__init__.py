"""Qafila: load any Llama, run it, adapt it, train it, serve it, put it to work."""

from __future__ import annotations

__version__ = "0.1.0"
