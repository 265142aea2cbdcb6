"""Meta's chat formats before Llama 3: Llama 2 Chat, Code Llama Instruct and Code Llama's infilling.

Sources: meta-llama/llama generation.py, meta-llama/codellama generation.py and tokenizer.py.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import ClassVar

from qafila.errors import ChatError
from qafila.text.chat_format import ChatFormat, Rendered, TokenWriter
from qafila.text.messages import Message, ToolSchema
from qafila.text.tokenizer import Tokenizer


class Llama2Format(ChatFormat):
    """Llama 2 Chat and Code Llama Instruct 7B, 13B and 34B: ``<s>[INST] <<SYS>>...<</SYS>> user [/INST] answer </s>``.

    Each turn has a BOS of its own, and an answer ends in a space before EOS: the reference encodes it so. Text with the
    format's own tags in it is refused, as there.
    """

    name = "llama-2"
    tags: ClassVar[tuple[str, ...]] = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return (self._eos(),)

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
        self._refuse_tags(messages)
        system, turns = self._alternating(messages, end_with_user=add_generation_prompt)
        if self.tokenizer.bos_id is None:
            raise ChatError(f"format {self.name}: the tokenizer has no BOS token; choose another chat format")
        writer = TokenWriter(self.tokenizer)
        for index, message in enumerate(turns):
            if message.role == "user":
                text = message.text
                if index == 0 and system is not None:
                    text = f"<<SYS>>\n{system}\n<</SYS>>\n\n{text}"
                writer.token(self.tokenizer.bos_id)
                writer.text(f"[INST] {text.strip()} [/INST]")
            else:
                if message.ids is None:
                    writer.text(f" {message.text.strip()} ", learn=True)
                    writer.token(self._eos(), learn=True)
                else:
                    writer.ids(message.ids, learn=True)
                    if message.ids[-1:] != (self._eos(),):
                        writer.token(self._eos(), learn=True)
        return writer.finish()

    def _parse_text(self, text: str, call_ids: str, ids: tuple[int, ...] | None) -> Message:
        return Message("assistant", text.strip(), ids=ids)

    def _refuse_tags(self, messages: Sequence[Message]) -> None:
        for index, message in enumerate(messages):
            for tag in self.tags if message.ids is None else ():
                if tag in message.text:
                    raise ChatError(f'messages[{index}]: text with the tag "{tag}" is refused by format {self.name}')


class CodeLlamaFormat(Llama2Format):
    """Code Llama Instruct 7B, 13B and 34B: as Llama 2, and ``<step>`` is refused too."""

    name = "code-llama"
    tags = (*Llama2Format.tags, "<step>")


class CodeLlama70BFormat(CodeLlamaFormat):
    """Code Llama 70B Instruct: `` Source: role``, `` Destination: user`` for answers, ``<step>`` after each message.

    The reference writes an old answer without the ``Destination`` line that it was asked for with; here it keeps it, so
    that a conversation only ever grows.
    """

    name = "code-llama-70b"

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return (self._special("<step>"), self._eos())

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
        self._refuse_tags(messages)
        system, turns = self._alternating(messages, end_with_user=add_generation_prompt)
        if self.tokenizer.bos_id is None:
            raise ChatError(f"format {self.name}: the tokenizer has no BOS token; choose another chat format")
        step = self._special("<step>")
        writer = TokenWriter(self.tokenizer)
        writer.token(self.tokenizer.bos_id)
        for message in (Message("system", system or ""), *turns):
            if message.role == "assistant":
                self._reply_header(writer)
                if message.ids is None:
                    writer.text(message.text.strip(), learn=True)
                else:
                    writer.ids(message.ids, learn=True)
                if message.ids is None or message.ids[-1:] not in ((step,), (self._eos(),)):
                    writer.token(step, learn=True)
                continue
            writer.text(f" Source: {message.role}")
            writer.cut()
            if message.text:
                writer.text(f"\n\n {message.text.strip()}")
            writer.token(step)
        if add_generation_prompt:
            self._reply_header(writer)
        return writer.finish()

    @staticmethod
    def _reply_header(writer: TokenWriter) -> None:
        writer.cut()
        writer.text(" Source: assistant\nDestination: user")
        writer.cut()
        writer.text("\n\n ")
        writer.break_run()


class CodeLlamaInfill:
    """Filling in the middle with Code Llama 7B, 13B and 70B base: not a chat, one prompt and the text between.

    Raises:
        ChatError: the tokenizer has no infilling tokens (34B, Python and other models).
    """

    name = "code-llama-infill"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._prefix, self._suffix, self._middle, self._end = (self._find(n) for n in ("PRE", "SUF", "MID", "EOT"))

    def _find(self, name: str) -> int:
        for spelling in (f"▁<{name}>", f"<{name}>"):
            token_id = self.tokenizer.token_id(spelling)
            if token_id is not None:
                return token_id
        raise ChatError(f'infilling: the tokenizer has no token "▁<{name}>"; use Code Llama 7B, 13B or 70B')

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The token that ends the middle, and EOS."""
        return (self._end,) if self.tokenizer.eos_id is None else (self._end, self.tokenizer.eos_id)

    def infill(self, prefix: str, suffix: str, *, spm: bool = False) -> list[int]:
        """Token ids of the prompt whose continuation is the text between ``prefix`` and ``suffix``.

        Args:
            prefix: what stands before.
            suffix: what stands after; it is tokenised without SentencePiece's leading space.
            spm: suffix first (suffix-prefix-middle) instead of prefix-suffix-middle.
        """
        before = self.tokenizer.encode(prefix)
        after = self.tokenizer.encode_continuation(suffix)
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        if spm:
            return [*bos, self._prefix, self._suffix, *after, self._middle, *before]
        return [*bos, self._prefix, *before, self._suffix, *after, self._middle]
