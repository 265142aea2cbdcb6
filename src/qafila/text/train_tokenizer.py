"""Learning a byte-level BPE vocabulary from text, on the trainer of Hugging Face's ``tokenizers``.

The same texts give the same vocabulary: the trainer works with counts, and breaks ties by token order. What comes out
is an ordinary `ByteLevelBPE`: bytes first (in GPT-2's order, as in Llama 3's file), then the learned tokens by rank,
then the special ones, so that ids are ranks and every form that we write can hold it.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from qafila.errors import DataError, StorageError, TokenizerError, UsageError
from qafila.text.bpe import ByteLevelBPE
from qafila.text.bpe_core import unspell
from qafila.text.bpe_patterns import PreTokenizer, pre_tokenizer_named
from qafila.text.special_sets import SpecialSet, special_set
from qafila.text.text_sources import Consumed, Mixture, TextSource

#: Names of the ways to cut text before merging, as options write them, and what GGUF calls them.
PATTERNS: Mapping[str, str] = MappingProxyType(
    {"llama-3": "llama-bpe", "llama-4": "llama4", "gpt-2": "gpt-2", "digits": "smollm", "tekken": "tekken"}
)
_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "training.json")
_LEAST_COUNT = 2

# What is being done ("reading" or "merging"), and the bytes read so far.
Progress = Callable[[str, int], None]


def silent(stage: str, nbytes: int) -> None:
    """A progress that says nothing."""


@dataclass(frozen=True)
class TrainedTokenizer:
    """A vocabulary and what it was made of.

    Attributes:
        tokenizer: it. specials: its special tokens and chat template.
        sources: what was read of each source. pattern: the name of the pattern, in `PATTERNS`.
    """

    tokenizer: ByteLevelBPE
    specials: SpecialSet
    sources: tuple[Consumed, ...]
    pattern: str

    def save(self, folder: Path, *, overwrite: bool = False) -> Path:
        """Write a Hugging Face folder, whole or not at all, and return it.

        Raises:
            UsageError: something else is there. StorageError: it cannot be written.
        """
        import tokenizers

        ids = self.tokenizer.special_tokens
        roles = self.tokenizer.roles
        generation = {
            "bos_token_id": roles.bos_id,
            "eos_token_id": [ids[text] for text in self.specials.stops],
            "pad_token_id": roles.pad_id,
        }
        made = {
            "pattern": self.pattern,
            "special_tokens": self.specials.name,
            "vocab_size": self.tokenizer.vocab_size,
            "trainer": f"tokenizers {tokenizers.__version__}",
            "sources": [vars(source) for source in self.sources],
        }
        files = {
            "tokenizer.json": _json(self.tokenizer.to_tokenizer_json()),
            "tokenizer_config.json": _json(self.tokenizer.to_tokenizer_config()),
            "generation_config.json": _json({key: value for key, value in generation.items() if value is not None}),
            "training.json": _json(made),
        }
        if self.specials.template is not None:
            files["chat_template.jinja"] = self.specials.template
        return _write_folder(Path(folder), files, overwrite)


def train_tokenizer(
    sources: Sequence[TextSource],
    vocab_size: int,
    *,
    pattern: str = "llama-3",
    specials: str = "llama-3",
    reserved: int | None = None,
    limit: int | None = None,
    weighted: bool = False,
    progress: Progress = silent,
) -> TrainedTokenizer:
    """Learn a vocabulary.

    Args:
        sources: the texts; see `Mixture` for how they are mixed. They are streamed: memory goes by the number of
            different words, not by the length of the texts.
        vocab_size: ids in all, the 256 bytes and the special tokens among them.
        pattern: how text is cut before merging, one of `PATTERNS`. The ones of ``llama-4`` and ``tekken`` keep a letter
            and its marks together, which vocalised Arabic gains from.
        specials, reserved: see `special_set`.
        limit: most bytes that are read, shared out by weight; the first ones of each source.
        weighted: keep to the sources' weights; otherwise all of each is read once.
        progress: told now and then.

    Raises:
        UsageError: a value out of range. DataError: the texts are empty, no Unicode, or too little for so many tokens.
    """
    chosen = special_set(specials, reserved)
    ordinary = vocab_size - len(chosen.tokens)
    if ordinary <= 256 or vocab_size > 1 << 24:
        raise UsageError(
            f"--vocab {vocab_size}: must be above {256 + len(chosen.tokens)}, for 256 bytes and {len(chosen.tokens)} "
            f"special tokens ({chosen.name}), and at most {1 << 24}"
        )
    pre = _pattern_named(pattern)
    mixture = Mixture(sources, limit, weighted)
    vocab, merges = _learn(mixture, pre, ordinary, progress)
    tokens = [b""] * ordinary
    if len(vocab) != ordinary:
        raise DataError(
            f"--vocab {vocab_size}: the {mixture.nbytes} bytes of text give {len(vocab) + len(chosen.tokens)} tokens"
            " and no more; give more text, or ask for fewer"
        )
    for text, token_id in vocab.items():
        data = unspell(text)
        assert data is not None, text
        tokens[token_id] = data
    made = ByteLevelBPE.from_merges(
        tokens=[*tokens, *(text.encode() for text in chosen.tokens)],
        merges=merges,
        special_tokens=chosen.ids(ordinary),
        added_tokens={},
        pre=pre,
        ignore_merges=pre.ignore_merges,
        roles=chosen.roles(ordinary),
    )
    if made is None:
        raise TokenizerError("tokenizer: the learned merges do not give the learned tokens; please report this")
    return TrainedTokenizer(made, chosen, tuple(mixture.consumed), pattern)


def _pattern_named(name: str) -> PreTokenizer:
    if name not in PATTERNS:
        raise UsageError(f"--pattern {name[:40]}: not known; there are {', '.join(PATTERNS)}")
    return pre_tokenizer_named(PATTERNS[name])


def _learn(
    mixture: Mixture, pre: PreTokenizer, size: int, progress: Progress
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges, in GPT-2's alphabet."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from qafila.text.tokenizer_hf import hf_from_json

    # The library's own reading of the pre-tokenizer, as it will be in the file.
    shell: dict[str, object] = {"added_tokens": [], "normalizer": None, "post_processor": None, "decoder": None}
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    cut = hf_from_json({**shell, "pre_tokenizer": pre.spec, "model": empty}).pre_tokenizer
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = cut
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=_LEAST_COUNT,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    learner.train_from_iterator(_told(mixture, progress), trainer)
    model = json.loads(learner.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    return vocab, [(left, right) for left, right in model["merges"]]


def _told(mixture: Mixture, progress: Progress) -> Iterator[str]:
    told = 0
    for chunk in mixture.chunks():
        yield chunk
        if mixture.nbytes - told >= 1 << 20:
            told = mixture.nbytes
            progress("reading", told)
    progress("merging", mixture.nbytes)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write_folder(folder: Path, files: Mapping[str, str], overwrite: bool) -> Path:
    """Fill a folder beside its place and move it there."""
    try:
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        if folder.is_file() or (there and not overwrite):
            raise UsageError(f"{folder}: already exists; name another folder, or use --force to replace a tokenizer")
        foreign = next((name for name in there if name not in _FILES), None)
        if foreign is not None:
            raise UsageError(f"{folder}: holds other things than a tokenizer ({foreign}), so it is not replaced")
        folder.parent.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(8)
        staging = folder.with_name(f".qafila-{token}.partial")
        staging.mkdir()
        try:
            for name, text in files.items():
                (staging / name).write_text(text, encoding="utf-8")
            old = folder.with_name(f".qafila-{token}.old")
            if folder.exists():
                folder.replace(old)
            staging.replace(folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return folder
