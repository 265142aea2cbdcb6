"""What Anthropic's clients send: bodies, content blocks and tools, each with its three lists.

The lists cover every parameter of anthropic-python 2.14, of its beta resource too. ``temperature``, ``top_p``,
``top_k`` and ``output_format`` are what earlier ones sent and it no longer does.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from qafila.server.body import Body

_CACHE = "prompts are found in the cache by their tokens, marked or not"

# Of both endpoints.
_HARMLESS = {
    "cache_control": _CACHE,
    "thinking": "advice for models that think first; these answer at once, within any budget",
    "speed": "there is one speed",
    "user_profile_id": "for the operator's records",
    "workspace_id": "there is one workspace",
    "billing_policy": "nothing is billed here",
}
_REFUSED = {
    "mcp_servers": "connect to MCP servers in your program and give their tools in tools",
    "compaction": "summarise in your program and send the shorter messages",
}
_NEUTRAL: dict[str, tuple[Any, ...]] = {"mcp_servers": ([],)}


class OutputFormat(Body):
    """What the answer's text must be."""

    model_config = ConfigDict(title="AnthropicOutputFormat")

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """How to answer."""

    model_config = ConfigDict(title="AnthropicOutputConfig")

    harmless: ClassVar = {"effort": "advice for models that think first"}
    refused: ClassVar = {"task_budget": "give max_tokens"}

    format: OutputFormat | None = None


class ContextManagement(Body):
    """Edits of the conversation before it is read; thinking is never read, so clearing it is done already."""

    model_config = ConfigDict(title="AnthropicContextManagement")

    edits: list[dict[str, Any]] | None = None


class ToolChoice(Body):
    """Which tools may be called."""

    model_config = ConfigDict(title="AnthropicToolChoice")

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Tool(Body):
    """A tool that the client runs."""

    model_config = ConfigDict(title="AnthropicTool")

    harmless: ClassVar = {
        "cache_control": _CACHE,
        "strict": "calls always match their schema",
        "eager_input_streaming": "arguments are streamed as they are generated",
    }
    refused: ClassVar = {
        "defer_loading": "there is no tool search; all tools are in the prompt",
        "allowed_callers": "only the model itself calls tools",
    }
    neutral: ClassVar = {"defer_loading": (False,), "allowed_callers": (["direct"],)}

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=128)
    description: str = ""
    input_schema: dict[str, Any]
    input_examples: list[dict[str, Any]] | None = None


class TextBlock(Body):
    """Text, in a message, a system prompt or a tool's result."""

    model_config = ConfigDict(title="AnthropicTextBlock")

    harmless: ClassVar = {"cache_control": _CACHE, "citations": "where an earlier answer's text was from"}

    type: Literal["text"]
    text: str


class ToolUseBlock(Body):
    """A call that the model made earlier."""

    model_config = ConfigDict(title="AnthropicToolUseBlock")

    harmless: ClassVar = {"cache_control": _CACHE, "caller": "it was the model"}
    refused: ClassVar = {"toolset_name": "there are no toolsets"}

    type: Literal["tool_use"]
    id: str = Field(min_length=1)
    name: str
    input: dict[str, Any]


class ToolResultBlock(Body):
    """What a call gave."""

    model_config = ConfigDict(title="AnthropicToolResultBlock")

    harmless: ClassVar = {"cache_control": _CACHE}
    refused: ClassVar = {"toolset_name": "there are no toolsets"}

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[dict[str, Any]] | None = None
    is_error: bool | None = None


class AnthropicMessage(Body):
    """One message; the blocks of its content are `TextBlock`, `ToolUseBlock` and `ToolResultBlock`."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class AnthropicCountTokensBody(Body):
    """The body of ``POST /v1/messages/count_tokens``."""

    harmless: ClassVar = {
        **_HARMLESS,
        "output_config": "a format takes no tokens of the prompt",
        "output_format": "a format takes no tokens of the prompt",
    }
    refused: ClassVar = _REFUSED
    neutral: ClassVar = _NEUTRAL

    model: str
    messages: list[AnthropicMessage] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    context_management: ContextManagement | None = None


class AnthropicMessagesBody(AnthropicCountTokensBody):
    """The body of ``POST /v1/messages``."""

    harmless: ClassVar = {
        **_HARMLESS,
        "metadata": "for the operator's records",
        "service_tier": "there is one",
        "diagnostics": "why a prompt was not in the cache is not looked into",
    }
    refused: ClassVar = {
        **_REFUSED,
        "container": "there is no code execution",
        "inference_geo": "the server runs where its operator put it",
        "fallbacks": "choose the model in your program",
        "fallback_credit_token": "there are no fallbacks",
        "thread": "conversations are not kept; send all messages",
    }
    neutral: ClassVar = {**_NEUTRAL, "fallbacks": ([],)}

    max_tokens: int = Field(ge=0)
    stream: bool | None = None
    stop_sequences: list[str] | None = Field(None, max_length=64)
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None


#: Types of content blocks that are left out because they cannot change the answer, with the reason.
HARMLESS_BLOCKS = {
    "thinking": "thinking of earlier turns is not read again",
    "redacted_thinking": "thinking of earlier turns is not read again",
}
#: Types of content blocks that are refused, with the reason.
REFUSED_BLOCKS = {
    "image": "the model reads text only",
    "document": "put the document's text into a text block",
    "search_result": "put the result's text into a text block",
    "browser_state": "the model reads text only",
    "tool_reference": "there is no tool search; all tools are in the prompt",
    "container_upload": "there is no code execution",
    "server_tool_use": "no tools run on the server",
    "web_search_tool_result": "no tools run on the server",
    "web_fetch_tool_result": "no tools run on the server",
    "code_execution_tool_result": "no tools run on the server",
    "bash_code_execution_tool_result": "no tools run on the server",
    "text_editor_code_execution_tool_result": "no tools run on the server",
    "tool_search_tool_result": "no tools run on the server",
    "advisor_tool_result": "no tools run on the server",
    "mcp_tool_use": "no tools run on the server",
    "mcp_tool_result": "no tools run on the server",
    "compaction": "summarise in your program and send the shorter messages",
    "fallback": "there are no fallbacks",
    "mcp_tool_listing": "no tools run on the server",
    "tool_addition": "give the tools of this turn in tools",
    "tool_removal": "give the tools of this turn in tools",
}
#: Beginnings of the types of tools that are refused, with the reason.
REFUSED_TOOLS = {
    "web_search_": "it runs on Anthropic's servers",
    "web_fetch_": "it runs on Anthropic's servers",
    "code_execution_": "it runs on Anthropic's servers",
    "tool_search_tool_": "it runs on Anthropic's servers",
    "advisor_": "it runs on Anthropic's servers",
    "mcp_toolset": "it runs on Anthropic's servers",
    "bash_": "Anthropic's models know it by heart, this one does not",
    "text_editor_": "Anthropic's models know it by heart, this one does not",
    "memory_": "Anthropic's models know it by heart, this one does not",
    "computer_": "Anthropic's models know it by heart, this one does not",
    "browser_": "Anthropic's models know it by heart, this one does not",
}

#: Types of content blocks that are honoured.
BLOCKS: dict[str, type[Body]] = {
    "text": TextBlock,
    "tool_use": ToolUseBlock,
    "tool_result": ToolResultBlock,
}
#: What is inside of the bodies, for the documentation.
PARTS: dict[str, type[Body]] = {
    "messages[]": AnthropicMessage,
    **{f"messages[].content[], type {name}": block for name, block in BLOCKS.items()},
    "tools[]": Tool,
    "tool_choice": ToolChoice,
    "output_config": OutputConfig,
    "output_config.format": OutputFormat,
    "context_management": ContextManagement,
}
#: Values of ``type`` inside of the bodies, for the documentation: (accepted without effect, refused).
TYPES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "messages[].content[].type": (HARMLESS_BLOCKS, REFUSED_BLOCKS),
    "tools[].type": ({}, {f"{start}*": reason for start, reason in REFUSED_TOOLS.items()}),
}
