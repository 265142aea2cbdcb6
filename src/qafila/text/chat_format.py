"""What every chat format does: messages to token ids with the loss mask in the same pass, and ids back to a message."""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qafila.errors import ChatError
from qafila.text.messages import Message, ToolSchema
from qafila.text.tokenizer import Tokenizer
from qafila.text.tools import parse_tool_calls

if TYPE_CHECKING:
    from qafila.text.tool_grammar import CallStyle


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens.

    Attributes:
        ids: the token ids.
        mask: one flag a token, True exactly for what the model should learn: the text of assistant messages and the
            token that ends each.
    """

    ids: list[int]
    mask: list[bool]


class TokenWriter:
    """Collects tokens and their mask; text is tokenised only when its run ends.

    A run is what the reference of a format tokenises in one call. It ends at a special token, where learning begins or
    ends, and at ``cut``. A run that directly continues text is tokenised with ``encode_continuation``, so that
    SentencePiece puts no second dummy space into the middle of a line.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._mask: list[bool] = []
        self._run: list[str] = []
        self._learn = False
        self._continues = False

    def token(self, token_id: int, *, learn: bool = False) -> None:
        """Add one special token."""
        self.cut()
        self._ids.append(token_id)
        self._mask.append(learn)

    def text(self, text: str, *, learn: bool = False) -> None:
        """Add text, which never yields a special token, whatever it looks like."""
        if learn != self._learn:
            self._flush()
            self._learn = learn
        self._run.append(text)

    def ids(self, ids: Sequence[int], *, learn: bool = False) -> None:
        """Add tokens as they are; text that follows continues them."""
        if wrong := next((i for i in ids if not 0 <= i < self._tokenizer.vocab_size), None):
            raise ChatError(
                f"messages: the ids of an answer hold {wrong}, outside the vocabulary of {self._tokenizer.vocab_size} "
                "tokens; leave ids out, or use the model that gave the answer"
            )
        self._flush()
        self._ids.extend(ids)
        self._mask.extend([learn] * len(ids))
        self._continues = True

    def cut(self) -> None:
        """End the run; text that follows is tokenised as if it stood at the start of a line."""
        self._flush()
        self._continues = False

    def break_run(self) -> None:
        """End the run; text that follows is tokenised on its own, but as the continuation that it is."""
        self._flush()

    def finish(self) -> Rendered:
        """All tokens and their mask."""
        self._flush()
        return Rendered(self._ids, self._mask)

    def _flush(self) -> None:
        text = "".join(self._run)
        self._run.clear()
        if not text:
            return
        encode = self._tokenizer.encode_continuation if self._continues else self._tokenizer.encode
        ids = encode(text)
        self._ids.extend(ids)
        self._mask.extend([self._learn] * len(ids))
        self._continues = True


class ChatFormat(ABC):
    """How one family of models writes a conversation.

    In a growing conversation the ids of turn t+1 begin with those of turn t, if each answer's message keeps the ``ids``
    it was generated as.
    """

    name: str

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @abstractmethod
    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSchema] = (),
        add_generation_prompt: bool = True,
        date: datetime.date | None = None,
    ) -> Rendered:
        """Messages as token ids and the mask of what is to be learned.

        Args:
            messages: the conversation.
            tools: what the model may call, in the form of this family.
            add_generation_prompt: end with the header of the assistant's answer.
            date: today, for formats that tell the model. Without it formats of ours name no day, and a checkpoint's
                template reads its clock.

        Raises:
            ChatError: the format cannot express these messages.
        """

    @property
    @abstractmethod
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Text that ends an answer, for formats whose end is not a token."""
        return ()

    @property
    def call_style(self) -> CallStyle | None:
        """How the model writes tool calls; None where the format has no tools."""
        return None

    @property
    def call_token(self) -> str | None:
        """The special token that calls of tools begin with, where there is one."""
        return None

    def parse(self, output: str | Sequence[int], *, call_ids: str = "call") -> Message:
        """What the model answered, as a message: its text, or its tool calls.

        Args:
            output: the ids as generated (with or without the end token), which the message then keeps, or text.
            call_ids: the tool calls of the message get the ids ``<call_ids>_0``, ``<call_ids>_1``, ...
        """
        if isinstance(output, str):
            return self._parse_text(output, call_ids, None)
        ids = tuple(output)
        end = len(ids)
        while end and ids[end - 1] in self.stop_ids:
            end -= 1
        return self._parse_text(self.tokenizer.decode(ids[:end]), call_ids, ids)

    def _parse_text(self, text: str, call_ids: str, ids: tuple[int, ...] | None) -> Message:
        calls = parse_tool_calls(text, id_prefix=call_ids)
        if calls:
            return Message("assistant", "", tool_calls=calls, ids=ids)
        return Message("assistant", text, ids=ids)

    def _special(self, *names: str) -> int:
        """The id of the first of these special tokens that the vocabulary has."""
        for name in names:
            token_id = self.tokenizer.token_id(name)
            if token_id is not None:
                return token_id
        raise ChatError(f'format {self.name}: the tokenizer has no token "{names[0]}"; choose another chat format')

    def _eos(self) -> int:
        if self.tokenizer.eos_id is None:
            raise ChatError(
                f"format {self.name}: the tokenizer has no end-of-sequence token; choose another chat format"
            )
        return self.tokenizer.eos_id

    def _refuse_tools(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> None:
        """Raise ChatError where tools, tool calls or tool answers are in what this format has no place for."""
        if tools:
            raise ChatError(f"tools: format {self.name} has no tool calls; leave tools out or choose another model")
        for index, message in enumerate(messages):
            if message.role == "tool" or message.tool_calls:
                raise ChatError(f"messages[{index}]: format {self.name} has no tool calls; leave this message out")

    def _alternating(self, messages: Sequence[Message], *, end_with_user: bool) -> tuple[str | None, list[Message]]:
        """The system text, and the rest: user and assistant in turn, the user first (and, for a reply, last)."""
        system, rest = (
            (messages[0].text, list(messages[1:]))
            if messages and messages[0].role == "system"
            else (None, list(messages))
        )
        offset = len(messages) - len(rest)
        for index, message in enumerate(rest):
            expected = "assistant" if index % 2 else "user"
            if message.role != expected:
                raise ChatError(
                    f"messages[{index + offset}]: format {self.name} takes an optional system message, then user and "
                    f"assistant in turn; expected {expected}, not {message.role}"
                )
        if not rest:
            raise ChatError(f"messages: format {self.name} needs at least one user message")
        if end_with_user and rest[-1].role != "user":
            raise ChatError(f"messages[{len(messages) - 1}]: to get an answer, the last message must be from the user")
        return system, rest


def require_messages(messages: Sequence[Message]) -> None:
    """Raise ChatError for an empty conversation."""
    if not messages:
        raise ChatError("messages: the conversation is empty; give at least one message")


def append_only(chat: ChatFormat, messages: Sequence[Message], *, tools: Sequence[ToolSchema] = ()) -> bool:
    """Whether, on this conversation, every turn's prompt with the answer it got begins the next turn's prompt.

    The assistant messages should carry ``ids``; those without are taken as the format renders them. Checkpoint
    templates that drop or rewrite earlier turns (hidden reasoning, moved tools) give False: no cache survives them.
    """
    known: list[int] = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = chat.render(messages[:index], tools=tools).ids
        if prompt[: len(known)] != known:
            return False
        known = prompt + list(message.ids or ())
        told = chat.render(messages[: index + 1], tools=tools, add_generation_prompt=False).ids
        if told[: len(known)] != known:
            return False
    return True
