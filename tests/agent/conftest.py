"""A journal and a workspace of its own for each test, and one sandbox of each sort that this machine can build."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_place import Place

from qafila.agent.sandbox.sandbox import Jail, Limits, Sandbox
from qafila.errors import SandboxError


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.journal.close()


@pytest.fixture(scope="session", params=["bubblewrap", "landlock"])
def sandbox(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    if request.param == "bubblewrap":
        program = shutil.which("bwrap")
        if program is None:
            pytest.skip("bubblewrap is not installed: apt-get install bubblewrap")
        jail = Jail("bubblewrap", program)
    else:
        jail = Jail("landlock")
    try:
        jail.run(["true"], workspace=tmp_path_factory.mktemp("probe"), limits=Limits())
    except SandboxError as error:
        pytest.skip(str(error))
    return jail
