"""A repository of a Hugging Face hub: how people name it, and which of its files a model needs."""

from __future__ import annotations

import fnmatch
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qafila.errors import ModelNotFoundError, UsageError
from qafila.weights import cache
from qafila.weights.cache import CachedFile

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")

# What a folder of safetensors needs, all of it at the top of the repository. Pickles (.bin, .pth) only when asked for.
_NEEDED = (
    *("config.json", "generation_config.json", "adapter_config.json", "*.safetensors.index.json", "*.safetensors"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*"),
)
_LEGAL = ("LICENSE*", "USE_POLICY*")
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pth", ".pt")


@dataclass(frozen=True, slots=True)
class Source:
    """``hf:owner/name[@revision][:file]``; ``pattern`` is a file name or a pattern such as ``original/*``."""

    repo: str
    revision: str | None = None
    pattern: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{at}" + (f":{self.pattern}" if self.pattern else "")

    @property
    def name(self) -> str:
        """What the model is called in the cache, whatever its revision."""
        return f"hf:{self.repo}" + (f":{self.pattern}" if self.pattern else "")

    @property
    def folder(self) -> Path:
        """Where the snapshots of the repository lie."""
        return cache.home() / "models" / "hf" / self.repo.replace("/", "--")


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit, as the hub tells it; names, sizes and hashes are checked for shape, not for truth."""

    commit: str
    files: tuple[CachedFile, ...]
    license: str | None
    gated: bool


def parse(text: str, *, file: str | None = None, revision: str | None = None) -> Source:
    """Read ``hf:owner/name[@revision][:file]``; raises UsageError."""
    repo, colon, pattern = text.removeprefix("hf:").partition(":")
    repo, at, rev = repo.partition("@")
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise UsageError(f"{text!r} is not hf:owner/name, hf:owner/name@revision or hf:owner/name:file")
    if (colon and not pattern) or (at and not rev):
        raise UsageError(f"{text!r} ends where a {'file' if colon else 'revision'} should follow")
    if (colon and file) or (at and revision):
        raise UsageError(f"{text!r} and --{'file' if colon and file else 'revision'} say the same thing twice")
    return Source(repo, rev or revision or None, pattern or file or None)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def is_legal(name: str) -> bool:
    """Whether a file at the top of a repository is its licence or acceptable-use policy."""
    return _matches(name, _LEGAL)


def choose(source: Source, listing: Listing) -> tuple[tuple[CachedFile, ...], str]:
    """The files to fetch and what a loader opens (``.`` for the folder itself).

    Raises:
        ModelNotFoundError: no file fits the pattern.
        UsageError: there are several GGUF files and none was chosen, or no weights that are fetched unasked.
    """
    legal = [f for f in listing.files if is_legal(f.path)]
    if source.pattern is not None:
        picked = [f for f in listing.files if fnmatch.fnmatchcase(f.path, source.pattern)]
        if not picked:
            some = ", ".join(f.path for f in listing.files if f.path.endswith(WEIGHTS)) or "no weights"
            raise ModelNotFoundError(f"{source}: the repository has no such file; it has {some[:300]}")
        split = {_model_of(f.path) for f in picked if _PART.fullmatch(f.path)}
        picked += [f for f in listing.files if _model_of(f.path) in split and f not in picked]
        main = _main(picked)
    elif any(_matches(f.path, ("*.safetensors",)) for f in listing.files):
        picked = [f for f in listing.files if _matches(f.path, _NEEDED)]
        main = "."
    else:
        picked = [f for f in listing.files if f.path.endswith(".gguf")]
        names = ", ".join(f.path for f in picked)
        if len({_model_of(f.path) for f in picked}) > 1:
            raise UsageError(f"{source} has several GGUF files; choose one with --file: {names[:600]}")
        if not picked:
            others = ", ".join(f.path for f in listing.files if f.path.endswith(WEIGHTS)) or "no weights at all"
            raise UsageError(
                f"{source} has neither safetensors nor GGUF but {others[:300]}; --file PATTERN takes such files"
            )
        main = _main(picked)
    # The licence comes first, so that it is read before the weights are fetched.
    files = legal + sorted((f for f in picked if f not in legal), key=lambda f: (f.size, f.path))
    return tuple(files), main


def _model_of(name: str) -> tuple[str, str]:
    """What the parts of one split GGUF model have in common (``NAME-00001-of-00003.gguf``); a whole file is its own."""
    part = _PART.fullmatch(name)
    return (part["stem"], part["count"]) if part else (name, "")


def _main(picked: list[CachedFile]) -> str:
    """What a loader opens: the only file, the first part of the only split model, or the folder they are all in."""
    if len({_model_of(f.path) for f in picked}) == 1:
        return min(f.path for f in picked)
    return os.path.commonpath([str(PurePosixPath(f.path).parent) for f in picked]) or "."


def format_of(files: tuple[CachedFile, ...], main: str) -> str:
    """What the manifest calls the format: gguf, adapter, meta, hf, or what the file's name ends in."""
    names = {PurePosixPath(f.path).name for f in files}
    if main.endswith(".gguf"):
        return "gguf"
    if "adapter_config.json" in names:
        return "adapter"
    if any(name.endswith(".pth") for name in names):
        return "meta"
    return "hf" if "config.json" in names else PurePosixPath(main).suffix.lstrip(".") or "files"
