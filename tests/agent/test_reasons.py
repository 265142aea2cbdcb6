"""Reasons of our own: English words everywhere, and what they were made of beside them."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from qafila.agent.events import EVENT, Asked, Ended, Intended, Observed
from qafila.agent.observation import observation
from qafila.agent.policy import Policy, Proposed, Rule
from qafila.agent.reasons import Reason, coded

INTENT = Intended(call="0.0", name="write_file", arguments={}, effect="write", key="k")


def test_a_reason_is_its_words() -> None:
    reason = Reason("not_yours", arguments=("path", "إلى {0}"))
    assert reason == "path, إلى {0}: not from your words, but read somewhere or made up"
    found = coded(reason)
    assert found is not None
    assert found.model_dump(mode="json") == {"code": "not_yours", "values": {"arguments": ["path", "إلى {0}"]}}
    assert coded(f"{reason}!") is None


def test_what_others_say_has_no_code() -> None:
    call = Proposed("send", "egress", {})
    own = Policy((Rule(7, "deny", why="لا ترسل شيئًا"),)).judge(call)[1]
    assert (own, coded(own)) == ("لا ترسل شيئًا", None)
    ours = coded(Policy((Rule(7, "deny"),), source="policy.toml").judge(call)[1])
    assert ours is not None
    assert (ours.code, ours.values) == ("rule", {"source": "policy.toml", "line": 7})
    assert observation("the user said no", "refused").coded is None


def test_events_keep_both_and_old_ones_are_read() -> None:
    reason = Reason("took_too_long", tool="بحث", seconds=2.5)
    asked = Asked(intent=INTENT, why=reason, coded=coded(reason))
    ended = Ended(reason="steps", detail=(used := Reason("steps_used", most=3)), coded=coded(used))
    observed = Observed(call="0.0", name="بحث", observation=observation(reason, "timeout"))
    for event in (asked, ended, observed):
        body = event.model_dump_json()
        assert EVENT.validate_json(body) == event
        assert '"code":' in body
        old = json.loads(body)
        old.get("observation", old).pop("coded")
        read = EVENT.validate_python(old)
        assert '"coded":null' in read.model_dump_json()
    assert (asked.why, ended.detail) == (str(reason), "the budget of 3 steps is used up")
    with pytest.raises(ValidationError, match="code"):
        EVENT.validate_python({**json.loads(asked.model_dump_json()), "coded": {"code": "nonsense"}})
