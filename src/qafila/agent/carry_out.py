"""Running a tool: with time limits, and so that nothing it does can end the run."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Mapping
from typing import Any

from qafila.agent.edits import apply, states
from qafila.agent.events import Intended
from qafila.agent.observation import Observation, observation
from qafila.agent.tool import ArgumentsError, Draft, Surroundings, Tool, ToolError
from qafila.errors import QafilaError, StorageError


def checked(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any] | Observation:
    """Arguments as the tool takes them, or what the model is told of wrong ones."""
    try:
        return tool.check(arguments)
    except ArgumentsError as error:
        return observation(f"wrong arguments: {error}", "error")


async def outcome(tool: Tool, arguments: dict[str, Any], surroundings: Surroundings) -> Draft | Observation:
    """Run a tool: what it wants done, or what came of it. Whatever it raises is an observation.

    A plain function runs in a thread of its own. One that takes too long is left behind there: what it returns later
    is dropped, and as drafts do nothing, nothing comes of it.
    """
    try:
        async with asyncio.timeout(tool.seconds):
            value = await _value(tool, arguments, surroundings)
    except TimeoutError:
        return observation(f"{tool.name} took longer than {tool.seconds:g} seconds and was stopped", "timeout")
    except StorageError:
        raise  # the disk is full or the database away: the run pauses, and the call is made again later
    except (ToolError, QafilaError) as error:
        return observation(str(error), "error")
    except Exception as error:
        return observation(f"{type(error).__name__}: {error}", "error")
    return value if isinstance(value, Draft) else observation(value)


async def _value(tool: Tool, arguments: dict[str, Any], surroundings: Surroundings) -> Any:
    if inspect.iscoroutinefunction(getattr(tool.run, "__wrapped__", tool.run)):
        return await tool.run(arguments, surroundings)
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def tell(value: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_result(value) if error is None else future.set_exception(error)

    def work() -> None:
        value, failed = None, None
        try:
            value = tool.run(arguments, surroundings)
        except Exception as error:
            failed = error
        except BaseException as error:
            failed = RuntimeError(f"the tool tried to end the program ({type(error).__name__})")
        try:
            loop.call_soon_threadsafe(tell, value, failed)
        except RuntimeError:
            return  # nobody waits any more

    # Not an executor's thread: those are waited for when the program ends, and this one may hang.
    threading.Thread(target=work, name=f"qafila-tool-{tool.name}", daemon=True).start()
    value = await future
    return await value if inspect.isawaitable(value) else value


def do_edits(intent: Intended, surroundings: Surroundings) -> Observation:
    """Do what was written down, once; after a crash, what is left of it."""
    try:
        apply(surroundings.workspace, intent.edits)
    except QafilaError as error:
        return observation(str(error), "error")
    return observation(intent.told or "done")


def after_crash(intent: Intended, surroundings: Surroundings) -> Observation | None:
    """What is known of a call that was under way when its process ended; None where it is to be carried on."""
    if not intent.edits:
        return observation(
            f"{intent.name} was interrupted, and nobody knows whether it was done; it is not done again by itself",
            "unknown",
        )
    if "other" in states(surroundings.workspace, intent.edits):
        return observation("interrupted, and the files were changed by somebody else meanwhile", "unknown")
    return None
