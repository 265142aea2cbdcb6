"""Byte-level BPE (Llama 3, Llama 4, the default model) on tiktoken's core.

Every id comes from tiktoken, after a proof at loading time that ranks mean what the vocabulary's merges say
(`qafila.text.bpe_merges`). What the core cannot do as the original does it - a character with a byte that the
vocabulary lacks, a run of white space too long for its regular expressions - runs on ``tokenizers``.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from qafila.errors import TokenizerError
from qafila.text.bpe_core import (
    MAX_RUN,
    MergeCore,
    checked_ids,
    long_run,
    reference_pieces,
    spell,
)
from qafila.text.bpe_merges import SpelledMerges, byte_ranks, canonical_merges, ranked_tokens
from qafila.text.bpe_patterns import PreTokenizer, pre_tokenizers
from qafila.text.tokenizer import Roles, StreamDecoder, Tokenizer
from qafila.text.tokenizer_special import TiktokenFamily, TokenFinder

if TYPE_CHECKING:
    import tokenizers

Merges = Sequence[tuple[str, str]]


class ByteLevelBPE(Tokenizer):
    """Byte-level BPE; made by `from_tiktoken` or `from_merges`.

    Args:
        tokens: the bytes of every id (b"" where an id has no token).
        special_tokens: control tokens, by text; found in text only when asked for.
        added_tokens: tokens that are found in text always, ahead of all merging.
        pre: how text is cut into pieces.
        ranks: tiktoken's rank of every token, in rising order.
        merges: the vocabulary's own merges, where it has them.
        reference_limits: cut very long text as Meta's tokenizer does.
        ignore_merges: a piece that is a token is that token.
        roles: BOS, EOS and so on.
        by_rank: the id of each rank's token (-1: it has none), where that is known already.
    """

    def __init__(
        self,
        *,
        tokens: Sequence[bytes],
        special_tokens: Mapping[str, int],
        added_tokens: Mapping[str, int],
        pre: PreTokenizer,
        ranks: dict[bytes, int],
        merges: Merges | None,
        reference_limits: bool,
        ignore_merges: bool,
        roles: Roles,
        by_rank: list[int] | None = None,
    ) -> None:
        super().__init__(len(tokens), special_tokens, roles)
        if pre.pattern is None:
            raise TokenizerError(f"tokenizer: the pre-tokenizer {pre.names[0]!r} takes more than one pass")
        self.pre = pre
        self.added_tokens = dict(added_tokens)
        self._tokens = list(tokens)
        self._control = frozenset(special_tokens.values())
        self._ranks, self._merges = ranks, merges
        self._reference_limits, self.ignore_merges = reference_limits, ignore_merges
        self._core = MergeCore(pre.pattern, ranks)
        if by_rank is None:
            by_rank = [self._ids.get(token, -1) for token in ranks]
        self._by_rank = None if by_rank == list(range(len(by_rank))) else by_rank
        known = {token for token, i in zip(ranks, by_rank, strict=True) if len(token) == 1 and i >= 0}
        self._lacking = bytes(b for b in range(256) if bytes([b]) not in known)
        self._always = TokenFinder(self.added_tokens)
        self._asked = TokenFinder({**self.added_tokens, **special_tokens})

    @classmethod
    def from_tiktoken(cls, ranks: dict[bytes, int], family: TiktokenFamily, pre: PreTokenizer) -> ByteLevelBPE:
        """A tiktoken file's ranks (which are the ids) with a family's special tokens behind them."""
        tokens = sorted(ranks, key=ranks.__getitem__)
        specials = {text: len(tokens) + i for i, text in enumerate(family.specials)}
        return cls(
            tokens=[*tokens, *(text.encode() for text in specials)],
            special_tokens=specials,
            added_tokens={},
            pre=pre,
            ranks={token: rank for rank, token in enumerate(tokens)},
            merges=None,
            reference_limits=True,
            ignore_merges=True,
            roles=Roles(specials[family.bos], specials[family.eos], None, specials[family.pad], add_bos=True),
        )

    @classmethod
    def from_merges(
        cls,
        *,
        tokens: Sequence[bytes],
        merges: Merges,
        special_tokens: Mapping[str, int],
        added_tokens: Mapping[str, int],
        pre: PreTokenizer,
        ignore_merges: bool,
        roles: Roles,
    ) -> ByteLevelBPE | None:
        """A vocabulary with a list of merges, or None where the core cannot be shown to give the same ids."""
        outside = set(special_tokens.values()) | set(added_tokens.values())
        ranked = _ranks_of(tokens, outside, merges, ignore_merges, pre) if pre.pattern is not None else None
        if ranked is None:
            return None
        ranks, by_rank = ranked
        return cls(
            tokens=tokens,
            special_tokens=special_tokens,
            added_tokens=added_tokens,
            pre=pre,
            ranks=ranks,
            merges=merges,
            reference_limits=False,
            ignore_merges=ignore_merges,
            roles=roles,
            by_rank=by_rank,
        )

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        """The id of every ordinary token."""
        outside = self._control | set(self.added_tokens.values())
        return {token: i for i, token in enumerate(self._tokens) if token and i not in outside}

    def _encode(self, text: str, special: bool, continuation: bool) -> list[int]:
        ids: list[int] = []
        # Meta's tokenizer cuts first and looks for special tokens in what it has cut.
        pieces = reference_pieces(text) if self._reference_limits else (text,)
        for piece in pieces:
            for part in (self._asked if special else self._always).parts(piece):
                if isinstance(part, int):
                    ids.append(part)
                else:
                    ids += self._plain(part)
        return ids

    def _plain(self, text: str) -> list[int]:
        if not self._reference_limits and len(text) > MAX_RUN // 2 and long_run(text, spaces_only=True):
            return self._other.encode(text, add_special_tokens=False).ids
        if self._lacking:
            data = text.encode()
            if len(data.translate(None, self._lacking)) != len(data):
                return self._other.encode(text, add_special_tokens=False).ids
        ranks = self._core.encode(text)
        if self._by_rank is None:
            return ranks
        by_rank = self._by_rank
        return [by_rank[rank] for rank in ranks]

    @cached_property
    def _other(self) -> tokenizers.Tokenizer:
        """The same vocabulary on ``tokenizers``, with no special tokens: for what tiktoken's core cannot do."""
        from qafila.text.tokenizer_hf import byte_level_document, hf_from_json

        outside = self._control | set(self.added_tokens.values())
        tokens = [b"" if i in outside else token for i, token in enumerate(self._tokens)]
        spec, merges = self.pre.spec, self.merges
        return hf_from_json(byte_level_document(tokens, {}, {}, spec, merges, self.ignore_merges, Roles()))

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """See `Tokenizer.decode`."""
        known = checked_ids(ids, self.vocab_size)
        if skip_special:
            known = [i for i in known if i not in self._control]
        tokens = self._tokens
        return b"".join([tokens[i] for i in known]).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        return self._tokens[checked_ids((token_id,), self.vocab_size)[0]]

    def token_text(self, token_id: int) -> str:
        """See `Tokenizer.token_text`."""
        data = self.token_bytes(token_id)
        if token_id in self._control or token_id in self.added_tokens.values():
            return data.decode()
        return spell(data) if data else f"[unused {token_id}]"

    def token_id(self, text: str) -> int | None:
        """See `Tokenizer.token_id`."""
        found = self.special_tokens.get(text, self.added_tokens.get(text))
        return self._ids.get(text.encode("utf-8", "surrogatepass")) if found is None else found

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """See `Tokenizer.stream`."""
        return ByteStream(self._tokens, self._control if skip_special else frozenset())

    @property
    def merges(self) -> Merges:
        """The merges, in the alphabet of GPT-2's vocabularies."""
        if self._merges is None:
            self._merges = [(spell(left), spell(right)) for left, right in canonical_merges(self._ranks)]
        return self._merges

    def to_tokenizer_json(self) -> dict[str, object]:
        """See `Tokenizer.to_tokenizer_json`."""
        from qafila.text.tokenizer_hf import byte_level_document

        special, added, spec, merges = self.special_tokens, self.added_tokens, self.pre.spec, self.merges
        return byte_level_document(self._tokens, special, added, spec, merges, self.ignore_merges, self.roles)

    @property
    def gguf_pre(self) -> str:
        """The name for ``tokenizer.ggml.pre`` that readers take for this pattern and this way with merges."""
        same = [known for known in pre_tokenizers() if known.pattern == self.pre.pattern]
        fitting = next((known for known in same if known.ignore_merges == self.ignore_merges), None)
        if fitting is None:
            raise TokenizerError(
                f"tokenizer: GGUF files of the kind {self.pre.names[0]!r} do not treat merges as this vocabulary does"
            )
        return (
            self.pre.names[0] if self.pre in same and self.pre.ignore_merges == self.ignore_merges else fitting.names[0]
        )

    def to_gguf(self) -> dict[str, object]:
        """See `Tokenizer.to_gguf`."""
        from qafila.text.tokenizer_gguf import byte_level_metadata

        return byte_level_metadata(self)

    def to_tiktoken(self) -> bytes:
        """See `Tokenizer.to_tiktoken`."""
        from qafila.text.tokenizer_files import tiktoken_file

        data = tiktoken_file(self, self._ids)
        if self._ranks != self._ids and (
            not self.ignore_merges or canonical_merges(self._ranks) != canonical_merges(self._ids)
        ):
            raise TokenizerError(
                "tokenizer: its ids are not its merge ranks, as a tiktoken file needs it; use tokenizer.json"
            )
        return data

    @property
    def _kind(self) -> str:
        return f"a byte-level vocabulary ({self.pre.names[0]})"


def _order_of(ordinary: list[bytes], merges: Merges) -> tuple[list[int], list[int]] | None:
    """`ranked_tokens` in ids, natively where the vocabulary is an ordinary one."""
    if isinstance(merges, SpelledMerges):
        found = byte_ranks(ordinary, merges)
        if found is not None:
            return found
    spelled = {spell(token): i for i, token in enumerate(ordinary) if token}
    ranked = ranked_tokens(merges, spelled)
    return None if ranked is None else ([spelled[text] for text in ranked[0]], [spelled[text] for text in ranked[1]])


def _ranks_of(
    tokens: Sequence[bytes], outside: set[int], merges: Merges, ignore_merges: bool, pre: PreTokenizer
) -> tuple[dict[bytes, int], list[int]] | None:
    """Ranks under which tiktoken merges as ``merges`` say, and each rank's id; None where that cannot be shown.

    ``outside`` are the ids that no ordinary text becomes.
    """
    ordinary = list(tokens)
    for i in outside:
        ordinary[i] = b""
    found = _order_of(ordinary, merges)
    if found is None:
        return None
    order, unbuilt = found[0], set(found[1])
    built = [i for i in order if i not in unbuilt] if unbuilt else order
    single = {token: i for i, token in enumerate(ordinary) if len(token) == 1}
    by_rank = [*(single.get(bytes([b]), -1) for b in range(256)), *built]
    ranks = {bytes([b]): b for b in range(256)}
    ranks.update(zip((ordinary[i] for i in built), itertools.count(256)))
    if ignore_merges:
        known = {token: i for i, token in enumerate(ordinary) if token}
        # They come out whole or not at all, so their ranks are free, as long as tiktoken cannot build them either.
        alone = {token for token in known if token not in ranks}
        for token in sorted(alone, key=known.__getitem__):
            ranks[token] = len(ranks)
            by_rank.append(known[token])
        used = {b for token in ranks if len(token) > 1 for b in token}
        stop = next((bytes([b]) for b in range(255, -1, -1) if b not in used), None)
        if alone and (stop is None or MergeCore(pre.pattern or "", ranks).unbuildable(alone, stop) != alone):
            return None
    assert len(ranks) == len(by_rank)
    return ranks, by_rank


class ByteStream(StreamDecoder):
    """Streams a vocabulary whose tokens are bytes."""

    def __init__(self, tokens: Sequence[bytes], hidden: frozenset[int]) -> None:
        self._tokens, self._hidden = tokens, hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """See `StreamDecoder.push`."""
        if token_id in self._hidden:
            return ""
        return self._decoder.decode(self._tokens[checked_ids((token_id,), len(self._tokens))[0]])

    def finish(self) -> str:
        """See `StreamDecoder.finish`."""
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        return text
