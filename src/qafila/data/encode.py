"""Examples as tokens: what is fed to the model, and which of the tokens it is to learn."""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qafila.data.forms import Example
from qafila.data.problems import ExampleError
from qafila.errors import ChatError, TokenizerError, UsageError
from qafila.text.chat_format import ChatFormat
from qafila.text.tokenizer import Tokenizer

PLAIN: Final = 0
"""Kind of a document that stands alone."""
CHOSEN: Final = 1
"""Kind of the preferred answer of a pair, with its prompt in front."""
REJECTED: Final = 2
"""Kind of the other answer of the pair, with the same prompt in front; it follows the chosen one."""


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """Tokens that see one another and nothing else.

    Attributes:
        ids: uint32 [T], the tokens.
        mask: bool [T], True where the token is a target: learned from the tokens before it. The first never is.
        kind: `PLAIN`, `CHOSEN` or `REJECTED`.
        margin: how much better the chosen answer is (Llama 2's reward margin); 0 where nobody said.
    """

    ids: NDArray[np.uint32]
    mask: NDArray[np.bool_]
    kind: int = PLAIN
    margin: float = 0.0

    @classmethod
    def of(cls, ids: Sequence[int], mask: Sequence[bool], kind: int = PLAIN, margin: float = 0.0) -> Document:
        """A document of plain lists; the mask of the first token, which nothing predicts, is cleared."""
        flags = np.array(mask, dtype=np.bool_)
        flags[:1] = False
        return cls(np.array(ids, dtype=np.uint32), flags, kind, margin)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        """How many of its tokens are learned."""
        return int(self.mask.sum())


Unit: TypeAlias = tuple[Document, ...]
"""What must stay together in one row: one document, or the chosen and the rejected one of a pair, in that order."""


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """How examples become tokens.

    Attributes:
        objective: pretrain, sft, fim, dpo or reward.
        sequence: tokens of a row, which no unit may exceed.
        overlong: what happens to longer ones: ``split`` (texts only, and their default), ``truncate`` (the default of
            conversations and pairs) or ``skip``.
        mask_format_tokens: dpo: special tokens of the answers, the one that ends them among them, are no targets
            (Llama 3, arXiv 2407.21783 section 4.1.4).
        fim_rate: share of documents turned into infilling examples. fim_spm: share of those with the suffix first.
        seed: of the cuts for infilling.
        date: the day that a checkpoint's own chat template is told.
    """

    objective: str
    sequence: int
    overlong: str | None = None
    mask_format_tokens: bool = True
    fim_rate: float = 0.9
    fim_spm: float = 0.5
    seed: int = 0
    date: datetime.date = datetime.date(2024, 7, 26)  # what Llama 3.1's template says where it is told no date

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UsageError(f'objective "{self.objective}": there is none of that name; there are {_OBJECTIVES}')
        if self.sequence < MIN_SEQUENCE:
            raise UsageError(f"sequence: {self.sequence} tokens make no row; give at least {MIN_SEQUENCE}")
        choices = ("split", "truncate", "skip") if self.of_texts else ("truncate", "skip")
        if self.overlong is not None and self.overlong not in choices:
            raise UsageError(
                f"overlong: {self.overlong!r} is none of {', '.join(choices)} (objective {self.objective})"
            )

    @property
    def of_texts(self) -> bool:
        """Whether whole texts are learned, not answers."""
        return self.objective in ("pretrain", "fim")

    @property
    def rule(self) -> str:
        """In words: which tokens are learned."""
        if self.objective == "pretrain":
            return "every token of a document but its first"
        if self.objective == "fim":
            return "every token of a document but its first and the marks before prefix, suffix and middle"
        if self.objective == "sft":
            return "the assistant's answers and the token that ends each; not an end that an answer was cut before"
        without = self.mask_format_tokens and self.objective == "dpo"
        ends = "without special tokens" if without else "and the token that ends it"
        return f"the answer that the pair differs in, {ends}"

    def to_dict(self) -> dict[str, object]:
        """As plain values; what other objectives take is left out."""
        told: dict[str, object] = {"objective": self.objective, "sequence": self.sequence, "overlong": self.overlong}
        if self.objective == "fim":
            told |= {"fim_rate": self.fim_rate, "fim_spm": self.fim_spm, "seed": self.seed}
        elif self.objective != "pretrain":
            told["date"] = self.date.isoformat()
            if self.objective == "dpo":
                told["mask_format_tokens"] = self.mask_format_tokens
        return told


class Encoder(ABC):
    """Examples to units of documents, each of at most ``sequence`` tokens."""

    def __init__(self, settings: EncoderSettings, tokenizer: Tokenizer) -> None:
        self.settings, self.tokenizer = settings, tokenizer

    def units(self, example: Example) -> list[Unit]:
        """The units of one example, in order.

        Raises:
            ExampleError: it cannot be used; kind and reason are told.
        """
        try:
            units = self._units(example)
        except (ChatError, TokenizerError) as error:
            raise ExampleError("refused", str(error), example.origin) from None
        if not units and example.first and example.last:
            # Some tokenizers write nothing for some texts; of a portion of one that is no loss.
            raise ExampleError("empty", "no token in it to learn", example.origin)
        return units

    @abstractmethod
    def _units(self, example: Example) -> list[Unit]: ...

    def _overlong(self, length: int, reason: str = "") -> ExampleError:
        return ExampleError(
            "overlong", f"{length:,} tokens, more than the {self.settings.sequence:,} of a row{reason}; left out"
        )


class TextEncoder(Encoder):
    """Texts: BOS if the tokenizer asks for one, the text, EOS; every token but the first is a target.

    A longer text becomes several documents, one after the other.

    Raises:
        UsageError: the tokenizer has no EOS.
    """

    def __init__(self, settings: EncoderSettings, tokenizer: Tokenizer) -> None:
        super().__init__(settings, tokenizer)
        if tokenizer.eos_id is None:
            raise UsageError(f"objective {settings.objective}: the tokenizer has no end-of-sequence token; use another")
        self._eos = tokenizer.eos_id

    def _units(self, example: Example) -> list[Unit]:
        return self.split(self.ids(example))

    def ids(self, example: Example) -> list[int]:
        """All tokens of a text, or of a portion of one."""
        if example.kind != "text":
            raise ExampleError(
                "refused",
                f"objective {self.settings.objective} learns texts, and this is a {_KIND[example.kind]}: "
                'give {"text": ...}, or train on it with objective sft or dpo',
            )
        if example.first:
            ids = self.tokenizer.encode(example.text, bos=True)
        else:
            ids = self.tokenizer.encode_continuation(example.text)
        if example.last:
            ids.append(self._eos)
        return ids

    def split(self, ids: list[int]) -> list[Unit]:
        """Documents of at most a row; a text too short to have a target is dropped.

        Where one token (the EOS) would be left alone behind whole rows, the last cut is made one token earlier.
        """
        sequence, over = self.settings.sequence, self.settings.overlong
        if len(ids) > sequence and over == "skip":
            raise self._overlong(len(ids))
        whole = np.array(ids[:sequence] if over == "truncate" else ids, dtype=np.uint32)
        units: list[Unit] = []
        cuts = [*range(0, len(whole), sequence), len(whole)]
        if len(cuts) > 2 and cuts[-1] - cuts[-2] == 1:
            cuts[-2] -= 1
        for start, end in pairwise(cuts):
            piece = whole[start:end]
            if len(piece) > 1:
                mask = np.ones(len(piece), dtype=np.bool_)
                mask[0] = False
                units.append((Document(piece, mask),))
        return units


def make_encoder(settings: EncoderSettings, tokenizer: Tokenizer, chat: ChatFormat | None = None) -> Encoder:
    """The encoder of an objective.

    Args:
        settings: how.
        tokenizer: the model's.
        chat: the model's chat format; sft, dpo and reward need it.

    Raises:
        UsageError: a chat format is missing, or the tokenizer lacks what the objective needs.
    """
    if settings.objective == "pretrain":
        return TextEncoder(settings, tokenizer)
    if settings.objective == "fim":
        from qafila.data.fim import InfillEncoder

        return InfillEncoder(settings, tokenizer)
    if chat is None:
        raise UsageError(
            f"objective {settings.objective}: the model has no chat format of its own; name one with format"
        )
    from qafila.data.encode_chat import ChatEncoder, PairEncoder

    return ChatEncoder(settings, chat) if settings.objective == "sft" else PairEncoder(settings, chat)


OBJECTIVES: Final = ("pretrain", "sft", "fim", "dpo", "reward")
MIN_SEQUENCE: Final = 8
_OBJECTIVES: Final = ", ".join(OBJECTIVES)
_KIND: Final[Mapping[str, str]] = MappingProxyType({"chat": "conversation", "preference": "pair of answers"})
