"""The README's own commands are run: every `qafila` line of its `sh` and `console` blocks, and its `python` blocks.

They run in one folder, in the order of the page. Lines that install, build or fetch from the hub are left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: str) -> list[tuple[str, str]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(sh|console|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    found = []
    for language, body in blocks(page):
        if language == "python":
            found.append([sys.executable, "-c", body])
            continue
        for line in re.sub(r"\\\n\s*", " ", body).splitlines():
            # In a console block only what stands after the prompt was typed; the rest is the answer.
            if language == "console" and not line.startswith("$ "):
                continue
            typed = line.removeprefix("$ ").strip()
            if re.search(r"(^|\| *)qafila ", typed) and "hf:" not in typed:
                found.append(["bash", "-euo", "pipefail", "-c", typed])
    return found


@pytest.mark.parametrize("page", ["README.md", "README.ar.md"])
def test_the_commands_of_the_page_work(page: str, tmp_path: Path, default_gguf: Path) -> None:
    todo = commands(page)
    assert todo, f"{page} shows nothing that can be run"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in todo:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr
