"""Say in one line each what a machine lacks to build Qafila; run by make before anything is installed."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig


def missing() -> list[str]:
    """What is not there, and how to get it. Written for old Pythons too: it must run to be able to complain."""
    lines = []
    if sys.version_info < (3, 11):  # noqa: UP036
        have = "%d.%d" % sys.version_info[:2]  # noqa: UP031
        lines.append("Python 3.11 or later is needed and this is " + have + "; choose another with make PY=python3.12")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        lines.append("Python's venv is missing; on Debian and Ubuntu: apt install python3-venv")
    if not os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h")):  # noqa: PTH113, PTH118
        lines.append("Python.h is missing; on Debian and Ubuntu: apt install python3-dev")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"])):
        lines.append("a C++ compiler is missing; on Debian and Ubuntu: apt install g++")
    return lines


if __name__ == "__main__":
    problems = missing()
    for problem in problems:
        print("error: " + problem, file=sys.stderr)
    sys.exit(2 if problems else 0)
