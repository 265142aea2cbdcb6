"""What is served: command-line values, a file and upstreams together, as entries.

In a file (TOML) every key has the name of the option of `qafila.Llama.load` or of `Upstream`::

    [defaults]                 # for every model of this file
    threads = 8

    [models.default]           # the first one is the default model
    source = "default"
    context = 16384

    [models.tuned]
    adapter = "adapters/tuned" # relative to the file
    base = "default"

    [upstreams.cluster]
    url = "http://10.0.0.7:8000"
    key_env = "CLUSTER_KEY"
    models = { big = "org/big-model" }
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from qafila.errors import ModelNotFoundError, UsageError
from qafila.server.local_models import adapter_entry, local_entry
from qafila.server.models import Entry
from qafila.server.sources import add, local_entries
from qafila.server.upstreams import Upstream, upstream_entries

# What a model may be called: like those of the hub, Ollama's tags and OpenAI's names.
_NAME: Final = re.compile(r"[\w][\w.:@+-]*(/[\w][\w.:@+-]*)*")
_GIVEN_NAME: Final = re.compile(r"([\w][\w.:@+-]*)=(.+)", re.DOTALL)

# Options of `Llama.load` that a file may set, with their types.
_MODEL_KEYS: Final[Mapping[str, type]] = {
    "format": str, "device": str, "dtype": str, "threads": int, "context": int, "kv_type": str, "isa": str,
    "draft": str,
}  # fmt: skip
_ADAPTER_KEYS: Final = ("adapter", "base")
_UPSTREAM_KEYS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "url": str, "models": (dict, list), "key_env": str, "key_file": str, "kind": str, "timeout": (int, float),
}  # fmt: skip


def entries_from(
    specs: Sequence[str],
    adapters: Sequence[str] = (),
    upstreams: Sequence[Upstream] = (),
    options: Mapping[str, Any] | None = None,
    file: Path | None = None,
) -> dict[str, Entry]:
    """What is served, the default model first: the command line's models, then the file's, then upstreams'.

    Upstreams are asked what they have.

    Args:
        specs: ``SOURCE`` or ``NAME=SOURCE``; with none of these, no file and no upstream, it is ``default``.
        adapters: on models of ``specs``: ``NAME=FOLDER`` (on the first) or ``NAME@MODEL=FOLDER``.
        upstreams: see `upstream_of`.
        options: of `qafila.Llama.load`, for all local models; what the file says goes before them.
        file: see above.

    Raises:
        UsageError: a value that makes no sense, a name twice, nothing to serve. ModelNotFoundError: there is no such
            file. UpstreamError: an upstream does not answer.
    """
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if not specs and not upstreams and file is None:
        specs = ("default",)
    entries = local_entries(specs, adapters, given)
    more = list(upstreams)
    if file is not None:
        from_file, listed = read_model_list(file, given)
        for entry in from_file:
            add(entries, entry)
        more = [*listed, *more]
    for upstream in more:
        for entry in upstream_entries(upstream):
            add(entries, entry)
    if not entries:
        raise UsageError("there is nothing to serve: name a model or an upstream")
    return entries


def upstream_of(
    url: str, models: Sequence[str] = (), key_env: str | None = None, key_file: str | Path | None = None
) -> Upstream:
    """An upstream of the command line; ``models`` are ``THEIRS`` or ``NAME=THEIRS``.

    Raises:
        UsageError: a value that makes no sense, or one name twice.
    """
    names: dict[str, str] = {}
    for text in models:
        found = _GIVEN_NAME.fullmatch(text)
        name, theirs = (text, text) if found is None else (found[1], found[2])
        if name in names or not name:
            raise UsageError(f"--upstream-model {text!r:.120}: that name is there twice or empty; write NAME=THEIRS")
        names[name] = theirs
    return Upstream(url, names, key_env, key_file)


def read_model_list(path: Path, options: Mapping[str, Any] | None = None) -> tuple[list[Entry], list[Upstream]]:
    """Local models and upstreams of a file as above.

    Args:
        path: of the file. options: of `qafila.Llama.load`, where the file says nothing else.

    Raises:
        ModelNotFoundError: it is not there. UsageError: it is no TOML, or a key is unknown or makes no sense; the
            message names file and key.
    """
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: is no TOML ({error})") from None
    reader = _File(path)
    reader.known(data, "", ("defaults", "models", "upstreams"))
    defaults = reader.options(reader.table(data, "defaults"), "defaults")
    entries: dict[str, Entry] = {}
    adapters = []
    for name, given in reader.table(data, "models").items():
        where = f"models.{name}"
        reader.name(name, where)
        fields = reader.object(given, where)
        if "adapter" in fields:
            reader.known(fields, where, _ADAPTER_KEYS)
            base, folder = reader.text(fields, where, "base"), reader.path(reader.text(fields, where, "adapter"))
            adapters.append((name, folder, base))
            continue
        source = reader.path(reader.text(fields, where, "source"))
        own = reader.options({key: value for key, value in fields.items() if key != "source"}, where)
        entries[name] = local_entry(name, source, {**(options or {}), **defaults, **own})
    found = list(entries.values())
    for name, folder, base in adapters:
        if base not in entries:
            known = ", ".join(entries) or "none"
            raise reader.fail(f"models.{name}.base", f"there is no model {base!r:.120} in this file; there are {known}")
        found.append(adapter_entry(name, folder, entries[base]))
    return found, [reader.upstream(name, given) for name, given in reader.table(data, "upstreams").items()]


class _File:
    """Takes a file's values, and says where what is wrong stands."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fail(self, where: str, problem: str) -> UsageError:
        return UsageError(f"{self._path}: {where}: {problem}" if where else f"{self._path}: {problem}")

    def known(self, given: Mapping[str, Any], where: str, keys: Sequence[str]) -> None:
        for key in given:
            if key not in keys:
                raise self.fail(f"{where}.{key}" if where else key, f"unknown key; known are {', '.join(keys)}")

    def object(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(where, "expected a table")
        return value

    def table(self, data: Mapping[str, Any], key: str) -> dict[str, Any]:
        return self.object(data.get(key, {}), key)

    def text(self, fields: Mapping[str, Any], where: str, key: str) -> str:
        value = fields.get(key)
        if not isinstance(value, str) or not value:
            raise self.fail(f"{where}.{key}", "missing" if value is None else "expected text")
        return value

    def name(self, name: str, where: str) -> None:
        if not _NAME.fullmatch(name):
            raise self.fail(where, "is no name for a model; use letters, digits and . _ - : @ + /")

    def options(self, fields: dict[str, Any], where: str) -> dict[str, Any]:
        self.known(fields, where, tuple(_MODEL_KEYS))
        for key, value in fields.items():
            self._typed(value, f"{where}.{key}", _MODEL_KEYS[key])
        return {**fields, "draft": self.path(fields["draft"])} if "draft" in fields else fields

    def path(self, source: str) -> str:
        """A path is relative to the file; what is no path there is a name of the hub or the cache."""
        if source.startswith("hf:"):
            return source
        beside = self._path.parent / Path(source).expanduser()
        return str(beside) if beside.exists() or source.startswith(("./", "../")) else source

    def upstream(self, name: str, given: Any) -> Upstream:
        where = f"upstreams.{name}"
        fields = self.object(given, where)
        self.known(fields, where, tuple(_UPSTREAM_KEYS))
        for key, value in fields.items():
            self._typed(value, f"{where}.{key}", _UPSTREAM_KEYS[key])
        self.text(fields, where, "url")
        models = fields.get("models", {})
        if isinstance(models, list):
            models = {each: each for each in models if isinstance(each, str)}
        for here, there in models.items():
            self.name(here, f"{where}.models")
            self._typed(there, f"{where}.models.{here}", str)
        if len(models) != len(fields.get("models", {})):
            raise self.fail(f"{where}.models", "expected names, each once")
        file = fields.get("key_file")
        try:
            return Upstream(**{**fields, "models": models, "key_file": None if file is None else self.path(file)})
        except UsageError as error:
            raise self.fail(where, str(error)) from None

    def _typed(self, value: Any, where: str, kind: type | tuple[type, ...]) -> None:
        if isinstance(value, bool) or not isinstance(value, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            names = {str: "text", int: "a whole number", float: "a number", dict: "a table", list: "a list"}
            raise self.fail(where, f"expected {' or '.join(names[each] for each in kinds)}")
