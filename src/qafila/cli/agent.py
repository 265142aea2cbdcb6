"""`qafila agent`: give a model a goal and tools, watch every step, stop it, go on later, take changes back."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from qafila.cli import agent_options as agent_opt
from qafila.cli import agent_runs, agent_schedule, stdin, terminal
from qafila.cli import options as opt
from qafila.cli.agent_calibrate import calibrate
from qafila.cli.agent_question import ask_at_terminal, question
from qafila.cli.agent_setup import (
    load_config,
    load_policy,
    mcp_tools,
    open_client,
    open_journal,
    prices,
    tool_names,
    workspace,
)
from qafila.cli.agent_watch import work
from qafila.errors import AgentError, UsageError

if TYPE_CHECKING:
    from qafila.agent.calibration import Calibration
    from qafila.agent.config import Config
    from qafila.agent.events import Choosing
    from qafila.agent.journal import Journal
    from qafila.agent.loop import Agent, Settings
    from qafila.agent.policy import Policy

_STARTS = "begin"


class _GoalGroup(TyperGroup):
    """`qafila agent "goal"` is `qafila agent begin "goal"`: what is no command and no help is a goal.

    One word that is nearly a command's name is taken for that, misspelt: a model with tools is not set to work by it.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first == "help":
            args = ["--help"]
        elif args and first not in self.commands and first not in ("-h", "--help"):
            import difflib

            if close := difflib.get_close_matches(first, self.commands, n=1, cutoff=0.7):
                ctx.fail(
                    f"no command {first!r}; did you mean {close[0]!r}? If it is a goal: qafila agent begin {first!r}"
                )
            args = [_STARTS, *args]
        return super().parse_args(ctx, args)


command = typer.Typer(
    cls=_GoalGroup,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help='A model that works on a goal over many steps: qafila agent "GOAL", or a command below.',
)


@command.command(_STARTS)
def _begin(
    goal: Annotated[str, typer.Argument(metavar="GOAL", help="What is to be done; `-` reads it from standard input.")],
    model: agent_opt.Model = "default",
    folder: agent_opt.Workspace = Path(),
    tools: agent_opt.Tools = None,
    yes: agent_opt.Yes = False,
    policy: agent_opt.Policy = None,
    config: agent_opt.Config = None,
    steps: Annotated[int, typer.Option(min=1, help="Most answers of the model.")] = 12,
    tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens computed.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.001, help="Most seconds.")] = None,
    cost: Annotated[
        float | None, typer.Option(help="Most that tokens may cost, by the prices below or in the settings.")
    ] = None,
    price_read: Annotated[
        float | None, typer.Option(metavar="PRICE", help="Of a million tokens read, in any currency.")
    ] = None,
    price_cached: Annotated[
        float | None, typer.Option(metavar="PRICE", help="Of a million that were read before (default: as those read).")
    ] = None,
    price_generated: Annotated[float | None, typer.Option(metavar="PRICE", help="Of a million tokens written.")] = None,
    instructions: opt.System = None,
    temperature: Annotated[float, typer.Option("-t", "--temperature", min=0.0, help="0: always the likeliest.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Same seed, same steps.")] = 0,
    max_tokens: Annotated[int, typer.Option("-n", "--max-tokens", min=1, help="Most tokens of one answer.")] = 512,
    choose: Annotated[
        str | None,
        typer.Option(metavar="HOW", help="`likelihood`, or `free` (default: likelihood for calibrated models)."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of the model (default: the one that is known for it).")
    ] = None,
    no_memory: Annotated[
        bool, typer.Option("--no-memory", help="Be told nothing of before, and keep nothing.")
    ] = False,
    endpoint: agent_opt.Endpoint = None,
    key_env: agent_opt.KeyEnv = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    adapter: opt.Adapter = None,
    database: agent_opt.Database = None,
    as_json: agent_opt.JSON = False,
) -> None:
    """Work on a goal; steps are shown on standard error, the answer goes to standard output."""
    from qafila.agent.calibration import read_calibration
    from qafila.agent.events import Budget
    from qafila.agent.loop import Settings
    from qafila.agent.worker import check_goal

    if choose not in (None, "free", "likelihood"):
        raise UsageError(f"--choose {choose!r:.40}: is neither free nor likelihood")
    where = workspace(folder)
    text = stdin.whole() if goal == "-" else goal
    check_goal(text)
    configured = load_config(config)
    paid = prices(cost, configured.token_prices, read=price_read, cached=price_cached, generated=price_generated)
    settings = Settings(
        budget=Budget(steps=steps, tokens=tokens, seconds=seconds, cost=cost),
        prices=paid,
        seed=seed,
        temperature=temperature,
        answer_tokens=max_tokens,
        instructions=instructions or "",
    )
    journal = open_journal(database)
    given = read_calibration(calibration) if calibration is not None else None
    agent = _agent(
        journal, where, tool_names(tools), None, load_policy(yes, policy), settings, as_json, choose, given,
        configured, remembers=not no_memory, model=model, endpoint=endpoint, key_variable=key_env, threads=threads,
        context=context, adapter=adapter,
    )  # fmt: skip
    work(agent, asyncio.run(agent.start(text)), as_json)


@command.command("resume")
def _resume(
    ctx: typer.Context,
    run: agent_opt.Run,
    say: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Something to tell it first.")] = None,
    yes: agent_opt.Yes = False,
    policy: agent_opt.Policy = None,
    config: agent_opt.Config = None,
    endpoint: agent_opt.Endpoint = None,
    key_env: agent_opt.KeyEnv = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    adapter: opt.Adapter = None,
    database: agent_opt.Database = None,
    as_json: agent_opt.JSON = False,
) -> None:
    """Go on with a run: after a crash, with a new budget, or with something new to do."""
    journal = open_journal(database)
    found = journal.find(run)
    agent = _same_agent(
        ctx, journal, found, yes, policy, as_json,
        config=config, endpoint=endpoint, key_variable=key_env, threads=threads, context=context, adapter=adapter,
    )  # fmt: skip
    work(agent, found, as_json, say=say)


@command.command("approve")
def _approve(
    ctx: typer.Context,
    run: agent_opt.Run,
    deny: Annotated[bool, typer.Option("--deny", help="Say no; the run goes on without it.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="What the model is told with a no.")] = "",
    only: Annotated[
        list[int] | None,
        typer.Option("--only", metavar="NUMBER", min=1, help="Of several calls only this one (again for more)."),
    ] = None,
    yes: agent_opt.Yes = False,
    policy: agent_opt.Policy = None,
    config: agent_opt.Config = None,
    endpoint: agent_opt.Endpoint = None,
    key_env: agent_opt.KeyEnv = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    adapter: opt.Adapter = None,
    database: agent_opt.Database = None,
    as_json: agent_opt.JSON = False,
) -> None:
    """Allow what a waiting run asked for (or not, with --deny), and let it go on.

    It may ask about several calls of one answer at once (`show` numbers them): the word is for all of them, or for
    those that --only names; the others wait on.
    """
    from qafila.agent.events import Decided
    from qafila.agent.state import State
    from qafila.agent.subrun import waiting

    journal = open_journal(database)
    found = journal.find(run)
    parent = State.of(journal.events(found)).began.parent
    if parent is not None:
        raise AgentError(f"run {found} is a part of run {parent.run}; approve that one")
    asked = waiting(journal, found)
    if not asked:
        raise AgentError(f"run {found} waits for nobody's word")
    chosen = [one for number, one in enumerate(asked, 1) if not only or number in only]
    if beyond := [number for number in only or () if number > len(asked)]:
        raise UsageError(f"--only {beyond[0]}: run {found} waits for a word on {len(asked)}; see `show {found}`")
    print("\n\n".join(question(one.asked) for one in chosen), file=sys.stderr)
    decisions = {
        one.answer_to(found): Decided(call=one.intent.call, allowed=not deny, by="terminal", reason=reason)
        for one in chosen
    }
    agent = _same_agent(
        ctx, journal, found, yes, policy, as_json,
        config=config, endpoint=endpoint, key_variable=key_env, threads=threads, context=context, adapter=adapter,
    )  # fmt: skip
    work(agent, found, as_json, decisions=decisions)


@command.command("stop")
def _stop(run: agent_opt.Run, database: agent_opt.Database = None) -> None:
    """Stop a run that is being worked on; `resume` goes on with it."""
    journal = open_journal(database)
    found = journal.find(run)
    if not journal.worked_on(found):
        raise AgentError(f"run {found} cannot be stopped: nobody works on it")
    journal.ask(found, "cancel")
    typer.echo(f"run {found} stops at its next chance")


@command.command("say")
def _say(
    run: agent_opt.Run,
    text: Annotated[str, typer.Argument(help="What to tell it.")],
    database: agent_opt.Database = None,
) -> None:
    """Tell a run something while it works; it reads it before its next step."""
    if not text.strip():
        raise UsageError("there is nothing to say: TEXT is empty")
    journal = open_journal(database)
    found = journal.find(run)
    journal.ask(found, "steer", text)
    typer.echo(f"run {found} reads it before its next step (or when it is resumed)")


@command.command("undo")
def _undo(
    run: agent_opt.Run,
    everything: Annotated[bool, typer.Option("--all", help="Everything it changed, not only the last call.")] = False,
    database: agent_opt.Database = None,
) -> None:
    """Take back what a run changed in its files and in the memory."""
    from qafila.agent.undo import undo

    journal = open_journal(database)
    for edit in undo(journal, journal.find(run), everything=everything):
        typer.echo(terminal.printable(edit.diff().rstrip("\n")))


@command.command("fork")
def _fork(
    run: agent_opt.Run,
    after: Annotated[int, typer.Argument(metavar="EVENT", min=0, help="The last event that both share (see `show`).")],
    database: agent_opt.Database = None,
) -> None:
    """Make a new run that begins as another did; `resume` goes on with it."""
    journal = open_journal(database)
    typer.echo(journal.fork(journal.find(run), after))


for _name, _command in (
    ("runs", agent_runs.runs),
    ("show", agent_runs.show),
    ("replay", agent_runs.replay),
    ("explain", agent_runs.explain),
    ("calibrate", calibrate),
    ("scheduler", agent_schedule.scheduler),
    ("notices", agent_schedule.notices),
):
    command.command(_name)(_command)
command.add_typer(agent_schedule.command, name="schedule")


def _agent(
    journal: Journal,
    where: Path,
    names: list[str] | None,
    more: list[str] | None,
    policy: Policy,
    settings: Settings,
    as_json: bool,
    choose: str | None,
    given: Calibration | None,
    configured: Config,
    remembers: bool = True,
    owner: str = "",
    **model: Any,
) -> Agent:
    from qafila.agent.choose import settled
    from qafila.agent.loop import Agent
    from qafila.agent.tools.builtin import Resources, builtin, rules_of_nothing

    memory = journal.memory if remembers else None
    resources = Resources(configured, memory=memory, owner=owner, others=mcp_tools(configured)())
    toolbox = builtin(names, resources, more)
    for note in rules_of_nothing(policy, resources):
        print(terminal.printable(f"note: {note}"), file=sys.stderr)
    client = open_client(**model)
    wished: Choosing | None = None if choose is None else "likelihood" if choose == "likelihood" else "free"
    choosing, known = settled(client, wished, given, option="--choose likelihood")
    if not client.abilities.exact_likelihood and not as_json:
        print(f"note: {client.name} gives no likelihoods: no probabilities, replay or explanations", file=sys.stderr)
    settings = replace(settings, choosing=choosing, calibration=known)
    return Agent(
        client,
        toolbox,
        journal,
        workspace=where,
        policy=policy,
        approver=None if as_json else ask_at_terminal,
        settings=settings,
        tell=(lambda _: None) if as_json else terminal.show,
        memory=memory,
        owner=owner,
    )


def _same_agent(
    ctx: typer.Context,
    journal: Journal,
    run: str,
    yes: bool,
    policy: Path | None,
    as_json: bool,
    config: Path | None,
    **model: Any,
) -> Agent:
    """The agent of a run that is gone on with: its model, workspace, tools, and policy, unless an option names one."""
    from qafila.agent.loop import Settings
    from qafila.agent.state import State

    began = State.of(journal.events(run)).began
    names, more = ([one["function"]["name"] for one in listed] for listed in (began.tools, began.more))
    where = workspace(Path(began.workspace))
    source = ctx.get_parameter_source("policy")
    named = source is not None and source.name == "COMMANDLINE"  # a variable is for runs that have none of their own
    rules = policy if named or not began.policy else Path(began.policy)
    return _agent(
        journal, where, names, more, load_policy(yes, rules), Settings(), as_json, None, None, load_config(config),
        owner=journal.owner(run), model=began.model, **model,
    )  # fmt: skip
