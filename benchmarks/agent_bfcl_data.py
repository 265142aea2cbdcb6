"""Single-turn questions of BFCL v4 out of its wheel, and its own check of what was answered."""

from __future__ import annotations

import copy
import json
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qafila.agent.examples import Choice
from qafila.text.messages import ToolSchema

CATEGORIES = (
    *("simple_python", "simple_java", "simple_javascript", "multiple", "parallel", "parallel_multiple", "irrelevance"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance"),
)
#: BFCL's names of types, and JSON Schema's.
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
#: Values of a type, for enums.
VALUES: dict[str, type | tuple[type, ...]] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}

#: Whether calls, each ``{name: arguments}``, are right.
Checker = Callable[["Question", Sequence[dict[str, Any]]], bool]


@dataclass(frozen=True, slots=True)
class Question:
    """A question: what is asked, the functions as BFCL describes them, and the answers that it takes, if it has any."""

    id: str
    category: str
    choice: Choice
    functions: list[dict[str, Any]]
    truth: Any


def schema(source: Any) -> Any:
    """A parameter description of BFCL as JSON Schema.

    Some enums contradict their type: the items' stand at the array, and numbers and truth values are listed as texts.
    The first are moved; of the others no value could be written, and they are left out.
    """
    if not isinstance(source, dict):
        return source
    found = {key: value for key, value in source.items() if key not in ("optional", "default")}
    if isinstance(found.get("properties"), dict):
        found["properties"] = {name: schema(value) for name, value in found["properties"].items()}
    if "items" in found:
        found["items"] = schema(found["items"])
    kind = found.get("type")
    found["type"] = kind = TYPES.get(kind, kind) if isinstance(kind, str) else "object"
    if kind == "array" and "enum" in found:
        found["items"] = {**found.get("items", {}), "enum": found.pop("enum")}
    elif kind in VALUES and "enum" in found and not any(isinstance(value, VALUES[kind]) for value in found["enum"]):
        del found["enum"]
    return found


def questions(folder: Path, category: str) -> list[Question]:
    """All questions of a category. A goal is what all messages of its conversation say."""
    from bfcl_eval.utils import _func_doc_language_specific_pre_processing  # type: ignore[import-not-found]

    data = folder / "bfcl_eval" / "data"
    answers = {}
    file = data / "possible_answer" / f"BFCL_v4_{category}.json"
    if file.is_file():
        answers = {one["id"]: one["ground_truth"] for one in map(json.loads, file.read_text("utf-8").splitlines())}
    found = []
    for record in map(json.loads, (data / f"BFCL_v4_{category}.json").read_text("utf-8").splitlines()):
        told = record["function"]
        if "java" in category:  # its values are written as texts of the language, which the check reads
            told = _func_doc_language_specific_pre_processing(copy.deepcopy(told), category)
        tools = tuple(ToolSchema(one["name"], one["description"], schema(one["parameters"])) for one in told)
        goal = "\n\n".join(message["content"] for message in record["question"][0])
        truth = answers.get(record["id"])
        right = next(iter(truth[0])) if truth else None
        found.append(Question(record["id"], category, Choice(goal, tools, right), record["function"], truth))
    return found


def checker(folder: Path) -> Checker:
    """BFCL's own check of calls; its table of models, which imports every vendor's client, is left out."""
    sys.path.insert(0, str(folder))
    table = types.ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = {"qafila": types.SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
    sys.modules["bfcl_eval.constants.model_config"] = table
    from bfcl_eval.constants.enums import Language  # type: ignore[import-not-found]
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # type: ignore[import-not-found]

    languages = {"simple_java": Language.JAVA, "simple_javascript": Language.JAVASCRIPT}

    def right(question: Question, calls: Sequence[dict[str, Any]]) -> bool:
        category = question.category
        if category.endswith("relevance"):  # relevance: any call; irrelevance: none
            return bool(calls) != category.endswith("irrelevance")
        if not calls:
            return False
        language = languages.get(category, Language.PYTHON)
        found = ast_checker(question.functions, list(calls), question.truth, language, category, "qafila")
        return bool(found["valid"])

    return right
