"""A run of the default model: replayed to the token, changed in one result, and explained."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qafila.agent.events import Answered, Began, Budget, Event, Observed, Thresholds
from qafila.agent.explain import explain, parts
from qafila.agent.journal import Journal, RunLine
from qafila.agent.loop import Agent, Settings
from qafila.agent.replay import verify, what_if
from qafila.agent.state import State
from qafila.agent.tools.builtin import builtin
from qafila.chat.client import ChatRequest, Generation, whole
from qafila.chat.llama import Llama
from qafila.chat.local import LocalClient
from qafila.errors import AgentError
from qafila.text.messages import Message

CARAVAN = "The caravan leaves Cairo on Monday.\nThe guide is called Salma.\n"


@pytest.fixture(scope="module")
def llama(default_gguf: Path) -> Iterator[Llama]:
    with Llama.load(default_gguf, threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def made(llama: Llama, tmp_path_factory: pytest.TempPathFactory) -> tuple[Journal, str]:
    """A run that reads a file and answers, in its journal."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "caravan.txt").write_text(CARAVAN, encoding="utf-8")
    journal = Journal(f"sqlite:///{tmp_path_factory.mktemp('journal')}/agent.sqlite3")
    # A call is made whatever its probability: it is what there is to be replayed.
    settings = Settings(
        choosing="likelihood", thresholds=Thresholds(call=0.0), budget=Budget(steps=3), answer_tokens=48
    )

    async def work() -> str:
        client = LocalClient(llama, "default")
        agent = Agent(client, builtin(["read_file"]), journal, workspace=folder, settings=settings)
        run = agent.begin("Read caravan.txt and tell me who the guide is.")
        try:
            async for _ in agent.work(run):
                pass
        finally:
            await client.close()
        return run

    return journal, asyncio.run(work())


def test_every_token_is_the_same_on_one_thread(default_gguf: Path, made: tuple[Journal, str]) -> None:
    journal, run = made
    recorded = journal.events(run)

    async def check() -> list[str | None]:
        with Llama.load(default_gguf, threads=1) as alone:
            client = LocalClient(alone, "default")
            try:
                return [one.difference async for one in verify(client, recorded)]
            finally:
                await client.close()

    answers = [one for one in recorded if isinstance(one.event, Answered)]
    assert len(answers) >= 2
    assert asyncio.run(check()) == [None] * len(answers)


def test_every_token_is_the_same_in_a_busy_batch(llama: Llama, made: tuple[Journal, str]) -> None:
    journal, run = made
    recorded = journal.events(run)

    async def chatter(client: LocalClient, number: int, ended: asyncio.Event) -> int:
        """Answers of somebody else, one after another, until the replay is over."""
        tokens = 0
        while not ended.is_set():
            asked = ChatRequest(
                (Message("user", f"Tell me {number} things about camels."),),
                generation=Generation(max_tokens=24 + 8 * number, seed=number, temperature=1.0),
            )
            tokens += (await whole(client.chat(asked)))[1].generated
        return tokens

    async def check() -> tuple[list[str | None], list[int]]:
        client = LocalClient(llama, "default")
        ended = asyncio.Event()
        others = [asyncio.create_task(chatter(client, number, ended)) for number in range(6)]
        try:
            await asyncio.sleep(0.2)  # they are under way
            found = [one.difference async for one in verify(client, recorded)]
            ended.set()
            return found, await asyncio.gather(*others)
        finally:
            await client.close()

    differences, others = asyncio.run(check())
    assert differences == [None] * len(differences)
    assert len(differences) >= 2
    assert min(others) > 0


def test_a_run_whose_process_was_killed_goes_on_to_the_same_tokens(
    default_gguf: Path, llama: Llama, made: tuple[Journal, str], tmp_path: Path
) -> None:
    journal, run = made
    whole_run = [one.event for one in journal.events(run)]
    began = whole_run[0]
    assert isinstance(began, Began)
    url = f"sqlite:///{tmp_path}/agent.sqlite3"
    code = """
import asyncio, os, signal, sys
from pathlib import Path
from qafila.agent.events import Answered, Began
from qafila.agent.journal import Journal, RunLine
from qafila.agent.loop import Agent
from qafila.agent.tools.builtin import builtin
from qafila.chat.llama import Llama
from qafila.chat.local import LocalClient

async def main(model, url, workspace, began):
    journal = Journal(url)
    run = journal.begin(Began.model_validate_json(began))
    client = LocalClient(Llama.load(model), "default")
    async for one in Agent(client, builtin(["read_file"]), journal, workspace=Path(workspace)).work(run):
        if isinstance(one.event, Answered):
            os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, str(default_gguf), url, began.workspace, began.model_dump_json()]
    killed = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    after = Journal(url)
    (line,) = after.runs()
    assert line.events == 2  # it began and answered once

    async def go_on() -> list[str | None]:
        client = LocalClient(llama, "default")
        try:
            agent = Agent(client, builtin(["read_file"]), after, workspace=Path(began.workspace))
            async for _ in agent.work(line.id):
                pass
            return [one.difference async for one in verify(client, after.events(line.id))]
        finally:
            await client.close()

    assert set(asyncio.run(go_on())) == {None}
    ids = [
        [e.message["ids"] for e in events if isinstance(e, Answered)] for events in (whole_run, events_of(after, line))
    ]
    assert ids[0] == ids[1]


def events_of(journal: Journal, line: RunLine) -> list[Event]:
    return [one.event for one in journal.events(line.id)]


def test_a_token_that_was_changed_in_the_journal_is_found(llama: Llama, made: tuple[Journal, str]) -> None:
    journal, run = made
    recorded = journal.events(run)
    place = next(i for i, one in enumerate(recorded) if isinstance(one.event, Answered))
    event = recorded[place].event
    assert isinstance(event, Answered)
    ids = list(event.message["ids"])
    ids[2] += 1
    forged = event.model_copy(update={"message": {**event.message, "ids": ids}})
    recorded[place] = type(recorded[place])(recorded[place].number, recorded[place].at, forged)

    async def check() -> list[str | None]:
        client = LocalClient(llama, "default")
        try:
            return [one.difference async for one in verify(client, recorded)]
        finally:
            await client.close()

    found = asyncio.run(check())
    assert found[0] == "the answer differs from its token 2 on"
    assert found[1] == "the prompt is another one"


def test_all_that_was_told_before_comes_out_of_the_cache(made: tuple[Journal, str]) -> None:
    journal, run = made
    answers = [one.event for one in journal.events(run) if isinstance(one.event, Answered)]
    for before, after in itertools.pairwise(answers):
        assert after.spent.cached > before.spent.read + before.spent.generated - 16  # less at most one block


def test_another_result_makes_another_run(made: tuple[Journal, str]) -> None:
    journal, run = made
    recorded = journal.events(run)
    number = next(one.number for one in recorded if isinstance(one.event, Observed))
    other = what_if(journal, run, number, "The guide is called Omar.")
    assert [one.event for one in journal.events(run)] == [one.event for one in recorded]
    state = State.of(journal.events(other))
    assert state.ended is None
    assert state.messages[-1].text == "The guide is called Omar."
    with pytest.raises(AgentError, match=r"event 0 .* is no result of a call; those are"):
        what_if(journal, run, 0, "x")


def test_what_caused_the_answer(llama: Llama, made: tuple[Journal, str]) -> None:
    journal, run = made
    recorded = journal.events(run)
    first, second = [one.number for one in recorded if isinstance(one.event, Answered)][:2]

    async def causes(number: int) -> dict[str, float]:
        client = LocalClient(llama, "default")
        try:
            return {one.part.text: one.change async for one in explain(client, recorded, number)}
        finally:
            await client.close()

    found = asyncio.run(causes(first))
    # The goal names the file: without it, to call with that name is less likely.
    assert max(found, key=lambda text: found[text]) == "Read caravan.txt and tell me who the guide is."
    assert len(asyncio.run(causes(second))) == 4  # instructions, goal, two lines of the file
    with pytest.raises(AgentError, match="event 0 is no answer of the model; those are"):
        asyncio.run(causes(0))


def test_the_parts_of_a_conversation() -> None:
    messages = [
        Message("system", "Be brief."),
        Message("user", "Go."),
        Message("assistant", "Yes."),
        Message("tool", "one\n\ntwo", name="read", tool_call_id="0.0"),
        Message("user", "More."),
    ]
    found = parts(messages)
    assert [(one.message, one.what, one.text) for one in found] == [
        (0, "instructions", "Be brief."),
        (1, "goal", "Go."),
        (3, "read said", "one"),
        (3, "read said", "two"),
        (4, "you", "More."),
    ]
    assert found[2].without[3].text == "\ntwo"
    assert found[1].without[1].text == "..."
    assert all(one.without[2] == messages[2] for one in found)
