"""Options that the commands of the agent share, declared once; `qafila serve` has some as `--agent-...`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_policy = partial(
    typer.Option, metavar="FILE", envvar="QAFILA_AGENT_POLICY", help="What is allowed, asked about, denied (TOML)."
)
_config = partial(
    typer.Option,
    metavar="FILE",
    envvar="QAFILA_AGENT_CONFIG",
    help="The agent's settings (default: agent.toml in QAFILA_HOME).",
)
_tools = partial(
    typer.Option,
    metavar="NAMES",
    help="The only tools it has, with commas (`none` for none; `find_tools` among them finds the others).",
)
_database = partial(
    typer.Option,
    metavar="URL",
    envvar="QAFILA_AGENT_DATABASE",
    help="Where the agent's runs are kept (default: SQLite in QAFILA_HOME).",
)

Run = Annotated[str, typer.Argument(metavar="RUN", help="The first letters of its id, or `last`.")]
Model = Annotated[str, typer.Option("-m", "--model", metavar="MODEL", help="The model, as for `qafila chat`.")]
Endpoint = Annotated[
    str | None, typer.Option("--endpoint", metavar="URL", help="Ask an OpenAI-compatible server instead.")
]
KeyEnv = Annotated[
    str | None, typer.Option("--key-env", metavar="NAME", help="The variable that holds the endpoint's key.")
]
Workspace = Annotated[
    Path, typer.Option("-w", "--workspace", metavar="FOLDER", help="The files it works on (default: this folder).")
]
Tools = Annotated[str | None, _tools("--tools")]
Policy = Annotated[Path | None, _policy("--policy")]
Config = Annotated[Path | None, _config("--config")]
Database = Annotated[str | None, _database("--database")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Change files without asking; `undo` takes it back.")]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]

ServedTools = Annotated[str | None, _tools("--agent-tools")]
ServedPolicy = Annotated[Path | None, _policy("--agent-policy")]
ServedConfig = Annotated[Path | None, _config("--agent-config")]
ServedDatabase = Annotated[str | None, _database("--agent-database")]
