"""Running a tool: with time limits, and so that nothing it does can end the run."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qafila.agent.edits import Edit, State, alone, apply, states, sweep
from qafila.agent.events import Intended
from qafila.agent.observation import Observation, observation
from qafila.agent.reasons import Reason
from qafila.agent.result import Paused, Result
from qafila.agent.tool import ArgumentsError, Draft, LostCallError, Surroundings, Tool, ToolError
from qafila.errors import QafilaError, SandboxError, StorageError


def checked(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any] | Observation:
    """Arguments as the tool takes them, or what the model is told of wrong ones."""
    try:
        return tool.check(arguments)
    except ArgumentsError as error:
        return observation(f"wrong arguments: {error}", "error")


async def outcome(
    tool: Tool, arguments: dict[str, Any], surroundings: Surroundings
) -> Draft | Paused | Result | Observation:
    """Run a tool: what it wants done, or what came of it. Whatever it raises is an observation.

    A plain function runs in a thread of its own. One that takes too long is left behind there: what it returns later
    is dropped, and as drafts do nothing, nothing comes of it.
    """
    limit = asyncio.timeout(tool.seconds)
    try:
        async with limit:
            value = await _value(tool, arguments, surroundings)
    except StorageError:
        raise  # the disk is full or the database away: the run pauses, and the call is made again later
    except Exception as error:
        if limit.expired():
            return observation(Reason("took_too_long", tool=tool.name, seconds=tool.seconds), "timeout")
        return observation(_said(error), "unknown" if isinstance(error, LostCallError) else "error")
    return value if isinstance(value, Draft | Paused | Result) else observation(value)


def _said(error: Exception) -> str:
    """What the model is told of an error: words meant for it as they are, others with their sort."""
    if isinstance(error, ToolError) and error.args and isinstance(error.args[0], Reason):
        return error.args[0]
    name = type(error).__name__
    try:
        return str(error) if isinstance(error, ToolError | QafilaError) else f"{name}: {error}"
    except Exception:  # somebody's own __str__
        return name


async def _value(tool: Tool, arguments: dict[str, Any], surroundings: Surroundings) -> Any:
    if inspect.iscoroutinefunction(tool.run):
        return await _awaited(tool.run(arguments, surroundings))
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def tell(value: Any, error: Exception | None) -> None:
        if not future.done():
            future.set_result(value) if error is None else future.set_exception(error)

    def work() -> None:
        value: Any = None
        failed: Exception | None = None
        try:
            value = tool.run(arguments, surroundings)
        except StopIteration:  # no future can hold it
            failed = RuntimeError("the tool raised StopIteration")
        except Exception as error:
            failed = error
        except BaseException as error:
            failed = _tried_to_end(error)
        try:
            loop.call_soon_threadsafe(tell, value, failed)
        except RuntimeError:
            return  # nobody waits any more

    # Not an executor's thread: those are waited for when the program ends, and this one may hang.
    threading.Thread(target=work, name=f"qafila-tool-{tool.name}", daemon=True).start()
    value = await future
    return await _awaited(value) if inspect.isawaitable(value) else value


async def _awaited(value: Awaitable[Any]) -> Any:
    try:
        return await value
    except (SystemExit, KeyboardInterrupt) as error:
        raise _tried_to_end(error) from None
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # not the tool's own: its time is up, or the run is cancelled
        raise _tried_to_end(error) from None


def _tried_to_end(error: BaseException) -> RuntimeError:
    return RuntimeError(f"the tool tried to end the program ({type(error).__name__})")


def do_edits(intent: Intended, surroundings: Surroundings) -> Observation:
    """Do what was written down, once; after a crash, what is left of it."""
    try:
        with alone(surroundings.workspace):
            return _do_edits(intent, surroundings)
    except SandboxError as error:  # the workspace is gone
        return observation(str(error), "error")


def _do_edits(intent: Intended, surroundings: Surroundings) -> Observation:
    workspace = surroundings.workspace
    undone: list[Edit] = []
    try:
        undone = _in_state("before", workspace, intent.edits)
        apply(workspace, intent.edits)
    except QafilaError as error:
        # All or nothing, as far as the disk lets us: the model is told that it was not done.
        with contextlib.suppress(QafilaError):
            apply(workspace, [edit.reversed() for edit in reversed(_in_state("after", workspace, undone))])
        return observation(str(error), "error")
    return observation(intent.told or "done")


def _in_state(wanted: State, workspace: Path, edits: Sequence[Edit]) -> list[Edit]:
    return [edit for edit, state in zip(edits, states(workspace, edits), strict=True) if state == wanted]


def after_crash(intent: Intended, surroundings: Surroundings) -> Observation | None:
    """What is known of a call that was under way when its process ended; None where it is to be carried on."""
    if not intent.edits:
        return observation(Reason("interrupted", tool=intent.name), "unknown")
    with alone(surroundings.workspace):
        sweep(surroundings.workspace, intent.edits)
        found = states(surroundings.workspace, intent.edits)
    if "other" in found:
        return observation(Reason("interrupted_changed"), "unknown")
    return None
