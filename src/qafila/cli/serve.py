"""`qafila serve`: models behind an OpenAI-compatible API and a chat page."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qafila.cli import agent_options as agent_opt
from qafila.cli import options as opt
from qafila.cli.agent_setup import load_config, mcp_tools, tool_names
from qafila.errors import StorageError, UsageError
from qafila.machine import usable_cores

if TYPE_CHECKING:
    from fastapi import FastAPI

    from qafila.server.keys import Keyring
    from qafila.server.settings import AgentSettings, Settings
    from qafila.server.upstreams import Upstream

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def command(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="`default`, `hf:owner/name`, a path, or a name from `qafila models`; NAME=MODEL says what requests "
            "call it. The first one is loaded at once, others on first use.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; one that others reach needs keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8000,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="A LoRA adapter on the first model (NAME@MODEL=FOLDER: on another)."),
    ] = None,
    models_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="More models, adapters and upstreams, with options each (TOML).")
    ] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Another server (vLLM, SGLang, ...) whose models are served here, too."),
    ] = None,
    upstream_model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=THEIRS", help="Only this model of the upstream, under this name; may be repeated."),
    ] = None,
    upstream_key_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable that holds the upstream's key.")
    ] = None,
    upstream_key_file: Annotated[Path | None, typer.Option(help="File that holds the upstream's key.")] = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    kv_type: opt.KvType = None,
    draft: opt.Draft = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    lazy: Annotated[bool, typer.Option("--lazy", help="Load the first model on first use, too.")] = False,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory for all models together (8G): idle ones make room.")
    ] = None,
    idle_unload: Annotated[
        str | None, typer.Option(metavar="TIME", help="Unload a model that nobody used for so long (10m).")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file with API keys, one a line (QAFILA_API_KEY holds some, too).")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="QAFILA_DATABASE",
            help="For keys and stored answers (default: SQLite in QAFILA_HOME).",
        ),
    ] = None,
    keep_responses: Annotated[
        str, typer.Option(metavar="TIME", help="How long answers of /v1/responses are kept (30d); `never` keeps none.")
    ] = "30d",
    allow_anonymous: Annotated[bool, typer.Option("--allow-anonymous", help="Answer requests without a key.")] = False,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One more name that this server is reached by.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Pages of this origin may call (https://app.example).")
    ] = None,
    share_cache: Annotated[
        bool, typer.Option("--share-cache", help="Share cached prompts between keys (timing may tell of them).")
    ] = False,
    max_running: Annotated[int, typer.Option(min=1, help="Requests computed at once.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that wait for that; more get 429.")] = 256,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Of each key that has no rate.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Of each key that has no rate.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Requests at once of each key.")] = None,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="Largest body of a request.")] = "16M",
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take, waiting included.")] = 600.0,
    grace: Annotated[float, typer.Option(help="Seconds that requests get to finish when the server stops.")] = 30.0,
    log_format: Annotated[str, typer.Option(help="human or json (one object a line).")] = "human",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Log prompts and answers, too.")] = False,
    agent: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", envvar="QAFILA_AGENT_FOLDER", help="Serve an agent (/v1/agent) that works in this folder."
        ),
    ] = None,
    agent_policy: agent_opt.ServedPolicy = None,
    agent_config: agent_opt.ServedConfig = None,
    agent_tools: agent_opt.ServedTools = None,
    agent_runs: Annotated[int, typer.Option(min=1, help="Runs of the agent worked on at once; others wait.")] = 4,
    agent_database: agent_opt.ServedDatabase = None,
    otlp_endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Send OpenTelemetry traces there (http://127.0.0.1:4318).")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Serve replicas of all this under Ray Serve.")] = False,
    replicas: Annotated[int | None, typer.Option(min=1, help="With --ray: how many (default 2).")] = None,
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="With --ray: a cluster that runs (default: one of its own).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say in JSON where it listens, once it is ready.")] = False,
) -> int:
    """Serve models: an OpenAI-compatible API (Anthropic's and Ollama's too) and a chat page.

    Ctrl-C or SIGTERM stops it: requests under way are finished first, for as long as --grace says. A second one stops
    it at once.
    """
    try:
        from qafila.server.assemble import assemble
        from qafila.server.logs import set_up
        from qafila.server.model_list import entries_from
        from qafila.server.models import Models
        from qafila.server.responses_store import ResponseStore
        from qafila.server.run import listen, run, url_of
        from qafila.server.settings import Settings
        from qafila.server.traces import Tracer
    except ModuleNotFoundError as error:
        raise UsageError(f"serve: {error.name} is missing; `pip install 'qafila[serve]'` brings it") from None

    _one_of(log_format, ("human", "json"), "--log-format")
    _one_of(log_level, ("debug", "info", "warning", "error"), "--log-level")
    settings = Settings(
        host=host,
        allowed_hosts=tuple(allowed_host or ()),
        cors_origins=tuple(cors_origin or ()),
        allow_anonymous=allow_anonymous,
        share_cache=share_cache,
        max_running=max_running,
        max_waiting=max_waiting,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
        max_body=_bytes(max_body, "--max-body"),
        timeout=timeout,
        grace=grace,
        log_prompts=log_prompts,
    )
    of_agent = ("agent_policy", "agent_config", "agent_tools", "agent_database", "agent_runs")
    named = any(getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE" for name in of_agent)
    agent_settings = _agent(agent, agent_policy, agent_config, agent_tools, agent_database, agent_runs, named=named)
    if not ray and (replicas is not None or ray_address is not None):
        raise UsageError("--replicas and --ray-address go with --ray")
    count = replicas or 2
    if ray and threads is None:
        threads = max(1, usable_cores() // count)
    options = {
        "threads": threads, "context": context, "kv_type": kv_type, "draft": draft, "device": device, "dtype": dtype
    }  # fmt: skip
    upstreams = _upstreams(upstream or (), upstream_model or (), upstream_key_env, upstream_key_file)
    limit = None if memory_limit is None else _bytes(memory_limit, "--memory-limit")
    idle = None if idle_unload is None else _seconds(idle_unload, "--idle-unload")
    kept = None if keep_responses == "never" else _seconds(keep_responses, "--keep-responses")

    def build() -> FastAPI:
        """The whole application; under Ray each replica makes its own."""
        entries = entries_from(models or (), adapter or (), upstreams, options, models_file)
        return assemble(
            Models(entries, memory_limit=limit, idle_unload=idle),
            settings,
            keyring=_keyring(settings, api_key_file, database),
            tracer=None if otlp_endpoint is None else Tracer.over_http(otlp_endpoint),
            responses=None if kept is None else ResponseStore.open(database, days=kept / 86400),
            agent=agent_settings,
        )

    # Under Ray this one serves nobody, but what is wrong with the options is found here, in one line.
    app = build()
    names = list(app.state.service.models.entries)
    set_up("json" if log_format == "json" else "human", log_level, told=log_prompts)

    def announce(url: str) -> None:
        if as_json:
            typer.echo(json.dumps({"url": url, "models": names}, ensure_ascii=False))
        else:
            lines = [f"Qafila serves {', '.join(names)}", f"  chat page  {url}/", f"  API        {url}/v1"]
            if agent is not None:
                lines.append(f"  agent      works in {agent}")
            typer.echo("\n".join([*lines, "  Ctrl-C stops it"]))
        sys.stdout.flush()

    if ray:
        from qafila.server.ray_app import serve_replicas

        return serve_replicas(
            build, announce, count=count, host=host, port=port, cpus=threads or 1, address=ray_address
        )
    listener = listen(host, port)
    began = time.perf_counter()
    quiet = lazy or as_json or log_format == "json"
    if not quiet:
        print(f"loading {names[0]} ...", file=sys.stderr, flush=True)

    def ready() -> None:
        if not quiet:
            print(f"loaded in {time.perf_counter() - began:.1f} s", file=sys.stderr)
        announce(url_of(listener))

    return run(app, listener, settings, preload=None if lazy else names[0], ready=ready)


def _upstreams(
    urls: Sequence[str], models: Sequence[str], key_env: str | None, key_file: Path | None
) -> list[Upstream]:
    """Upstreams of the command line; names and keys are those of the only one.

    Raises:
        UsageError: it is not clear which upstream an option is for, or a value makes no sense.
    """
    from qafila.server.model_list import upstream_of

    if len(urls) != 1 and (models or key_env is not None or key_file is not None):
        way_out = "list several in --models-file" if urls else "add --upstream URL"
        raise UsageError(f"--upstream-model and --upstream-key-... are for exactly one --upstream; {way_out}")
    return [upstream_of(url, models, key_env, key_file) for url in urls]


def _agent(
    folder: Path | None,
    policy: Path | None,
    config: Path | None,
    tools: str | None,
    database: str | None,
    at_once: int,
    *,
    named: bool,
) -> AgentSettings | None:
    """What is decided about the agent; None for no agent.

    Args:
        named: whether an option of it stands on the command line; in variables they may be meant for `qafila agent`.

    Raises:
        UsageError: options of an agent that there is not, or a folder that is none.
    """
    from qafila.server.settings import AgentSettings

    if folder is None:
        if named:
            raise UsageError("--agent-...: there is no agent; add --agent FOLDER")
        return None
    try:
        import qafila.agent.journal  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"--agent: {error.name} is missing; `pip install 'qafila[agent]'` brings it") from None
    given = tool_names(tools)
    names = None if given is None else tuple(given)
    configured = load_config(config)
    return AgentSettings(folder, policy, names, database, at_once, configured, mcp_tools(configured))


def _keyring(settings: Settings, file: Path | None, database: str | None) -> Keyring:
    """The keys of the environment, of a file and of the database; refuses a public address that has none.

    Raises:
        UsageError: that, or a key that is too short. StorageError: the file or the database cannot be read.
    """
    from qafila.database import default_url, open_database
    from qafila.server.keys import Keyring, KeyStore, static_keys

    given = [key.strip() for key in os.environ.get("QAFILA_API_KEY", "").split(",") if key.strip()]
    keys = static_keys(given, "QAFILA_API_KEY")
    if file is not None:
        listed = _lines(file)
        if not listed:
            raise UsageError(f"--api-key-file: {file} holds no key; write one a line")
        keys += static_keys(listed, "--api-key-file")
    keyring = Keyring(keys, KeyStore(open_database(database or default_url("server"))))
    if not (settings.is_loopback or settings.allow_anonymous or keyring.required()):
        raise UsageError(
            f"--host {settings.host}: others can reach that address, and there is no API key yet; make one with "
            "`qafila keys create NAME` (or set QAFILA_API_KEY), or let everybody in with --allow-anonymous"
        )
    return keyring


def _lines(file: Path) -> Sequence[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"--api-key-file: {file}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--api-key-file: {file} is not text") from None
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _one_of(value: str, allowed: Sequence[str], option: str) -> None:
    if value not in allowed:
        raise UsageError(f"{option}: must be {', '.join(allowed[:-1])} or {allowed[-1]}, not {value!r:.40}")


def _bytes(text: str, option: str) -> int:
    """A size such as ``512M`` or ``8G``, in bytes."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    size = 0 if match is None else int(float(match[1]) * _UNITS[match[2]])
    if size < 1:
        raise UsageError(f"{option}: {text!r:.40} is no size; write 16M, 8G or a number of bytes")
    return size


def _seconds(text: str, option: str) -> float:
    from qafila.cli.keys import seconds

    return seconds(text, option)
