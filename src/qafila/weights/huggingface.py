"""Models from a Hugging Face hub: what a repository holds, which of it is needed, and getting it whole and unaltered.

The listing (``/api/models/REPO/revision/REV?blobs=true``) names a commit and, for every file, its size and hash; files
are then fetched from that commit (``/REPO/resolve/COMMIT/FILE``), resumed with ``Range``, and refused when their hash
differs (https://huggingface.co/docs/hub/api). ``HF_ENDPOINT``, ``HF_TOKEN`` and a saved login are honoured. We
fetch over plain HTTP because ``huggingface_hub`` 2 starts an interrupted file again from its first byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from qafila import __version__
from qafila.errors import DownloadError, ModelNotFoundError, UsageError
from qafila.weights import cache
from qafila.weights.cache import CachedFile, CachedModel
from qafila.weights.progress import Progress
from qafila.weights.repository import WEIGHTS, Listing, Source, choose, format_of, is_legal, parse

if TYPE_CHECKING:
    import httpx

__all__ = ["Listing", "Source", "choose", "find_cached", "parse", "pull"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LISTING_LIMIT = 32 << 20
_LEGAL_BYTES = 1 << 20  # the longest licence is some 30 kB
_ATTEMPTS = 5
_RETRY_SECONDS = 1.0
_TIMEOUT_SECONDS = 30.0
_TRANSIENT = (429, 500, 502, 503, 504)


def find_cached(source: Source) -> CachedModel | None:
    """The newest cached snapshot that ``source`` may mean, without asking the hub.

    Without a revision it is the one of the main branch, and another only where that is not there. Without a file
    pattern, a snapshot that was pulled with one will do when it is the only one of that revision.
    """
    models = [m for m in cache.cached_models() if m.folder.parent == source.folder]
    if source.revision is not None:
        rev = source.revision
        short = len(rev) >= 7 and re.fullmatch("[0-9a-f]+", rev)
        models = [
            m for m in models if rev in (m.revision, *m.aliases) or (short and m.commit and m.commit.startswith(rev))
        ]
    exact = [m for m in models if m.name == source.name]
    if not exact and source.pattern is None and len({m.name for m in models}) == 1:
        exact = models
    return cache.preferred(exact) if exact else None


def pull(source: Source, progress: Progress, notice: Callable[[str], None] | None = None) -> CachedModel:
    """Bring ``source`` into the cache (or find that it is there) and return it; raises as ``hub.pull`` does."""
    try:
        return _pull(source, progress, notice)
    except DownloadError as error:
        found = find_cached(source)
        if found is None:
            raise
        raise DownloadError(f"{error}; the copy of {found.fetched[:10]} in the cache opens as {source}") from error


def _pull(source: Source, progress: Progress, notice: Callable[[str], None] | None) -> CachedModel:
    if source.revision and _COMMIT.fullmatch(source.revision):
        found = find_cached(source)
        if found is not None and found.name == source.name:
            return found  # a commit never changes: no need to ask
    with _client() as client:
        listing = _list(client, source)
        chosen, main = choose(source, listing)
        target = source.folder / (listing.commit + (f"+{cache.key_of(source.pattern)}" if source.pattern else ""))
        revision = source.revision or "main"
        key = cache.key_of("hf", source.repo, listing.commit, source.pattern or "")
        with cache.locked(key):
            for model in cache.cached_models():
                if model.folder == target and model.files == chosen:
                    known = find_cached(replace(source, revision=revision))
                    if known is not None and known.folder == target:
                        return model
                    return cache.add_revision(model, revision, cache.staging(key))
            work = cache.staging(key)
            content = work / "files"
            _fetch_all(client, source, listing, chosen, work, progress, notice)
            model = CachedModel(
                name=source.name,
                source=str(source),
                format=format_of(chosen, main),
                main=main,
                fetched=cache.now(),
                files=chosen,
                revision=revision,
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


def _endpoint() -> str:
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").strip().rstrip("/")
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets that do not close, a port out of range
        sound = False
    if not sound or not re.fullmatch(r"[!-~]+", endpoint) or parts.query or parts.fragment:
        raise UsageError(f"HF_ENDPOINT must be a web address such as https://huggingface.co, not {endpoint!r}")
    if parts.username is not None or parts.password is not None:  # it would be in every message, and replace the token
        raise UsageError("HF_ENDPOINT holds a user name or password; put a token into HF_TOKEN instead")
    return endpoint


def _token() -> str | None:
    token = os.environ.get("HF_TOKEN")
    if not token:
        from huggingface_hub import get_token  # a saved `hf auth login`

        token = get_token()
    token = (token or "").strip()
    if not re.fullmatch(r"[!-~]*", token):  # never show it
        raise UsageError("HF_TOKEN holds spaces, line ends or letters that no token has; set it again")
    return token or None


@contextlib.contextmanager
def _client() -> Iterator[httpx.Client]:
    import httpx

    endpoint = _endpoint()
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DownloadError("HF_HUB_OFFLINE is set, so nothing is fetched from the hub; unset it and try again")
    headers = {"user-agent": f"qafila/{__version__}", "accept-encoding": "identity"}
    if token := _token():
        headers["authorization"] = f"Bearer {token}"
    try:
        # On a redirect to another host (the hub's store of large files) httpx drops the token.
        client = httpx.Client(headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True)
    except (ValueError, ImportError, OSError, httpx.InvalidURL):  # its messages would show a proxy's password
        raise DownloadError(
            "the proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) or the certificates (SSL_CERT_FILE, SSL_CERT_DIR) of the "
            "environment cannot be used; proxies are http://host:port"
        ) from None
    try:
        with client:
            yield client
    except httpx.TransportError as error:
        raise DownloadError(
            f"{endpoint} cannot be reached ({error or type(error).__name__}); check the network and HF_ENDPOINT, "
            "and run the same command again (it resumes)"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise DownloadError(f"{endpoint} answers what cannot be understood: {error}") from error


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
    if status == 401 and with_token and not code:
        raise DownloadError(f"{_endpoint()} refuses the token; set HF_TOKEN to one that is valid, or unset it")
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
        body = bytearray()
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
            if path.endswith(WEIGHTS):
                raise ValueError(f"file name {path!r} is refused")
            continue  # a screenshot with a colon in its name is no reason to refuse the model; it is not fetched
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
        if not told and not is_legal(file.path):
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
        if is_legal(path.name):
            with path.open("rb") as file:
                lines = file.read(_LEGAL_BYTES).decode(errors="replace").strip().splitlines()
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
