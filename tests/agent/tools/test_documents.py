"""Questions to documents: what is shown of them, and answers with their lines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_agent import REMOTE, Answer, ScriptedAgent

from qafila.agent.result import Result
from qafila.agent.sandbox import entries
from qafila.agent.sandbox.sandbox import find_sandbox
from qafila.agent.tool import Surroundings, Tool, ToolError
from qafila.agent.tools import documents
from qafila.errors import SandboxError


@pytest.fixture
def place(tmp_path: Path) -> Surroundings:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "caravan.txt").write_text("The caravan leaves Cairo on Monday.\nThe guide is called Salma.\n")
    (folder / "blob.txt").write_bytes(b"guide\0guide")
    (folder / "picture.png").write_text("guide")
    (folder / "link.txt").symlink_to("/etc/passwd")
    return Surroundings(folder, find_sandbox)


def made(place: Surroundings) -> dict[str, Tool]:
    return {one.name: one for one in documents.tools(f"sqlite:///{place.workspace.parent}/documents.sqlite3")}


def with_model(place: Surroundings, answers: Sequence[Answer]) -> Surroundings:
    return replace(place, client=ScriptedAgent(answers))


def call(tool: Tool, place: Surroundings, **arguments: Any) -> str:
    async def main() -> str:
        found = await tool.run(tool.check(arguments), place)
        return found.observation.text if isinstance(found, Result) else str(found)

    return asyncio.run(main())


def test_passages_are_shown_with_their_lines(place: Surroundings) -> None:
    find = made(place)["find_passages"]
    assert call(find, place, question="Who is the guide?") == (
        "[caravan.txt:1-2]\nThe caravan leaves Cairo on Monday.\nThe guide is called Salma."
    )
    assert call(find, place, question="root") == "(none of 1 passages is about this)"
    with pytest.raises(ToolError, match="question: is empty"):
        call(find, place, question="  ")


def test_no_document_is_sent_to_a_model_somewhere_else(place: Surroundings) -> None:
    # Its `embed` raises: words alone find what there is.
    client = ScriptedAgent([], abilities=replace(REMOTE, embeds=True), fingerprint=None)
    found = call(made(place)["find_passages"], replace(place, client=client), question="Who is the guide?")
    assert found.startswith("[caravan.txt:1-2]")


def test_a_document_that_cannot_be_read_hides_no_other(place: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.workspace / "a.txt").write_text("locked")

    def look(root: int, path: str, most: int) -> Any:
        if path == "a.txt":
            raise SandboxError("a.txt: cannot be read: Permission denied")
        return entries.look(root, path, most)

    monkeypatch.setattr(documents, "look", look)
    assert call(made(place)["find_passages"], place, question="Who is the guide?").startswith("[caravan.txt:1-2]")


def test_an_answer_names_its_lines_and_what_no_line_says(place: Surroundings) -> None:
    place = with_model(place, ["The guide is Salma. She is forty."])
    assert call(made(place)["ask_documents"], place, question="Who is the guide?") == (
        "The guide is Salma. [caravan.txt:2]\nShe is forty. [no line says this]"
    )


def test_no_answer_is_made_up_where_nothing_is_found(place: Surroundings) -> None:
    ask = made(place)["ask_documents"]
    with pytest.raises(ToolError, match="no model"):
        call(ask, place, question="moon")
    place = with_model(place, ["The moon is made of cheese."])
    assert call(ask, place, question="moon") == "not in the documents"


def test_the_default_model_answers_out_of_a_file(place: Surroundings, default_gguf: Path) -> None:
    from qafila import Llama
    from qafila.chat.local import LocalClient

    async def main() -> str:
        client = LocalClient(Llama.load(default_gguf, threads=1), "default", owns_model=True)
        asked = {"question": "What is the guide called?"}
        try:
            found: Result = await made(place)["ask_documents"].run(asked, replace(place, client=client))
            assert found.spent.generated > 0
            return found.observation.text
        finally:
            await client.close()

    assert "Salma" in asyncio.run(main())
