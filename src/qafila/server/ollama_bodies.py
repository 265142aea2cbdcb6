"""What Ollama's clients send: bodies and options, each with its three lists.

They cover every parameter of ollama-python 0.6.3, and what Ollama's documentation and its command line send besides.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from qafila.chat.client import Generation, GrammarSpec
from qafila.server.body import Body
from qafila.server.errors import ApiError

_KEEP_ALIVE = {"keep_alive": "the operator says how long models stay loaded"}
_TEXT_ONLY = "the model reads text only"
_PLACEMENT = "the operator places the model; the answer is the same wherever it is computed"


class OllamaOptions(Body):
    """The ``options`` of a request."""

    harmless: ClassVar = {
        **dict.fromkeys(
            ("numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "use_mmap", "use_mlock", "num_thread"), _PLACEMENT
        ),
        "f16_kv": "the operator chooses the type of the KV cache",
        "logits_all": "it changes no token",
        "num_ctx": "the operator sets the context; a prompt that does not fit is refused, never cut",
        "num_keep": "a prompt that does not fit is refused, never cut",
        "mirostat_tau": "only with mirostat",
        "mirostat_eta": "only with mirostat",
    }
    refused: ClassVar = {
        "tfs_z": "use top_p or min_p",
        "typical_p": "use top_p or min_p",
        "mirostat": "use temperature, top_p or min_p",
        "penalize_newline": "penalties know no exception",
        "repeat_last_n": "repeat_penalty looks at the whole context",
        "vocab_only": "models are loaded whole",
        "embedding_only": "models are loaded whole",
    }
    neutral: ClassVar = {
        "tfs_z": (1,),
        "typical_p": (1,),
        "mirostat": (0,),
        "penalize_newline": (True,),
        "repeat_last_n": (-1,),
        "vocab_only": (False,),
        "embedding_only": (False,),
    }

    temperature: float | None = Field(None, ge=0, le=10)
    top_k: int | None = Field(None, description="0 or less: all tokens.")
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64, description="-1: another one each time.")
    num_predict: int | None = Field(None, description="Most tokens of the answer; 0 or less: up to the context's end.")
    stop: list[str] | str | None = None
    repeat_penalty: float | None = Field(None, ge=1e-3, le=1e3)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)


class _Generating(Body):
    """What chat and generate share."""

    model: str = Field(min_length=1)
    stream: bool = True
    format: Literal["", "json"] | dict[str, Any] | None = Field(None, description="``json``, or a JSON schema.")
    options: OllamaOptions | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    def generation(self) -> Generation:
        """How to generate.

        Raises:
            ApiError: options that do not go together.
        """
        options = self.options or OllamaOptions.model_validate({})
        stop = (options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ())
        if any(not text for text in stop):
            raise ApiError(400, "options.stop: an empty string ends nothing; leave it out", param="options.stop")
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs: only with logprobs", param="top_logprobs")
        limit, seed = options.num_predict, options.seed
        return Generation(
            max_tokens=None if limit is None or limit <= 0 else limit,
            stop=stop,
            # Seeds below -1 are 64-bit patterns like any other.
            seed=None if seed is None or seed == -1 else seed % (1 << 64),
            temperature=options.temperature,
            top_k=None if options.top_k is None else max(0, options.top_k),
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repeat_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            answer=self._answer(),
        )

    def _answer(self) -> GrammarSpec | None:
        if isinstance(self.format, dict):
            return GrammarSpec("json_schema", json.dumps(self.format))
        return GrammarSpec("json_object") if self.format == "json" else None


_FITTING = {
    "truncate": "a prompt that does not fit is refused, never cut",
    "shift": "an answer ends where the context does",
}


class OllamaChatBody(_Generating):
    """The body of ``POST /api/chat``."""

    harmless: ClassVar = _KEEP_ALIVE
    refused: ClassVar = {"think": "no model here thinks first", **_FITTING}
    neutral: ClassVar = {"think": (False,), "truncate": (False,), "shift": (False,)}

    messages: list[dict[str, Any]] | None = Field(None, description="None: load the model.")
    tools: list[dict[str, Any]] | None = Field(None, max_length=128)


class OllamaGenerateBody(_Generating):
    """The body of ``POST /api/generate``."""

    harmless: ClassVar = _KEEP_ALIVE
    refused: ClassVar = {
        **OllamaChatBody.refused,
        "template": "the model's own is used; with raw the prompt is taken as it is",
        "context": "send the conversation to /api/chat",
        "images": _TEXT_ONLY,
        "width": "there are no image models",
        "height": "there are no image models",
        "steps": "there are no image models",
    }
    neutral: ClassVar = {**OllamaChatBody.neutral, "template": ("",), "context": ([],), "images": ([],)}

    prompt: str | None = Field(None, description="Empty: load the model.")
    suffix: str | None = Field(None, description="Text after the gap, for models with infill tokens.")
    system: str | None = None
    raw: bool = Field(False, description="The prompt is no message: continue it as it is, special tokens included.")


class OllamaEmbedBody(Body):
    """The body of ``POST /api/embed``."""

    harmless: ClassVar = {**_KEEP_ALIVE, "options": "they are about generating"}

    model: str = Field(min_length=1)
    input: str | list[str]
    truncate: bool = Field(True, description="Cut what does not fit the context, instead of refusing it.")
    dimensions: int | None = Field(None, ge=1, description="Keep so many, and make the vector of length one again.")


class OllamaEmbeddingsBody(Body):
    """The body of ``POST /api/embeddings``."""

    harmless: ClassVar = {**_KEEP_ALIVE, "options": "they are about generating"}

    model: str = Field(min_length=1)
    prompt: str | None = None


class OllamaShowBody(Body):
    """The body of ``POST /api/show``."""

    refused: ClassVar = {
        "system": "the operator registers models",
        "template": "the operator registers models",
        "options": "the operator registers models",
        "verbose": "the vocabulary is not told",
    }
    neutral: ClassVar = {"system": ("",), "template": ("",), "options": ({},), "verbose": (False,)}

    model: str | None = None
    name: str | None = Field(None, description="An older name of model.")


class OllamaMessage(Body):
    """One message of a conversation."""

    harmless: ClassVar = {"thinking": "thinking of earlier turns is not read again"}
    refused: ClassVar = {"images": _TEXT_ONLY}
    neutral: ClassVar = {"images": ([],)}

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: list[dict[str, Any]] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaFunctionCall(Body):
    """What a tool call calls."""

    harmless: ClassVar = {"index": "calls are in order", "description": "the tool's schema has one"}

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class OllamaToolCall(Body):
    """A call that the model made earlier."""

    model_config = ConfigDict(title="OllamaToolCall")

    id: str | None = None
    type: Literal["function"] = "function"
    function: OllamaFunctionCall


#: What is inside of the bodies, for the documentation.
PARTS: dict[str, type[Body]] = {
    "options": OllamaOptions,
    "messages[]": OllamaMessage,
    "messages[].tool_calls[]": OllamaToolCall,
    "messages[].tool_calls[].function": OllamaFunctionCall,
}
