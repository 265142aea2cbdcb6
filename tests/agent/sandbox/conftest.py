"""One sandbox of each sort that this machine can build, and a workspace."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qafila.agent.sandbox.sandbox import Jail, Limits, Sandbox
from qafila.errors import SandboxError


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


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "notes.txt").write_text("first\nsecond\nthird\n")
    return folder
