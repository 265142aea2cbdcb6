"""JSON files from untrusted hands: read strictly, and every value asked for by name, type and range."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from qafila.errors import ConfigError, FormatError, ModelNotFoundError

#: Configuration files are a few kilobytes; the largest seen (a tokenizer's, with all added tokens) are under 10 MB.
MAX_BYTES = 64 << 20
_MAX_INTEGER = 1 << 53


def read_json(path: Path | str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelNotFoundError: no such file. FormatError: too large, not UTF-8, not JSON, not an object, a key given
        twice, or a number that JSON does not have (NaN, Infinity, thousands of digits).
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise FormatError(path, f"is {size} bytes, far more than a configuration needs")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise FormatError(path, f"cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise FormatError(path, f"is not UTF-8 text (byte {error.start})") from error

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise FormatError(path, f"key {show(key)} is given twice")
            found[key] = value
        return found

    def constant(name: str) -> Any:
        raise FormatError(path, f"holds {name}, which is not a JSON number")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except RecursionError as error:
        raise FormatError(path, "is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise FormatError(path, f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise FormatError(path, "holds a number with too many digits") from error
    if not isinstance(value, dict):
        raise FormatError(path, f"must hold a JSON object, not {show(value)}")
    return value


def show(value: object) -> str:
    """``repr`` of an untrusted value, cut to one short line."""
    if isinstance(value, int) and abs(value) > 1 << 128:
        return "a number with too many digits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


class Fields:
    """Checked access to one JSON object; what nobody asked for is refused at the end.

    ``prefix`` is where the object lies in its file (``text_config.``), for error messages. A key whose value is null
    counts as absent, as it does for transformers.
    """

    def __init__(self, raw: Mapping[str, Any], path: object, prefix: str = "") -> None:
        self.raw, self.path, self.prefix = raw, path, prefix
        self._asked: set[str] = set()

    def value(self, key: str) -> Any:
        """The value as it is; ``None`` when absent."""
        self._asked.add(key)
        return self.raw.get(key)

    def error(self, key: str, problem: str) -> ConfigError:
        """An error about ``key``, naming the file."""
        return ConfigError(f"{self.path}: {self.prefix}{key} {problem}")

    def integer(
        self, key: str, default: int | None = None, *, least: int = 0, most: int = _MAX_INTEGER, required: bool = True
    ) -> Any:
        """An integer between ``least`` and ``most`` (``None`` where it is absent and not required)."""
        value = self.value(key)
        if value is None:
            if default is None and required:
                raise self.error(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, f"must be an integer between {least} and {most}, not {show(value)}")
        return value

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        within: tuple[float, float] = (-float(_MAX_INTEGER), float(_MAX_INTEGER)),
        required: bool = True,
    ) -> Any:
        """A finite number within two bounds (``None`` where it is absent and not required)."""
        value = self.value(key)
        if value is None:
            if default is None and required:
                raise self.error(key, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"must be a number, not {show(value)}")
        if (isinstance(value, int) and abs(value) > _MAX_INTEGER) or not math.isfinite(value):
            raise self.error(key, f"must be a finite number, not {show(value)}")
        if not within[0] <= value <= within[1]:
            raise self.error(key, f"must be between {within[0]:g} and {within[1]:g}, not {show(value)}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.value(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {show(value)}")
        return value

    def text(self, key: str) -> str | None:
        """A string, or ``None`` when absent."""
        value = self.value(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, f"must be a string, not {show(value)}")
        return value

    def integers(self, key: str, *, least: int = 0, most: int = _MAX_INTEGER) -> tuple[int, ...] | None:
        """A list of integers, or ``None`` when absent."""
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self.error(key, f"must be a list of integers, not {show(value)}")
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int) or not least <= item <= most:
                raise self.error(key, f"must hold integers between {least} and {most}, not {show(item)}")
        return tuple(value)

    def section(self, key: str) -> Fields | None:
        """A nested object, or ``None`` when absent."""
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.error(key, f"must be an object, not {show(value)}")
        return Fields(value, self.path, f"{self.prefix}{key}.")

    def fixed(self, constants: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse keys whose value is not one of those that mean what Qafila computes."""
        for key, allowed in constants.items():
            value = self.value(key)
            if value is not None and not any(type(value) is type(one) and value == one for one in allowed):
                raise self.error(key, f"is {show(value)}; Qafila computes only {show(allowed[0])}")

    def finish(self, inert: Collection[str]) -> None:
        """Refuse every key that was neither asked for nor known to change nothing (or transformers' own, ``_...``)."""
        for key in self.raw:
            if key not in self._asked and key not in inert and not (isinstance(key, str) and key.startswith("_")):
                raise ConfigError(
                    f"{self.path}: unknown key {self.prefix}{show(key).strip(chr(39))}; Qafila would have to ignore "
                    "it (remove it if it changes nothing)"
                )
