"""Attempts to get out of each sandbox, and to take more of the machine than was given."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from qafila.agent.sandbox.sandbox import Limits, Outcome, Sandbox

SECRET = "hunter2-do-not-tell"
LIMITS = Limits(seconds=10)


class Inside:
    """Runs Python inside a sandbox."""

    def __init__(self, sandbox: Sandbox, workspace: Path) -> None:
        self.sandbox, self.workspace = sandbox, workspace

    def __call__(self, code: str, limits: Limits = LIMITS) -> Outcome:
        return self.shell(["python3", "-c", textwrap.dedent(code)], limits)

    def shell(self, argv: list[str], limits: Limits = LIMITS) -> Outcome:
        return self.sandbox.run(argv, workspace=self.workspace, limits=limits)


@pytest.fixture
def inside(sandbox: Sandbox, workspace: Path) -> Inside:
    return Inside(sandbox, workspace)


def attempt(code: str) -> str:
    """Code that prints the error of an attempt, or REACHED."""
    tried = textwrap.indent(textwrap.dedent(code), "    ")
    return f"try:\n{tried}\nexcept OSError as e:\n    print('errno', e.errno)\nelse:\n    print('REACHED')\n"


def refused(outcome: Outcome) -> bool:
    return outcome.status == 0 and outcome.output.startswith("errno ") and "REACHED" not in outcome.output


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/etc/passwd", "/root", "/home", "/proc/1/environ", "/var/log", "/sys/kernel"]
)
def test_paths_outside_cannot_be_read(inside: Inside, path: str) -> None:
    read = f"import os\nprint(os.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read())"
    outcome = inside(attempt(read))
    if path == "/root" and inside.sandbox.name == "bubblewrap":
        # The way to the interpreter, where that lies there, and nothing else.
        assert outcome.output.splitlines()[0] in ("errno 2", "errno 13", "['.pyenv']")
    else:
        assert refused(outcome), outcome.output


def test_of_control_groups_only_the_own_limits_can_be_read(inside: Inside) -> None:
    """Programs ask them how much there is to use, as DuckDB, which ends where it sees them and may not read them."""
    names = ("memory.max", "cpu.max", "memory/memory.limit_in_bytes", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
    outcome = inside(f"""
        import os
        print(open("/proc/self/cgroup").read() != "")
        for line in open("/proc/self/cgroup"):
            _, controllers, path = line.strip().split(":", 2)
            for controller in controllers.split(","):
                for name in {names!r}:
                    above, _, file = name.rpartition("/")
                    found = f"/sys/fs/cgroup/{{controller}}{{path}}/{{file}}"
                    if above == controller and os.path.exists(found):
                        open(found).read()
        """)
    assert (outcome.status, outcome.output) == (0, "True\n"), outcome.output
    for path in ("/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/tasks", "/sys/fs/cgroup/pids/tasks"):
        assert refused(inside(attempt(f"print(open({path!r}).read())")))
    assert refused(inside(attempt("import os; print(os.listdir('/sys/fs/cgroup'))")))


def test_a_file_beside_the_workspace_cannot_be_read_or_written(inside: Inside, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    secret.chmod(0o666)
    for folder in (tmp_path, tmp_path.parent):
        folder.chmod(0o755)
    assert refused(inside(attempt(f"print(open({str(secret)!r}).read())")))
    assert refused(inside(attempt(f"open({str(secret)!r}, 'w').write('x')")))
    assert refused(inside(attempt(f"import os; os.truncate({str(secret)!r}, 0)")))
    assert refused(inside(attempt(f"import os; os.unlink({str(secret)!r})")))
    assert refused(inside(attempt(f"import os; os.link({str(secret)!r}, 'mine')")))
    assert refused(inside(attempt(f"import os; os.rename({str(secret)!r}, 'mine')")))
    inside(attempt(f"import os; os.chmod({str(secret)!r}, 0o777)"))
    assert secret.read_text() == SECRET
    assert secret.stat().st_mode & 0o777 == 0o666


def test_the_real_workspace_is_out_of_reach(inside: Inside) -> None:
    real = inside.workspace / "notes.txt"
    outcome = inside(attempt(f"open({str(real)!r}, 'a').write('x')"))
    assert refused(outcome)
    assert real.read_text() == "first\nsecond\nthird\n"


@pytest.mark.parametrize("path", ["/usr", "/etc", "/", "/dev", "/var/tmp", "/tmp", "/dev/shm/..", "/run"])
def test_nothing_is_written_outside(inside: Inside, path: str) -> None:
    path = f"{path}/qafila-escape-{os.getpid()}"
    assert refused(inside(attempt(f"open({path!r}, 'w').write('x')")))
    assert not Path(path).exists()


def test_the_interpreter_is_read_only(inside: Inside) -> None:
    assert refused(inside(attempt("import os; open(os.__file__, 'a').write('x')")))


def test_links_do_not_lead_out(inside: Inside, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    (inside.workspace / "link").symlink_to(secret)
    (inside.workspace / "folder").symlink_to(tmp_path)
    for path in ("link", "folder/secret.txt"):
        outcome = inside(attempt(f"print(open({path!r}).read())"))
        assert refused(outcome)
    outcome = inside("import os; print(os.path.islink('link'), os.path.islink('folder'))")
    assert outcome.output == "True True\n"
    assert outcome.changes == ()


def test_links_made_inside_do_not_make_results_follow_them(inside: Inside, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    outcome = inside(
        f"import os; os.remove('notes.txt'); os.symlink({str(secret)!r}, 'notes.txt')\nos.symlink('/etc', 'etc')"
    )
    assert outcome.status == 0, outcome.output
    assert {(c.path, c.kind, c.what) for c in outcome.changes} == {
        ("notes.txt", "changed", "link"),
        ("etc", "created", "link"),
    }
    assert not any(SECRET in str(change.content) or SECRET in str(change.diff) for change in outcome.changes)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("AF_INET", "SOCK_STREAM"),
        ("AF_INET6", "SOCK_STREAM"),
        ("AF_INET", "SOCK_DGRAM"),
        ("AF_NETLINK", "SOCK_RAW"),
        ("AF_UNIX", "SOCK_STREAM"),
        ("AF_PACKET", "SOCK_RAW"),
        ("AF_VSOCK", "SOCK_STREAM"),
    ],
)
def test_there_are_no_sockets(inside: Inside, family: str, kind: str) -> None:
    outcome = inside(attempt(f"import socket; socket.socket(socket.{family}, socket.{kind})"))
    assert outcome.output == f"errno {errno.EPERM}\n"


def test_a_server_on_this_machine_is_not_reached(inside: Inside) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0qafila-sandbox-test")
        abstract.listen()
        port = server.getsockname()[1]
        assert refused(inside(attempt(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")))
        outcome = inside(attempt("import socket; socket.socket(socket.AF_UNIX).connect('\\0qafila-sandbox-test')"))
        assert refused(outcome)
        # A datagram pair could send to a name; a stream pair, which asyncio needs, cannot connect to one.
        assert refused(inside(attempt("import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)")))
        assert refused(inside(attempt("import socket; socket.socketpair()[0].connect('\\0qafila-sandbox-test')")))


def test_asyncio_and_subprocesses_work(inside: Inside) -> None:
    code = """
        import asyncio, subprocess, sys, tempfile
        async def main():
            child = await asyncio.create_subprocess_exec("echo", "hello")
            await child.wait()
        asyncio.run(main())
        subprocess.run([sys.executable, "-c", "print('child')"], check=True, start_new_session=True)
        tempfile.NamedTemporaryFile().close()
    """
    outcome = inside(code)
    assert (outcome.status, outcome.output) == (0, "hello\nchild\n")
    assert outcome.changes == ()


def test_a_fork_bomb_hits_its_limit(inside: Inside) -> None:
    code = """
        import os, time
        count = 0
        try:
            while count < 500:
                if os.fork() == 0:
                    time.sleep(60)
                count += 1
        except OSError as e:
            print("stopped", count, e.errno)
    """
    outcome = inside(code, Limits(seconds=5, processes=16))
    assert outcome.output.startswith("stopped ")
    assert 1 <= int(outcome.output.split()[1]) <= 16
    assert outcome.seconds < 4
    shell = inside.shell(["sh", "-c", "b() { b | b & }; b; sleep 60"], Limits(seconds=2, processes=16))
    assert shell.seconds < 5


def test_a_memory_bomb_hits_its_limit(inside: Inside) -> None:
    outcome = inside("x = []\nwhile True: x.append(bytearray(1 << 24))", Limits(memory_mb=256))
    assert outcome.status == 1
    assert "MemoryError" in outcome.output
    assert refused(inside(attempt("import os; os.memfd_create('x')")))


def test_a_huge_file_hits_its_limit(inside: Inside) -> None:
    code = attempt("f = open('huge', 'wb')\nwhile True: f.write(bytes(1 << 20))\n")
    outcome = inside(f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n{code}", Limits(file_mb=2))
    assert outcome.output == f"errno {errno.EFBIG}\n"
    assert [change.size_after for change in outcome.changes] == [2 << 20]
    assert inside.shell(["sh", "-c", "cat /dev/zero > huge"], Limits(file_mb=2)).status == 128 + signal.SIGXFSZ


def test_a_deadline_and_a_processor_limit(inside: Inside) -> None:
    outcome = inside.shell(["sh", "-c", "echo before; trap '' TERM INT HUP; sleep 60 & sleep 60"], Limits(seconds=0.7))
    assert (outcome.status, outcome.timed_out, outcome.output) == (None, True, "before\n")
    assert outcome.seconds < 2
    assert inside("while True: pass", Limits(seconds=0.5)).timed_out


def test_a_flood_is_cut_and_fills_no_memory(inside: Inside) -> None:
    outcome = inside(
        "print('start', flush=True); import os\nfor _ in range(3000): os.write(1, b'x' * 65536)\nprint('end')",
        Limits(output_bytes=1000),
    )
    assert outcome.truncated
    assert outcome.output.startswith("start\n")
    assert outcome.output.endswith("end\n")
    assert len(outcome.output) < 1100
    assert "bytes left out]" in outcome.output
    assert inside.shell(["yes"], Limits(seconds=0.5)).timed_out


def test_output_that_is_no_utf8(inside: Inside) -> None:
    assert inside.shell(["printf", r"a\377b"]).output == "a\ufffdb"


@pytest.mark.parametrize(
    "how", ["sh -c 'sleep 60 &'", "setsid sh -c 'sleep 60 &'", "nohup sleep 60 >/dev/null 2>&1 </dev/null &"]
)
def test_nothing_stays_behind(inside: Inside, how: str) -> None:
    mark = f"6{os.getpid()}{time.monotonic_ns() % 100000}"
    outcome = inside.shell(["sh", "-c", how.replace("60", mark)])
    assert outcome.seconds < 5
    assert not alive(mark)


def test_a_daemon_stays_behind_no_more_than_others(inside: Inside) -> None:
    mark = f"6{os.getpid()}{time.monotonic_ns() % 100000}"
    code = f"""
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(0, 100)
                os.execvp("sleep", ["sleep", "{mark}"])
            os._exit(0)
        os.wait()
        time.sleep(0.3)
    """
    assert inside(code).status == 0
    assert not alive(mark)


def alive(word: str) -> bool:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if word.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                    return True
            except OSError:
                continue
    return False


def test_it_ends_with_its_parent(inside: Inside) -> None:
    mark = f"6{os.getpid()}{time.monotonic_ns() % 100000}"
    code = f"""
        from pathlib import Path
        from qafila.agent.sandbox.sandbox import Jail, Limits
        argv, workspace = ["sh", "-c", "sleep {mark} & sleep {mark}"], Path({str(inside.workspace)!r})
        Jail({inside.sandbox.name!r}).run(argv, workspace=workspace, limits=Limits(seconds=60))
    """
    place = tempfile.mkdtemp()  # the copy of a parent that is killed stays
    Path(place).chmod(0o755)
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, "TMPDIR": place})
    try:
        until = time.monotonic() + 10
        while not alive(mark) and time.monotonic() < until:
            time.sleep(0.05)
        assert alive(mark)
    finally:
        parent.kill()
        parent.wait()
    until = time.monotonic() + 5
    while alive(mark) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(mark)
    shutil.rmtree(place)


def test_the_environment_tells_nothing(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAFILA_TEST_TOKEN", SECRET)
    outcome = inside.shell(["env"])
    names = {line.split("=")[0] for line in outcome.output.splitlines()}
    assert names == {"PATH", "HOME", "LANG", "TMPDIR"}
    code = """
        import glob
        for path in glob.glob("/proc/*/environ"):
            try: print(open(path).read())
            except OSError: pass
    """
    assert SECRET not in inside(code).output


def test_other_processes_are_not_seen(inside: Inside) -> None:
    folder = f"/proc/{os.getpid()}/fd"
    outcome = inside(f"import os; print(os.path.exists({folder!r}) and os.listdir({folder!r}))")
    assert "Permission" in outcome.output or outcome.output == "False\n"
    assert refused(inside(attempt(f"open('/proc/{os.getpid()}/environ').read()")))
    assert refused(inside(attempt(f"open('/proc/{os.getpid()}/mem', 'r+b').read()")))


def test_other_processes_cannot_be_touched(inside: Inside) -> None:
    victim = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    victim.start()
    try:
        for target in ("os.getppid()", str(victim.pid), str(os.getpid())):
            outcome = inside(f"import os\nfor s in (15, 9):\n    try: os.kill({target}, s)\n    except OSError: pass")
            assert not outcome.timed_out
        inside("import os\nos.kill(-1, 9)")
        inside("import os\nos.kill(0, 9)")
        assert victim.is_alive()
        code = f"""
            import ctypes, os
            libc = ctypes.CDLL(None, use_errno=True)
            for target in (os.getppid(), {victim.pid}):
                print(libc.ptrace(16, target, 0, 0), ctypes.get_errno())
                print(libc.prlimit(target, 7, None, (ctypes.c_ulong * 2)()), ctypes.get_errno())
                print(libc.process_vm_readv(target, None, 0, None, 0, 0), ctypes.get_errno())
        """
        assert inside(code).output == f"-1 {errno.EPERM}\n" * 6
        assert victim.is_alive()
    finally:
        victim.kill()
        victim.join()


@pytest.mark.parametrize(
    "call",
    [
        "libc.unshare(0x10000000)",
        "libc.unshare(0x20000)",
        "libc.mount(b'none', b'.', b'tmpfs', 0, None)",
        "libc.umount2(b'/proc', 2)",
        "libc.chroot(b'.')",
        "libc.syscall(56, 0x10000011, 0, 0, 0, 0)",
        "libc.syscall(321, 0, 0, 0)",
        "libc.syscall(425, 1, 0)",
        "libc.syscall(250, 0, 0)",
        "libc.syscall(323, 0)",
        "libc.setns(0, 0)",
        "libc.setuid(0)",
        "libc.setresuid(0, 0, 0)",
        "libc.sethostname(b'x', 1)",
        "libc.shmget(0, 4096, 0o1600)",
        "libc.open_by_handle_at(0, None, 0)",
        "libc.mknod(b'sda', 0o060600, 0x800)",
    ],
)
def test_the_kernel_is_not_asked_for_much(inside: Inside, call: str) -> None:
    if "syscall(" in call and os.uname().machine != "x86_64":
        pytest.skip("the numbers are x86_64's")
    outcome = inside(f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint({call}, ctypes.get_errno())")
    assert outcome.output == f"-1 {errno.EPERM}\n" or (
        "mknod" in call and outcome.output in (f"-1 {errno.EACCES}\n", f"-1 {errno.EPERM}\n")
    )


def test_clone3_is_as_if_it_were_not_there(inside: Inside) -> None:
    outcome = inside(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.syscall(435, 0, 0), ctypes.get_errno())"
    )
    assert outcome.output == f"-1 {errno.ENOSYS}\n"


def test_there_is_no_way_to_privilege(inside: Inside) -> None:
    code = """
        import ctypes, os
        print(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))
        print(os.getuid() != 0, os.geteuid() != 0)
    """
    assert inside(code).output == "1\nTrue True\n"  # PR_GET_NO_NEW_PRIVS
    outcome = inside.shell(
        ["sh", "-c", "cp /bin/sh s && chmod 4755 s && ./s -c 'id -u'; su -c id </dev/null; sudo -n id"]
    )
    assert "uid=0" not in outcome.output
    assert outcome.output.splitlines()[0] != "0"
    assert all(change.mode & 0o7000 == 0 for change in outcome.changes)


def test_no_descriptor_is_inherited(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    descriptor = os.open(tmp_path / "secret.txt", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    try:
        code = """
            import os
            for n in range(3, 256):
                try: print(n, os.fstat(n))
                except OSError: pass
        """
        assert inside(code).output == ""
    finally:
        os.close(descriptor)


def test_a_terminal_is_out_of_reach(inside: Inside) -> None:
    assert refused(inside(attempt("open('/dev/tty', 'r+b', 0)")))
