"""Options that `chat` and `run` share, declared once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qafila.chat.llama import Options

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
Device = Annotated[str | None, typer.Option(help="torch device (default: cuda where there is one, else cpu).")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")]


def generation(
    *,
    max_tokens: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    stop: list[str] | None,
    seed: int | None,
) -> Options:
    """The options as `Llama` takes them, checked before a model is loaded for them.

    Raises:
        UsageError: a value out of its range.
    """
    from qafila.sampling import SamplingParams, check_seed

    sampling = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    SamplingParams(**{key: value for key, value in sampling.items() if value is not None})  # type: ignore[arg-type]
    if seed is not None:
        check_seed(seed)
    return {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop,
        "seed": seed,
    }
