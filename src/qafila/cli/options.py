"""Options that `chat` and `run` share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from qafila.errors import UsageError

if TYPE_CHECKING:
    from qafila.chat.options import Options

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="`default`, `hf:owner/name`, a path, or a name from `qafila models`.")
]
MaxTokens = Annotated[
    int | None, typer.Option("-n", "--max-tokens", min=1, help="Most tokens to generate (default: what fits).")
]
Temperature = Annotated[
    float | None, typer.Option("-t", "--temperature", min=0.0, help="0 takes the likeliest token always.")
]
TopK = Annotated[int | None, typer.Option(min=0, help="Sample from the k likeliest tokens; 0 for all.")]
TopP = Annotated[float | None, typer.Option(help="Sample from the likeliest tokens that make up this probability.")]
MinP = Annotated[float | None, typer.Option(help="Least probability, as a share of the likeliest token's.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1: tokens already there become less likely.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="A string that ends the answer; may be repeated.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Same seed, same answer.")]
System = Annotated[str | None, typer.Option("-s", "--system", help="System prompt.")]
Format = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="Chat format (default: the checkpoint's own).")
]
PresencePenalty = Annotated[float | None, typer.Option(help="-2 to 2: tokens already generated become less likely.")]
FrequencyPenalty = Annotated[float | None, typer.Option(help="-2 to 2: the same, for each time they were generated.")]
JsonSchema = Annotated[
    str | None, typer.Option(metavar="SCHEMA", help="The answer is JSON that matches: a schema, or a file with one.")
]
Regex = Annotated[str | None, typer.Option(metavar="REGEX", help="The answer matches this regular expression.")]
Grammar = Annotated[str | None, typer.Option(metavar="FILE", help="The answer matches the Lark grammar in this file.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="Threads (default: one a physical core).")]
Context = Annotated[
    int | None, typer.Option(min=1, max=1 << 40, help="Tokens of KV cache (default: what two usual chats need).")
]
KvType = Annotated[str | None, typer.Option(help="Type of the KV cache: f16 or int8.")]
Adapter = Annotated[str | None, typer.Option(metavar="FOLDER", help="A LoRA adapter (PEFT) to answer with.")]
Draft = Annotated[
    str | None, typer.Option(metavar="MODEL", help="A smaller model of the same vocabulary that guesses ahead.")
]
Device = Annotated[str | None, typer.Option(help="Compute with torch on cpu or cuda, not with the native engine.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="With --device: float32, bfloat16 or float16.")]


def generation(*, json_schema: str | None, grammar: str | None, **given: Any) -> Options:
    """The options as `Llama` takes them, checked before a model is loaded for them.

    Raises:
        UsageError: a value out of its range, or a file that cannot be read.
    """
    from qafila.chat import options as opt
    from qafila.config import GenerationConfig
    from qafila.sampling import check_seed

    options = cast("Options", given)
    if json_schema is not None:
        options["json_schema"] = json_schema if json_schema.lstrip().startswith("{") else _text(json_schema)
    if grammar is not None:
        options["grammar"] = _text(grammar)
    opt.sampling(options, GenerationConfig())
    opt.grammar(options)
    if given.get("seed") is not None:
        check_seed(given["seed"])
    return options


def _text(name: str) -> str:
    path = Path(name)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{name}: is not UTF-8 text") from None
