"""`qafila agent schedule`, `scheduler` and `notices`: work that begins by itself, and what it has to tell."""

from __future__ import annotations

import asyncio
import json
import sys
import zoneinfo
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from qafila.cli import agent_options as agent_opt
from qafila.cli import options as opt
from qafila.cli import terminal
from qafila.cli.agent_setup import load_config, mcp_tools, open_client, open_journal, tool_names, workspace
from qafila.errors import QafilaError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from qafila.agent.config import Config
    from qafila.agent.journal import Journal
    from qafila.agent.loop import Agent
    from qafila.agent.policy import Policy
    from qafila.agent.schedules.instants import Quiet
    from qafila.agent.schedules.scheduler import Scheduler
    from qafila.agent.schedules.store import Schedule
    from qafila.agent.schedules.triggers import Trigger
    from qafila.agent.tool import Tool
    from qafila.chat.client import ChatClient

# Schedules of this machine's user; the server keeps each tenant's apart.
_OWNER = ""

command = typer.Typer(
    add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="What begins by itself, and when."
)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name or id.")]


@command.command("add")
def _add(
    goal: Annotated[str, typer.Argument(metavar="GOAL", help="What is to be done each time.")],
    cron: Annotated[str | None, typer.Option("--cron", metavar="FIELDS", help='As in a crontab: "0 7 * * *".')] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="TIME", help='Once: "2026-12-01 09:00".')] = None,
    before_events: Annotated[
        str | None, typer.Option("--before-events", metavar="SPAN", help="So long before events: 15m, 2h, 1d.")
    ] = None,
    on_file: Annotated[
        str | None, typer.Option("--on-file", metavar="PATTERN", help="When such a file appears or changes: inbox/*.")
    ] = None,
    on: Annotated[str | None, typer.Option("--on", metavar="NAME", help="When `schedule fire NAME` says so.")] = None,
    zone: Annotated[
        str | None, typer.Option("--zone", metavar="ZONE", help="As Africa/Cairo (default: of the settings).")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="What it is called.")] = None,
    missed: Annotated[
        str, typer.Option("--missed", metavar="HOW", help="What went by while nobody worked: skip, once or all (24).")
    ] = "once",
    skip_quiet: Annotated[bool, typer.Option("--skip-quiet", help="In quiet hours not at all, instead of after.")] = (
        False
    ),
    brief: Annotated[bool, typer.Option("--brief", help="Tell nothing where there is nothing to tell.")] = False,
    folder: agent_opt.Workspace = Path(),
    tools: agent_opt.Tools = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Most answers of the model.")] = 12,
    config: agent_opt.Config = None,
    database: agent_opt.Database = None,
    as_json: agent_opt.JSON = False,
) -> None:
    """Have a goal worked on by itself; whatever it would change waits for your word."""
    journal = open_journal(database)
    from qafila.agent.schedules.planner import known_files
    from qafila.agent.schedules.store import Missed, Wanted
    from qafila.agent.schedules.triggers import OnFile, known_name
    from qafila.agent.tools.builtin import Resources, builtin
    from qafila.agent.worker import check_goal

    check_goal(goal)
    where = workspace(folder)
    settings = load_config(config)
    trigger = _trigger(cron, at, before_events, on_file, on, _zone(zone, settings))
    policies: tuple[Missed, ...] = get_args(Missed)
    how = next((one for one in policies if one == missed), None)
    if how is None:
        raise UsageError(f"--missed {missed!r:.40}: is none of {', '.join(policies)}")
    names = tool_names(tools)
    if names is not None:  # says which there is not
        builtin(names, Resources(settings, memory=journal.memory, others=mcp_tools(settings)()))
    if before_events is not None and settings.calendar.caldav is not None:
        raise UsageError("--before-events: looks into calendar files only, and the settings name a CalDAV server")
    called = known_name("--name", name) if name is not None else _free_name(journal, trigger.kind)
    wanted = Wanted(
        called, goal, trigger, str(where), None if names is None else tuple(names), steps, how, skip_quiet, brief
    )
    seen = known_files(where, trigger.pattern) if isinstance(trigger, OnFile) else None
    made = journal.schedules.add(_OWNER, wanted, seen)
    typer.echo(json.dumps(made.to_dict(), ensure_ascii=False) if as_json else _line(made))


@command.command("list")
def _list(database: agent_opt.Database = None, as_json: agent_opt.JSON = False) -> None:
    """List the schedules, and when each is due next."""
    found = open_journal(database).schedules.list(_OWNER)
    if as_json:
        typer.echo(json.dumps([one.to_dict() for one in found], ensure_ascii=False, indent=2))
        return
    if not found:
        typer.echo('no schedules yet; `qafila agent schedule add "GOAL" --cron "0 7 * * *"` makes one', err=True)
    for one in found:
        typer.echo(_line(one))


@command.command("remove")
def _remove(name: _Name, database: agent_opt.Database = None) -> None:
    """Remove a schedule; its runs and notices stay."""
    typer.echo(f"removed {open_journal(database).schedules.remove(_OWNER, name).wanted.name}")


@command.command("pause")
def _pause(name: _Name, database: agent_opt.Database = None) -> None:
    """Have a schedule begin nothing until `resume`."""
    typer.echo(f"paused {open_journal(database).schedules.pause(_OWNER, name, True).wanted.name}")


@command.command("resume")
def _resume(name: _Name, database: agent_opt.Database = None) -> None:
    """Let a paused schedule go on; what it missed meanwhile stays missed."""
    typer.echo(f"goes on: {open_journal(database).schedules.pause(_OWNER, name, False).wanted.name}")


@command.command("fire")
def _fire(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of `--on`, or of a schedule.")],
    key: Annotated[
        str | None, typer.Option("--key", metavar="KEY", help="The same key sets things off once, however often.")
    ] = None,
    database: agent_opt.Database = None,
) -> None:
    """Announce something: what waits for it is worked on by the scheduler, after quiet hours if it is in them."""
    from qafila.agent.schedules.triggers import known_name

    token = None if key is None else known_name("--key", key)
    for one in open_journal(database).schedules.announce(_OWNER, name, token):
        typer.echo(f"set off {one.wanted.name}")


def notices(
    everything: Annotated[bool, typer.Option("--all", help="Those that were shown before as well.")] = False,
    database: agent_opt.Database = None,
    as_json: agent_opt.JSON = False,
) -> None:
    """Show what runs of schedules have to tell, newest first; each once."""
    schedules = open_journal(database).schedules
    found = schedules.notices(_OWNER, unread=not everything)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], ensure_ascii=False, indent=2))
    elif not found:
        typer.echo("nothing new", err=True)
    else:
        for one in found:
            when = datetime.fromtimestamp(one.at).strftime("%Y-%m-%d %H:%M")
            typer.echo(f"{when}  {one.schedule}  run {one.run}\n{terminal.printable(one.text)}\n")
    schedules.mark_read(_OWNER, [one.id for one in found])


def scheduler(
    model: agent_opt.Model = "default",
    once: Annotated[bool, typer.Option("--once", help="Work what is due now and end: for cron and timers.")] = False,
    policy: agent_opt.Policy = None,
    config: agent_opt.Config = None,
    endpoint: agent_opt.Endpoint = None,
    key_env: agent_opt.KeyEnv = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    adapter: opt.Adapter = None,
    database: agent_opt.Database = None,
) -> None:
    """Work what schedules set off, until Ctrl-C; what it finds is in `qafila agent notices`."""
    from qafila.agent.policy import Policy, read_policy

    journal = open_journal(database)
    settings = load_config(config)
    rules = Policy() if policy is None else read_policy(policy)

    def client() -> ChatClient:
        return open_client(
            model, endpoint=endpoint, key_variable=key_env, threads=threads, context=context, adapter=adapter
        )

    # One elsewhere is asked for its models now; one here is loaded when something is due.
    opened = client() if endpoint is not None else None
    try:
        asyncio.run(_run(journal, settings, rules, opened, client, once))
    except _NoModelError as error:
        raise error.error from None


class _NoModelError(Exception):
    """There is no model to work with: what is due stays due. ``error``: why."""

    def __init__(self, error: QafilaError) -> None:
        super().__init__(str(error))
        self.error = error


async def _run(
    journal: Journal,
    settings: Config,
    rules: Policy,
    opened: ChatClient | None,
    open_one: Callable[[], ChatClient],
    once: bool,
) -> None:
    """The scheduler, with a model that is loaded when first something is due, unless it is there."""
    clients = [] if opened is None else [opened]
    others = mcp_tools(settings)

    def agent_for(schedule: Schedule) -> Agent:
        if not clients:
            try:
                clients.append(open_one())
            except QafilaError as error:
                raise _NoModelError(error) from error
        return _agent(journal, settings, rules, clients[0], others(), schedule)

    made = _scheduler(journal, settings, agent_for)
    try:
        if once:
            await made.once()
        else:
            print("working what schedules set off; Ctrl-C ends it", file=sys.stderr)
            await made.forever()
    finally:
        for one in clients:
            await one.close()


def _scheduler(journal: Journal, settings: Config, agent_for: Callable[[Schedule], Agent]) -> Scheduler:
    from qafila.agent.agenda.reminders import due
    from qafila.agent.schedules.scheduler import Scheduler

    def tell(line: str) -> None:
        print(terminal.printable(line), file=sys.stderr)

    calendars = (settings.calendar.file, "tasks.ics")
    return Scheduler(
        journal.schedules,
        journal,
        agent_for,
        quiet=_quiet(settings),
        reader=due,
        calendars=calendars,
        tell=tell,
    )


def _agent(
    journal: Journal,
    settings: Config,
    rules: Policy,
    client: ChatClient,
    others: tuple[Tool, ...],
    schedule: Schedule,
) -> Agent:
    from qafila.agent.choose import settled
    from qafila.agent.events import Budget
    from qafila.agent.loop import Agent, Settings
    from qafila.agent.schedules.scheduler import unattended
    from qafila.agent.tools.builtin import Resources, builtin

    wanted = schedule.wanted
    resources = Resources(settings, memory=journal.memory, owner=schedule.owner, others=others)
    toolbox = builtin(wanted.tools, resources)
    choosing, calibration = settled(client, None, option="")
    made = Settings(
        budget=Budget(steps=wanted.steps),
        prices=settings.token_prices,
        choosing=choosing,
        calibration=calibration,
    )
    return Agent(
        client,
        toolbox,
        journal,
        workspace=workspace(Path(wanted.workspace)),
        policy=unattended(rules),
        settings=made,
        memory=journal.memory,
        owner=schedule.owner,
    )


def _quiet(settings: Config) -> Quiet | None:
    from qafila.agent.schedules.instants import Quiet

    written = settings.schedules.quiet
    return None if written is None else Quiet.parse(written, zoneinfo.ZoneInfo(_zone(None, settings)))


def _zone(given: str | None, settings: Config) -> str:
    from qafila.agent.schedules.triggers import known_zone, machine_zone

    return known_zone(given) if given is not None else settings.timezone or machine_zone()


def _trigger(
    cron: str | None, at: str | None, before_events: str | None, on_file: str | None, on: str | None, zone: str
) -> Trigger:
    from qafila.agent.schedules import triggers
    from qafila.agent.schedules.instants import next_time

    given = [one for one in (cron, at, before_events, on_file, on) if one is not None]
    if len(given) != 1:
        raise UsageError("say when, in one way: --cron, --at, --before-events, --on-file or --on")
    if cron is not None:
        return triggers.cron(cron, zone)
    if at is not None:
        found = triggers.once(at, zone)
        if next_time(found, datetime.now(UTC)) is None:
            raise UsageError(f"--at {at!r:.60}: is over in {zone}")
        return found
    if before_events is not None:
        return triggers.before_events(before_events, zone)
    return triggers.on_file(on_file) if on_file is not None else triggers.on_name(on or "")


def _free_name(journal: Journal, kind: str) -> str:
    names = {one.wanted.name for one in journal.schedules.list(_OWNER)}
    return next(name for number in range(1, len(names) + 2) if (name := f"{kind}-{number}") not in names)


def _line(schedule: Schedule) -> str:
    from qafila.agent.schedules.instants import next_time
    from qafila.agent.schedules.triggers import Cron, Once

    wanted = schedule.wanted
    trigger = wanted.trigger
    following = "waits"
    if isinstance(trigger, Cron | Once):
        at = next_time(trigger, datetime.now(UTC))
        # As the clocks of the schedule's own zone show it, which stands before it.
        following = "over" if at is None else f"next {at.astimezone(zoneinfo.ZoneInfo(trigger.zone)):%Y-%m-%d %H:%M}"
    state = "paused" if schedule.paused else following
    goal = " ".join(terminal.printable(wanted.goal).split())
    return f"{schedule.id}  {wanted.name}  {trigger}  {state}  {goal[:80]}"
