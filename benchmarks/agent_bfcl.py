"""Tool calls of the default model on single-turn questions of BFCL v4, with and without what the engine can do for it.

    pip download --no-deps bfcl-eval==2026.3.23 && unzip -q bfcl_eval-*.whl -d build/bfcl
    python benchmarks/agent_bfcl.py build/bfcl [--skip 100] [--first 50] [--ways likelihood ...] [--json]

Every question is asked in four ways, greedily and of the same weights: ``words`` reads calls out of free text,
``grammar`` lets the model choose between words and a call that is valid by construction, ``required`` allows nothing
but a call, and ``likelihood`` chooses the tool, or words, by calibrated probabilities and lets the model write the
arguments.

Counted are calls that cannot be read, calls that break their tool's schema (checked by the ``jsonschema`` package),
calls that BFCL's own checker (out of the wheel) finds right, questions without a fitting tool that are left alone, and
answers that the token limit cut, apart. The shipped calibration was fitted to the first 100 questions of ``multiple``
and ``irrelevance``, so that those are skipped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema

from qafila.agent.calibration import Calibration, Example, calibration_of, quality
from qafila.agent.choose import Chooser, decided
from qafila.agent.events import Thresholds
from qafila.agent.examples import Choice, odds_of
from qafila.agent.scaffold import system_prompt
from qafila.chat.client import ChatClient, ChatRequest, Generation, whole
from qafila.chat.llama import Llama
from qafila.chat.local import LocalClient
from qafila.text.messages import Message, ToolCall, ToolSchema
from qafila.text.tools import parse_tool_calls

CATEGORIES = ("simple_python", "multiple", "irrelevance")
WAYS = ("words", "grammar", "required", "likelihood")
#: BFCL's names of types, and JSON Schema's.
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
MOST_TOKENS = 192

Checker = Callable[[list[Any], list[Any], Any, str], bool]


def schema(source: Any) -> Any:
    """A parameter description of BFCL as JSON Schema."""
    if isinstance(source, dict):
        found = {key: schema(value) for key, value in source.items() if key not in ("optional", "default")}
        kind = found.get("type")
        return {**found, "type": TYPES.get(kind, kind)} if isinstance(kind, str) else found
    return [schema(item) for item in source] if isinstance(source, list) else source


def questions(folder: Path, category: str, skip: int, first: int) -> list[tuple[Mapping[str, Any], Choice, Any]]:
    """(record, choice, possible answers) of a category."""
    data = folder / "bfcl_eval" / "data"
    lines = (data / f"BFCL_v4_{category}.json").read_text(encoding="utf-8").splitlines()[skip : skip + first]
    answers = {}
    file = data / "possible_answer" / f"BFCL_v4_{category}.json"
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            answer = json.loads(line)
            answers[answer["id"]] = answer["ground_truth"]
    found = []
    for line in lines:
        record = json.loads(line)
        tools = tuple(ToolSchema(f["name"], f["description"], schema(f["parameters"])) for f in record["function"])
        truth = answers.get(record["id"])
        found.append(
            (
                record,
                Choice(record["question"][0][-1]["content"], tools, next(iter(truth[0])) if truth else None),
                truth,
            )
        )
    return found


def checker(folder: Path) -> Checker:
    """BFCL's own check of calls; its table of models, which imports every vendor's client, is left out."""
    sys.path.insert(0, str(folder))
    table = types.ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = {"qafila": types.SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
    sys.modules["bfcl_eval.constants.model_config"] = table
    from bfcl_eval.constants.enums import Language  # type: ignore[import-not-found]
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # type: ignore[import-not-found]

    def right(functions: list[Any], calls: list[Any], truth: Any, category: str) -> bool:
        return bool(ast_checker(functions, calls, truth, Language.PYTHON, category, "qafila")["valid"])

    return right


async def ask(client: ChatClient, choice: Choice, way: str, chooser: Chooser) -> Message:
    """One answer in one of the ways."""
    messages = (Message("system", system_prompt()), Message("user", choice.goal))
    generation = Generation(max_tokens=MOST_TOKENS, temperature=0.0)
    request = ChatRequest(messages, choice.tools, parallel_tool_calls=False, generation=generation)
    if way == "words":
        request = replace(request, tool_names=frozenset())
    elif way == "required":
        request = replace(request, tool_mode="required")
    elif way == "likelihood":
        odds = await chooser.odds(client, request)
        chooser._neutral = None  # the next question has other tools
        name = decided(odds, Thresholds().call)
        names = frozenset([name]) if name else frozenset()
        request = replace(request, tool_names=names, tool_mode="required" if name else "auto")
    (message,), _ = await whole(client.chat(request))
    if way != "words":
        return message
    return Message("assistant", message.content, tool_calls=parse_tool_calls(message.text) or (), ids=message.ids)


def faults(calls: tuple[ToolCall, ...], tools: tuple[ToolSchema, ...]) -> bool:
    """Whether a call names no tool, or breaks its tool's schema."""
    schemas = {tool.name: dict(tool.parameters) for tool in tools}
    for call in calls:
        if call.name not in schemas or not jsonschema.Draft202012Validator(schemas[call.name]).is_valid(
            dict(call.arguments)
        ):
            return True
    return False


async def measure(client: ChatClient, folder: Path, skip: int, first: int, ways: Sequence[str]) -> dict[str, Any]:
    """Counts by category and way, and how good the probabilities are."""
    calibration = calibration_of(client.fingerprint) or Calibration()
    right = checker(folder)
    report: dict[str, Any] = {}
    examples: list[Example] = []
    for category in CATEGORIES:
        asked = questions(folder, category, skip, first)
        counts = {way: Counter[str]() for way in ways}
        for record, choice, truth in asked:
            for way in ways:
                message = await ask(client, choice, way, Chooser(calibration))
                count = counts[way]
                begun = "<tool_call>" in message.text
                count["called"] += bool(message.tool_calls)
                cut = not message.tool_calls and len(message.ids or ()) >= MOST_TOKENS
                count["cut"] += cut
                count["unreadable"] += begun and not cut
                count["breaks schema"] += faults(message.tool_calls, choice.tools)
                if truth is None:
                    count["right"] += not message.tool_calls and not begun
                elif message.tool_calls:
                    calls = [{call.name: dict(call.arguments)} for call in message.tool_calls]
                    count["right"] += right(record["function"], calls, truth, category)
        report[category] = {"questions": len(asked), **{way: dict(counts[way]) for way in ways}}
        print(category, json.dumps(report[category]), file=sys.stderr, flush=True)
        if category != "simple_python" and "likelihood" in ways:
            examples += await odds_of(client, [choice for _, choice, _ in asked])
    if not examples:
        return report
    for name, one in (("as they are", Calibration()), ("calibrated", calibration)):
        found = quality(one, examples)
        report[f"probabilities {name}"] = {key: round(getattr(found, key), 3) for key in found.__slots__}
    return report


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--skip", type=int, default=100)
    parser.add_argument("--first", type=int, default=50)
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    llama = Llama.load(given.model, threads=given.threads)

    async def run() -> dict[str, Any]:
        client = LocalClient(llama, given.model, owns_model=True)
        try:
            return await measure(client, given.folder, given.skip, given.first, given.ways)
        finally:
            await client.close()

    report = asyncio.run(run())
    print(json.dumps(report, indent=None if given.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
