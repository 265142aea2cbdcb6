"""The C++ test program (`cpp/`): under sanitizers (`make sanitize`), for Arm and for Windows (`make cross`)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SOURCES = Path(__file__).parent / "cpp"
ARM_LIBRARIES = Path("/usr/aarch64-linux-gnu")


def need(*tools: str, package: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: {package})")


def build(folder: Path, target: str, *settings: str) -> None:
    for command in (
        ["cmake", "-S", str(SOURCES), "-B", str(folder), *settings],
        ["cmake", "--build", str(folder), "--parallel", str(len(os.sched_getaffinity(0))), "--target", target],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]


def run(*command: str) -> None:
    # An emulator's threads share one processor's time: a test that hangs must end here.
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]


@pytest.mark.sanitize
@pytest.mark.parametrize(
    ("sanitizers", "tests"),
    [("address,undefined", ()), ("thread", ("team", "forward"))],
    ids=["address and undefined behaviour", "threads"],
)
def test_sanitizers_find_nothing(sanitizers, tests, tmp_path):
    need("cmake", "c++", package="cmake g++")
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    works = subprocess.run(
        ["c++", f"-fsanitize={sanitizers}", str(probe), "-o", str(tmp_path / "probe")],
        capture_output=True,
        check=False,
    )
    if works.returncode or subprocess.run([str(tmp_path / "probe")], capture_output=True, check=False).returncode:
        pytest.skip(f"the compiler has no -fsanitize={sanitizers} that works here")
    # The AVX-VNNI sources run on more processors in the other encoding; where they do not, they are passed over.
    build(tmp_path, "native_test", f"-DSANITIZE={sanitizers}", "-DQAFILA_VNNI_AS_AVX512=ON")
    run(str(tmp_path / "native_test"), *tests)


@pytest.mark.cross
def test_arm_computes_the_same_under_an_emulator(tmp_path):
    need("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64", package="cmake g++-aarch64-linux-gnu qemu-user")
    build(tmp_path, "native_test", f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / 'aarch64.cmake'}")
    run("qemu-aarch64", "-L", str(ARM_LIBRARIES), str(tmp_path / "native_test"))


@pytest.mark.cross
def test_windows_compiler_takes_every_source_but_the_binding(tmp_path):
    need("cmake", "x86_64-w64-mingw32-g++-posix", package="cmake g++-mingw-w64-x86-64")
    build(tmp_path, "native", f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / 'mingw.cmake'}")
