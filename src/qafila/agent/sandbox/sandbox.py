"""Running what nobody has vouched for: one `Sandbox`, whichever walls this machine can build."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from qafila.agent.sandbox import bubblewrap, confinement, landlock, seccomp
from qafila.agent.sandbox.changes import Change, changes
from qafila.agent.sandbox.confinement import Spec
from qafila.agent.sandbox.process import watch
from qafila.agent.sandbox.workspace import Copy, copied
from qafila.errors import SandboxError

# Users that no system hands out: above systemd's last range for containers (https://systemd.io/UIDS-GIDS). Each run by
# root takes one at random, so that no two runs can signal or count each other.
_FIRST_UID, _UIDS = 0x70000000, 0x0F000000


@dataclass(frozen=True)
class Limits:
    """What a command may use.

    Attributes:
        seconds: of wall time (and of processor time, for each process).
        memory_mb: MiB of address space of each process. processes: processes and threads at once.
        file_mb: MiB of the largest file it may write.
        output_bytes: of standard output and error together that are held: the beginning and the end.
    """

    seconds: float = 20.0
    memory_mb: int = 1024
    processes: int = 32
    file_mb: int = 64
    output_bytes: int = 65536


@dataclass(frozen=True)
class Outcome:
    """What came of a command.

    Attributes:
        status: its exit status, as a shell gives it (128 and the signal's number for a signal); None when time ran out.
        output: standard output and error, as they came; bytes that are no UTF-8 are replaced.
        timed_out: it was ended for its time. truncated: some of the output was left out.
        seconds: from start to end, without copying the workspace.
        changes: what it did to its copy of the workspace; `keep` applies them to the real one.
    """

    status: int | None
    output: str
    timed_out: bool
    truncated: bool
    seconds: float
    changes: tuple[Change, ...]


class Sandbox(Protocol):
    """Something that runs commands which can do no harm."""

    @property
    def name(self) -> str:
        """Which walls these are."""

    def run(self, argv: Sequence[str], *, workspace: Path, limits: Limits, stdin: bytes = b"") -> Outcome:
        """Run a command in a copy of ``workspace``, which is its working folder and its HOME.

        Raises:
            SandboxError: the workspace cannot be copied, or the walls cannot be built; the command has not run.
        """


@dataclass(frozen=True)
class Jail:
    """The `Sandbox` of this machine: bubblewrap's namespaces, or Landlock's rules; seccomp and limits in both."""

    name: Literal["bubblewrap", "landlock"]
    bwrap: str = "bwrap"

    def run(self, argv: Sequence[str], *, workspace: Path, limits: Limits, stdin: bytes = b"") -> Outcome:
        """See `Sandbox.run`."""
        if not argv:
            raise SandboxError("no command to run in the sandbox")
        if any("\0" in word for word in argv):
            raise SandboxError("a word of the command holds a NUL character")
        uid = _FIRST_UID + secrets.randbelow(_UIDS) if os.geteuid() == 0 else None
        with copied(workspace, uid) as copy:
            try:
                ended = watch(
                    lambda report, info: self._command(list(argv), copy, limits, uid, report, info),
                    stdin=stdin,
                    seconds=limits.seconds,
                    output_bytes=limits.output_bytes,
                )
            except OSError as error:
                raise SandboxError(f"the sandbox ({self.name}) cannot be started: {error.strerror}") from None
            report = ended.report.decode()
            if "ready\n" not in report and not ended.timed_out:
                why = ended.output.strip().splitlines() or [f"status {ended.code}"]
                raise SandboxError(f"the sandbox ({self.name}) cannot be built here: {why[-1]}")
            # The supervisor reports the status; bubblewrap hands it on as its own.
            supervised = report.partition("ready\n")[2].strip()
            code = int(supervised) if supervised else ended.code
            if code < 0:
                code = 128 - code
            return Outcome(
                None if ended.timed_out else code,
                ended.output,
                ended.timed_out,
                ended.truncated,
                ended.seconds,
                changes(copy),
            )

    def _command(
        self, argv: list[str], copy: Copy, limits: Limits, uid: int | None, report: int, info: int
    ) -> list[str]:
        landlocked = self.name == "landlock"
        readable = confinement.prefixes()
        if landlocked and uid is not None:
            # Where the installation lies in root's home, another user cannot walk to it: the system's Python is left.
            readable = readable if all(confinement.open_to_others(path) for path in readable) else []
        processes = limits.processes
        if landlocked and uid is None:
            processes += confinement.tasks_of(os.getuid())
        writable = [copy.folder, copy.temporary]
        spec: Spec = {
            "argv": argv,
            "folder": str(copy.folder),
            "environment": confinement.environment(copy.folder, copy.temporary, readable),
            "limits": confinement.limits(
                seconds=limits.seconds, memory_mb=limits.memory_mb, processes=processes, file_mb=limits.file_mb
            ),
            "uid": uid,
            "landlock": landlock.rules(writable, readable) if landlocked else None,
            "seccomp": seccomp.program(
                platform.machine(), own_group=landlocked, same_user=landlocked and uid is None
            ).hex(),
            "report": report,
            "parent": os.getpid(),
            "supervised": landlocked,
        }
        return landlock.command(spec) if landlocked else bubblewrap.command(self.bwrap, spec, info, writable, readable)


def _problem(jail: Jail) -> str | None:
    """Why these walls do not stand here; None when they do: tried, for a kernel may forbid what it has."""
    with tempfile.TemporaryDirectory(prefix="qafila-probe-") as empty:
        try:
            outcome = jail.run(["true"], workspace=Path(empty), limits=Limits())
        except SandboxError as error:
            return str(error)
    return None if outcome.status == 0 else f"`true` ended with status {outcome.status}: {outcome.output.strip()}"


def find_sandbox() -> Sandbox:
    """The best sandbox of this machine: bubblewrap where it is installed and works, else Landlock.

    Raises:
        SandboxError: neither works here; nothing ever runs unconfined.
    """
    program = shutil.which("bwrap")
    if program is None:
        first = "bubblewrap is not installed"
    else:
        jail = Jail("bubblewrap", program)
        problem = _problem(jail)
        if problem is None:
            return jail
        first = problem
    if landlock.abi() < landlock.NEEDED_ABI:
        second = f"the kernel's Landlock has ABI {landlock.abi()}, not {landlock.NEEDED_ABI} (Linux 6.12)"
    else:
        jail = Jail("landlock")
        problem = _problem(jail)
        if problem is None:
            return jail
        second = problem
    raise SandboxError(f"no sandbox works here ({first}; {second}): install bubblewrap")
