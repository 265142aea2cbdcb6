"""The model card of an export (README.md, as hubs show it): data, recipe, losses, and duties inherited."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from qafila.weights.load import Checkpoint
from qafila.weights.run_card import RunCard, RunData

# Licences by what their identifier begins with (as hubs write them), in the order of looking: name, page, policy.
_LLAMA_LICENCES: Final = (
    ("llama4", "Llama 4 Community License", "https://www.llama.com/llama4/license/", "llama4"),
    ("llama3.3", "Llama 3.3 Community License", "https://www.llama.com/llama3_3/license/", "llama3_3"),
    ("llama3.2", "Llama 3.2 Community License", "https://www.llama.com/llama3_2/license/", "llama3_2"),
    ("llama3.1", "Llama 3.1 Community License", "https://www.llama.com/llama3_1/license/", "llama3_1"),
    ("llama3", "Meta Llama 3 Community License", "https://www.llama.com/llama3/license/", "llama3"),
    ("llama2", "Llama 2 Community License", "https://ai.meta.com/llama/license/", "llama2"),
)
_NONCOMMERCIAL: Final = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)
_REWARD: Final = (
    "Trained as a reward model. Its scores come from {place}, which transformers opens as "
    "`AutoModelForSequenceClassification` with one label: the logit of a whole conversation, written in the model's "
    "chat template and read at its last token, is its score."
)
_DASH: Final = "—"


def llama_licence(identifier: str) -> tuple[str, str, str] | None:
    """Name, page and acceptable-use policy of a Llama licence by a hub's identifier; None for any other licence."""
    compact = re.sub(r"[\s_-]+", "", identifier.lower()).removeprefix("meta")
    compact = re.sub(r"^codellama.*", "llama2", compact)
    for prefix, name, page, key in _LLAMA_LICENCES:
        if compact.startswith(prefix):
            place = "ai.meta.com/llama/use-policy/" if key == "llama2" else f"www.llama.com/{key}/use-policy/"
            return name, page, f"https://{place}"
    return None


def model_card(
    name: str, checkpoint: Checkpoint, run: RunCard | None, *, licence: str | None = None, with_reward: bool = False
) -> str:
    """The card as Markdown with a YAML head.

    Args:
        name: of the exported model. checkpoint: what was exported.
        run: what the run's folder says; None where it is no run.
        licence: of the base, where neither run nor checkpoint tells it.
        with_reward: the folder ``reward`` lies beside the card.
    """
    stated = checkpoint.details.get("general.license")
    base = run.base if run is not None else None
    inherited = (base.license if base else None) or licence or (stated if isinstance(stated, str) else None)
    from_nothing = run is not None and base is None
    parts = [_head(checkpoint, run, inherited), f"# {_line(name)}", ""]
    if run is not None and isinstance(run.of_recipe("description"), str) and run.of_recipe("description"):
        parts += [_line(run.of_recipe("description")), ""]
    parts += [_sentence(checkpoint, run), ""]
    parts += ["## Licence and duties", "", *_duties(inherited, run, from_nothing=from_nothing), ""]
    if run is not None:
        parts += _data(run.data) + _recipe(run) + _result(run.result)
    parts += ["## Use", "", "```sh", "qafila chat .", "```", ""]
    if run is not None and run.of_recipe("objective") == "reward":
        place = (
            "the folder `reward`"
            if with_reward
            else "the folder `reward` in the folder of the run, not from these files"
        )
        parts += [_REWARD.format(place=place), ""]
    return "\n".join(parts)


def _head(checkpoint: Checkpoint, run: RunCard | None, inherited: str | None) -> str:
    """What hubs read: licence, base, tags."""
    llama = llama_licence(inherited) if inherited else None
    head: dict[str, Any] = {}
    if inherited:
        plain = re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", inherited.lower())
        head["license"] = inherited.lower() if plain else "other"
        if not plain:
            head["license_name"] = _line(inherited)
    source = run.base.source if run is not None and run.base is not None else None
    if source and source.startswith("hf:"):
        head["base_model"] = source.removeprefix("hf:").split("@")[0].split(":")[0]
    head["tags"] = ["qafila", *(["llama"] if llama else [])]
    if run is not None and isinstance(run.of_recipe("objective"), str):
        head["tags"].append(run.of_recipe("objective"))
    # JSON's texts and lists are YAML too, and nothing in them can break out of the head.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    return "\n".join(["---", *lines, "---", ""])


def _sentence(checkpoint: Checkpoint, run: RunCard | None) -> str:
    config = checkpoint.config
    shape = (
        f"{config.n_layers} layers, dim {config.dim}, vocabulary {config.vocab_size:,}, "
        f"context {config.context_length:,}"
    )
    if run is None:
        return f"A Llama ({shape}), written by Qafila."
    if run.base is None:
        return f"A Llama ({shape}), trained from nothing with Qafila {_line(run.qafila)}."
    base = run.base.name or run.base.source or "an unnamed model"
    known = f"{_line(base)} (`{_line(run.base.source)}`)" if run.base.source else _line(base)
    return f"A Llama ({shape}), trained from {known} with Qafila {_line(run.qafila)}."


def _duties(inherited: str | None, run: RunCard | None, *, from_nothing: bool) -> list[str]:
    lines = []
    llama = llama_licence(inherited) if inherited else None
    if llama is not None:
        title, page, policy = llama
        lines += [
            f"**Built with {'Meta Llama 3' if title.startswith('Meta Llama 3') else 'Llama'}.** "
            f"The base is licensed under the [{title}]({page}), and so is this model. Who passes it on:",
            "",
            '- gives a copy of that agreement along, and shows "Built with Llama" prominently where it is used;',
            '- begins the name of a model that is passed on with "Llama" (from Llama 3 on);',
            f"- keeps the notice: *{title.removeprefix('Meta ').removesuffix(' Community License')} is licensed under "
            f"the {title}, Copyright © Meta Platforms, Inc. All Rights Reserved.*",
            f"- holds every use to the [acceptable use policy]({policy}).",
        ]
    elif inherited and inherited.lower() in ("apache-2.0", "apache 2.0"):
        lines.append(
            "The base is under Apache-2.0: keep its licence and notices when you pass this model on, and say that it "
            "was changed."
        )
    elif inherited:
        lines.append(f"The base is under {_line(inherited)}; its terms hold for this model too.")
    elif from_nothing:
        lines.append("Trained from nothing: no base, and no duties from one.")
    else:
        lines.append("**The licence of the base is not known.** Find it before you pass this model on.")
    restricted = [one for one in run.data if _restriction(one)] if run is not None else []
    for one in restricted:
        lines += ["", f"**{_line(one.name)}**: {_restriction(one)}"]
    unknown = [one for one in run.data if not one.license and not _restriction(one)] if run is not None else []
    if unknown:
        names = ", ".join(_line(one.name) for one in unknown)
        lines += ["", f"The licence of this data was not stated: {names}. Check it before you pass the model on."]
    return lines


def _restriction(data: RunData) -> str | None:
    if data.license and _NONCOMMERCIAL.search(data.license):
        return f"is licensed {_line(data.license)}: this model is for non-commercial use only."
    if not data.license and "alpaca" in f"{data.name} {data.path or ''}".lower():
        return (
            "by its name this is data of Stanford's Alpaca or of AlpacaEval, which are CC BY-NC 4.0: non-commercial "
            "use only, and the terms of the model that wrote the answers."
        )
    return None


def _data(data: tuple[RunData, ...]) -> list[str]:
    if not data:
        return []
    lines = ["## Data", "", "| source | records | tokens | licence | SHA-256 |", "|---|---:|---:|---|---|"]
    for one in data:
        name = _cell(one.name if not one.path or one.path == one.name else f"{one.name} ({one.path})")
        counts = [_DASH if n is None else f"{n:,}" for n in (one.records, one.tokens)]
        digest = f"`{_cell(one.sha256[:16])}`" if one.sha256 else _DASH
        lines.append(f"| {name} | {counts[0]} | {counts[1]} | {_cell(one.license or 'not stated')} | {digest} |")
    return [*lines, ""]


def _recipe(run: RunCard) -> list[str]:
    rows: list[tuple[str, Any]] = [("objective", run.of_recipe("objective"))]
    rows += [(f"adapter.{key}", run.of_recipe("adapter", key)) for key in ("kind", "rank", "alpha", "base")]
    rows += [("data.sequence", run.of_recipe("data", "sequence"))]
    rows += [(f"optimizer.{key}", run.of_recipe("optimizer", key)) for key in ("name", "lr", "weight_decay", "clip")]
    rows += [("schedule.kind", run.of_recipe("schedule", "kind"))]
    rows += [(f"train.{key}", run.of_recipe("train", key)) for key in ("batch", "precision", "seed")]
    shown = [(key, value) for key, value in rows if isinstance(value, str | int | float)]
    if not shown:
        return []
    return ["## Recipe", "", "| key | value |", "|---|---|", *(f"| {k} | {_cell(str(v))} |" for k, v in shown), ""]


def _result(result: Mapping[str, Any]) -> list[str]:
    flat: list[tuple[str, float]] = []
    for key, value in result.items():
        if isinstance(value, Mapping):
            flat += [(f"{key} {name}", v) for name, v in value.items() if _number(v)]
        elif _number(value):
            flat.append((key.replace("_", " "), value))
    if not flat:
        return []
    rows = [f"| {_cell(str(key))} | {_figure(value)} |" for key, value in flat]
    return ["## Result", "", "| figure | value |", "|---|---:|", *rows, ""]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _line(text: object) -> str:
    """Text of unknown origin on one line of Markdown, without anything that Markdown or HTML would act on."""
    flat = " ".join(str(text).split())[:400]
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", flat) if re.search(r"[<>\[\]`]", flat) else flat


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
