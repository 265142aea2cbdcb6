"""Tools: typed Python functions that a model may call, and what each of them does to the world."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from qafila.agent.edits import Edit
from qafila.agent.provenance import Trusted
from qafila.agent.sandbox.sandbox import Sandbox
from qafila.chat.client import ChatClient
from qafila.errors import UsageError
from qafila.text.messages import ToolSchema

#: What a call does: nothing, reads, changes what can be undone, tells somebody outside, changes what cannot be undone.
Effect: TypeAlias = Literal["pure", "read", "write", "egress", "irrevocable"]
EFFECTS: tuple[Effect, ...] = get_args(Effect)

#: What arguments can be now: a JSON schema for each parameter that is narrower than what the model is told, and
#: None where no call makes sense. It is given the arguments of the calls that were made since anything last changed.
Live: TypeAlias = Callable[["Surroundings", Sequence[Mapping[str, Any]]], Mapping[str, dict[str, Any]] | None]

#: The tool that finds others, where there are any to be found.
FIND = "find_tools"
#: Seconds that a call may take unless its tool says otherwise.
SECONDS = 30.0


class ArgumentsError(Exception):
    """Arguments that a tool cannot take; the message names the first wrong one. The model is told, not the user."""


class ToolError(Exception):
    """Something that a tool cannot do; the message is for the model."""


class LostCallError(ToolError):
    """A call that may have been done or not, as its answer never came; the message is for the model."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a tool works on besides its arguments.

    Attributes:
        workspace: the folder of the run. sandbox: finds the walls for commands; SandboxError where there are none.
        key: stands for this very call, in every attempt at it: what is asked of the world outside carries it along.
        run: its id. trusted: the user's words so far.
        delegate: works on a goal as a part of the run, with at most so many steps (0: as many as can be spared).
        client: the run's own model, for tools that ask one.
    """

    workspace: Path
    sandbox: Callable[[], Sandbox]
    key: str = ""
    run: str = ""
    trusted: Trusted = field(default_factory=lambda: Trusted(()))
    delegate: Callable[[str, int], Awaitable[Any]] | None = None
    client: ChatClient | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """What a tool wants done: nothing of it has happened yet.

    Attributes:
        text: what the model is told once it is done. edits: of the workspace.
    """

    text: str
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that the model may call.

    Attributes:
        schema: name, description and parameters, as the model is told.
        effect: what a call does. `write` tools change nothing by themselves: they return a `Draft`, unless they repeat.
        check: validated arguments out of the model's, or ArgumentsError.
        run: a function of validated arguments and surroundings, plain or ``async``. It returns text, a JSON value, or a
            `Draft`, and raises ToolError for what it cannot do.
        live: what arguments can be now, so that a call of what does not exist cannot be written.
        seconds: most time for a call. controls: parameters that say where a call acts: paths, recipients, addresses.
        origin: who made it: ``built-in``, ``python``, or the name of an MCP server.
        repeats: a call that was interrupted is made again with the same key, since twice is once: what it changes is
            kept under the key. A `write` tool that repeats acts by itself, as it has no edits to show.
        close: ends what the tool holds open; safe to call twice.
        asked_by: words by which a user asks for it, in any language: "delete", "احذف". Once something was read, a call
            that changes the world needs a person's word unless one of them, or its name, stands in the user's words.
        self_contained: what it drafts follows from its arguments and the files that it changes alone, so that it can
            be told before other calls beside it are carried out, and asked about together with them.
    """

    schema: ToolSchema
    effect: Effect
    check: Callable[[Mapping[str, Any]], dict[str, Any]]
    run: Callable[[dict[str, Any], Surroundings], Any]
    live: Live | None = None
    seconds: float = SECONDS
    origin: str = "python"
    controls: frozenset[str] = frozenset()
    repeats: bool = False
    close: Callable[[], Awaitable[None]] | None = None
    asked_by: frozenset[str] = frozenset()
    self_contained: bool = False

    @property
    def name(self) -> str:
        """As the model calls it."""
        return self.schema.name

    @property
    def drafts(self) -> bool:
        """Whether it works out edits, for the run to do."""
        return self.effect == "write" and not self.repeats


def tool(
    function: Callable[..., Any],
    *,
    effect: Effect,
    name: str | None = None,
    live: Live | None = None,
    seconds: float = SECONDS,
    origin: str = "python",
    controls: Collection[str] = (),
    repeats: bool = False,
    asked_by: Collection[str] = (),
    self_contained: bool = False,
) -> Tool:
    """Make a tool of a typed function.

    Its docstring's first paragraph is the description. Parameters are described by ``Annotated[int, "how many"]``; one
    of type `Surroundings` is filled in by the run and not shown to the model.

    Raises:
        UsageError: no docstring, a parameter without a type, or one whose type is no JSON value.
    """
    called = name or function.__name__
    if effect not in EFFECTS:
        raise UsageError(f"tool {called}: effect {effect!r:.40} is none of {', '.join(EFFECTS)}")
    description = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
    if not description:
        raise UsageError(f"tool {called}: needs a docstring that tells the model what it does")
    model, place = _arguments(function, called)

    def check(arguments: Mapping[str, Any]) -> dict[str, Any]:
        try:
            checked = model.model_validate(dict(arguments))
        except ValidationError as error:
            raise ArgumentsError(_first(error)) from None
        return {str(field.alias): getattr(checked, inner) for inner, field in model.model_fields.items()}

    def run(arguments: dict[str, Any], surroundings: Surroundings) -> Any:
        return function(**arguments, **({place: surroundings} if place else {}))

    parameters = _plain(model.model_json_schema())
    parameters.pop("additionalProperties", None)
    return Tool(
        ToolSchema(called, description, parameters),
        effect,
        check,
        run,
        live,
        seconds,
        origin,
        frozenset(controls),
        repeats,
        asked_by=frozenset(asked_by),
        self_contained=self_contained,
    )


def _arguments(function: Callable[..., Any], called: str) -> tuple[type[BaseModel], str | None]:
    """A model of the parameters, and the name of the one that takes the surroundings."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        raise UsageError(f"tool {called}: a type cannot be understood: {error}") from None
    fields: dict[str, Any] = {}
    place: str | None = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UsageError(f"tool {called}: *{parameter.name} cannot be described to a model; name each parameter")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UsageError(f"tool {called}: parameter {parameter.name} must be one that can be given by name")
        hint = hints.get(parameter.name)
        if hint is None:
            raise UsageError(f"tool {called}: parameter {parameter.name} needs a type")
        if hint is Surroundings:
            place = parameter.name
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        # Under names of our own: a parameter may be called as something of pydantic's is.
        described = Field(default, alias=parameter.name, description=_description(hint))
        fields[f"p{len(fields)}"] = (hint, described)
    try:
        model = create_model(called, __config__=ConfigDict(extra="forbid"), **fields)
        model.model_json_schema()
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise UsageError(f"tool {called}: a parameter's type is no JSON value: {str(error).splitlines()[0]}") from None
    return model, place


def _description(hint: Any) -> str | None:
    if get_origin(hint) is Annotated:
        return next((extra for extra in get_args(hint)[1:] if isinstance(extra, str)), None)
    return None


def _plain(schema: Any) -> Any:
    """A schema without what costs tokens and helps no model: titles, and defaults, which tools fill in."""
    if isinstance(schema, dict):
        return {
            key: {name: _plain(inner) for name, inner in value.items()}
            if key in ("properties", "$defs")
            else _plain(value)
            for key, value in schema.items()
            if key not in ("title", "default")
        }
    return [_plain(item) for item in schema] if isinstance(schema, list) else schema


def _first(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, found["loc"])) or "arguments"
    return f"{where}: {found['msg'].removeprefix('Value error, ')}"


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of a run, by name.

    Attributes:
        tools: what the model is told of. more: what it may find (see `qafila.agent.finding`), and then call.
        by_name: all of them.

    Raises:
        UsageError: two tools of one name.
    """

    tools: tuple[Tool, ...]
    more: tuple[Tool, ...] = ()
    by_name: Mapping[str, Tool] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_name: dict[str, Tool] = {}
        for one in (*self.tools, *self.more):
            if one.name in by_name:
                raise UsageError(f"two tools are called {one.name}; rename one")
            by_name[one.name] = one
        object.__setattr__(self, "by_name", by_name)

    async def close(self) -> None:
        """End what the tools hold open."""
        every = {one.close for one in self.by_name.values() if one.close is not None}
        await asyncio.gather(*(end() for end in every))

    @property
    def schemas(self) -> tuple[ToolSchema, ...]:
        """What the model is told."""
        return tuple(_told(one.schema) for one in self.tools)

    @property
    def untold(self) -> tuple[ToolSchema, ...]:
        """What it may find, in the same words."""
        return tuple(_told(one.schema) for one in self.more)

    def callable(self, found: Collection[str]) -> dict[str, Tool]:
        """What can be called once these were found, by name."""
        return {one.name: one for one in (*self.tools, *(one for one in self.more if one.name in found))}

    def options(
        self,
        surroundings: Surroundings,
        made: Sequence[tuple[str, Mapping[str, Any]]],
        found: Collection[str] = (),
        *,
        find: bool = True,
    ) -> Options:
        """What can be called now.

        Args:
            surroundings: of the run. made: calls since anything last changed, by name and arguments.
            found: names of the tools that were found. find: whether to look for more makes sense now.
        """
        live: dict[str, dict[str, dict[str, Any]]] = {}
        barred = [FIND] if self.more and not find else []
        for one in self.callable(found).values():
            before = [arguments for name, arguments in made if name == one.name]
            now = one.live(surroundings, before) if one.live is not None else {}
            # What takes no arguments and changes nothing says the same again.
            same = bool(before) and one.effect in ("pure", "read") and not one.schema.parameters.get("properties")
            if now is None or same:
                barred.append(one.name)
            elif now:
                live[one.name] = dict(now)
        return Options(live=live, barred=tuple(barred))


class Options(BaseModel):
    """What can be called now.

    Attributes:
        live: narrower schemas of parameters, by tool and parameter. barred: tools of which no call makes sense now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    live: dict[str, dict[str, dict[str, Any]]] = {}
    barred: tuple[str, ...] = ()

    def narrowed(self, schemas: Sequence[ToolSchema]) -> dict[str, ToolSchema]:
        """The schemas that calls must match, where they are narrower than what the model is told."""
        return {one.name: _with(one, self.live[one.name]) for one in schemas if one.name in self.live}


def _told(schema: ToolSchema) -> ToolSchema:
    """As models are told: that the arguments of a call are an object goes without saying."""
    parameters = {name: value for name, value in schema.parameters.items() if name != "type"}
    return ToolSchema(schema.name, schema.description, parameters)


def _with(schema: ToolSchema, properties: Mapping[str, dict[str, Any]]) -> ToolSchema:
    parameters = dict(schema.parameters)
    known = parameters.get("properties", {})
    narrower = {name: inner for name, inner in properties.items() if name in known}
    return ToolSchema(schema.name, schema.description, {**parameters, "properties": {**known, **narrower}})
