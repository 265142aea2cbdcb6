"""What AgentDojo's tools do to the world, tool by tool, as their author would declare it; nothing is said task by task.

- What only looks is `read`; nothing here is `pure`, since whatever these tools say may have been written by others.
- What changes only the user's own things and can be set back with these same tools is `write`.
- What others get to see or are told is `egress`: mail, messages, invitations, shared files, channels opened to
  somebody, a page that is published, and a page that is fetched, since its address reaches whoever owns it.
- What these tools cannot take back is `irrevocable`: payments, bookings, deletions, a password, a removed user.

Controls say where a call acts: recipients, addresses, ids, names of what is changed; and for standing orders how much.
`asked_by` are the verbs by which a person asks for it (for a password, its name); "mail" is no verb in "read my mail".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qafila.agent.tool import Effect


@dataclass(frozen=True, slots=True)
class Declared:
    """What is declared of a tool. ``heading``: the argument that says in a few words what it is about."""

    effect: Effect = "read"
    controls: frozenset[str] = field(default_factory=frozenset)
    asked_by: frozenset[str] = field(default_factory=frozenset)
    heading: str = ""


def _declared(effect: Effect, controls: str, asked_by: str, heading: str = "") -> Declared:
    return Declared(effect, frozenset(controls.split()), frozenset(asked_by.split()), heading)


#: Tools that do more than read; all others read.
TOOLS = {
    # Mail: once sent it is out; a deleted mail has no tool that brings it back.
    "send_email": _declared("egress", "recipients cc bcc", "send forward reply", "subject"),
    "delete_email": _declared("irrevocable", "email_id", "delete remove"),
    # Calendar: every change is mailed to the participants.
    "create_calendar_event": _declared("egress", "participants", "create add book schedule", "title"),
    "cancel_calendar_event": _declared("egress", "event_id", "cancel delete remove"),
    "reschedule_calendar_event": _declared("egress", "event_id", "reschedule move postpone"),
    "add_calendar_event_participants": _declared("egress", "event_id participants", "add invite"),
    # Cloud drive: the user's own; what is deleted is gone, what is shared is seen by others.
    "append_to_file": _declared("write", "file_id", "add append write"),
    "create_file": _declared("write", "filename", "create write save"),
    "delete_file": _declared("irrevocable", "file_id", "delete remove"),
    "share_file": _declared("egress", "file_id email", "share"),
    # Travel: a booking binds.
    "reserve_hotel": _declared("irrevocable", "hotel", "reserve reservation book"),
    "reserve_restaurant": _declared("irrevocable", "restaurant", "reserve reservation book"),
    "reserve_car_rental": _declared("irrevocable", "company", "reserve reservation book rent"),
    # Bank: money that was sent is gone, and what is scheduled cannot be unscheduled; a standing order, and the user's
    # data, can be set back to what they were.
    "send_money": _declared("irrevocable", "recipient", "send pay refund transfer", "subject"),
    "schedule_transaction": _declared("irrevocable", "recipient", "schedule scheduled recurring standing", "subject"),
    "update_scheduled_transaction": _declared("write", "id recipient amount", "update adjust change", "subject"),
    "update_password": _declared("irrevocable", "password", "password"),
    "update_user_info": _declared("write", "first_name last_name street city", "update change"),
    # Slack, and the web.
    "send_direct_message": _declared("egress", "recipient", "send message write"),
    "send_channel_message": _declared("egress", "channel", "send message write post reply"),
    "add_user_to_channel": _declared("egress", "user channel", "add"),
    "invite_user_to_slack": _declared("egress", "user user_email", "invite"),
    "remove_user_from_slack": _declared("irrevocable", "user", "remove"),
    "get_webpage": _declared("egress", "url", "read visit open summarize webpage website article"),
    "post_webpage": _declared("egress", "url", "post publish"),
}
