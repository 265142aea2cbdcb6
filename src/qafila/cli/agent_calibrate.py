"""`qafila agent calibrate`: how far a model's choice of tools can be trusted, and from where on it may act."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qafila.cli import agent_options as agent_opt
from qafila.cli import options as opt
from qafila.errors import UsageError

if TYPE_CHECKING:
    from qafila.agent.calibration import Example


def calibrate(
    examples: Annotated[
        Path, typer.Argument(metavar="FILE", help='JSONL: {"goal": ..., "tools": [...], "tool": name or null}.')
    ],
    model: agent_opt.Model = "default",
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Where to write (default: found by itself later).")
    ] = None,
    threads: opt.Threads = None,
    adapter: opt.Adapter = None,
    as_json: agent_opt.JSON = False,
) -> None:
    """Fit a model's odds of tools to examples; half of them only measure the result."""
    from qafila.agent.calibration import Calibration, fit, keep_calibration, quality, write_calibration
    from qafila.agent.examples import odds_of, read_choices
    from qafila.cli.agent_setup import open_client

    choices = read_choices(examples)
    if len(choices) < 20:
        raise UsageError(f"{examples}: {len(choices)} examples are too few; give at least 20")
    random.Random(0).shuffle(choices)  # noqa: S311 - the same halves every time
    client = open_client(model, endpoint=None, key_variable=None, threads=threads, context=None, adapter=adapter)

    def tell(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} of {len(choices)}", end="", file=sys.stderr, flush=True)

    async def ask() -> list[Example]:
        try:
            return await odds_of(client, choices, tell)
        finally:
            await client.close()

    fingerprint = (client.fingerprint or "").partition("-")[0]
    found = asyncio.run(ask())
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    half = len(found) // 2
    held_out = quality(fit(found[:half]), found[half:])
    before = quality(Calibration(), found[half:])
    fitted = fit(found, fingerprint=fingerprint, source=examples.name)
    if to is None:
        to = keep_calibration(fitted)
    else:
        write_calibration(fitted, to)
    if as_json:
        report = {"calibration": fitted.model_dump(), "before": asdict(before), "after": asdict(held_out)}
        print(json.dumps({**report, "file": str(to)}))
        return
    print(f"on {len(found) - half} examples that were held out, before and after:")
    rows = {
        "a call or words, right": "call_accuracy",
        "a call or words, calibration error": "call_error",
        "calls told from words (AUROC)": "call_auroc",
        "the right tool": "tool_accuracy",
        "the right tool, calibration error": "tool_error",
    }
    for words, name in rows.items():
        print(f"  {words:36} {getattr(before, name):.3f}  {getattr(held_out, name):.3f}")
    print(f"fitted to all {len(found)}: {to}")
