"""Meta's chat formats from Llama 3 on: Llama 3, 3.1 (and 3.3), 3.2 and 4.

Sources: meta-llama/llama-models, prompt_format.md and chat_format.py of each family.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from qafila.errors import ChatError
from qafila.text.chat_format import ChatFormat, Rendered, TokenWriter, require_messages
from qafila.text.messages import Message, ToolCall, ToolSchema
from qafila.text.tokenizer import Tokenizer
from qafila.text.tools import CODE_INTERPRETER, ToolFormat, is_builtin, parse_tool_calls, render_tool_calls

if TYPE_CHECKING:
    from qafila.text.tool_grammar import CallStyle


class HeaderFormat(ChatFormat):
    """What Llama 3 and Llama 4 share: a header with the role, the text, and a token that ends the message."""

    header_start: ClassVar[str]
    header_end: ClassVar[str]
    turn_end: ClassVar[str]
    message_end: ClassVar[str]
    python_start: ClassVar[str]
    python_end: ClassVar[str | None] = None
    tool_format: ToolFormat = "json"
    strip: bool = False

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        names = ("<|end_of_text|>", self.message_end, self.turn_end)
        found = (self.tokenizer.token_id(name) for name in names)
        return tuple(token_id for token_id in found if token_id is not None)

    @property
    def call_style(self) -> CallStyle | None:
        """As ``ChatFormat.call_style``."""
        return self.tool_format

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSchema] = (),
        add_generation_prompt: bool = True,
        date: datetime.date | None = None,
    ) -> Rendered:
        """As ``ChatFormat.render``."""
        require_messages(messages)
        writer = TokenWriter(self.tokenizer)
        writer.token(self._special("<|begin_of_text|>"))
        system, rest = self._system(messages)
        system = self._system_text(system, tools, date)
        if system is not None:
            self._message(writer, "system", system)
        note = self._tools_as_user(tools)
        if note is not None:
            self._message(writer, "user", note)
        for message in rest:
            if message.role == "assistant":
                self._assistant(writer, message)
            elif message.role == "tool":
                self._message(writer, "ipython", message.text, end=self._end_of_tool())
            else:
                self._message(writer, message.role, message.text)
        if add_generation_prompt:
            self._header(writer, "assistant")
        return writer.finish()

    @staticmethod
    def _system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
        if messages[0].role == "system":
            return messages[0].text, messages[1:]
        return None, messages

    def _system_text(self, system: str | None, tools: Sequence[ToolSchema], date: datetime.date | None) -> str | None:
        return system

    def _tools_as_user(self, tools: Sequence[ToolSchema]) -> str | None:
        return None

    def _end_of_tool(self) -> str:
        return self.turn_end

    def _ends_message(self, calls: Sequence[ToolCall]) -> bool:
        """Whether these calls end the message and not the turn: a result is awaited."""
        return any(is_builtin(call) for call in calls)

    def _starts_python(self, calls: Sequence[ToolCall]) -> bool:
        return any(is_builtin(call) for call in calls)

    def _header(self, writer: TokenWriter, role: str) -> None:
        writer.token(self._special(self.header_start))
        writer.text(role)
        writer.token(self._special(self.header_end))
        writer.text("\n\n")
        writer.break_run()

    def _message(self, writer: TokenWriter, role: str, text: str, end: str | None = None) -> None:
        self._header(writer, role)
        writer.text(text.strip() if self.strip else text)
        writer.token(self._special(end or self.turn_end))

    def _assistant(self, writer: TokenWriter, message: Message) -> None:
        self._header(writer, "assistant")
        if message.ids is not None:
            writer.ids(message.ids, learn=True)
            if message.ids and message.ids[-1] in self.stop_ids:
                return
        else:
            python = self._starts_python(message.tool_calls)
            if python:
                writer.token(self._special(self.python_start), learn=True)
            writer.text(message.text.strip() if self.strip else message.text, learn=True)
            if message.tool_calls:
                writer.break_run()
                writer.text(render_tool_calls(message.tool_calls, self.tool_format), learn=True)
            if python and self.python_end is not None:
                writer.token(self._special(self.python_end), learn=True)
        end = self.message_end if self._ends_message(message.tool_calls) else self.turn_end
        writer.token(self._special(end), learn=True)

    def parse(self, output: str | Sequence[int], *, call_ids: str = "call") -> Message:
        """As ``ChatFormat.parse``."""
        ids = None if isinstance(output, str) else tuple(output)
        python = False
        if isinstance(output, str):
            text = output.strip(" ")
            for end in (self.turn_end, self.message_end, "<|end_of_text|>"):
                text = text.removesuffix(end)
            if python := text.startswith(self.python_start):
                text = text.removeprefix(self.python_start)
                text = text.replace(self.python_end, "") if self.python_end else text
        else:
            body = list(output)
            while body and body[-1] in self.stop_ids:
                body.pop()
            start = self.tokenizer.token_id(self.python_start)
            stop = self.tokenizer.token_id(self.python_end) if self.python_end else None
            python = bool(body) and body[0] == start
            text = self.tokenizer.decode(
                [i for i in body if i != stop] if not python else [i for i in body[1:] if i != stop]
            )
        calls = parse_tool_calls(text, id_prefix=call_ids)
        if not calls and python:
            calls = (ToolCall(f"{call_ids}_0", CODE_INTERPRETER, {"code": text}),)
        if calls:
            return Message("assistant", "", tool_calls=calls, ids=ids)
        return Message("assistant", text, ids=ids)


class Llama3Format(HeaderFormat):
    """Llama 3: ``<|start_header_id|>role<|end_header_id|>``, blank line, text, ``<|eot_id|>``; no tools.

    Args:
        tokenizer: a Llama 3 tokenizer.
        strip: white space around the text of messages goes, as in the templates of the published checkpoints.
    """

    name = "llama-3"
    header_start = "<|start_header_id|>"
    header_end = "<|end_header_id|>"
    turn_end = "<|eot_id|>"
    message_end = "<|eom_id|>"
    python_start = "<|python_tag|>"

    def __init__(self, tokenizer: Tokenizer, *, strip: bool = False) -> None:
        super().__init__(tokenizer)
        self.strip = strip

    @property
    def call_style(self) -> CallStyle | None:
        """As ``ChatFormat.call_style``."""
        return None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSchema] = (),
        add_generation_prompt: bool = True,
        date: datetime.date | None = None,
    ) -> Rendered:
        """As ``ChatFormat.render``."""
        self._refuse_tools(messages, tools)
        return super().render(messages, add_generation_prompt=add_generation_prompt)


class Llama31Format(HeaderFormat):
    """Llama 3.1 and 3.3, and 3.2 Vision: header lines in the system message, tools told in a user message.

    Args:
        tokenizer: a Llama 3 tokenizer.
        builtin_tools: ``brave_search``, ``wolfram_alpha``: the ``Tools:`` line; they imply ``ipython``.
        ipython: the line ``Environment: ipython``, which turns the code interpreter on; custom calls then begin with
            ``<|python_tag|>`` and end with ``<|eom_id|>``.
        tool_format: how custom tools are told and called: ``json`` or ``function``.
        knowledge_cutoff: the ``Cutting Knowledge Date:`` line, written with ``Today Date:`` if a date is given.
    """

    name = "llama-3.1"
    header_start = Llama3Format.header_start
    header_end = Llama3Format.header_end
    turn_end = Llama3Format.turn_end
    message_end = Llama3Format.message_end
    python_start = Llama3Format.python_start

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        builtin_tools: Sequence[str] = (),
        ipython: bool = False,
        tool_format: Literal["json", "function"] = "json",
        knowledge_cutoff: str = "December 2023",
    ) -> None:
        super().__init__(tokenizer)
        self.builtin_tools = tuple(builtin_tools)
        self.ipython = ipython or bool(builtin_tools)
        if tool_format not in ("json", "function"):
            raise ChatError(f'tool_format: "{tool_format}" is neither "json" nor "function"')
        self.tool_format = tool_format
        self.knowledge_cutoff = knowledge_cutoff

    @property
    def call_token(self) -> str | None:
        """As ``ChatFormat.call_token``."""
        return self.python_start if self.ipython and self.tool_format == "json" else None

    def _system_text(self, system: str | None, tools: Sequence[ToolSchema], date: datetime.date | None) -> str | None:
        lines = self._header_lines(date)
        if not lines:
            return system
        return "".join(f"{line}\n" for line in lines) + (f"\n{system}" if system is not None else "")

    def _header_lines(self, date: datetime.date | None) -> list[str]:
        lines = ["Environment: ipython"] if self.ipython else []
        if self.builtin_tools:
            lines.append(f"Tools: {', '.join(name for name in self.builtin_tools if name != CODE_INTERPRETER)}")
        if date is not None:
            lines.append(f"Cutting Knowledge Date: {self.knowledge_cutoff}")
            lines.append(f"Today Date: {date.day:02d} {_MONTHS[date.month - 1]} {date.year}")
        return lines

    def _tools_as_user(self, tools: Sequence[ToolSchema]) -> str | None:
        if not tools:
            return None
        if self.tool_format == "function":
            listed = "\n\n".join(
                f"Use the function '{tool.name}' to '{tool.description}':\n{_line(tool.function())}" for tool in tools
            )
            return _FUNCTION_TOOLS.format(listed)
        return _JSON_TOOLS.format("\n".join(_pretty(tool.to_dict()) for tool in tools))

    def _ends_message(self, calls: Sequence[ToolCall]) -> bool:
        return bool(calls) and (self._starts_python(calls))

    def _starts_python(self, calls: Sequence[ToolCall]) -> bool:
        custom = self.ipython and self.tool_format == "json"
        return bool(calls) and (custom or any(is_builtin(call) for call in calls))


class Llama32Format(Llama31Format):
    """Llama 3.2 1B and 3B: as 3.1, with tools listed in the system message and called as a Python list."""

    name = "llama-3.2"

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        builtin_tools: Sequence[str] = (),
        ipython: bool = False,
        knowledge_cutoff: str = "December 2023",
    ) -> None:
        super().__init__(tokenizer, builtin_tools=builtin_tools, ipython=ipython, knowledge_cutoff=knowledge_cutoff)
        self.tool_format = "pythonic"

    def _system_text(self, system: str | None, tools: Sequence[ToolSchema], date: datetime.date | None) -> str | None:
        if tools:
            listed = _PYTHONIC_TOOLS.format(_pretty([tool.function() for tool in tools]))
            system = listed if system is None else f"{listed}\n{system}"
        return super()._system_text(system, tools, date)

    def _tools_as_user(self, tools: Sequence[ToolSchema]) -> str | None:
        return None


class Llama4Format(HeaderFormat):
    """Llama 4: shorter special tokens, pythonic calls; calls and tool results end with ``<|eom|>``."""

    name = "llama-4"
    header_start = "<|header_start|>"
    header_end = "<|header_end|>"
    turn_end = "<|eot|>"
    message_end = "<|eom|>"
    python_start = "<|python_start|>"
    python_end = "<|python_end|>"
    tool_format = "pythonic"

    def _system_text(self, system: str | None, tools: Sequence[ToolSchema], date: datetime.date | None) -> str | None:
        if not tools:
            return system
        listed = _LLAMA4_TOOLS.format(_pretty([tool.function() for tool in tools]))
        return listed if system is None else f"{system}\n\n{listed}"

    def _end_of_tool(self) -> str:
        return self.message_end

    def _ends_message(self, calls: Sequence[ToolCall]) -> bool:
        return bool(calls)

    def _starts_python(self, calls: Sequence[ToolCall]) -> bool:
        return any(call.name == CODE_INTERPRETER for call in calls)


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _pretty(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=4)


_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

# What the models were trained to read, word for word from the prompt formats named above.
_JSON_TOOLS = """Answer the user's question by making use of the following functions if needed.
If none of the function can be used, please say so.
Here is a list of functions in JSON format:
{}

Return function calls in JSON format."""

_FUNCTION_TOOLS = """You have access to the following functions:

{}

Think very carefully before calling functions.
If you choose to call a function ONLY reply in the following format with no prefix or suffix:

<function=example_function_name>{{"example_name": "example_value"}}</function>

Reminder:
- If looking for real time information use relevant functions before falling back to brave_search
- Function calls MUST follow the specified format, start with <function= and end with </function>
- Required parameters MUST be specified
- Only call one function at a time
- Put the entire function call reply on one line"""

_PYTHONIC_TOOLS = """You are an expert in composing functions. You are given a question and a set of possible functions.
Based on the question, you will need to make one or more function/tool calls to achieve the purpose.
If none of the function can be used, point it out. If the given question lacks the parameters required by the function,
also point it out. You should only return the function call in tools call sections.

If you decide to invoke any of the function(s), you MUST put it in the format of \
[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]
You SHOULD NOT include any other text in the response.

Here is a list of functions in JSON format that you can invoke.

{}"""

_LLAMA4_TOOLS = """Here is a list of functions in JSON format that you can invoke:
{}

Should you decide to return the function call(s), put them in the format of \
[func1(params_name=params_value, params_name2=params_value2...), func2(params)]

You SHOULD NOT include any other text in the response."""
