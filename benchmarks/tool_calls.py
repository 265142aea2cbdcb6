"""Calls of random tools under their grammars: do all parse, name a tool that is there, and fit its schema?

    python benchmarks/tool_calls.py [--cases 10000] [--streams 64] [--seed 0] [--tokens 128] [--json]

Each case has tools with random schemas (deep, recursive, with odd names), one of the four styles of calls, and an
answer sampled hot from the default model, so that what is written is the grammar's doing and not the model's good
sense. An answer must be read by `parse_tool_calls`, and by `CallStream` in the same way; its arguments are checked by
the `jsonschema` package. Answers that the token limit cut are counted apart, and so are schemas that are refused.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jsonschema

from qafila.chat.llama import Llama
from qafila.engine.handle import Handle
from qafila.engine.request import GrammarSpec, Request
from qafila.errors import QafilaError, UsageError
from qafila.sampling import SamplingParams
from qafila.text.call_stream import CallDelta, CallStream
from qafila.text.messages import Message, ToolSchema
from qafila.text.tool_grammar import STYLES, CallStyle, call_grammar
from qafila.text.tools import parse_tool_calls

#: Names that JSON takes and that grammars could stumble over.
ODD_NAMES = (
    'a "b"',
    "it's",
    "%json {}",
    "x\\n",
    "start: y",
    "名前",
    "a/b",
    "</tool_call>",
    "type",
    "$ref",
    "{",
    "é 😀",
)
PYTHON_NAMES = ("city", "n", "سؤال", "type", "name", "parameters", "x1", "_y", "matches", "print", "description")
PATTERNS = ("^[a-z]{2,5}$", "^\\d{3}-\\d{2}$", "a+b", "^(yes|no)$", '^"[^"]*"$', "^\\w+@x\\.org$")
FORMATS = ("date", "uuid", "ipv4", "date-time", "email")
#: So few of the tokens that may come end anything; without a push hot answers would not end.
ENDINGS = ('"', '",', '"}', '"]', "]", "}", "}}", ")", ")]", "'", "',", "')", '")', '"}}', "}\n")


#: What must not happen.
FAULTS = ("unparsable", "violations", "disagreements", "errors")


class Schemas:
    """Random JSON schemas.

    Args:
        rng: the source of chance.
        style: names and keywords are those that calls of this style can have, and now and then others.
    """

    def __init__(self, rng: random.Random, style: CallStyle) -> None:
        self._rng = rng
        self._style = style

    def tools(self) -> list[ToolSchema]:
        """One to four tools of different names."""
        names = ["get", "get_weather", "f", "ns.tool", "بحث", "set_state"]
        names += [] if self._style == "pythonic" else ["get-weather", "a.b-c"]
        chosen = self._rng.sample(names, self._rng.randint(1, 4))
        return [ToolSchema(name, 'Does it: "%json {}" </tool_call>\nstart: x', self.arguments()) for name in chosen]

    def arguments(self) -> dict[str, Any]:
        """A schema of arguments."""
        schema = self._object(3, top=True)
        if self._rng.random() < 0.15:
            inner = {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}
            schema["$defs"] = {"tree": {"type": "object", "properties": {"v": self._leaf(), "next": inner}}}
            schema["properties"]["tree"] = {"$ref": "#/$defs/tree", "description": "a tree"}
        return schema

    def _name(self, top: bool) -> str:
        odd = self._rng.random() < 0.3 and not (top and self._style == "pythonic")
        return self._rng.choice(ODD_NAMES if odd else PYTHON_NAMES)

    def _object(self, depth: int, top: bool = False) -> dict[str, Any]:
        rng = self._rng
        names = list(dict.fromkeys(self._name(top) for _ in range(rng.randint(0 if top else 1, 4))))
        schema: dict[str, Any] = {"type": "object", "properties": {name: self.value(depth - 1) for name in names}}
        if rng.random() < 0.7:
            schema["required"] = rng.sample(names, rng.randint(0, len(names)))
        if rng.random() < 0.4:
            schema["additionalProperties"] = False
        return schema

    def value(self, depth: int) -> Any:
        """A schema of anything."""
        rng = self._rng
        if depth <= 0 or rng.random() < 0.5:
            return self._leaf()
        match rng.randrange(7):
            case 0:
                return self._object(depth)
            case 1:
                low = rng.randint(0, 2)
                bounds = {} if rng.random() < 0.3 else {"minItems": low, "maxItems": low + rng.randint(0, 2)}
                return {"type": "array", "items": self.value(depth - 1), **bounds}
            case 2:
                return {"anyOf": [self.value(depth - 1) for _ in range(rng.randint(1, 3))]}
            case 3:
                return {"type": "object", "additionalProperties": self.value(depth - 1)}
            case 4:
                first = [self.value(depth - 1) for _ in range(rng.randint(1, 2))]
                items = rng.choice([False, {"type": "integer"}])
                return {"type": "array", "prefixItems": first, "items": items, "minItems": rng.randint(0, len(first))}
            case 5:
                return {"oneOf": [{"type": "number"}, {"type": "string", "maxLength": 3}, {"type": "null"}]}
            case _:
                return rng.choice([{}, True, {"description": "anything"}, {"type": "object"}, {"type": "array"}])

    def _leaf(self) -> dict[str, Any]:
        rng = self._rng
        low = rng.randint(-50, 50)
        match rng.randrange(12):
            case 0:
                return {
                    "type": "string",
                    "minLength": (least := rng.randint(0, 3)),
                    "maxLength": least + rng.randint(0, 5),
                }
            case 1:
                return {"type": "string", "pattern": rng.choice(PATTERNS)}
            case 2:
                return {"type": "string", "format": rng.choice(FORMATS)}
            case 3:
                return {
                    "enum": rng.sample(["a", "it's", 'q"', "\\", "%json {}", 1, -2.5, None, True, [1], {"k": "v"}], 3)
                }
            case 4:
                return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 500)}
            case 5:
                return {"type": "number", "exclusiveMinimum": low, "maximum": low + 7.5}
            case 6:
                return rng.choice([{"type": "integer"}, {"type": "number"}, {"type": "integer", "multipleOf": 3}])
            case 7:
                return {"type": rng.choice([["string", "null"], ["number", "boolean"], ["integer", "null"]])}
            case 8:
                return {"const": rng.choice(["x", 3, False, None, "two\nlines", "\u0661"])}
            case 9:
                return {"type": rng.choice(["boolean", "null"])}
            case 10 if rng.random() < 0.2:
                return rng.choice([{"type": "array", "uniqueItems": True}, {"not": {"type": "string"}}])
            case _:
                return {"type": "string", "description": "text"}


@dataclass
class Report:
    """What came of the cases of one run."""

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: {style: Counter() for style in STYLES})
    refused: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    seconds: float = 0.0
    faults: list[dict[str, Any]] = field(default_factory=list)

    def total(self, outcome: str) -> int:
        """How often this happened in all styles together."""
        return sum(counts[outcome] for counts in self.outcomes.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything, for ``--json``."""
        names = ("cases", "complete", "calls", "prose", "cut", "refused", *FAULTS)
        return {
            **{name: self.total(name) for name in names},
            "styles": {style: dict(counts) for style, counts in self.outcomes.items()},
            "refusals": dict(self.refused.most_common()),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "faults": self.faults,
        }


@dataclass
class Case:
    """One request under way."""

    style: CallStyle
    tools: Sequence[ToolSchema]
    required: bool
    handle: Handle


class Cases:
    """Makes cases and judges their answers.

    Args:
        llama: the model that writes.
        seed: of schemas and answers.
        most_tokens: of an answer.
    """

    def __init__(self, llama: Llama, seed: int = 0, most_tokens: int = 128) -> None:
        self.report = Report()
        self._llama = llama
        self._rng = random.Random(seed)
        self._most = most_tokens
        self._prompt = llama.format.render([Message("user", "Call the tools with something.")]).ids
        ends = [llama.tokenizer.encode(text) for text in ENDINGS]
        self._bias = {ids[0]: 7.0 for ids in ends if len(ids) == 1}

    def run(self, count: int, streams: int = 64, progress: Callable[[int], None] | None = None) -> Report:
        """Run this many cases, ``streams`` at once."""
        started = time.perf_counter()
        running: list[Case] = []
        number = 0
        while running or number < count:
            while number < count and len(running) < streams:
                case = self._make(number)
                number += 1
                if case is not None:
                    running.append(case)
                if progress is not None:
                    progress(number)
            self._llama.engine.step()
            for case in [case for case in running if case.handle.finished]:
                running.remove(case)
                self._judge(case)
        self.report.seconds += time.perf_counter() - started
        return self.report

    def _make(self, number: int) -> Case | None:
        style = STYLES[number % len(STYLES)]
        counts = self.report.outcomes[style]
        counts["cases"] += 1
        tools = Schemas(self._rng, style).tools()
        required = self._rng.random() < 0.85
        params = SamplingParams(temperature=self._rng.choice([0.8, 1.2, 1.6, 2.0]), logit_bias=self._bias)
        seed, parallel = self._rng.getrandbits(32), self._rng.random() < 0.5
        try:
            grammar = call_grammar(tools, style, choice="required" if required else "auto", parallel=parallel)
            handle = self._llama.engine.submit(
                Request(
                    self._prompt,
                    params=params,
                    max_tokens=self._most,
                    stop_ids=frozenset(self._llama.format.stop_ids),
                    text_stream=lambda: self._llama.text_stream(continues=False),
                    seed=seed,
                    grammar=GrammarSpec("lark", grammar),
                )
            )
        except UsageError as error:
            counts["refused"] += 1
            self.report.refused[str(error).partition("JSON schema: ")[2] or str(error)] += 1
            return None
        return Case(style, tools, required, handle)

    def _judge(self, case: Case) -> None:
        counts = self.report.outcomes[case.style]
        try:
            tokens = list(case.handle)
        except QafilaError as error:
            self._fault(case, "errors", "", str(error))
            return
        self.report.tokens += len(tokens)
        text = "".join(token.text for token in tokens)
        if tokens[-1].finish_reason == "length":
            counts["cut"] += 1
            return
        counts["complete"] += 1
        calls = parse_tool_calls(text) or ()
        streamed, prose = _streamed(case.style, [token.text for token in tokens])
        if not calls and (case.required or not prose):
            self._fault(case, "unparsable", text, "")
        elif [(call.name, call.arguments) for call in calls] != streamed:
            self._fault(case, "disagreements", text, str(streamed))
        counts["calls"] += len(calls)
        counts["prose"] += not calls
        schemas = {tool.name: tool.parameters for tool in case.tools}
        for call in calls:
            if call.name not in schemas:
                self._fault(case, "violations", text, f"no tool {call.name}")
                continue
            validator = jsonschema.Draft202012Validator(schemas[call.name], format_checker=jsonschema.FormatChecker())
            error = next(validator.iter_errors(dict(call.arguments)), None)
            if error is not None:
                self._fault(case, "violations", text, f"{error.json_path}: {error.message}")

    def _fault(self, case: Case, kind: str, text: str, problem: str) -> None:
        self.report.outcomes[case.style][kind] += 1
        tools = [tool.function() for tool in case.tools]
        fault = {"kind": kind, "style": case.style, "text": text, "problem": problem, "tools": tools}
        if len(self.report.faults) < 20:
            self.report.faults.append(fault)


def _streamed(style: CallStyle, pieces: Sequence[str]) -> tuple[list[tuple[str, Any]], str]:
    """Calls and prose as a client sees them arrive."""
    stream = CallStream(style, call_id=lambda: "id")
    calls: list[tuple[str, list[str]]] = []
    prose = ""
    for delta in [delta for piece in pieces for delta in stream.push(piece)] + stream.finish():
        if not isinstance(delta, CallDelta):
            prose += delta.text
            continue
        if delta.name is not None:
            calls.append((delta.name, []))
        calls[delta.index][1].append(delta.arguments)
    try:
        return [(name, json.loads("".join(parts))) for name, parts in calls], prose
    except ValueError as error:
        return [("no JSON", str(error))], prose


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()

    def progress(number: int) -> None:
        if number % 100 == 99:
            print(
                f"{number + 1} of {options.cases}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True
            )

    with Llama.load("default") as llama:
        report = Cases(llama, options.seed, options.tokens).run(options.cases, options.streams, progress)
    told = report.to_dict()
    if options.json:
        print(json.dumps(told, ensure_ascii=False))
    else:
        for key, value in told.items():
            print(f"{key:14} {json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value}")
    return 1 if told["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
