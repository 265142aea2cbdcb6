"""Which sandbox is chosen, and that there is none rather than a weak one."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from qafila.agent.sandbox import landlock, seccomp
from qafila.agent.sandbox import sandbox as module
from qafila.agent.sandbox.sandbox import Jail, Limits, Sandbox, find_sandbox
from qafila.errors import SandboxError


def test_the_best_that_works_is_found(sandbox: Sandbox) -> None:
    assert find_sandbox().name in ("bubblewrap", sandbox.name)


def test_a_bubblewrap_that_fails_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: no permission' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda _: str(broken))
    with pytest.raises(SandboxError, match="no permission"):
        Jail("bubblewrap", str(broken)).run(["true"], workspace=tmp_path, limits=Limits())
    monkeypatch.setattr(landlock, "abi", lambda: 5)
    with pytest.raises(SandboxError, match=r"no permission; .*ABI 5.*install bubblewrap"):
        find_sandbox()


def test_nothing_runs_where_nothing_isolates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(SandboxError, match="bubblewrap is not installed"):
        find_sandbox()
    with pytest.raises(SandboxError, match="no system call filter for machine 'riscv64'"):
        seccomp.program("riscv64", own_group=True, same_user=True)


def test_a_bubblewrap_that_ends_well_without_a_jail_is_an_error(tmp_path: Path) -> None:
    for program in ("/bin/true", str(tmp_path / "none")):
        with pytest.raises(SandboxError, match="sandbox"):
            Jail("bubblewrap", program).run(["true"], workspace=tmp_path, limits=Limits())


def test_stdin_and_status(sandbox: Sandbox, workspace: Path) -> None:
    big = b"x" * 300_000
    outcome = sandbox.run(["wc", "-c"], workspace=workspace, limits=Limits(), stdin=big)
    assert outcome.output.split() == ["300000"]
    assert sandbox.run(["true"], workspace=workspace, limits=Limits(), stdin=big).status == 0
    assert sandbox.run(["sh", "-c", "exit 7"], workspace=workspace, limits=Limits()).status == 7
    assert sandbox.run(["sh", "-c", "kill -9 $$"], workspace=workspace, limits=Limits()).status == 137
    assert sandbox.run(["no-such-program"], workspace=workspace, limits=Limits()).status == 127
    assert sandbox.run(["/etc/ld.so.cache"], workspace=workspace, limits=Limits()).status == 126
    for argv in ([], ["a\0b"]):
        with pytest.raises(SandboxError):
            sandbox.run(argv, workspace=workspace, limits=Limits())


def evaluate(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """A slow, obvious interpreter of the few BPF instructions in use."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6])
    steps = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        code, then, otherwise, value = steps[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == 0x54:
            accumulator &= value
        else:
            holds = accumulator == value if code == 0x15 else accumulator >= value
            at += then if holds else otherwise


ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSE = 0x00050000 | errno.EPERM


@pytest.mark.parametrize(
    ("machine", "architecture", "read", "socket", "clone", "socketpair", "prlimit", "utimensat", "setsid"),
    [("x86_64", 0xC000003E, 0, 41, 56, 53, 302, 280, 112), ("aarch64", 0xC00000B7, 63, 198, 220, 199, 261, 88, 157)],
)
def test_the_filter_of_each_machine(
    machine: str,
    architecture: int,
    read: int,
    socket: int,
    clone: int,
    socketpair: int,
    prlimit: int,
    utimensat: int,
    setsid: int,
) -> None:
    weak = seccomp.program(machine, own_group=False, same_user=False)
    strong = seccomp.program(machine, own_group=True, same_user=True)
    for program in (weak, strong):
        assert len(program) // 8 < 4096  # BPF_MAXINSNS of <linux/bpf_common.h>
        assert evaluate(program, architecture, read) == ALLOW
        assert evaluate(program, 0x40000003, read) == KILL
        assert evaluate(program, architecture, 0x40000000 | read) == KILL
        assert evaluate(program, architecture, socket, 2, 1) == REFUSE
        assert evaluate(program, architecture, clone, 17) == ALLOW
        assert evaluate(program, architecture, clone, 0x10000000 | 17) == REFUSE
        assert evaluate(program, architecture, 435) == 0x00050000 | errno.ENOSYS
        assert evaluate(program, architecture, socketpair, 1, 1 | 0o2000000) == ALLOW
        assert evaluate(program, architecture, socketpair, 1, 2) == REFUSE
        assert evaluate(program, architecture, socketpair, 2, 1) == REFUSE
        assert evaluate(program, architecture, prlimit, 0) == ALLOW
        assert evaluate(program, architecture, prlimit, 1) == REFUSE
    assert evaluate(weak, architecture, setsid) == ALLOW
    assert evaluate(strong, architecture, setsid) == 0x00050000
    assert evaluate(strong, architecture, utimensat, 3, 0) == ALLOW
    assert evaluate(strong, architecture, utimensat, 3, 1 << 32) == 0x00050000
    assert evaluate(strong, architecture, utimensat, 3, 4) == 0x00050000
