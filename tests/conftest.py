"""Fixtures for the whole suite: real files, fetched once and checked, and a fence around the network."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ("fake_hub",)

CHECKOUT = Path(__file__).resolve().parents[1]

# One thread a process: two test processes on two cores must not fight over them.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# A shell starts background jobs with Ctrl-C ignored, and programs inherit that; tests that press it need the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

LLAMA_MODELS = "llama-models==0.3.0"
# name in the wheel -> SHA-256; the files are Meta's and never enter the repository.
LLAMA_TOKENIZERS = {
    "llama_models/llama3/tokenizer.model": "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    "llama_models/llama4/tokenizer.model": "d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need what is not here, or that have a target of their own, are skipped with the reason."""
    if "interop" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("interop"):
                item.add_marker(pytest.mark.skip(reason="run by make interop"))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Connections from the test process reach this machine only."""
    connect = socket.socket.connect

    def fenced(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if host not in ("localhost", "::1") and not host.startswith("127."):
                raise OSError(f"tests may not connect to {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", fenced)
        yield


@pytest.fixture(scope="session")
def default_gguf() -> Path:
    """The default model's GGUF, fetched once by the product's own code into the user's model cache."""
    from qafila.weights.hub import resolve

    return resolve("default")


def _test_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "qafila-tests"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_llama_tokenizers(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / f"download-{os.getpid()}"
    try:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), LLAMA_MODELS]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = sorted(work.glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or ["no wheel came"]
            pytest.skip(f"pip download {LLAMA_MODELS} failed: {lines[-1]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in LLAMA_TOKENIZERS:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                part = work / "part"
                part.write_bytes(wheel.read(name))
                part.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _llama_tokenizer(name: str) -> Path:
    folder = _test_cache() / "llama-models-0.3.0"
    path = folder / name
    if not path.is_file() or _sha256(path) != LLAMA_TOKENIZERS[name]:
        _fetch_llama_tokenizers(folder)
    assert _sha256(path) == LLAMA_TOKENIZERS[name], f"{path} is not the published file"
    return path


@pytest.fixture(scope="session")
def llama3_tokenizer() -> Path:
    """Llama 3's tiktoken file, out of the wheel `llama-models`."""
    return _llama_tokenizer("llama_models/llama3/tokenizer.model")


@pytest.fixture(scope="session")
def llama4_tokenizer() -> Path:
    """Llama 4's tiktoken file, out of the wheel `llama-models`."""
    return _llama_tokenizer("llama_models/llama4/tokenizer.model")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Corpora beside the checkout; skipped where they are absent."""
    folder = CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    return folder
