"""Options that `chat` and `run` share, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

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
