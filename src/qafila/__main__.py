"""``python -m qafila`` is the command `qafila`."""

import sys

from qafila.cli.main import main

sys.exit(main())
