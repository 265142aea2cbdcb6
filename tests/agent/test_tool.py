"""Tools out of typed functions: what the model is told, and what it may send."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest

from qafila.agent.sandbox.sandbox import find_sandbox
from qafila.agent.tool import EFFECTS, ArgumentsError, Options, Surroundings, Tool, Toolbox, tool
from qafila.errors import UsageError


class Unit(enum.Enum):
    METRE = "m"
    FOOT = "ft"


def convert(
    value: Annotated[float, "what is measured"],
    to: Unit,
    place: Surroundings,
    how: Literal["exact", "rounded"] = "exact",
    names: list[str] | None = None,
) -> str:
    """Convert a length
    into another unit.

    This paragraph is for people.
    """
    return f"{value} {to.value} {how} {names} {place.key}"


def surroundings(folder: Path) -> Surroundings:
    return Surroundings(folder, find_sandbox, "key")


def test_the_schema_is_the_functions(tmp_path: Path) -> None:
    made = tool(convert, effect="pure")
    assert (made.name, made.effect, made.origin) == ("convert", "pure", "python")
    assert made.schema.description == "Convert a length into another unit."
    parameters = made.schema.parameters
    assert parameters["required"] == ["value", "to"]
    assert set(parameters["properties"]) == {"value", "to", "how", "names"}
    assert parameters["properties"]["value"] == {"type": "number", "description": "what is measured"}
    assert parameters["properties"]["how"]["enum"] == ["exact", "rounded"]
    assert "title" not in str(parameters)
    assert "default" not in str(parameters)
    jsonschema.Draft202012Validator.check_schema(parameters)
    for good in ({"value": 1.5, "to": "ft"}, {"value": 1, "to": "m", "how": "rounded", "names": ["a"]}):
        jsonschema.validate(good, parameters)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"value": 1, "to": "mile"}, parameters)
    arguments = made.check({"value": 2, "to": "ft"})
    assert arguments == {"value": 2.0, "to": Unit.FOOT, "how": "exact", "names": None}
    assert made.run(arguments, surroundings(tmp_path)) == "2.0 ft exact None key"


def test_a_name_and_limits_of_its_own() -> None:
    made = tool(convert, effect="egress", name="lengths", seconds=2, origin="somewhere")
    assert (made.name, made.schema.name, made.effect, made.seconds, made.origin) == (
        "lengths", "lengths", "egress", 2, "somewhere"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"value": 1}, "to: Field required"),
        ({"value": "many", "to": "m"}, "value: "),
        ({"value": 1, "to": "mile"}, "to: "),
        ({"value": 1, "to": "m", "how": "so"}, "how: "),
        ({"value": 1, "to": "m", "names": ["a", 5]}, r"names\.1: "),
        ({"value": 1, "to": "m", "colour": "red"}, "colour: "),
        ({"value": 1, "to": "m", "place": "here"}, "place: "),
        ({"value": None, "to": "m"}, "value: "),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentsError, match=f"^{words}") as caught:
        tool(convert, effect="pure").check(arguments)
    assert "\n" not in str(caught.value)


def test_parameters_may_have_any_name(tmp_path: Path) -> None:
    def send(json: str, schema: int, copy: bool, model_name: str = "m", _quiet: bool = False) -> str:
        """Send something."""
        return f"{json} {schema} {copy} {model_name} {_quiet}"

    made = tool(send, effect="pure")
    assert list(made.schema.parameters["properties"]) == ["json", "schema", "copy", "model_name", "_quiet"]
    assert made.schema.parameters["required"] == ["json", "schema", "copy"]
    arguments = made.check({"json": "a", "schema": 1, "copy": True, "_quiet": True})
    assert made.run(arguments, surroundings(tmp_path)) == "a 1 True m True"
    with pytest.raises(ArgumentsError, match=r"^schema: "):
        made.check({"json": "a", "schema": "x", "copy": True})


def test_a_default_that_a_call_changed_is_not_the_next_ones() -> None:
    def gather(items: list[str] = []) -> str:  # noqa: B006 - what is tested
        """Gather items."""
        items.append("x")
        return str(items)

    made = tool(gather, effect="pure")
    for _ in range(2):
        assert made.check({}) == {"items": []}
        made.check({})["items"].append("x")


def undocumented(value: int) -> int:
    return value


def untyped(value) -> int:  # type: ignore[no-untyped-def]
    """Do something."""
    return int(value)


def several(*values: int) -> int:
    """Do something."""
    return sum(values)


def named(**values: int) -> int:
    """Do something."""
    return sum(values.values())


def positional(value: int, /) -> int:
    """Do something."""
    return value


def callback(value: Callable[[], int]) -> int:
    """Do something."""
    return value()


def opaque(value: object, other: Toolbox | threading.Lock) -> int:  # type: ignore[name-defined]  # noqa: F821
    """Do something."""
    return 0


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (undocumented, "needs a docstring"), (untyped, "parameter value needs a type"),
        (several, r"\*values cannot be described"), (named, r"\*values cannot be described"),
        (positional, "value"), (callback, "is no JSON value"), (opaque, "threading"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_tool_is_refused(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"^tool {function.__name__}: .*{words}") as caught:
        tool(function, effect="pure")
    assert "\n" not in str(caught.value)


def test_an_unknown_effect_is_refused() -> None:
    with pytest.raises(UsageError, match="'magic' is none of pure, read, write, egress, irrevocable"):
        tool(convert, effect="magic")  # type: ignore[arg-type]


def test_two_tools_of_one_name_are_refused() -> None:
    one: Tool = tool(convert, effect="pure")
    with pytest.raises(UsageError, match="two tools are called convert"):
        Toolbox((one, tool(convert, effect="read")))
    box = Toolbox((one, tool(convert, effect="read", name="other")))
    assert list(box.by_name) == ["convert", "other"]
    assert [schema.name for schema in box.schemas] == ["convert", "other"]


# What can be called now.


def test_what_exists_now_narrows_what_can_be_written(tmp_path: Path) -> None:
    seen = []

    def live(place: Surroundings, made: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]] | None:
        seen.append((place.key, list(made)))
        return {"to": {"enum": ["m"]}, "unknown": {"enum": ["x"]}} if len(made) < 2 else None

    box = Toolbox((tool(convert, effect="pure", live=live), tool(convert, effect="pure", name="free")))
    call = ("convert", {"to": "m"})
    options = box.options(surroundings(tmp_path), [call, ("free", {"to": "ft"})])
    assert seen == [("key", [{"to": "m"}])]
    assert options.barred == ()
    narrowed = options.narrowed(box.schemas)
    assert list(narrowed) == ["convert"]
    told, must = box.schemas[0].parameters, narrowed["convert"].parameters
    assert must["properties"] == {**told["properties"], "to": {"enum": ["m"]}}
    assert {key: value for key, value in must.items() if key != "properties"} == {
        key: value for key, value in told.items() if key != "properties"
    }
    assert box.options(surroundings(tmp_path), [call, call]).barred == ("convert",)
    assert Options.model_validate_json(options.model_dump_json()) == options


def test_what_takes_nothing_and_changes_nothing_is_not_asked_twice(tmp_path: Path) -> None:
    def look() -> str:
        """Look."""
        return ""

    box = Toolbox(tuple(tool(look, effect=effect, name=effect) for effect in EFFECTS))
    made = [(effect, {}) for effect in EFFECTS]
    assert box.options(surroundings(tmp_path), []).barred == ()
    assert box.options(surroundings(tmp_path), made).barred == ("pure", "read")


def test_what_tools_hold_open_is_ended_once_whether_they_were_told_or_not() -> None:
    ended = []

    async def end() -> None:
        ended.append(1)

    held = replace(tool(convert, effect="pure"), close=end)
    box = Toolbox(
        (held,), (replace(held, schema=replace(held.schema, name="again")), tool(convert, effect="pure", name="c"))
    )
    asyncio.run(box.close())
    assert ended == [1]
    asyncio.run(Toolbox((), (held,)).close())
    assert ended == [1, 1]
