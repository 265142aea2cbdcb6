"""Models from a Hugging Face hub: what a repository holds, which of it is needed, and getting it whole and unaltered.

The listing (``/api/models/REPO/revision/REV?blobs=true``) names a commit and, for every file, its size and hash; files
are then fetched from that commit (``/REPO/resolve/COMMIT/FILE``), resumed with ``Range``, and refused when their hash
differs (https://huggingface.co/docs/hub/api). ``HF_ENDPOINT``, ``HF_TOKEN`` and a saved login are honoured. We
fetch over plain HTTP because ``huggingface_hub`` 2 starts an interrupted file again from its first byte.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from qafila import __version__
from qafila.errors import DownloadError, ModelNotFoundError, UsageError
from qafila.weights import cache
from qafila.weights.cache import CachedFile, CachedModel
from qafila.weights.progress import Progress

if TYPE_CHECKING:
    import httpx

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LISTING_LIMIT = 32 << 20
_ATTEMPTS = 5
_RETRY_SECONDS = 1.0
_TIMEOUT_SECONDS = 30.0
_TRANSIENT = (429, 500, 502, 503, 504)

# What a folder of safetensors needs, all of it at the top of the repository. Pickles (.bin, .pth) only when asked for.
_NEEDED = (
    *("config.json", "generation_config.json", "adapter_config.json", "*.safetensors.index.json", "*.safetensors"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*"),
)
_LEGAL = ("LICENSE*", "USE_POLICY*")
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pth", ".pt")


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


def find_cached(source: Source) -> CachedModel | None:
    """The newest cached snapshot that ``source`` may mean, without asking the hub.

    Without a file pattern, a snapshot that was pulled with one will do when it is the only one of that revision.
    """
    models = [m for m in cache.cached_models() if m.folder.parent == source.folder]
    if source.revision is not None:
        rev = source.revision
        short = len(rev) >= 7 and re.fullmatch("[0-9a-f]+", rev)
        models = [m for m in models if m.revision == rev or (short and m.commit and m.commit.startswith(rev))]
    exact = [m for m in models if m.name == source.name]
    if not exact and source.pattern is None and len({m.name for m in models}) == 1:
        exact = models
    return max(exact, key=lambda m: m.fetched, default=None)


def pull(source: Source, progress: Progress, notice: Callable[[str], None] | None = None) -> CachedModel:
    """Bring ``source`` into the cache (or find that it is there) and return it; raises as ``hub.pull`` does."""
    if source.revision and _COMMIT.fullmatch(source.revision):
        found = find_cached(source)
        if found is not None and found.name == source.name:
            return found  # a commit never changes: no need to ask
    with _client() as client:
        listing = _list(client, source)
        chosen, main = choose(source, listing)
        target = source.folder / (listing.commit + (f"+{cache.key_of(source.pattern)}" if source.pattern else ""))
        key = cache.key_of("hf", source.repo, listing.commit, source.pattern or "")
        with cache.locked(key):
            for model in cache.cached_models():
                if model.folder == target and model.files == chosen:
                    return model
            work = cache.staging(key)
            content = work / "files"
            _fetch_all(client, source, listing, chosen, work, progress, notice)
            model = CachedModel(
                name=source.name,
                source=str(source),
                format=_format(chosen, main),
                main=main,
                fetched=cache.now(),
                files=chosen,
                revision=source.revision or "main",
                commit=listing.commit,
                license=listing.license,
            )
            published = cache.publish(model, content, target)
            with cache.storage_errors(work), contextlib.suppress(FileNotFoundError):
                for leftover in (work / "parts").glob("*"):
                    leftover.unlink()
                (work / "parts").rmdir()
                work.rmdir()
            return published


def _match(name: str, patterns: tuple[str, ...]) -> bool:
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def choose(source: Source, listing: Listing) -> tuple[tuple[CachedFile, ...], str]:
    """The files to fetch and what a loader opens (``.`` for the folder itself).

    Raises:
        ModelNotFoundError: no file fits the pattern.
        UsageError: there are several GGUF files and none was chosen, or no weights that are fetched unasked.
    """
    legal = [f for f in listing.files if _match(f.path, _LEGAL)]
    if source.pattern is not None:
        picked = [f for f in listing.files if fnmatch.fnmatchcase(f.path, source.pattern)]
        if not picked:
            some = ", ".join(f.path for f in listing.files if f.path.endswith(_WEIGHTS)) or "no weights"
            raise ModelNotFoundError(f"{source}: the repository has no such file; it has {some[:300]}")
        main = picked[0].path
        if len(picked) > 1:
            main = os.path.commonpath([str(PurePosixPath(f.path).parent) for f in picked]) or "."
    elif any(_match(f.path, ("*.safetensors",)) for f in listing.files):
        picked = [f for f in listing.files if _match(f.path, _NEEDED)]
        main = "."
    else:
        picked = [f for f in listing.files if f.path.endswith(".gguf")]
        names = ", ".join(f.path for f in picked)
        if len(picked) > 1:
            raise UsageError(f"{source} has several GGUF files; choose one with --file: {names[:600]}")
        if not picked:
            others = ", ".join(f.path for f in listing.files if f.path.endswith(_WEIGHTS)) or "no weights at all"
            raise UsageError(
                f"{source} has neither safetensors nor GGUF but {others[:300]}; --file PATTERN takes such files"
            )
        main = picked[0].path
    # The licence comes first, so that it is read before the weights are fetched.
    files = legal + sorted((f for f in picked if f not in legal), key=lambda f: (f.size, f.path))
    return tuple(files), main


def _format(files: tuple[CachedFile, ...], main: str) -> str:
    names = {PurePosixPath(f.path).name for f in files}
    if main.endswith(".gguf"):
        return "gguf"
    if "adapter_config.json" in names:
        return "adapter"
    if any(name.endswith(".pth") for name in names):
        return "meta"
    return "hf" if "config.json" in names else PurePosixPath(main).suffix.lstrip(".") or "files"


def _endpoint() -> str:
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).netloc:
        raise UsageError(f"HF_ENDPOINT must be a web address such as https://huggingface.co, not {endpoint!r}")
    return endpoint


@contextlib.contextmanager
def _client() -> Iterator[httpx.Client]:
    import httpx

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DownloadError("HF_HUB_OFFLINE is set, so nothing is fetched from the hub; unset it and try again")
    headers = {"user-agent": f"qafila/{__version__}", "accept-encoding": "identity"}
    token = os.environ.get("HF_TOKEN")
    if not token:
        from huggingface_hub import get_token  # a saved `hf auth login`

        token = get_token()
    if token:
        headers["authorization"] = f"Bearer {token.strip()}"
    # On a redirect to another host (the hub's store of large files) httpx drops the token.
    try:
        with httpx.Client(headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True) as client:
            yield client
    except httpx.TransportError as error:
        raise DownloadError(
            f"{_endpoint()} cannot be reached ({error or type(error).__name__}); check the network and HF_ENDPOINT, "
            "and run the same command again (it resumes)"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DownloadError(f"{_endpoint()} answers what cannot be understood: {error}") from error


def _refuse(response: httpx.Response, source: Source, what: str) -> None:
    """Raise for an answer that is not a success, as the hub means it (its ``X-Error-Code``)."""
    status, code = response.status_code, response.headers.get("x-error-code", "")
    if status < 400:
        return
    page = f"{_endpoint()}/{source.repo}"
    with_token = "authorization" in response.request.headers
    if code == "GatedRepo" or (status == 403 and code != "RepoNotFound"):
        how = "with the account of this HF_TOKEN" if with_token else "and set HF_TOKEN to a token of that account"
        raise DownloadError(f"hf:{source.repo} is gated: accept its licence at {page} {how}")
    if code == "RevisionNotFound":
        raise ModelNotFoundError(f"hf:{source.repo} has no revision {source.revision!r}; its branches are at {page}")
    if code == "EntryNotFound" or (status == 404 and what != "the listing"):
        raise ModelNotFoundError(f"hf:{source.repo} has no file {what}")
    if code == "RepoNotFound" or status in (401, 404):
        private = "" if with_token else ", or it is private and needs HF_TOKEN"
        raise ModelNotFoundError(f"{_endpoint()} has no model {source.repo!r}{private}")
    said = response.headers.get("x-error-message", "")
    raise DownloadError(f"{_endpoint()} answered {status} for {what} of hf:{source.repo}{': ' + said if said else ''}")


def _list(client: httpx.Client, source: Source) -> Listing:
    revision = quote(source.revision or "main", safe="")
    url = f"{_endpoint()}/api/models/{source.repo}/revision/{revision}?blobs=true"
    with client.stream("GET", url) as response:
        _refuse(response, source, "the listing")
        body = b""
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _LISTING_LIMIT:
                raise DownloadError(f"{url}: the listing is longer than {_LISTING_LIMIT >> 20} MiB")
    try:
        return _read_listing(json.loads(body))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadError(f"{url}: this is not a hub's listing ({error}); check HF_ENDPOINT") from error


def _read_listing(data: Any) -> Listing:
    commit = data["sha"]
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"commit {commit!r}")
    files: dict[str, CachedFile] = {}
    for sibling in data["siblings"]:
        path = sibling["rfilename"]
        if not cache.is_safe_path(path) or path == cache.MANIFEST:
            raise ValueError(f"file name {path!r} is refused")
        lfs = sibling.get("lfs")
        size = lfs["size"] if lfs else sibling["size"]
        kind, digest = ("sha256", lfs["sha256"]) if lfs else ("git-sha1", sibling["blobId"])
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 50:
            raise ValueError(f"size {size!r} of {path}")
        if not re.fullmatch("[0-9a-f]{64}" if lfs else "[0-9a-f]{40}", digest):
            raise ValueError(f"hash {digest!r} of {path}")
        if path in files:
            raise ValueError(f"{path} is named twice")
        files[path] = CachedFile(path, size, f"{kind}:{digest}")
    card = data.get("cardData")
    named = card.get("license_name") or card.get("license") if isinstance(card, dict) else None
    return Listing(
        commit, tuple(files.values()), str(named)[:200] if named else None, data.get("gated") not in (None, False)
    )


def _fetch_all(
    client: httpx.Client,
    source: Source,
    listing: Listing,
    files: tuple[CachedFile, ...],
    work: Path,
    progress: Progress,
    notice: Callable[[str], None] | None,
) -> None:
    content, parts = work / "files", work / "parts"
    with cache.storage_errors(work):
        content.mkdir(parents=True, exist_ok=True)
        parts.mkdir(exist_ok=True)
        there = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        cache.require_space(work, max(0, sum(f.size for f in files) - there), str(source))
    told = notice is None or not listing.gated
    for file in files:
        if not told and not _match(file.path, _LEGAL):
            assert notice is not None
            notice(_legal_text(source, listing, content))
            told = True
        target = content / file.path
        with cache.storage_errors(target):
            if not (target.is_file() and cache.matches(target, file)):
                target.parent.mkdir(parents=True, exist_ok=True)
                _fetch(client, source, listing.commit, file, parts / file.hash.replace(":", "-"), progress)
                (parts / file.hash.replace(":", "-")).replace(target)
        progress(file.path, file.size, file.size)


def _legal_text(source: Source, listing: Listing, content: Path) -> str:
    text = f"{source.repo} is gated. By using it you accept its licence: {listing.license or 'see its page'}."
    for path in sorted(content.iterdir()):
        if _match(path.name, _LEGAL):
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            more = [f"[{len(lines) - 20} more lines, kept with the model]"] if len(lines) > 20 else []
            text += "\n\n" + "\n".join([f"-- {path.name}", *lines[:20], *more])
    return text


def _fetch(client: httpx.Client, source: Source, commit: str, file: CachedFile, part: Path, progress: Progress) -> None:
    """Bring ``file`` to ``part``, continuing what an earlier run left there, until its hash is the published one."""
    import httpx

    kind, _, expected = file.hash.partition(":")
    url = f"{_endpoint()}/{source.repo}/resolve/{commit}/{quote(file.path)}"
    attempts = _ATTEMPTS
    with part.open("a+b") as stream:
        hasher = cache.blob_hasher(kind, file.size)
        stream.seek(0)
        done = 0
        while chunk := stream.read(1 << 20):
            hasher.update(chunk)
            done += len(chunk)
        while done != file.size:
            if done > file.size:  # left by something else than us
                done, hasher = 0, cache.blob_hasher(kind, file.size)
                stream.truncate(0)
            before = done
            try:
                with client.stream("GET", url, headers={"range": f"bytes={done}-"} if done else {}) as response:
                    if response.status_code in _TRANSIENT and attempts > 1:
                        raise httpx.RemoteProtocolError(f"status {response.status_code}")
                    _refuse(response, source, file.path)
                    if done and not _continues(response, done):
                        done, hasher = 0, cache.blob_hasher(kind, file.size)
                        stream.truncate(0)
                    for chunk in response.iter_bytes():
                        done += len(chunk)
                        if done > file.size:
                            break
                        hasher.update(chunk)
                        stream.write(chunk)
                        progress(file.path, done, file.size)
                    if done == before:
                        raise httpx.RemoteProtocolError("the answer is empty")
            except httpx.TransportError:
                stream.flush()
                attempts = _ATTEMPTS if done > before else attempts - 1
                if attempts <= 0:
                    raise
                time.sleep(_RETRY_SECONDS)
                continue
            if done > file.size:
                break
        stream.flush()
        os.fsync(stream.fileno())
    if done != file.size or hasher.hexdigest() != expected:
        part.unlink()
        raise DownloadError(
            f"{url}: what came is not the published file ({kind} or size differs), and it is refused; "
            "run the same command again, or use another HF_ENDPOINT"
        )


def _continues(response: httpx.Response, start: int) -> bool:
    return response.status_code == 206 and response.headers.get("content-range", "").startswith(f"bytes {start}-")
