"""One answer of one request: from sampled tokens to what its sender gets."""

from __future__ import annotations

from typing import Protocol

from qafila.engine.handle import Handle
from qafila.engine.request import EndReason, Token
from qafila.engine.sampler import Sampled, SampleRow
from qafila.engine.scheduler import Answer, Proposer
from qafila.generation import StoppingText
from qafila.sampling import Mask, Occurrences


class Matcher(Protocol):
    """Follows one answer through its grammar."""

    def ask(self) -> None:
        """Start computing the next token's mask beside whatever else goes on; returns at once."""

    def mask(self) -> Mask:
        """The tokens that may come next; waits for what was asked, or computes it now."""

    def accept(self, token_id: int) -> bool:
        """Move on by a token that the mask allowed; whether the answer is complete with it."""


class Stream(Answer):
    """An answer under way, with how its tokens are chosen and where they go.

    Attributes:
        row: how the next token is chosen; the same object for every step.
        matcher: of its grammar; None for any text.
        siblings: answers to the same prompt that start from this one's cache as soon as the prompt is read.
        accepted: guesses of the present step that were right.
    """

    __slots__ = ("_index", "_occurrences", "_stop_ids", "_text", "accepted", "handle", "matcher", "row", "siblings")

    def __init__(
        self,
        handle: Handle,
        index: int,
        *,
        end: int,
        root: bytes,
        adapter: int,
        arrival: int,
        proposer: Proposer | None,
        matcher: Matcher | None,
    ) -> None:
        request = handle.request
        ids = [int(i) for i in request.prompt_ids]
        super().__init__(
            ids,
            end=end,
            root=root,
            adapter=adapter,
            priority=request.priority,
            arrival=(arrival, index),
            proposer=proposer,
        )
        self.handle = handle
        self.matcher = matcher
        self.siblings: list[Stream] = []
        self.accepted = 0
        self._index = index
        self._stop_ids = request.stop_ids
        stream = request.text_stream
        self._text = None if stream is None else StoppingText(stream(), request.stop_strings)
        self._occurrences = Occurrences(ids) if request.params.counts_tokens else None
        self.row = SampleRow(
            request.params,
            handle.seed,
            len(ids),
            request.sample_index + index,
            self._occurrences or Occurrences(),
            None,
            request.top_logprobs,
        )

    def take(self, sampled: Sampled) -> bool:
        """Add a token to the answer and give it to the sender; whether the answer goes on."""
        id = sampled.id
        ids = self.ids
        ids.append(id)
        self.row.position = len(ids)
        if self._occurrences is not None:
            self._occurrences.add(id)
        complete = self.matcher is not None and id not in self._stop_ids and self.matcher.accept(id)
        reason: EndReason | None = None
        piece = ""
        text = self._text
        if id in self._stop_ids:
            reason = "stop"
            if text is not None:
                piece = text.finish()
        else:
            if complete:
                reason = "stop"
            elif len(ids) == self.end:
                reason = "length"
            if text is not None:
                piece, stopped = text.push(id)
                if not stopped and reason is not None:
                    # The end can complete a character, and that character a stop string.
                    piece += text.finish()
                    stopped = text.stopped
                if stopped:
                    reason = "stop_string"
                    self.handle.stop_strings[self._index] = text.stopped_by
        self.handle._put(Token(id, sampled.logprob, piece, sampled.top, self._index, reason))
        return reason is None
