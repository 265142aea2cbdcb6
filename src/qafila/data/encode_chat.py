"""Conversations and pairs of answers as tokens. What is learned comes out of the pass that writes the chat format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qafila.data.encode import CHOSEN, PLAIN, REJECTED, Document, Encoder, EncoderSettings, Unit
from qafila.data.forms import Example
from qafila.data.problems import ExampleError
from qafila.text.chat_format import ChatFormat
from qafila.text.formats_derivatives import AlpacaFormat, DollyFormat
from qafila.text.messages import Message, TextPart
from qafila.text.template import TemplateFormat


@dataclass(frozen=True, slots=True)
class _Told:
    """A conversation as tokens: ids, the mask, and the span of each answer with its end."""

    ids: NDArray[np.uint32]
    mask: NDArray[np.bool_]
    answers: list[tuple[int, int]]


class _Answers(Encoder):
    """What encoders of conversations share.

    The mask is the chat format's own, with two things taken out of it: answers that are only to be read, and what the
    format puts behind an answer that was cut off. Such an answer carries the ``ids`` it was generated as, and they have
    no end: learning one there would teach the model to stop in the middle.
    """

    def __init__(self, settings: EncoderSettings, chat: ChatFormat) -> None:
        super().__init__(settings, chat.tokenizer)
        self.chat = chat
        self._stop_ids = frozenset(chat.stop_ids)
        # A template reads its clock where it is told no day, and a pack must not depend on the day it is made.
        # Formats of ours name no day then, as in the chat.
        self._date = settings.date if isinstance(chat, TemplateFormat) else None

    def _tell(self, example: Example, messages: Sequence[Message], learn: Sequence[bool]) -> _Told:
        """Raises ExampleError where the format gives no answer, or one without an end."""
        told = self.chat.render(
            as_shown(example, messages, self.chat), tools=example.tools, add_generation_prompt=False, date=self._date
        )
        ids = np.array(told.ids, dtype=np.uint32)
        mask = np.array(told.mask, dtype=np.bool_)
        if not mask.any():
            raise ExampleError("no-target", f"chat format {self.chat.name} shows no answer of this conversation")
        answers = _runs(mask)
        said = [(m, wanted) for m, wanted in zip(messages, learn, strict=True) if m.role == "assistant"]
        if len(answers) == len(said):
            for (start, end), (message, wanted) in zip(answers, said, strict=True):
                if not wanted:
                    mask[start:end] = False
                elif message.ids is not None and not (message.ids and message.ids[-1] in self._stop_ids):
                    mask[start + len(message.ids) : end] = False
                else:
                    self._check_end(told.ids[max(start, end - _LOOK_BACK) : end])
        elif any(not wanted or message.ids is not None for message, wanted in said):
            raise ExampleError(
                "refused",
                f"chat format {self.chat.name} does not show where each answer is; leave ids and weight out, or name "
                "another format",
            )
        else:
            for start, end in answers:
                self._check_end(told.ids[max(start, end - _LOOK_BACK) : end])
        return _Told(ids, mask, answers)

    def _check_end(self, last: Sequence[int]) -> None:
        """An answer without an end is how a model learns never to stop."""
        if last[-1] in self._stop_ids:
            return
        text = self.tokenizer.decode(last)
        if not any(text.rstrip().endswith(stop) for stop in self.chat.stop_strings):
            raise ExampleError(
                "refused",
                f"chat format {self.chat.name} writes no end after an answer, so a model would learn not to stop; "
                "name another format",
            )


class ChatEncoder(_Answers):
    """Conversations: the answers and the token that ends each are learned."""

    def _units(self, example: Example) -> list[Unit]:
        if example.kind == "preference":
            raise ExampleError("refused", "objective sft learns conversations, and this is a pair of answers; use dpo")
        if example.kind == "text":
            raise ExampleError("refused", "objective sft learns conversations, and this is a text; use pretrain")
        told = self._tell(example, example.messages, example.learn)
        sequence = self.settings.sequence
        mask = told.mask
        mask[0] = False
        if not mask.any():
            raise ExampleError("no-target", "no token of an answer is to be learned")
        end = int(np.flatnonzero(mask)[-1]) + 1  # what comes after the last target teaches nothing
        ids, mask = told.ids[:end], mask[:end]
        if end > sequence:
            if self.settings.overlong == "skip":
                raise self._overlong(end)
            ids, mask = ids[:sequence], mask[:sequence]
            if not mask.any():
                raise self._overlong(end, ", and no answer begins within them")
        return [(Document(ids, mask, PLAIN),)]


class PairEncoder(_Answers):
    """Pairs of answers to one prompt: two documents, the chosen one first, that share a row."""

    def __init__(self, settings: EncoderSettings, chat: ChatFormat) -> None:
        super().__init__(settings, chat)
        # A reward is read at the end token, and has no log-probabilities to keep it out of.
        self._without_special = settings.mask_format_tokens and settings.objective == "dpo"
        self._special = np.array(sorted({*chat.tokenizer.special_tokens.values(), *self._stop_ids}), dtype=np.uint32)

    def _units(self, example: Example) -> list[Unit]:
        if example.kind != "preference":
            raise ExampleError(
                "refused",
                f"objective {self.settings.objective} learns pairs of answers, and this is a {example.kind}: "
                'give {"prompt", "chosen", "rejected"}',
            )
        chosen, rejected = self._side(example, example.chosen), self._side(example, example.rejected)
        lengths = self._lengths(len(chosen[0]), len(rejected[0]))
        pair = []
        for (ids, mask), length, kind in zip((chosen, rejected), lengths, (CHOSEN, REJECTED), strict=True):
            if not mask[:length].any():
                whole = len(ids) <= length
                raise (
                    ExampleError("no-target", "an answer of the pair has no token to learn")
                    if whole
                    else self._overlong(len(chosen[0]) + len(rejected[0]), " that a pair shares")
                )
            pair.append(Document(ids[:length], mask[:length], kind, example.margin))
        if np.array_equal(pair[0].ids, pair[1].ids):
            raise ExampleError("no-target", "chosen and rejected are the same tokens")
        return [(pair[0], pair[1])]

    def _side(self, example: Example, answer: Sequence[Message]) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        messages = [*example.messages, *answer]
        learn = [index >= len(example.messages) for index in range(len(messages))]
        told = self._tell(example, messages, learn)
        end = told.answers[-1][1]
        ids, mask = told.ids[:end], told.mask[:end]
        if self._without_special:
            mask &= ~np.isin(ids, self._special)
        mask[0] = False
        return ids, mask

    def _lengths(self, chosen: int, rejected: int) -> tuple[int, int]:
        """How much of each side fits: the shorter is kept whole if it takes no more than half of the row."""
        row = self.settings.sequence
        if chosen + rejected <= row:
            return chosen, rejected
        if self.settings.overlong == "skip":
            raise self._overlong(chosen + rejected, " that a pair shares")
        half = row // 2
        return min(chosen, max(half, row - rejected)), min(rejected, max(half, row - chosen))


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where runs of True begin and end."""
    padded = np.zeros(len(mask) + 2, dtype=np.bool_)
    padded[1:-1] = mask
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def as_shown(example: Example, messages: Sequence[Message], chat: ChatFormat) -> Sequence[Message]:
    """Messages of an example as a chat format gets them: one text where it has no place of its own for an input.

    Args:
        example: says whether a user message of two parts is an instruction and its input.
        messages: the example's, or some of them.
        chat: the format that will write them.
    """
    if not example.has_input or isinstance(chat, AlpacaFormat | DollyFormat):
        return messages
    return [_one_text(message) for message in messages]


def _one_text(message: Message) -> Message:
    """An instruction with its input, for formats that have no place of its own for the input."""
    if not isinstance(message.content, tuple) or not all(isinstance(part, TextPart) for part in message.content):
        return message
    return replace(message, content="\n\n".join(part.text for part in message.content if isinstance(part, TextPart)))


_LOOK_BACK: Final = 16
