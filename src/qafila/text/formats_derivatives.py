"""The chat formats of models derived from Llama: ChatML (SmolLM2), Alpaca, Vicuna, Koala, Dolly.

Sources: stanford_alpaca train.py, FastChat conversation.py (Vicuna v1.1), EasyLM's Koala documentation, dolly
consts.py; ChatML is checked against the chat template in the default model's file.
"""

from __future__ import annotations

import datetime
import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qafila.errors import ChatError
from qafila.text.chat_format import ChatFormat, Rendered, TokenWriter, require_messages
from qafila.text.messages import ImagePart, Message, ToolSchema
from qafila.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qafila.text.tool_grammar import CallStyle

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# tokenizer_config.json of HuggingFaceTB/SmolLM2-135M-Instruct, and the metadata of GGUF files made of it.
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SMOLLM2_SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ChatMLFormat(ChatFormat):
    """ChatML: ``<|im_start|>role``, a line break, text, ``<|im_end|>`` and a line break.

    Tools are listed in the system message and called as ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``,
    the form most ChatML models were tuned to.

    Args:
        tokenizer: one with ``<|im_start|>`` and ``<|im_end|>``.
        default_system: the system text of a conversation that begins without one; None writes none.
    """

    name = "chatml"

    def __init__(self, tokenizer: Tokenizer, *, default_system: str | None = None) -> None:
        super().__init__(tokenizer)
        self.default_system = default_system

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        end = self._special("<|im_end|>")
        eos = self.tokenizer.eos_id
        return (end,) if eos is None or eos == end else (end, eos)

    @property
    def call_style(self) -> CallStyle | None:
        """As ``ChatFormat.call_style``."""
        return "chatml"

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
        start, end = self._special("<|im_start|>"), self._special("<|im_end|>")
        writer = TokenWriter(self.tokenizer)
        if self.tokenizer.add_bos and self.tokenizer.bos_id is not None and self.tokenizer.bos_id != start:
            writer.token(self.tokenizer.bos_id)
        for index, message in enumerate(self._with_system(messages, tools)):
            if index:
                writer.text("\n")
            writer.token(start)
            if message.role != "assistant":
                writer.text(f"{message.role}\n{message.text}")
                writer.token(end)
                continue
            writer.text("assistant\n")
            writer.break_run()
            if message.ids is not None:
                writer.ids(message.ids, learn=True)
                if message.ids and message.ids[-1] in self.stop_ids:
                    continue
            else:
                writer.text(message.text + self._calls(message), learn=True)
            writer.token(end, learn=True)
        writer.text("\n")
        if add_generation_prompt:
            writer.token(start)
            writer.text("assistant\n")
        return writer.finish()

    def _with_system(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> Sequence[Message]:
        system, rest = self.default_system, messages
        if messages[0].role == "system":
            system, rest = messages[0].text, messages[1:]
        if tools:
            listed = CHATML_TOOLS.format("\n".join(json.dumps(tool.to_dict(), ensure_ascii=False) for tool in tools))
            system = listed if system is None else f"{system}\n\n{listed}"
        return rest if system is None else [Message("system", system), *rest]

    @staticmethod
    def _calls(message: Message) -> str:
        texts = []
        for call in message.tool_calls:
            try:
                body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
            except (TypeError, ValueError, RecursionError):
                raise ChatError(f'tool call "{call.name}": arguments are not JSON values') from None
            texts.append(f"<tool_call>\n{body}\n</tool_call>")
        return "\n".join(texts)


class _PlainTextFormat(ChatFormat):
    """Formats that are text around text, over any tokenizer: nothing but BOS and EOS is a special token."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return () if self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)

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
        system, turns = self._alternating(messages, end_with_user=add_generation_prompt)
        writer = TokenWriter(self.tokenizer)
        if self.tokenizer.add_bos and self.tokenizer.bos_id is not None:
            writer.token(self.tokenizer.bos_id)
        for index, message in enumerate(turns):
            if message.role == "user":
                writer.text(self._prompt(message, first=index == 0, system=system))
                writer.break_run()
            else:
                self._answer(writer, message)
        return writer.finish()

    @abstractmethod
    def _prompt(self, message: Message, *, first: bool, system: str | None) -> str:
        """All text from the end of the last answer to the start of the next."""

    def _answer(self, writer: TokenWriter, message: Message) -> None:
        if message.ids is None:
            writer.text(self._answer_text(message.text), learn=True)
            writer.token(self._eos(), learn=True)
            return
        writer.ids(message.ids, learn=True)
        if not message.ids or message.ids[-1] not in self.stop_ids:
            writer.token(self._eos(), learn=True)
        writer.cut()

    def _answer_text(self, text: str) -> str:
        return text

    def _parse_text(self, text: str, call_ids: str, ids: tuple[int, ...] | None) -> Message:
        for stop in self.stop_strings:
            text = text.partition(stop)[0]
        return Message("assistant", text.strip(), ids=ids)


class AlpacaFormat(_PlainTextFormat):
    """Alpaca: ``### Instruction:`` and ``### Response:`` below an introduction; the answer follows the colon directly.

    A user message of two text parts is an instruction and its input. A system message replaces the introduction.
    """

    name = "alpaca"

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Text that ends an answer."""
        return ("### Instruction:",)

    def _prompt(self, message: Message, *, first: bool, system: str | None) -> str:
        instruction, given = _instruction_and_input(message)
        introduction = "\n\n"
        if first:
            default = ALPACA if given is None else ALPACA_INPUT
            introduction = (default if system is None else system) + "\n\n"
        middle = "" if given is None else f"### Input:\n{given}\n\n"
        return f"{introduction}### Instruction:\n{instruction}\n\n{middle}### Response:"


class DollyFormat(_PlainTextFormat):
    """Dolly v2: Alpaca's introduction, ``Input:`` for the input, and ``### End`` after the answer.

    A user message of two text parts is an instruction and its input. A system message replaces the introduction.
    """

    name = "dolly"

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        # Dolly's own tokenizer has the key as a special token; over any other one it is text.
        end = self.tokenizer.special_tokens.get(_DOLLY_END)
        return super().stop_ids if end is None else (*super().stop_ids, end)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Text that ends an answer."""
        return (_DOLLY_END,)

    def _prompt(self, message: Message, *, first: bool, system: str | None) -> str:
        instruction, given = _instruction_and_input(message)
        introduction = ((ALPACA if system is None else system) if first else "") + "\n\n"
        middle = "" if given is None else f"Input:\n{given}\n\n"
        return f"{introduction}### Instruction:\n{instruction}\n\n{middle}### Response:\n"

    def _answer(self, writer: TokenWriter, message: Message) -> None:
        end = self.tokenizer.special_tokens.get(_DOLLY_END)
        if message.ids is None:
            writer.text(message.text, learn=True)
            writer.text("\n\n", learn=True)
        else:
            writer.ids(message.ids, learn=True)
            if message.ids and (message.ids[-1] in self.stop_ids or self._ended(message.ids)):
                return
            writer.text("\n\n", learn=True)
        if end is None:
            writer.text(_DOLLY_END, learn=True)
        else:
            writer.token(end, learn=True)

    def _ended(self, ids: Sequence[int]) -> bool:
        return self.tokenizer.decode(ids[-16:]).rstrip().endswith(_DOLLY_END)


class VicunaFormat(_PlainTextFormat):
    """Vicuna v1.1 and later: ``USER: ... ASSISTANT: ...</s>`` below a system text, which a system message replaces."""

    name = "vicuna"

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Text that ends an answer."""
        return ("USER:",)

    def _prompt(self, message: Message, *, first: bool, system: str | None) -> str:
        introduction = f"{VICUNA if system is None else system} " if first else ""
        return f"{introduction}USER: {message.text} ASSISTANT:"

    def _answer_text(self, text: str) -> str:
        return f" {text}"


class KoalaFormat(_PlainTextFormat):
    """Koala: ``BEGINNING OF CONVERSATION: USER: ... GPT:...</s>``, no space after ``GPT:``, no system text."""

    name = "koala"

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Text that ends an answer."""
        return ("USER:",)

    def _prompt(self, message: Message, *, first: bool, system: str | None) -> str:
        if system is not None:
            raise ChatError("messages[0]: format koala has no system message; put its text into the first user message")
        return f"{'BEGINNING OF CONVERSATION: ' if first else ''}USER: {message.text} GPT:"


def _instruction_and_input(message: Message) -> tuple[str, str | None]:
    if isinstance(message.content, tuple) and len(message.content) == 2:
        instruction, given = message.content
        if not isinstance(instruction, ImagePart) and not isinstance(given, ImagePart):
            return instruction.text, given.text
    return message.text, None


_DOLLY_END = "### End"
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CHATML_TOOLS = """You may call one or more of these functions:
<tools>
{}
</tools>

For each call, answer with a JSON object with the function's name and arguments inside XML tags:
<tool_call>
{{"name": <function name>, "arguments": <arguments as a JSON object>}}
</tool_call>"""
