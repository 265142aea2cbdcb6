"""New pieces for a script that a byte-level vocabulary cuts too small, behind everything that it has.

How text of the new script is cut today is where learning starts: each word's present tokens are grouped into whole
characters, characters of several tokens become pieces first, and ``tokenizers``' trainer goes on from there, every
piece standing for one letter of its alphabet. The merges come behind all old ones, so they fire where the old ones have
done their work, as they did in learning.

Why other text keeps its ids (`check_extension` tests each premise): old tokens and old merges stay in their places; a
new merge fires only where its piece's bytes stand in the text; and the bytes of each new piece are whole characters of
the script (one space may stand in front), or the beginning of a character that only the script's blocks have. In text
without characters of these blocks they never stand.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from qafila.errors import DataError, TokenizerError, UsageError
from qafila.text.bpe import ByteLevelBPE
from qafila.text.bpe_core import spell
from qafila.text.scripts import LATIN, Script, main_script, scripts
from qafila.text.text_sources import Mixture
from qafila.text.tokenizer import Tokenizer
from qafila.text.train_tokenizer import Progress, silent

Pair = tuple[bytes, bytes]

_LEAST_COUNT = 2
# One character for each present piece: the private planes 15 and 16.
_STAND_INS = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
# Pieces that turn out to be there already fall out, so some more are learned than are wanted.
_SPARE = 256
# A character of more tokens than two takes a piece for its beginning, too: only those that come this often get them.
_COMMON = 1 / 20_000


@dataclass(frozen=True)
class Extension:
    """An extended vocabulary.

    Attributes:
        old, new: the vocabulary before and after; ids of the old one mean the same in both.
        script: what the new pieces are written in.
        replaces: for each new id, from ``old.vocab_size`` on, the old ids that its text was made of until now.
    """

    old: Tokenizer
    new: ByteLevelBPE
    script: Script
    replaces: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Agreement:
    """What `compare_texts` found: lines without the script, all cut as before, and lines with it, with their tokens."""

    same_lines: int
    script_lines: int
    tokens_before: int
    tokens_after: int


def extend_tokenizer(
    old: Tokenizer, mixture: Mixture, pieces: int, *, script: Script | None = None, progress: Progress = silent
) -> Extension:
    """Learn ``pieces`` new pieces from text.

    Args:
        old: a byte-level vocabulary; it stays as it is.
        mixture: the texts, streamed.
        pieces: how many ids to add.
        script: what is learned; by default the script, other than Latin, that most of the text's start is in.
        progress: told now and then.

    Raises:
        TokenizerError: this kind of vocabulary cannot be extended. UsageError: a value out of range.
        DataError: the text has none of the script, or too little for so many pieces.
    """
    if not isinstance(old, ByteLevelBPE) or old.pre.pattern is None:
        raise TokenizerError(
            "tokenizer: only byte-level BPE vocabularies (Llama 3 and 4, SmolLM2, GPT-2) can be extended"
        )
    if not 1 <= pieces <= 100_000:
        raise UsageError(f"--pieces {pieces}: must be from 1 to 100000")
    if script == LATIN:
        raise UsageError("--script latin: old text is written in it and would be cut anew; train a tokenizer instead")
    words, script = _words(old.pre.pattern, mixture, script, progress)
    learner = _Learner(old, script)
    merges = learner.learn(words, pieces)
    if len(merges) < pieces:
        raise DataError(
            f"--pieces {pieces}: the {mixture.nbytes} bytes of text give {len(merges)} new {script.label} pieces and no"
            " more; give more text, or ask for fewer"
        )
    made = _appended(old, merges)
    extension = Extension(old, made, script, tuple(learner.replaced(left + right) for left, right in merges))
    check_extension(extension)
    return extension


def _words(pattern: str, mixture: Mixture, script: Script | None, progress: Progress) -> tuple[Counter[str], Script]:
    """The pieces of the texts that are all of the script, with how often they come."""
    import regex  # type: ignore[import-untyped]  # a dependency of tiktoken, whose patterns are written for it

    cut = regex.compile(pattern)
    words: Counter[str] = Counter()
    sample, told = "", 0
    for chunk in mixture.chunks():
        if script is None:
            others = [known for known in scripts().values() if known != LATIN]
            sample += chunk
            script = main_script(sample, others) if len(sample) >= 1 << 16 else None
        words.update(cut.findall(chunk))
        if mixture.nbytes - told >= 1 << 20:
            told = mixture.nbytes
            progress("reading", told)
    progress("merging", mixture.nbytes)
    if script is None:
        script = main_script(sample, [known for known in scripts().values() if known != LATIN])
        if script is None:
            raise DataError(f"{mixture.sources[0].name}: the text has no script but Latin, so there is nothing to add")
    own = Counter({word: n for word, n in words.items() if script.word.fullmatch(word)})
    if not own:
        raise DataError(f"{mixture.sources[0].name}: there is no {script.label} text in it")
    return own, script


class _Learner:
    """Learns merges that go on from where a vocabulary's own have ended.

    Args:
        old: the vocabulary. script: of the words.
    """

    def __init__(self, old: ByteLevelBPE, script: Script) -> None:
        self._old, self._script = old, script
        self._known = {old.token_bytes(i) for i in range(old.vocab_size)}
        # Of every piece that there is now: the old ids it is made of.
        self._made_of: dict[bytes, tuple[int, ...]] = {}

    def replaced(self, piece: bytes) -> tuple[int, ...]:
        """The old ids that made up a new piece."""
        return self._made_of[piece]

    def learn(self, words: Mapping[str, int], pieces: int) -> list[Pair]:
        """At most ``pieces`` merges, in the order of their ranks."""
        cut = {word: self._characters(word) for word in words}
        wanted: Counter[tuple[bytes, ...]] = Counter()
        for word, groups in cut.items():
            for group in groups:
                if len(group) > 1:
                    wanted[group] += words[word]
        common = max(_LEAST_COUNT, _COMMON * sum(words[word] * len(groups) for word, groups in cut.items()))
        merges: dict[Pair, None] = {}
        whole = set()
        for group, count in sorted(wanted.items(), key=lambda item: (-item[1], item[0])):
            steps = self._steps(group)
            if steps is None or count < (_LEAST_COUNT if len(group) == 2 else common):
                continue
            new = [pair for pair in steps if pair not in merges]
            if len(merges) + len(new) > pieces:
                break
            for pair in new:
                merges[pair] = None
                self._join(*pair)
            whole.add(group)
        free = pieces - len(merges)
        return [*merges, *(self._words_merged(cut, words, whole, free) if free else [])]

    def _characters(self, word: str) -> list[tuple[bytes, ...]]:
        """A word's present tokens, in groups that are whole characters, as small as can be."""
        groups: list[tuple[bytes, ...]] = []
        open_: list[bytes] = []
        for token_id in self._old.encode(word):
            data = self._old.token_bytes(token_id)
            self._made_of.setdefault(data, (token_id,))
            open_.append(data)
            if _whole(b"".join(open_)):
                groups.append(tuple(open_))
                open_ = []
        return groups

    def _steps(self, group: tuple[bytes, ...]) -> list[Pair] | None:
        """The merges that make a group one piece, from the left; None where one of them could touch other text."""
        steps, piece = [], group[0]
        for part in group[1:]:
            steps.append((piece, part))
            piece += part
            if piece in self._known or not is_of_script(piece, self._script):
                return None
        return steps

    def _join(self, left: bytes, right: bytes) -> None:
        self._made_of[left + right] = self._made_of[left] + self._made_of[right]

    def _words_merged(
        self,
        cut: Mapping[str, list[tuple[bytes, ...]]],
        words: Mapping[str, int],
        whole: set[tuple[bytes, ...]],
        pieces: int,
    ) -> list[Pair]:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        free = iter([*_STAND_INS[0], *_STAND_INS[1]])
        letters: dict[bytes, str] = {}

        def written() -> Iterator[str]:
            for word, groups in cut.items():
                # A character that got no piece of its own ends a stretch: nothing merges across it.
                text = ""
                for group in groups:
                    if len(group) > 1 and group not in whole:
                        text += " "
                        continue
                    piece = b"".join(group)
                    letter = letters.get(piece)
                    if letter is None:
                        letter = letters[piece] = chr(next(free))
                    text += letter
                count = words[word]
                while count > 0:
                    yield (text + " ") * min(count, 1024)
                    count -= 1024

        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        known = len({b"".join(group) for groups in cut.values() for group in groups})
        trainer = trainers.BpeTrainer(
            vocab_size=known + pieces + _SPARE, min_frequency=_LEAST_COUNT, show_progress=False, special_tokens=[]
        )
        learner.train_from_iterator(written(), trainer)
        stands_for = {letter: piece for piece, letter in letters.items()}

        def meant(text: str) -> bytes:
            return b"".join(stands_for[letter] for letter in text)

        merges: list[Pair] = []
        for pair in json.loads(learner.to_str())["model"]["merges"]:
            left, right = map(meant, pair)
            if left not in self._made_of or right not in self._made_of:
                continue  # one of its parts fell out
            piece = left + right
            if piece in self._known or piece in self._made_of or not is_of_script(piece, self._script):
                continue
            merges.append((left, right))
            self._join(left, right)
            if len(merges) == pieces:
                break
        return merges


def _whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_of_script(piece: bytes, script: Script) -> bool:
    """Whether bytes stand only in texts of a script.

    True for one or more whole characters of its blocks, with at most one space in front, where the last may be the
    beginning of a character as long as all characters that begin so are the script's.
    """
    body = piece.removeprefix(b" ")
    for end in range(len(body), max(len(body) - 4, -1), -1):
        head, tail = body[:end], body[end:]
        try:
            text = head.decode()
        except UnicodeDecodeError:
            continue
        if not all(script.holds(ord(letter)) for letter in text):
            return False
        return bool(text) if not tail else _begins_only(tail, script)
    return False


def _begins_only(tail: bytes, script: Script) -> bool:
    """Whether every character that begins with these bytes is the script's."""
    length = 2 if 0xC2 <= tail[0] < 0xE0 else 3 if 0xE0 <= tail[0] < 0xF0 else 4 if 0xF0 <= tail[0] < 0xF5 else 0
    if len(tail) >= length or any(b & 0xC0 != 0x80 for b in tail[1:]):
        return False
    lead = (0, 0, 0x1F, 0x0F, 0x07)[length] & tail[0]
    for b in tail[1:]:
        lead = lead << 6 | b & 0x3F
    missing = 6 * (length - len(tail))
    first, last = lead << missing, (lead + 1 << missing) - 1
    return script.holds(max(first, (0, 0, 0x80, 0x800, 0x10000)[length]), min(last, 0x10FFFF))


def _appended(old: ByteLevelBPE, merges: Sequence[Pair]) -> ByteLevelBPE:
    made = ByteLevelBPE.from_merges(
        tokens=[*(old.token_bytes(i) for i in range(old.vocab_size)), *(left + right for left, right in merges)],
        merges=[*old.merges, *((spell(left), spell(right)) for left, right in merges)],
        special_tokens=old.special_tokens,
        added_tokens=old.added_tokens,
        pre=old.pre,
        ignore_merges=old.ignore_merges,
        roles=old.roles,
    )
    if made is None:
        raise TokenizerError("tokenizer: with the new pieces its ids could not be told for sure, so it is not extended")
    return made


def check_extension(extension: Extension) -> None:
    """Test what makes old text keep its ids: see the top of this file.

    Raises:
        TokenizerError: a premise does not hold.
    """
    old, new = extension.old, extension.new
    assert isinstance(old, ByteLevelBPE)
    size, merges = old.vocab_size, list(old.merges)
    added = list(new.merges)[len(merges) :]
    pieces = [new.token_bytes(i) for i in range(size, new.vocab_size)]
    kept = (
        all(old.token_bytes(i) == new.token_bytes(i) for i in range(size))
        and list(new.merges)[: len(merges)] == merges
        and (new.special_tokens, new.added_tokens, new.roles) == (old.special_tokens, old.added_tokens, old.roles)
        and (new.pre, new.ignore_merges) == (old.pre, old.ignore_merges)
    )
    if not kept:
        raise TokenizerError("tokenizer: the extension changes old tokens or merges, so old text would change")
    if [left + right for left, right in added] != [spell(piece) for piece in pieces]:
        raise TokenizerError("tokenizer: the extension's merges do not make its pieces one by one")
    foreign = next((piece for piece in pieces if not is_of_script(piece, extension.script)), None)
    if foreign is not None:
        label = extension.script.label
        raise TokenizerError(f"tokenizer: the new piece {foreign!r} could stand in text without {label}")


def compare_texts(extension: Extension, texts: Iterable[str]) -> Agreement:
    """Cut real text with both vocabularies, line by line.

    Raises:
        TokenizerError: a line without the script is cut in another way than before, or a line does not come back.
    """
    old, new, pattern = extension.old, extension.new, extension.script.pattern
    same = other = before = after = 0
    for text in texts:
        for line in text.splitlines(keepends=True):
            ids, old_ids = new.encode(line), old.encode(line)
            if pattern.search(line) is None:
                same += 1
                if ids != old_ids:
                    raise TokenizerError(f"tokenizer: extended, it would cut {line[:60]!r} in another way than before")
                continue
            other += 1
            before, after = before + len(old_ids), after + len(ids)
            if new.decode(ids) != line:
                raise TokenizerError(f"tokenizer: extended, it does not give back {line[:60]!r}")
    return Agreement(same, other, before, after)
