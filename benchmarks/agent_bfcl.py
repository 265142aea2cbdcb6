"""Tool calls of the default model on the single-turn questions of BFCL v4, and what the engine can do for them.

    pip download --no-deps bfcl-eval==2026.3.23 && unzip -q bfcl_eval-*.whl -d build/bfcl
    python benchmarks/agent_bfcl.py build/bfcl --log build/bfcl.jsonl [--first 100] [--ways likelihood ...] [--json]

Every question is asked in up to four ways, greedily and of the same weights: ``words`` reads calls out of free text,
``grammar`` lets the model choose between words and calls that are valid by construction, ``required`` allows nothing
but calls, and ``likelihood`` chooses the tool, or words, by calibrated probabilities and lets the model write the
arguments, one call an answer and again until words are likelier, as an agent does. BFCL has no results: what the model
is told of a call is "done". In the other ways there is one answer, which may hold several calls in the categories that
ask for several; anywhere else the model would repeat its call.

Counted are answers that cannot be read, calls that break their tool's schema (checked by the ``jsonschema`` package),
answers that BFCL's own checker (out of the wheel) finds right, and answers that the token limit cut, apart; an answer
that the limit cut in its first call has no call. The shipped calibration was fitted to the first 100 questions of
``multiple`` and ``irrelevance``, so that those are skipped. Each answer is written to the log at once, and what the log
has of the same model is not asked again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import jsonschema
from agent_bfcl_data import CATEGORIES, Checker, Question, checker, questions

from qafila.agent.calibration import Calibration, Example, calibration_of, quality
from qafila.agent.choose import Chooser, decided
from qafila.agent.events import Thresholds
from qafila.agent.examples import Choice, odds_of
from qafila.agent.scaffold import system_prompt
from qafila.chat.client import ChatRequest, Finished, Generation, ToolOdds
from qafila.chat.llama import Llama
from qafila.chat.local import LocalClient
from qafila.errors import QafilaError
from qafila.text.messages import Message, ToolCall, ToolSchema
from qafila.text.tools import parse_tool_calls

WAYS = ("words", "grammar", "required", "likelihood")
#: Questions that the calibration was fitted to, by category.
FITTED = {"multiple": 100, "irrelevance": 100}
MOST_TOKENS = 192
MOST_CALLS = 8
#: Of an answer in words where likelihood has chosen words: no call can be in it.
MOST_WORDS = 48
#: What a call comes to.
RESULT = "done"
MARKER = "<tool_call>"
GREEDY = Generation(max_tokens=MOST_TOKENS, temperature=0.0)
COUNTS = ("called", "right", "cut", "unreadable", "breaks schema", "refused")


def faults(calls: Sequence[ToolCall], tools: Sequence[ToolSchema]) -> bool:
    """Whether a call names no tool, or breaks its tool's schema."""
    schemas = {tool.name: dict(tool.parameters) for tool in tools}
    return any(
        call.name not in schemas
        or not jsonschema.Draft202012Validator(schemas[call.name]).is_valid(dict(call.arguments))
        for call in calls
    )


class Bench:
    """Asks questions and writes down what came of them.

    Args:
        client: the model. right: says what is right. log: gets a line an answer.
    """

    def __init__(self, client: LocalClient, right: Checker, log: TextIO) -> None:
        self._client = client
        self._right = right
        self._log = log
        self._calibration = calibration_of(client.fingerprint) or Calibration()

    async def ask(self, question: Question, way: str) -> None:
        """One answer in one of the ways."""
        record: dict[str, Any] = {"category": question.category, "id": question.id, "way": way}
        record["model"] = self._client.fingerprint
        if not question.choice.tools:  # nothing to call
            record.update(called=False, right=self._right(question, []), calls=[], tools=0)
        else:
            try:
                record.update(await self._asked(question, way))
            except QafilaError as error:
                record.update(refused=True, why=str(error))
        print(json.dumps(record, ensure_ascii=False), file=self._log, flush=True)

    async def _asked(self, question: Question, way: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if way == "likelihood":
            (example,) = await odds_of(self._client, [question.choice])
            found = {"own": written(example.own), "neutral": written(example.neutral), "needs": question.choice.right}
            answers = await self._steps(question.choice, example)
        else:
            answers = [await self._finished(request_of(question, way))]
        calls: list[ToolCall] = []
        unreadable = begun = cut = False
        for one in answers:
            text = await self._client.detokenize(one.message.ids or ())
            read = parse_tool_calls(text.removesuffix("<|im_end|>")) or ()
            own = read if way == "words" else one.message.tool_calls
            calls += own
            if one.reason == "length":
                begun |= MARKER in text and not own
                cut |= MARKER in text or way != "likelihood"  # words alone are not asked for in full there
            elif plain(own) != plain(read) or (MARKER in text and not own):
                # What was streamed must be what a reader of the whole text finds, too.
                unreadable = True
                found["text"] = text
        return found | {
            "called": bool(calls),
            "cut": cut,
            "unreadable": unreadable,
            "breaks schema": faults(calls, question.choice.tools),
            "right": self._right(question, plain(calls)) and not begun,
            "calls": plain(calls),
        }

    async def _steps(self, choice: Choice, first: Example) -> list[Finished]:
        """Answers as an agent gives them, one call each, until words are likelier than one more call."""
        request = ChatRequest(opening(choice), choice.tools, parallel_tool_calls=False, generation=GREEDY)
        chooser = Chooser(self._calibration)
        chooser._neutral[frozenset(tool.name for tool in choice.tools)] = first.neutral  # known: not asked for again
        odds = self._calibration.apply(first.own, first.neutral)
        answers: list[Finished] = []
        while name := decided(odds, Thresholds().call):
            answer = await self._finished(replace(request, tool_names=frozenset([name]), tool_mode="required"))
            answers.append(answer)
            if not answer.message.tool_calls or answer.reason == "length" or len(answers) == MOST_CALLS:
                return answers
            (call,) = answer.message.tool_calls
            result = Message("tool", RESULT, name=call.name, tool_call_id=call.id)
            request = replace(request, messages=(*request.messages, answer.message, result))
            odds = await chooser.odds(self._client, request)
        if not answers:
            words = replace(request, tool_names=frozenset(), generation=replace(GREEDY, max_tokens=MOST_WORDS))
            answers.append(await self._finished(words))
        return answers

    async def _finished(self, request: ChatRequest) -> Finished:
        (finished,) = [event async for event in self._client.chat(request) if isinstance(event, Finished)]
        return finished


def opening(choice: Choice) -> tuple[Message, Message]:
    """How an agent's run begins."""
    return Message("system", system_prompt()), Message("user", choice.goal)


def request_of(question: Question, way: str) -> ChatRequest:
    """A question in a way that takes one answer."""
    return ChatRequest(
        opening(question.choice),
        question.choice.tools,
        tool_mode="required" if way == "required" else "auto",
        tool_names=frozenset() if way == "words" else None,
        parallel_tool_calls="parallel" in question.category,
        generation=GREEDY,
    )


def plain(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Calls as BFCL's check takes them."""
    return [{call.name: dict(call.arguments)} for call in calls]


def written(odds: ToolOdds) -> list[Any]:
    """Odds for the log."""
    return [odds.call, odds.tools]


def read(record: list[Any]) -> ToolOdds:
    """Odds out of the log."""
    return ToolOdds(record[0], tuple((name, share) for name, share in record[1]))


def logged(log: TextIO, model: str | None) -> list[dict[str, Any]]:
    """A model's records. A line that a stop has cut is taken away."""
    log.seek(0)
    lines = log.readlines()
    if lines and not lines[-1].endswith("\n"):
        log.truncate(sum(len(line.encode()) for line in lines[:-1]))
        del lines[-1]
    return [one for one in map(json.loads, lines) if one["model"] == model]


def report(records: Sequence[dict[str, Any]], calibration: Calibration) -> dict[str, Any]:
    """Counts by way and category, and how good the probabilities are."""
    found: dict[str, Any] = {}
    for way in WAYS:
        for category in CATEGORIES:
            own = [one for one in records if one["way"] == way and one["category"] == category]
            if own:
                counts = Counter({key: sum(bool(one.get(key)) for one in own) for key in COUNTS})
                found.setdefault(way, {})[category] = {"questions": len(own), **+counts}
    examples = [Example(read(one["own"]), read(one["neutral"]), one["needs"]) for one in records if "own" in one]
    # Of live_relevance it is not known which tool is right.
    asked = [one["category"] for one in records if "own" in one]
    known = [one for one, category in zip(examples, asked, strict=True) if category != "live_relevance"]
    if not known:
        return found
    for name, one in (("as they are", Calibration()), ("calibrated", calibration)):
        measured = quality(one, known)
        found[f"probabilities {name}"] = {key: round(getattr(measured, key), 3) for key in measured.__slots__}
    return found


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Ask what the log has not, a few questions at once."""
    given.log.parent.mkdir(parents=True, exist_ok=True)
    right = checker(given.folder)
    llama = Llama.load(given.model, threads=given.threads)
    client = LocalClient(llama, given.model, owns_model=True)
    with given.log.open("a+", encoding="utf-8") as log:
        done = {(one["id"], one["way"]) for one in logged(log, client.fingerprint)}
        bench = Bench(client, right, log)
        slots = asyncio.Semaphore(given.at_once)

        async def one(question: Question, way: str) -> None:
            async with slots:
                await bench.ask(question, way)

        try:
            for category in given.categories:
                skip = FITTED.get(category, 0)
                asked = questions(given.folder, category)[skip:][: given.first]
                todo = [(q, way) for q in asked for way in given.ways if (q.id, way) not in done]
                await asyncio.gather(*(one(*each) for each in todo))
                print(category, len(asked), file=sys.stderr, flush=True)
        finally:
            await client.close()
        return report(logged(log, client.fingerprint), calibration_of(client.fingerprint) or Calibration())


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--log", type=Path, default=Path("build/bfcl.jsonl"))
    parser.add_argument("--first", type=int, help="most questions of a category; by default all")
    parser.add_argument("--categories", nargs="+", choices=CATEGORIES, default=list(CATEGORIES))
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--at-once", type=int, default=4, help="questions under way at the same time")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not (given.folder / "bfcl_eval" / "data").is_dir():
        parser.error(f"{given.folder}: there is no bfcl_eval/data in it; unpack the wheel there")
    if given.at_once < 1:
        parser.error("--at-once: at least one")
    print(json.dumps(asyncio.run(measure(given)), indent=None if given.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
