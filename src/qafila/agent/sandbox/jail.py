"""The last step before an untrusted command: a script for a fresh interpreter, which confines itself and becomes it.

Started as ``python -I -S jail.py SPEC`` where SPEC is JSON (see `Spec` in `confinement.py`). It imports nothing of
Qafila, so that it starts in milliseconds and works where only this file is visible. It writes ``ready`` and a line feed
to the descriptor ``report`` once all walls stand; whoever sees none knows that the command never ran.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
# <linux/seccomp.h>
SECCOMP_MODE_FILTER = 2
# <asm-generic/unistd.h>; the numbers are the same on x86_64 and aarch64.
LANDLOCK_CREATE_RULESET = 444
LANDLOCK_ADD_RULE = 445
LANDLOCK_RESTRICT_SELF = 446
# <linux/landlock.h>
LANDLOCK_RULE_PATH_BENEATH = 1


class _Program(ctypes.Structure):
    """``struct sock_fprog`` of <linux/filter.h>."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class _Ruleset(ctypes.Structure):
    """``struct landlock_ruleset_attr`` of <linux/landlock.h>, ABI 6."""

    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    """``struct landlock_path_beneath_attr`` of <linux/landlock.h>."""

    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, *arguments: Any) -> None:
    padded = [*arguments, 0, 0, 0, 0][:4]
    _checked(_libc.prctl(option, *[ctypes.c_ulong(a) if isinstance(a, int) else a for a in padded]), f"prctl {option}")


def _limit(limits: dict[str, int]) -> None:
    for name, most in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (most, most))


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)  # from 0 to another: the kernel clears every capability (capabilities(7))


def _landlock(rules: dict[str, Any]) -> None:
    attributes = _Ruleset(rules["fs"], rules["net"], rules["scoped"])
    ruleset = _checked(
        _libc.syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0), "landlock"
    )
    for path, allowed in rules["paths"]:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = _PathBeneath(allowed, parent)
        _checked(
            _libc.syscall(LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(rule), 0),
            f"landlock {path}",
        )
        os.close(parent)
    _checked(_libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock")
    os.close(ruleset)


def _seccomp(program: bytes) -> None:
    filled = _Program(len(program) // 8, program)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filled))


def _execute(spec: dict[str, Any]) -> None:
    report = int(spec["report"])
    os.closerange(3, report)
    os.closerange(report + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    os.set_inheritable(report, False)
    # Python ignores SIGPIPE and SIGXFSZ, and what is ignored stays ignored in the command.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o022)
    rules = spec["landlock"]
    if spec["uid"] is not None:
        _become(spec["uid"])
    _prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))  # after the change of user, which forgets it
    os.chdir(spec["folder"])
    _limit(spec["limits"])
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if rules is not None:
        _landlock(rules)
    _seccomp(bytes.fromhex(spec["seccomp"]))
    os.write(report, b"ready\n")
    argv = spec["argv"]
    try:
        os.execvpe(argv[0], argv, spec["environment"])  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _supervise(spec: dict[str, Any]) -> None:
    """Without a PID namespace, a parent that is not confined outlives the command and ends what it leaves behind.

    The command can leave neither session nor process group (the filter sees to that), so one signal to the group
    reaches all of it at once; what is orphaned comes to this process, which goes when nothing of it is left.
    """
    group = 0

    def end(*_: object) -> None:
        if not group:
            os._exit(125)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)

    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, end)
    _prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != spec["parent"]:  # it died before the line above
        end()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            _execute(spec)
        except BaseException as error:
            sys.stderr.write(f"{error}\n")
        finally:
            sys.stderr.flush()
            os._exit(125)
    with contextlib.suppress(PermissionError, ProcessLookupError):  # the child was faster
        os.setpgid(child, child)
    group = child
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    # Not reaped yet, so the number of the group stays its own.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    end()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    os.write(int(spec["report"]), f"{status if status >= 0 else 128 - status}\n".encode())


def main() -> None:
    """Confine this process as the specification says, and become the command."""
    spec = json.loads(sys.argv[1])
    if spec["supervised"]:
        _supervise(spec)
    else:
        _execute(spec)


if __name__ == "__main__":
    main()
