"""`python -m qafila`."""

from __future__ import annotations

import atexit
import os
import sys
import threading

from qafila.cli.main import main


def leave(status: int) -> None:
    """End this process with a status.

    One that worked with others through torch's gloo ends without the destructors of C++: in torch 2.13 one of a few
    dozen is aborted there ("terminate called without an active exception"), with all its work done.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" and "torch" in sys.modules:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(main())
