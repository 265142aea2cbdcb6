"""The seccomp filter: which system calls an untrusted command may not make, as a classic BPF program.

Sources: seccomp(2); <linux/seccomp.h>, <linux/filter.h>, <linux/audit.h> and <linux/sched.h>; the numbers of system
calls are those of the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64).
"""

from __future__ import annotations

import errno
import struct

from qafila.errors import SandboxError

# <linux/bpf_common.h>: BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JGE|BPF_K,
# BPF_RET|BPF_K
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
# <linux/seccomp.h>
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
# struct seccomp_data: int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6] (both machines are little-endian)
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000  # __X32_SYSCALL_BIT of <asm/unistd.h>

# <linux/sched.h>: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; clone(2) cannot ask for NEWTIME
_NAMESPACES = 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF  # <linux/net.h>

# name: (x86_64, aarch64); None where the machine has no such call.
_NUMBERS: dict[str, tuple[int, int | None]] = {
    # the network, and sockets of other programs by name
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept4": (288, 242),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # namespaces and mounts
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "open_tree_attr": (467, 467),
    # wide doors into the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "personality": (135, 92),
    "lookup_dcookie": (212, 18),
    # memory and messages that outlive the command, or that RLIMIT_AS does not count
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # the machine itself
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
}

# Calls whose arguments decide.
_CLONE, _CLONE3, _SOCKETPAIR, _PRLIMIT64, _UTIMENSAT = (56, 220), (435, 435), (53, 199), (302, 261), (280, 88)

# Without a PID namespace a command must not leave its process group. Programs that put a child into a session of its
# own take a refusal for a failure, so these say "done" and do nothing.
_GROUP: dict[str, tuple[int, int | None]] = {"setsid": (112, 157), "setpgid": (109, 154)}

# Landlock does not govern these (landlock(7), "Limitations"), and as the same user they would reach files outside.
# Programs that copy files take a refusal for a failure, so the first group says "done" and does nothing.
_MODES: dict[str, tuple[int, int | None]] = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
}
_OWNERS: dict[str, tuple[int, int | None]] = {
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "inotify_add_watch": (254, 27),
    "file_setattr": (469, 469),
}
_ATTRIBUTES: dict[str, tuple[int, int | None]] = {
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
}

# AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 of <linux/audit.h>, by what uname(2) calls the machine.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """``struct sock_filter``: jumps count the instructions that are left out."""
    return struct.pack("=HBBI", code, then, otherwise, value)


def _answer(number: int) -> bytes:
    return _step(_RETURN, _ERRNO | number)


def _argument(index: int, high: bool = False) -> bytes:
    return _step(_LOAD, _ARGUMENTS + 8 * index + 4 * high)


def _when(number: int, block: bytes) -> bytes:
    """``block`` for this system call; it always returns."""
    return _step(_EQUAL, number, 0, len(block) // 8) + block


def program(machine: str, *, own_group: bool, same_user: bool) -> bytes:
    """The filter, as an array of ``struct sock_filter``; what it does not name is allowed.

    Args:
        machine: as ``platform.machine()`` names it.
        own_group: keep the command in its process group (there is no PID namespace to hold it).
        same_user: the command runs as the user, and only Landlock stands before the user's files.

    Raises:
        SandboxError: the numbers of system calls of this machine are not known.
    """
    if machine not in _MACHINES:
        raise SandboxError(f"no system call filter for machine {machine!r}: known are {', '.join(_MACHINES)}")
    architecture, column = _MACHINES[machine]
    allow, refuse = _step(_RETURN, _ALLOW), _answer(errno.EPERM)
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL),  # 32-bit calls have other numbers
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, 0, 1),
        _step(_RETURN, _KILL),
    ]

    def every(table: dict[str, tuple[int, int | None]], answer: int) -> None:
        for numbers in table.values():
            number = numbers[column]
            if number is not None:
                steps.append(_when(number, _answer(answer)))

    every(_NUMBERS, errno.EPERM)
    # The flags of clone3 lie in memory, where a filter cannot look; the C libraries then try clone.
    steps.append(_when(_CLONE3[column], _answer(errno.ENOSYS)))
    steps.append(
        _when(
            _CLONE[column],
            _argument(0) + _step(_AND, _NAMESPACES) + _step(_EQUAL, 0, 1, 0) + refuse + allow,
        )
    )
    # A connected stream pair reaches nobody else; a datagram pair could still send to a socket by its name.
    steps.append(
        _when(
            _SOCKETPAIR[column],
            _argument(0)
            + _step(_EQUAL, _AF_UNIX, 0, 3)
            + _argument(1)
            + _step(_AND, _SOCK_TYPE_MASK)
            + _step(_EQUAL, _SOCK_STREAM, 1, 0)
            + refuse
            + allow,
        )
    )
    # Own limits only: by number, those of the user's other processes could be lowered.
    steps.append(_when(_PRLIMIT64[column], _argument(0) + _step(_EQUAL, 0, 1, 0) + refuse + allow))
    if own_group:
        every(_GROUP, 0)
    if same_user:
        every(_MODES, 0)
        every(_OWNERS, errno.EPERM)
        every(_ATTRIBUTES, errno.EOPNOTSUPP)
        # With no path it sets the times of an open file, as touch does.
        steps.append(
            _when(
                _UTIMENSAT[column],
                _argument(1)
                + _step(_EQUAL, 0, 0, 2)
                + _argument(1, high=True)
                + _step(_EQUAL, 0, 1, 0)
                + _answer(0)
                + allow,
            )
        )
    return b"".join([*steps, allow])
