"""What OpenAI's clients send to generate, and how it becomes a `Generation`."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from qafila.chat.client import Generation, GrammarSpec
from qafila.server.body import Body
from qafila.server.errors import ApiError

_HARMLESS = {
    "user": "for the operator's records; limits follow the key",
    "metadata": "for the operator's records",
    "store": "chat completions are never kept",
    "safety_identifier": "for the operator's records",
    "prompt_cache_key": "prompts are found in the cache by their tokens",
    "prompt_cache_retention": "the cache keeps what fits",
    "prompt_cache_options": "prompts are found in the cache by their tokens",
    "service_tier": "there is one",
    "prediction": "guesses change no token; ours come from the text itself",
    "verbosity": "advice for models tuned to it",
    "reasoning_effort": "advice for models that think first",
}

Stop = Annotated[str | list[str] | None, Field(description="Up to 16 strings that end an answer.")]


class StreamOptions(Body):
    """What else a stream tells."""

    harmless: ClassVar = {"include_obfuscation": "padding against eavesdroppers on the length of pieces"}

    include_usage: bool = False


class Sampling(Body):
    """What chat and text completions share."""

    model: str
    n: int = Field(1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Stop = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    # Not OpenAI's; as vLLM and llama.cpp's server call them.
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=1e-3, le=1e3)
    regex: str | None = None
    grammar: str | None = None

    def generation(
        self, *, max_tokens: int | None, logprobs: int | None, answer: GrammarSpec | None = None
    ) -> Generation:
        """The same as the engine wants it.

        Raises:
            ApiError: options that do not go together, or out of range.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stop) > 16:
            raise ApiError(400, f"stop: {len(stop)} strings are too many; give at most 16", param="stop")
        if any(not text for text in stop):
            raise ApiError(400, "stop: an empty string ends nothing; leave it out", param="stop")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options: only with stream", param="stream_options")
        given = [("response_format", answer), ("regex", self.regex), ("grammar", self.grammar)]
        named = [name for name, value in given if value is not None]
        if len(named) > 1:
            raise ApiError(400, f"{named[1]}: does not go together with {named[0]}", param=named[1])
        if self.regex is not None:
            answer = GrammarSpec("regex", self.regex)
        elif self.grammar is not None:
            answer = GrammarSpec("lark", self.grammar)
        return Generation(
            max_tokens=max_tokens,
            stop=stop,
            # Seeds below zero are 64-bit patterns like any other.
            seed=None if self.seed is None else self.seed % (1 << 64),
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=_bias(self.logit_bias),
            n=self.n,
            logprobs=logprobs,
            answer=answer,
        )


def _bias(given: dict[str, float] | None) -> dict[int, float] | None:
    if given is None:
        return None
    try:
        return {int(token): value for token, value in given.items()}
    except ValueError:
        wrong = next(token for token in given if not token.strip().isdecimal())
        raise ApiError(400, f"logit_bias: {wrong!r:.40} is no token id", param="logit_bias") from None


class JsonSchema(Body):
    """A schema with a name, of a response format."""

    name: str = Field(max_length=64)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self, where: str = "response_format") -> GrammarSpec | None:
        """What the answer must match. A schema is kept to exactly, whether ``strict`` or not."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return GrammarSpec("json_object")
        if self.json_schema is None or self.json_schema.schema_ is None:
            name = f"{where}.json_schema" + ("" if self.json_schema is None else ".schema")
            raise ApiError(400, f"{name}: missing", param=name)
        return GrammarSpec("json_schema", json.dumps(self.json_schema.schema_))


class FunctionName(Body):
    """A function by name."""

    name: str


class NamedTool(Body):
    """The one tool that must be called."""

    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(Body):
    """The tools that may, or must, be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedToolsChoice(Body):
    """A choice among some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class ChatBody(Sampling):
    """The body of ``POST /v1/chat/completions``."""

    model_config = ConfigDict(title="ChatCompletionRequest")

    harmless: ClassVar = _HARMLESS
    refused: ClassVar = {
        "audio": "there is no speech",
        "modalities": "answers are text",
        "web_search_options": "give a tool that searches",
        "function_call": "use tool_choice",
        "functions": "use tools",
        "moderation": "no moderation runs on this endpoint",
    }
    neutral: ClassVar = {"modalities": (["text"],), "function_call": ("none",), "functions": ([],)}

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)
    tool_choice: Literal["auto", "none", "required"] | NamedTool | AllowedToolsChoice | None = None
    parallel_tool_calls: bool | None = None
