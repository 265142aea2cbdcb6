"""Questions to the documents of the workspace: passages with their lines, and answers that cite them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Annotated

from qafila.agent.documents.citing import cited
from qafila.agent.documents.index import DocumentIndex, Embed, Found, Meaning
from qafila.agent.events import spent_by
from qafila.agent.observation import observation
from qafila.agent.result import Result
from qafila.agent.sandbox.entries import look, opened_root
from qafila.agent.tool import Surroundings, Tool, ToolError, tool
from qafila.agent.tools.files import MOST_BYTES, files_in
from qafila.chat.client import ChatClient, ChatRequest, Generation, whole
from qafila.database import default_url
from qafila.errors import SandboxError
from qafila.text.messages import Message

#: What is taken for a document: text, by its name's ending.
ENDINGS = (".txt", ".md", ".markdown", ".rst", ".csv", ".tsv", ".json", ".html", ".htm", ".log", ".tex", ".org", ".ics")
#: Bytes of all documents together that are indexed, passages shown, and tokens of an answer.
_MOST_INDEXED, _SHOWN, _ANSWER = 64 << 20, 4, 160
_ASK = (
    "Answer the question in one or two sentences, in its language, with what the passages say and nothing else. "
    "If they do not say it, answer: not in the documents."
)


def tools(url: str | None = None) -> tuple[Tool, ...]:
    """The tools of this module; ``url``: of the index's database, by default in the cache."""

    async def found(place: Surroundings, question: str) -> Found:
        if not question.strip():
            raise ToolError("question: is empty")
        index = await asyncio.to_thread(DocumentIndex, url or default_url("documents"))
        try:
            await asyncio.to_thread(index.update, str(place.workspace), _documents(place))
            meaning = None
            # A model somewhere else (which has no fingerprint) would be sent every document, asked about or not.
            if place.client is not None and place.client.abilities.embeds and place.client.fingerprint is not None:
                meaning = Meaning(place.client.fingerprint, _embedding(place.client))
            return await index.search(str(place.workspace), question, most=_SHOWN, meaning=meaning)
        finally:
            index.close()

    async def find_passages(place: Surroundings, question: str) -> str:
        """Find the passages of the documents that a question is about."""
        return _shown(await found(place, question))

    async def ask_documents(place: Surroundings, question: Annotated[str, "in whole sentences"]) -> str | Result:
        """Answer a question from the documents, with the lines that say so."""
        if place.client is None:
            raise ToolError("there is no model here that could read them; find_passages finds them")
        there = await found(place, question)
        if not there.best:
            return "not in the documents"
        passages = "\n\n".join(one.text for one in there.best)
        request = ChatRequest(
            (Message("system", _ASK), Message("user", f"{passages}\n\n{question}")),
            generation=Generation(max_tokens=_ANSWER, temperature=0.0, seed=0),
        )
        (answer,), usage = await whole(place.client.chat(request))
        # What was cut in the middle of a sentence says nothing that could be held against a line.
        text = (
            answer.text
            if usage.generated < _ANSWER
            else answer.text.rpartition("\n" if "\n" in answer.text else ".")[0]
        )
        lines = []
        for sentence in cited(text, there.best):
            where = f"[{sentence.source.span}]" if sentence.source is not None else "[no line says this]"
            lines.append(f"{sentence.text} {where}")
        return Result(observation("\n".join(lines) or "not in the documents"), spent=spent_by(usage))

    return (
        tool(find_passages, effect="read", origin="built-in", seconds=60),
        tool(ask_documents, effect="read", origin="built-in", seconds=120),
    )


def _embedding(client: ChatClient) -> Embed:
    async def embed(texts: Sequence[str]) -> Sequence[Sequence[float]]:
        return (await client.embed(texts)).vectors

    return embed


def _documents(place: Surroundings) -> Iterator[tuple[str, bytes]]:
    left = _MOST_INDEXED
    with opened_root(place.workspace) as root:
        for path in files_in(place):
            if not path.lower().endswith(ENDINGS):
                continue
            try:
                seen = look(root, path, min(MOST_BYTES, left))
            except SandboxError:  # one that may not be read is no reason to find nothing in the others
                continue
            if seen is None or seen[1] is None or b"\0" in seen[1]:
                continue
            left -= len(seen[1])
            yield path, seen[1]


def _shown(found: Found) -> str:
    if not found.best:
        return f"(none of {found.passages} passages is about this)"
    return "\n\n".join(f"[{one.span}]\n{one.text}" for one in found.best)
