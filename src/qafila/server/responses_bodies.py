"""What OpenAI's clients send to ``/v1/responses``, and how it becomes a `ChatRequest`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from qafila.chat.client import ChatRequest, Generation, GrammarSpec, ToolMode
from qafila.server.body import Body
from qafila.server.errors import ApiError
from qafila.server.openai_bodies import StreamOptions as ChatStreamOptions
from qafila.text.messages import Message, ToolSchema

LOGPROBS = "message.output_text.logprobs"

# Fields of a function tool beside name, description, parameters and strict, and the only values they may have here.
_TOOL_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "type": ("function",),
    "async": (None, False),
    "allowed_callers": (None, [], ["direct"]),
    "defer_loading": (None, False),
    "output_schema": (None,),
}
_TOOL_FIELDS = ("name", "description", "parameters", "strict")


class StreamOptions(Body):
    """What else a stream tells: nothing."""

    harmless: ClassVar = ChatStreamOptions.harmless


class TextFormat(Body):
    """What the text of an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    def grammar(self) -> GrammarSpec | None:
        """What the answer must match. A schema is kept to exactly, whether ``strict`` or not.

        Raises:
            ApiError: a format without its schema.
        """
        if self.type == "text":
            return None
        if self.type == "json_object":
            return GrammarSpec("json_object")
        if self.schema_ is None:
            raise ApiError(400, "text.format.schema: missing", param="text.format.schema")
        return GrammarSpec("json_schema", json.dumps(self.schema_))

    def to_dict(self) -> dict[str, Any]:
        """The same as a response tells it."""
        if self.type != "json_schema":
            return {"type": self.type}
        return {"type": self.type, "name": self.name or "schema", "description": self.description,
                "schema": self.schema_, "strict": self.strict}  # fmt: skip


class TextConfig(Body):
    """How the text of an answer is written."""

    harmless: ClassVar = {"verbosity": "advice for models tuned to it"}

    format: TextFormat = Field(default_factory=lambda: TextFormat.model_validate({"type": "text"}))


class ToolByName(Body):
    """A function by name."""

    type: Literal["function"] = "function"
    name: str


class AllowedTools(Body):
    """The tools that may, or must, be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ToolByName] = Field(min_length=1)


class TokenCountBody(Body):
    """The body of ``POST /v1/responses/input_tokens``, and what it shares with that of ``POST /v1/responses``."""

    model_config = ConfigDict(title="ResponseInputTokensRequest")

    harmless: ClassVar = {
        "reasoning": "advice for models that think first",
        "truncation": "what would be dropped is counted",
        "text": "formats are no part of the prompt",
        "parallel_tool_calls": "is no part of the prompt",
    }
    refused: ClassVar = {
        "conversation": "use previous_response_id",
        "personality": "put it into instructions",
    }

    model: str
    input: str | list[dict[str, Any]] | None = Field(None, description="A text, or items: messages, calls, results.")
    instructions: str | None = Field(None, description="The system message; it is not carried over.")
    previous_response_id: str | None = Field(None, description="The response that this one continues.")
    tools: list[dict[str, Any]] | None = Field(None, max_length=128, description="Functions.")
    tool_choice: Literal["auto", "none", "required"] | ToolByName | AllowedTools | None = None

    def functions(self) -> tuple[ToolSchema, ...]:
        """The tools.

        Raises:
            ApiError, ChatError: one that is no function, or a field that makes no sense.
        """
        return tuple(_function(tool, f"tools[{i}]") for i, tool in enumerate(self.tools or ()))

    def choice(self) -> tuple[ToolMode, frozenset[str] | None]:
        """Which tools may or must be called.

        Raises:
            ApiError: a choice among no tools.
        """
        choice = self.tool_choice
        if choice not in (None, "none", "auto") and not self.tools:
            raise ApiError(400, "tool_choice: only with tools", param="tool_choice")
        if isinstance(choice, ToolByName):
            return "required", frozenset({choice.name})
        if isinstance(choice, AllowedTools):
            return choice.mode, frozenset(tool.name for tool in choice.tools)
        return choice or "auto", None


class ResponseBody(TokenCountBody):
    """The body of ``POST /v1/responses``."""

    model_config = ConfigDict(title="ResponseRequest")

    harmless: ClassVar = {
        "user": "for the operator's records; limits follow the key",
        "safety_identifier": "for the operator's records",
        "prompt_cache_key": "prompts are found in the cache by their tokens",
        "prompt_cache_retention": "the cache keeps what fits",
        "service_tier": "there is one",
        "reasoning": "advice for models that think first",
        "max_tool_calls": "counts calls of tools that the server runs, and it runs none",
        "access_programs": "there are none",
        "image": "there are no images",
    }
    refused: ClassVar = {
        "background": "keep the connection open, or stream",
        "background_options": "there are no responses in the background",
        "conversation": "use previous_response_id",
        "prompt": "templates are not kept here; send their text in instructions and input",
        "context_management": "use truncation",
        "moderation": "no moderation runs on this endpoint",
        "prompt_cache_options": "prompts are found in the cache by their tokens, and never read without an answer",
    }
    neutral: ClassVar = {
        "background": (False,),
        "context_management": ([],),
        "prompt_cache_options": ({}, {"mode": "implicit"}, {"ttl": "30m"}, {"mode": "implicit", "ttl": "30m"}),
    }

    parallel_tool_calls: bool | None = None
    text: TextConfig = Field(default_factory=TextConfig)
    store: bool | None = Field(None, description="Keep it for GET and previous_response_id; by default yes.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    truncation: Literal["auto", "disabled"] = Field(
        "disabled", description="auto: where the conversation does not fit, its oldest turns are left out."
    )
    metadata: dict[str, str] | None = Field(None, max_length=16)
    include: list[str] | None = Field(None, description=f"May hold {LOGPROBS}.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="More than 0 asks for log-probabilities.")

    def check(self) -> None:
        """Raise ApiError for options that do not go together, and for things to include that there are not."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options: only with stream", param="stream_options")
        check_include(self.include or ())
        for key, value in (self.metadata or {}).items():
            if len(key) > 64 or len(value) > 512:
                message = f"metadata: {key[:64]!r}: keys have at most 64 characters, and values 512"
                raise ApiError(400, message, param="metadata")

    def logprobs(self) -> int | None:
        """How many likeliest tokens to tell; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.top_logprobs or LOGPROBS in (self.include or ()) else None

    def request(self, messages: Sequence[Message]) -> ChatRequest:
        """The same as a model wants it, over a whole conversation.

        Raises:
            ApiError, ChatError: a tool or option that makes no sense; the message names it.
        """
        mode, names = self.choice()
        return ChatRequest(
            messages=tuple(messages),
            tools=self.functions(),
            tool_mode=mode,
            tool_names=names,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            generation=Generation(
                max_tokens=self.max_output_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                logprobs=self.logprobs(),
                answer=self.text.format.grammar(),
            ),
        )

    def told_tools(self) -> list[dict[str, Any]]:
        """The tools as a response tells them."""
        return [
            {"type": "function", "name": tool["name"], "description": tool.get("description"),
             "parameters": tool.get("parameters"), "strict": tool.get("strict")}
            for tool in self.tools or ()
        ]  # fmt: skip

    def told_choice(self) -> Any:
        """The choice of tools as a response tells it."""
        choice = self.tool_choice
        return choice.model_dump() if isinstance(choice, Body) else choice or "auto"


def check_include(names: Sequence[str]) -> None:
    """Raise ApiError for something to include that there is not."""
    unknown = next((name for name in names if name != LOGPROBS), None)
    if unknown is not None:
        raise ApiError(400, f"include: {unknown!r:.80} is not supported; there is {LOGPROBS}", param="include")


def _function(tool: dict[str, Any], where: str) -> ToolSchema:
    kind = tool.get("type")
    if kind != "function":
        raise ApiError(400, f"{where}.type: {kind!r:.80} is not supported; give functions", param=f"{where}.type")
    for name, value in tool.items():
        if name in _TOOL_FIELDS:
            continue
        if name not in _TOOL_DEFAULTS:
            raise ApiError(400, f"{where}.{name[:80]}: unknown option", param=f"{where}.{name[:80]}")
        if value not in _TOOL_DEFAULTS[name]:
            raise ApiError(400, f"{where}.{name}: not supported; leave it out", param=f"{where}.{name}")
    return ToolSchema.from_dict({name: tool[name] for name in _TOOL_FIELDS if name in tool}, where)
