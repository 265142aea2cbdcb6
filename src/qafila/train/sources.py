"""From a recipe's sources to packs: what is raw is packed into the run's folder, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qafila.data.encode import EncoderSettings
from qafila.data.manifest import MANIFEST, Manifest, read_manifest
from qafila.data.pack import Progress, RawSource, pack_sources
from qafila.data.records import list_files
from qafila.data.shards import Pack
from qafila.errors import DataError, UsageError
from qafila.train.recipe import Recipe, SourceSection
from qafila.train.report import Reporter
from qafila.train.subject import Subject, beside


@dataclass(frozen=True)
class NamedPack:
    """A pack with what metrics call it, its share of the mixture, and its data's licence where the recipe says it."""

    name: str
    pack: Pack
    weight: float
    license: str | None = None


@dataclass(frozen=True)
class Packs:
    """What a run learns from, and what it is measured on."""

    train: tuple[NamedPack, ...]
    validation: tuple[NamedPack, ...]


def find_packs(subject: Subject, folder: Path, packs: Path, reporter: Reporter) -> Packs:
    """Open the packs of a recipe; raw sources are packed into ``packs`` where they are not there already.

    Args:
        subject: model, tokenizer and chat format.
        folder: of the recipe, for relative paths.
        packs: where packs of raw sources go.
        reporter: is told how far packing is.

    Raises:
        DataError: a source cannot be used, or a pack was made for another tokenizer or objective.
        UsageError: settings that do not go together.
    """
    recipe = subject.recipe
    train: list[NamedPack] = []
    held: list[NamedPack] = []
    share = 0.0 if recipe.data.validation else recipe.data.validation_share
    for section in recipe.data.train:
        made, out = _find(subject, section, folder, packs, reporter, share)
        name = _name(section, train)
        train.append(NamedPack(name, made, section.weight, section.license))
        if out is not None:
            held.append(NamedPack(name, out, section.weight, section.license))
    for section in recipe.data.validation:
        made, _ = _find(subject, section, folder, packs, reporter, 0.0)
        held.append(NamedPack(_name(section, held), made, 1.0, section.license))
    return Packs(tuple(train), tuple(held))


def _name(section: SourceSection, packs: Sequence[NamedPack]) -> str:
    """What metrics call a source: what the recipe says, or the file's name; with a number where that is taken."""
    name = section.name or Path(section.path).name.split(".")[0]
    taken = {pack.name for pack in packs}
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


def _find(
    subject: Subject, section: SourceSection, folder: Path, packs: Path, reporter: Reporter, share: float
) -> tuple[Pack, Pack | None]:
    path = Path(beside(section.path, folder))
    if (path / MANIFEST).is_file():
        if section.fields:
            raise UsageError(f"{section.path}: is packed already; give fields to `qafila data pack --field`, not here")
        _check(subject, read_manifest(path), path)
        return Pack.open(path), None
    if not path.exists():
        raise DataError(f"{section.path}: no such file or folder (looked in {folder} and in the current folder)")
    settings = encoder_settings(subject.recipe)
    key = _key(subject, section, path, settings, share)
    made, out = packs / key, packs / f"{key}-validation"
    if not (made / MANIFEST).is_file():
        name = section.name or path.name

        def told(progress: Progress) -> None:
            reporter.packing(name, progress.read / max(1, progress.total))

        packs.mkdir(parents=True, exist_ok=True)
        packed = pack_sources(
            [RawSource(path, section.form, section.fields)],
            made,
            settings,
            subject.tokenizer,
            subject.chat,
            validation=out if share else None,
            validation_share=share,
            workers=subject.recipe.data.workers,
            bad_records=subject.recipe.data.bad_lines,
            progress=told,
        )
        reporter.packing(name, 1.0)
        for line in packed.problems.lines():
            reporter.warn(line)
    return Pack.open(made), Pack.open(out) if (out / MANIFEST).is_file() else None


def encoder_settings(recipe: Recipe) -> EncoderSettings:
    """How the recipe's examples become tokens."""
    data = recipe.data
    return EncoderSettings(
        objective=recipe.objective,
        sequence=data.sequence,
        overlong=data.overlong,
        mask_format_tokens=recipe.dpo.mask_format_tokens,
        fim_rate=data.fim_rate,
        fim_spm=data.fim_spm,
        seed=recipe.train.seed,
    )


def _check(subject: Subject, manifest: Manifest, path: Path) -> None:
    recipe = subject.recipe
    model = recipe.model.base or recipe.model.tokenizer or "the model"
    manifest.check_tokenizer(subject.tokenizer_sha256, subject.tokenizer.vocab_size, pack=path, model=model)
    both = {manifest.facts.objective, recipe.objective}
    if len(both) > 1 and both != {"dpo", "reward"}:  # pairs are pairs
        raise UsageError(
            f"{path}: was packed for objective {manifest.facts.objective}, not {recipe.objective}; pack it again with "
            f"--objective {recipe.objective}"
        )
    if manifest.sequence != recipe.data.sequence:
        raise UsageError(
            f"{path}: has rows of {manifest.sequence} tokens; set data.sequence={manifest.sequence}, or pack it again"
        )


def _key(subject: Subject, section: SourceSection, path: Path, settings: EncoderSettings, share: float) -> str:
    """A name for what packing gives: it changes when a file, the tokenizer, the format or a setting does."""
    files = [(str(f.relative_to(path)) if f != path else f.name, *_stamp(f)) for f in list_files(path)]
    # Templates of checkpoints are all called the same: what they write is what counts.
    chat = None if subject.chat is None else [subject.chat.name, subject.checkpoint.chat_template]
    read = [section.form, sorted(section.fields.items())]
    content = [files, read, settings.to_dict(), share, subject.tokenizer_sha256, chat]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return f"{path.name.split('.')[0]}-{digest}"


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
