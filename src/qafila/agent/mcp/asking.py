"""Asking the person behind an MCP client whether a call may be carried out (MCP specification, "Elicitation")."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from qafila.agent.events import Intended
from qafila.agent.mcp.definition import canonical, cleaned, described

if TYPE_CHECKING:
    from mcp.server import ServerRequestContext
    from mcp_types import CallToolRequestParams, InputRequests, InputRequiredResult

#: Characters of a call and its changes that a person is shown.
MOST_SHOWN = 4000
_MOST_NAMED = 20


class AnswerNeededError(Exception):
    """The call is to be made again with a person's answer: how clients of 2026-07-28 are asked."""

    def __init__(self, result: InputRequiredResult) -> None:
        super().__init__()
        self.result = result


def can_ask(context: ServerRequestContext[Any]) -> bool:
    """Whether the client can put a question to its user."""
    from mcp_types import ClientCapabilities, ElicitationCapability

    return context.session.check_client_capability(ClientCapabilities(elicitation=ElicitationCapability()))


async def ask(context: ServerRequestContext[Any], params: CallToolRequestParams, intent: Intended, why: str) -> bool:
    """Whether the client's user allows a call.

    Raises:
        AnswerNeededError: the client has to make the call again, with the answer.
    """
    from mcp.shared.exceptions import NoBackChannelError
    from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult

    # An answer to one call is none to another, nor to one that would do something else by now.
    edits = [edit.model_dump(mode="json") for edit in intent.edits]
    call = canonical({"tool": params.name, "arguments": params.arguments, "edits": edits})
    key = f"allow-{hashlib.sha256(call.encode()).hexdigest()[:32]}"
    answer = (params.input_responses or {}).get(key)
    if answer is None:
        form = ElicitRequestFormParams(
            message=question(intent, why),
            requested_schema={
                "type": "object",
                "properties": {"allow": {"type": "boolean", "title": "Carry it out?"}},
                "required": ["allow"],
            },
        )
        try:
            answer = await context.session.elicit_form(form.message, form.requested_schema, context.request_id)
        except NoBackChannelError:
            requests: InputRequests = {key: ElicitRequest(params=form)}
            raise AnswerNeededError(InputRequiredResult(input_requests=requests)) from None
    return (
        isinstance(answer, ElicitResult) and answer.action == "accept" and (answer.content or {}).get("allow") is True
    )


def question(intent: Intended, why: str) -> str:
    """What a call will do, in words: the call with its arguments, and the changes of files."""
    lines = [f"{intent.name} {json.dumps(dict(intent.arguments), ensure_ascii=False)}"]
    lines += [edit.diff().rstrip("\n") for edit in intent.edits]
    text = "\n".join(lines)
    shown = cleaned(text, MOST_SHOWN)
    if len(text) > MOST_SHOWN:  # what is left out may be what it is about: all that is changed is named
        named = [f"{edit.kind} {edit.path}" for edit in intent.edits[:_MOST_NAMED]]
        named += [f"{len(intent.edits) - _MOST_NAMED} more"] if len(intent.edits) > _MOST_NAMED else []
        does = f"; it does: {described(', '.join(named), MOST_SHOWN)}" if named else ""
        shown += f"\n[{len(text) - MOST_SHOWN:,} characters are not shown{does}]"
    return f"{shown}\n({why})"
