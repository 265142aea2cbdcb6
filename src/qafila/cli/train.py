"""`qafila train`: by a recipe, to a model in runs/NAME."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qafila.errors import UsageError

if TYPE_CHECKING:
    from qafila.train.recipe import Recipe
    from qafila.train.run import Result


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a .toml or .yaml file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe to change: train.steps=100.")
    ] = None,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where run folders are.")] = Path("runs"),
    small: Annotated[bool, typer.Option("--small", help="With the recipe's small values, for this machine.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print memory, tokens, steps, time and cost, and train nothing.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start a run again that is there.")] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            "--nproc", metavar="N", min=1, help="Train in N processes on this machine; with --dry-run: plan for N GPUs."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a model by a recipe; it is in runs/NAME afterwards, and opens like any other.

    Ctrl-C and SIGTERM finish the step, keep a checkpoint and the model, and end; --resume goes on.
    """
    _needs_training_extra()
    from qafila.train.threads import wait_briefly

    wait_briefly()
    from qafila.train.recipe import read_recipe

    checked = read_recipe(recipe, overrides or [], small=small)
    folder = recipe.resolve().parent
    if dry_run:
        _dry_run(checked, folder, processes, as_json)
        return
    from qafila.train.parallel.world import is_first_process, world_size

    if processes is not None and processes != (started := world_size()):
        if started > 1:
            raise UsageError(f"--nproc {processes}: torchrun has started {started} processes already; leave it out")
        from qafila.train.parallel.launch import launch, own_command

        raise typer.Exit(launch(own_command(sys.argv[1:]), processes))
    from qafila.train.report import Reporter, Silent

    reporter: Reporter = Silent()
    if not as_json:
        from qafila.cli.train_report import Lines, Live

        reporter = Live() if sys.stderr.isatty() else Lines()
    from qafila.train.run import train

    result = train(checked, beside=folder, out=to, resume=resume, overwrite=force, reporter=reporter, answerer=_answer)
    if is_first_process():
        _tell(result, as_json)
    if result.stopped is not None:
        raise typer.Exit(128 + result.stopped)


def _answer(folder: Path, prompts: Sequence[str], *, chat: bool, max_tokens: int) -> list[dict[str, Any]]:
    """Answers of the native engine: what `qafila chat` would show."""
    from qafila.chat.llama import Llama

    with Llama.load(folder) as llama:  # which carries the format that it learns
        found = []
        for prompt in prompts:
            if chat:
                answer = llama.chat([{"role": "user", "content": prompt}], temperature=0.0, max_tokens=max_tokens)
            else:
                answer = llama.complete(prompt, temperature=0.0, max_tokens=max_tokens)
            found.append({"prompt": prompt, "answer": answer.text, "stopped": answer.finish_reason == "stop"})
        return found


def _needs_training_extra() -> None:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise UsageError("training needs torch: pip install 'qafila[train]' (in a checkout: make train)")


def _dry_run(recipe: Recipe, folder: Path, processes: int | None, as_json: bool) -> None:
    from qafila.train.dry_run import dry_run
    from qafila.train.plan_text import plan_lines

    plan = dry_run(recipe, folder, world=processes)
    print(json.dumps(plan.to_dict(), ensure_ascii=False) if as_json else "\n".join(plan_lines(plan)))


def _tell(result: Result, as_json: bool) -> None:
    validation = dict(result.validation)
    if as_json:
        report = {
            "run": str(result.folder),
            "steps": result.steps,
            "tokens": result.tokens,
            "seconds": round(result.seconds, 1),
            "loss": result.loss,
            "validation": validation,
            "stopped": result.stopped is not None,
        }
        print(json.dumps(report, ensure_ascii=False))
        return
    minutes = result.seconds / 60
    state = "stopped" if result.stopped is not None else "done"
    loss = f", validation loss {validation['loss']:.3f}" if "loss" in validation else ""
    print(f"{state}: {result.steps} steps, {result.tokens:,} tokens in {minutes:.1f} minutes{loss}")
    if result.stopped is not None:
        print("go on with --resume")
    print(f"talk with it: qafila chat {result.folder}")
