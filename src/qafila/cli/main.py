"""The command `qafila`: a table of commands, each imported when called, and one place where errors become lines."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from qafila import __version__
from qafila.errors import QafilaError

# name -> (module with `command`: a function, or a typer.Typer with subcommands; the line in `qafila --help`)
COMMANDS: dict[str, tuple[str, str]] = {
    "chat": ("qafila.cli.chat", "Talk with a model; lines on a pipe are answered one by one."),
    "run": ("qafila.cli.run", "Answer or continue one prompt."),
    "info": ("qafila.cli.info", "Parameters, memory, and whether a model fits in this machine."),
    "agent": ("qafila.cli.agent", "Give a model a goal and tools; watch, stop, resume and undo."),
    "memory": ("qafila.cli.memory", "What agents remember: show, add, edit, approve, forget."),
    "mcp": ("qafila.cli.mcp", "Tools of MCP servers: list, trust; and ours as one."),
    "audit": ("qafila.cli.audit", "The signed log of what agents did: verify, export, erase."),
    "serve": ("qafila.cli.serve", "An OpenAI-compatible API and a chat page."),
    "keys": ("qafila.cli.keys", "The API keys of the server: create, list, rotate and revoke."),
    "bench": ("qafila.cli.bench", "How fast a model is on this machine."),
    "train": ("qafila.cli.train", "Train, fine-tune or align a model by a recipe."),
    "data": ("qafila.cli.data", "Text and examples as packed tokens: pack, show, verify."),
    "tokenizer": ("qafila.cli.tokenizer", "Train a tokenizer, extend a model's, compare how they cut text."),
    "export": ("qafila.cli.export", "Write a trained model in another format, with a model card."),
    "tokenize": ("qafila.cli.tokenize", "Text to token ids, and back."),
    "pull": ("qafila.cli.pull", "Fetch a model into the model cache."),
    "models": ("qafila.cli.models", "List, verify and remove the models in the cache."),
    "convert": ("qafila.cli.convert", "Write a model in another format: hf, gguf or meta."),
}

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def _load(name: str) -> Any:
    """Import a command's module and build its parser."""
    module, summary = COMMANDS[name]
    command = importlib.import_module(module).command
    if isinstance(command, typer.Typer):
        parsed = typer.main.get_command(command)
        parsed.name = name
    else:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name)(command)
        parsed = typer.main.get_command(app)
    parsed.short_help = summary
    return parsed


class _LazyGroup(TyperGroup):
    """A group that knows its commands' names and summaries without importing them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.commands[cmd_name] = _load(cmd_name)
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib

            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}"
            ctx.fail(f"no command {name!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        for name, (_, summary) in COMMANDS.items():
            # Names and summaries are all that completion shows here; nothing is imported for them.
            self.commands.setdefault(name, TyperCommand(name, help=summary))
        return super().shell_complete(ctx, incomplete)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qafila {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="qafila",
    cls=_LazyGroup,
    rich_markup_mode=None,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="MODEL is `default`, `hf:owner/name`, a path, or a name from `qafila models`.",
)


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Load any Llama, talk with it, convert it, and see whether it fits."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def one_line(text: str) -> str:
    """``text`` on one line, with control characters (a hostile file name may hold them) shown as escapes."""
    joined = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)


def _report(message: str) -> None:
    sys.stdout.flush()
    print(f"error: {one_line(message)}", file=sys.stderr)


def _explain(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    reason = reason[:1].lower() + reason[1:]
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def _discard_stdout() -> None:
    # The reader has gone: without this the interpreter complains when it flushes at exit.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Everything a user can cause ends as one line ``error: ...`` on standard error with status 2; Ctrl-C gives 130.
    ``QAFILA_DEBUG=1`` in the environment shows the traceback instead.
    """
    debug = os.environ.get("QAFILA_DEBUG", "") not in ("", "0")
    given = sys.argv[1:] if argv is None else argv
    if not any(word.startswith("--device") for word in given):
        # NumPy's BLAS starts a thread for each processor, which takes longer than anything that is asked of it here.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):
        # A letter that a terminal cannot show, or a file name that is no text, gives a replacement, not a crash.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        status = typer.main.get_command(app).main(args=argv, prog_name="qafila", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except typer.TyperException as error:
        message = error.format_message()
        if message.startswith("Usage: "):  # a group without a command: its help
            print(message, file=sys.stderr)
        else:
            _report(message)
    except typer.Abort:
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return 1
    except QafilaError as error:
        if debug:
            raise
        _report(str(error))
    except MemoryError:
        if debug:
            raise
        _report("not enough memory; `qafila info MODEL` says what a model needs")
    except OSError as error:
        if debug:
            raise
        _report(_explain(error))
    return EXIT_ERROR
