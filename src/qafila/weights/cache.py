"""The model cache: one folder a model, each with a manifest of what is in it, and nothing in it that is not whole.

Layout under ``QAFILA_HOME`` (default ``~/.cache/qafila``)::

    models/default/            manifest.json and files
    models/hf/OWNER--NAME/COMMIT[+SELECTION]/
    staging/KEY/               unfinished downloads, which the next pull resumes
    locks/KEY.lock             held while a model is being fetched

A model is fetched and checked in ``staging`` and then renamed into ``models``: whoever looks sees all of it or nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from qafila.errors import FormatError, ModelNotFoundError, StorageError, UsageError

if TYPE_CHECKING:
    from filelock import BaseFileLock

MANIFEST = "manifest.json"
_MANIFEST_LIMIT = 16 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
# A file system that is filled to the last byte serves nobody.
_HEADROOM = 32 << 20


@dataclass(frozen=True, slots=True)
class CachedFile:
    """One file of a model: its path in the model's folder, its size and its published hash.

    ``hash`` is ``sha256:HEX``, or ``git-sha1:HEX`` (of git's blob header and the content) for the small files of a hub.
    """

    path: str
    size: int
    hash: str


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model in the cache, as its manifest tells it.

    ``main`` is what a loader opens, relative to ``folder``: a GGUF file, or ``.`` for a folder of files. ``fetched`` is
    an ISO 8601 time in UTC. ``revision`` is what was asked for, ``commit`` what it was then, and ``aliases`` are other
    branches and tags that were found to be the same commit.
    """

    name: str
    source: str
    format: str
    main: str
    fetched: str
    files: tuple[CachedFile, ...]
    revision: str | None = None
    commit: str | None = None
    license: str | None = None
    aliases: tuple[str, ...] = ()
    folder: Path = Path()

    @property
    def path(self) -> Path:
        """What a loader opens."""
        return self.folder / self.main

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def home() -> Path:
    """The root of the cache: ``QAFILA_HOME``, by default ``~/.cache/qafila``; UsageError where ``~`` is nobody's."""
    place = os.environ.get("QAFILA_HOME") or "~/.cache/qafila"
    try:
        return Path(place).expanduser().absolute()
    except RuntimeError:  # a user that is unknown, or (in a container) one without HOME
        raise UsageError(f"{place}: there is no such home folder; set QAFILA_HOME to a folder") from None


def human_size(nbytes: float) -> str:
    """Bytes as a person reads them, in powers of 1000."""
    for unit in ("B", "KB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond: the newest snapshot is the one that counts."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def is_safe_path(name: str) -> bool:
    """Whether a file name given by a server stays inside the folder it is put in, on any system."""
    if not name or len(name) > 1024 or not name.isprintable() or any(c in name for c in '\\:*?"<>|'):
        return False
    path = PurePosixPath(name)
    return (
        not path.is_absolute()
        and str(path) == name
        and all(part not in (".", "..") and not part.endswith((".", " ")) and len(part) <= 200 for part in path.parts)
    )


def blob_hasher(kind: str, size: int) -> Any:
    """A hash object for a published hash of ``kind`` (``sha256`` or ``git-sha1``) over a file of ``size`` bytes."""
    if kind == "sha256":
        return hashlib.sha256()
    hasher = hashlib.sha1(usedforsecurity=False)
    hasher.update(f"blob {size}\0".encode())
    return hasher


def matches(path: Path, file: CachedFile) -> bool:
    """Whether the bytes at ``path`` are those that were published."""
    if path.stat().st_size != file.size:
        return False
    kind, _, expected = file.hash.partition(":")
    hasher = blob_hasher(kind, file.size)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)
    return bool(hasher.hexdigest() == expected)


@contextlib.contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn what the disk says under ``where`` into a StorageError with a way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise StorageError(
                f"{where}: the disk is full; free some space and run the same command again (it resumes), "
                "or set QAFILA_HOME to a folder on another disk"
            ) from error
        raise StorageError(
            f"{error.filename or where}: {reason}; set QAFILA_HOME to a folder that can be written"
        ) from error


def require_space(where: Path, nbytes: int, what: str) -> None:
    """Refuse before the first byte what will not fit at ``where`` (which exists)."""
    free = shutil.disk_usage(where).free
    if free < nbytes + _HEADROOM:
        raise StorageError(
            f"{where}: {what} needs {human_size(nbytes)} and the disk has {human_size(free)} free; "
            "free some space, or set QAFILA_HOME to a folder on another disk"
        )


@contextlib.contextmanager
def locked(key: str) -> Iterator[None]:
    """Hold the lock of one model; a second process waits here until the first is done (or gone)."""
    from filelock import FileLock

    folder = home() / "locks"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock: BaseFileLock = FileLock(folder / f"{key}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def staging(key: str) -> Path:
    """The folder where the download ``key`` is put together."""
    folder = home() / "staging" / key
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def publish(model: CachedModel, content: Path, target: Path) -> CachedModel:
    """Write the manifest beside the files in ``content`` and rename the folder to ``target``: the model is there."""
    with storage_errors(target):
        _write_manifest(model, content / MANIFEST)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # a folder without a valid manifest, or a model that failed its check
            shutil.rmtree(target)
        content.replace(target)
    return replace(model, folder=target)


def _write_manifest(model: CachedModel, path: Path) -> None:
    record = asdict(model)
    del record["folder"]
    with path.open("w", encoding="utf-8") as stream:
        json.dump(record, stream, indent=2, ensure_ascii=False)
        stream.flush()
        os.fsync(stream.fileno())


def add_revision(model: CachedModel, revision: str, work: Path) -> CachedModel:
    """Note in a cached model's manifest that ``revision`` is its commit as well, and as of now.

    ``work`` is the staging folder that the new manifest is written in. The caller holds the model's lock.
    """
    aliases = tuple(dict.fromkeys(one for one in (*model.aliases, revision) if one != model.revision))
    model = replace(model, fetched=now(), aliases=aliases)
    with storage_errors(model.folder):
        _write_manifest(model, work / MANIFEST)
        (work / MANIFEST).replace(model.folder / MANIFEST)
        with contextlib.suppress(OSError):
            work.rmdir()
    return model


def read_manifest(folder: Path) -> CachedModel:
    """The model in ``folder``; raises FormatError when its manifest is not one of ours."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as stream:
            record = json.loads(stream.read(_MANIFEST_LIMIT))
        files = tuple(CachedFile(str(f["path"]), int(f["size"]), str(f["hash"])) for f in record.pop("files"))
        aliases = tuple(record.pop("aliases", ()))
        model = CachedModel(files=files, folder=folder, aliases=aliases, **record)
        optional = [one for one in (model.revision, model.commit, model.license) if one is not None]
        for text in (model.name, model.source, model.format, model.main, model.fetched, *optional, *aliases):
            if not isinstance(text, str):
                raise TypeError(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(path, "not a manifest of the model cache; remove the folder and pull again") from error
    if not all(is_safe_path(name) for name in (*(file.path for file in files), *({model.main} - {"."}))):
        raise FormatError(path, "names a file outside its folder; remove the folder and pull again")
    return model


def cached_models(*, whole: bool = True) -> list[CachedModel]:
    """Every model in the cache, by name and then newest first; folders without a good manifest are not models.

    ``whole=False`` gives those too that have lost a file since they were fetched.
    """
    models = []
    root = home() / "models"
    for manifest in sorted([*root.glob(f"*/{MANIFEST}"), *root.glob(f"hf/*/*/{MANIFEST}")]):
        with contextlib.suppress(FormatError, OSError):
            model = read_manifest(manifest.parent)
            if not whole or all((model.folder / f.path).is_file() for f in model.files):
                models.append(model)
    models.sort(key=lambda m: m.fetched, reverse=True)
    return sorted(models, key=lambda m: m.name)


def find(name: str, *, whole: bool = True) -> list[CachedModel]:
    """The cached models called ``name``: ``default``, ``hf:owner/name``, ``owner/name``, ``name`` or a GGUF's name.

    A model's whole name means that model, even where it begins the name of another (``hf:owner/name:file``).
    """
    wanted = name.casefold()
    models = cached_models(whole=whole)
    exact = [m for m in models if wanted in (m.name.casefold(), m.name.removeprefix("hf:").casefold())]
    if exact:
        return exact
    found = []
    for model in models:
        repo = model.name.removeprefix("hf:").partition(":")[0]
        names = {model.name, model.name.removeprefix("hf:"), repo, f"hf:{repo}", repo.rpartition("/")[2]}
        if model.main != ".":
            names |= {PurePosixPath(model.main).name, PurePosixPath(model.main).stem}
        if model.commit:
            plain = list(names)
            names |= {f"{n}@{model.commit}" for n in plain}
            names |= {f"{n}@{revision}" for n in plain for revision in (model.revision, *model.aliases) if revision}
        if wanted in {n.casefold() for n in names}:
            found.append(model)
    return found


def preferred(models: Sequence[CachedModel]) -> CachedModel:
    """Of several snapshots (at least one) the one that a name without a revision means: main's, then the newest."""
    return max(models, key=lambda m: ("main" in (m.revision, *m.aliases), m.fetched))


def verify(model: CachedModel) -> list[str]:
    """Hash every file again; the paths of those that are missing or changed."""
    bad = []
    for file in model.files:
        path = model.folder / file.path
        try:
            good = matches(path, file)
        except OSError:
            good = False
        if not good:
            bad.append(file.path)
    return bad


def remove(name: str) -> list[CachedModel]:
    """Delete the model called ``name`` (every cached revision of it) and return what was deleted.

    Raises ModelNotFoundError when there is none, UsageError when the name fits models of different names.
    """
    models = find(name, whole=False)
    if not models:
        raise ModelNotFoundError(f"no model {name!r} in the cache; `qafila models` lists them")
    names = sorted({model.name for model in models})
    if len(names) > 1:
        raise UsageError(f"{name!r} may be {' or '.join(names)}; give the whole name")
    for model in models:
        with storage_errors(model.folder):
            # Away from its name first: a model that is half deleted must not be found.
            doomed = staging("removed") / secrets.token_hex(8)
            with contextlib.suppress(FileNotFoundError):  # somebody else removes it at the same time
                model.folder.replace(doomed)
                shutil.rmtree(doomed)
            with contextlib.suppress(OSError):
                model.folder.parent.rmdir()
    return models


def unfinished() -> int:
    """Bytes of downloads that were interrupted and wait to be resumed."""
    total = 0
    for path in (home() / "staging").rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def clean() -> int:
    """Delete unfinished downloads that nobody is working on; bytes freed."""
    from filelock import FileLock, Timeout

    before = unfinished()
    locks = home() / "locks"
    for folder in sorted((home() / "staging").glob("*")):
        with contextlib.suppress(Timeout), storage_errors(folder):
            locks.mkdir(parents=True, exist_ok=True)
            with FileLock(locks / f"{folder.name}.lock", timeout=0):
                shutil.rmtree(folder)
    return max(0, before - unfinished())


def key_of(*parts: str) -> str:
    """A file name that stands for ``parts``: readable, safe, and different for different parts."""
    text = "+".join(parts)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:80]
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
