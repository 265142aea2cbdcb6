"""Examples as tokens: what is fed to the model, and which of the tokens it is to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

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
