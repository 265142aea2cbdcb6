"""A policy: one file that says which calls may be carried out, compiled into checks that stand outside the model.

    [effects]                     # what holds where no rule does; without it: pure and read allow, all else ask
    write = "ask"

    [[rule]]                      # the first rule that fits decides
    tool = "write_file"           # a name, or a pattern like "mail_*"; or effect = "egress"
    when = { path = "notes/*" }   # patterns for arguments; all must fit. path: also of what a tool changes by itself
    from = "untrusted"            # only where an argument of `when` (without it: any, or the tool) is not the user's
    then = "deny"                 # allow, ask or deny
    why = "Notes are the user's."

A rule that can never fit because one before it takes all its calls is an error, and so are two of the same conditions
with different verdicts: both with their lines.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, get_args

from qafila.agent.edits import Edit, inside
from qafila.agent.provenance import Trusted, declared_keys, untrusted
from qafila.agent.reasons import Code, Reason
from qafila.agent.tool import EFFECTS, Effect, Tool
from qafila.errors import FormatError, SandboxError

Verdict: TypeAlias = Literal["allow", "ask", "deny"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
#: What holds where nothing else is said.
DEFAULTS: Mapping[Effect, Verdict] = {
    "pure": "allow",
    "read": "allow",
    "write": "ask",
    "egress": "ask",
    "irrevocable": "ask",
}
_OF_EFFECTS: Mapping[Verdict, Code] = {"allow": "effect_allowed", "ask": "effect_asked", "deny": "effect_denied"}
_KEYS = ("tool", "effect", "when", "from", "then", "why")
#: Origins of tools whose names were chosen by their author on this machine, and not by a server.
_OURS = ("built-in", "python")


@dataclass(frozen=True, slots=True)
class Proposed:
    """A call that is to be judged.

    Attributes:
        tool, effect, arguments: of the call. untrusted: the arguments whose values are not the user's.
        controls: arguments that may not be steered by what was read: paths, recipients, addresses, and others.
        chosen: whether the tool is the user's choice. read: whether the model has been told what is not the user's.
    """

    tool: str
    effect: Effect
    arguments: Mapping[str, Any]
    untrusted: frozenset[str] = frozenset()
    controls: frozenset[str] = frozenset()
    chosen: bool = True
    read: bool = False


def proposed(tool: Tool, arguments: Mapping[str, Any], trusted: Trusted) -> Proposed:
    """A call as it is judged.

    As long as the model has been told nothing but the user's words, its choice of a tool is the user's, and what has to
    stand in the user's words are the tool's `controls`. Once it has read something else, the user's words have to ask
    for the tool as well; and of what leaves this machine or cannot be undone, and of tools that name no controls,
    every argument has to be the user's. An argument that is left out is as the tool's author meant it. The name of a
    tool counts as a word that asks for it, unless a server chose that name.

    Args:
        tool: that is to be called. arguments: as the model wrote them. trusted: the user's words.
    """
    foreign = untrusted(arguments, trusted, declared=frozenset(declared_keys(tool.schema.parameters)))
    arguments = as_done(tool, arguments)
    if not trusted.read:
        return Proposed(tool.name, tool.effect, arguments, foreign, tool.controls)
    whole = tool.effect in ("egress", "irrevocable") or not tool.controls
    controls = frozenset(arguments) if whole else tool.controls
    words = (*tool.asked_by, tool.name) if tool.origin in _OURS else tool.asked_by
    return Proposed(tool.name, tool.effect, arguments, foreign, controls, trusted.asks_for(words), read=True)


def as_done(tool: Tool, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments with the path that our tools will act on: one file has many spellings, and rules are of the file."""
    path = arguments.get("path")
    if tool.origin not in _OURS or not isinstance(path, str):
        return arguments
    try:
        return {**arguments, "path": inside(path)}
    except SandboxError:
        return arguments  # the tool refuses it


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a policy; ``line``: where it stands in its file."""

    line: int
    then: Verdict
    tool: str = "*"
    effect: Effect | None = None
    when: Mapping[str, str] = field(default_factory=dict)
    untrusted: bool = False
    why: str = ""

    def fits(self, call: Proposed) -> bool:
        """Whether the rule is about a call."""
        if not fnmatch.fnmatchcase(call.tool, self.tool) or self.effect not in (None, call.effect):
            return False
        for name, pattern in self.when.items():
            if name not in call.arguments or not fnmatch.fnmatchcase(_text(call.arguments[name]), pattern):
                return False
        if not self.untrusted:
            return True
        if not self.when:
            return bool(call.untrusted) or not call.chosen
        return bool(call.untrusted & self.when.keys())

    def covers(self, other: Rule) -> bool:
        """Whether every call that ``other`` fits is one that this rule fits; False where that cannot be told."""
        return (
            _covers(self.tool, other.tool)
            and self.effect in (None, other.effect)
            and all(name in other.when and _covers(pattern, other.when[name]) for name, pattern in self.when.items())
            and (not self.untrusted or (other.untrusted and (not self.when or self.when.keys() == other.when.keys())))
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be done.

    Attributes:
        rules: the first that fits decides. effects: what holds where none does; effects that are not named are denied.
        source: the file, for messages. file: where it is, "" for none; a run that is gone on with keeps it.
    """

    rules: tuple[Rule, ...] = ()
    effects: Mapping[Effect, Verdict] = field(default_factory=lambda: dict(DEFAULTS))
    source: str = "policy"
    file: str = ""

    def judge(self, call: Proposed) -> tuple[Verdict, str]:
        """Whether a call may be carried out, and why so, in words.

        Whatever the rules allow, a call that acts on the world at a place that is not the user's, or with a tool that
        is not the user's choice, needs a person's word, unless a rule with ``from = "untrusted"`` allows just that.
        """
        number = self._first(call)
        rule = None if number is None else self.rules[number]
        if rule is not None:
            verdict, why = rule.then, self._why(rule)
        else:
            verdict = self.effects.get(call.effect, "deny")
            why = Reason(_OF_EFFECTS[verdict], effect=call.effect)
        # Whoever is asked anyway has to know where the values come from before anything else.
        asked_anyway = verdict == "ask" and rule is None and call.read
        if (verdict != "allow" and not asked_anyway) or call.effect in ("pure", "read") or (rule and rule.untrusted):
            return verdict, why
        steered = sorted(call.untrusted & call.controls)
        if steered:
            return "ask", Reason("not_yours", arguments=tuple(steered))
        if not call.chosen:
            return "ask", Reason("not_asked_for", tool=call.tool)
        return verdict, why

    def judge_paths(self, call: Proposed, edits: Sequence[Edit]) -> tuple[Verdict, str]:
        """As `judge`, of a call whose changes are known: rules about paths are of the files, whichever tool it is.

        Where a rule fits a file in a new folder, rules after it do not count for the folder: it is the way there.

        Args:
            call: which. edits: all that it changes.
        """
        verdict, why = self.judge(call)
        # Paths follow from the arguments that say where a call acts, and are as little the user's as those.
        steered = call.untrusted & (call.controls or call.untrusted)
        if "path" not in call.arguments and steered:
            call = replace(call, untrusted=call.untrusted | {"path"})
        fitting: dict[str, int] = {}
        for edit in edits:
            number = self._first(replace(call, arguments={**call.arguments, "path": edit.path}))
            if number is not None:
                fitting[edit.path] = number
        new = {edit.path for edit in edits if edit.what == "folder" and edit.kind == "created"}
        for path, number in list(fitting.items()):
            for folder in new.intersection(map(str, PurePosixPath(path).parents)):
                if number < fitting.get(folder, -1):
                    del fitting[folder]
        for path, number in fitting.items():
            rule = self.rules[number]
            if "path" in rule.when and VERDICTS.index(rule.then) > VERDICTS.index(verdict):
                verdict, why = rule.then, f"{path}: {self._why(rule)}"
        return verdict, why

    def _first(self, call: Proposed) -> int | None:
        """The number of the rule that decides on a call, if one does."""
        return next((number for number, rule in enumerate(self.rules) if rule.fits(call)), None)

    def _why(self, rule: Rule) -> str:
        return rule.why or Reason("rule", source=self.source, line=rule.line)


def with_writes(policy: Policy) -> Policy:
    """The same policy, but what writes and can be undone needs nobody's word, wherever its path comes from.

    Rules of the policy itself go first.
    """
    free = Rule(0, "allow", effect="write", untrusted=True, why="you allowed it beforehand")
    return Policy((*policy.rules, free), {**policy.effects, "write": "allow"}, policy.source, policy.file)


def read_policy(path: Path) -> Policy:
    """A policy out of a TOML file.

    Raises:
        FormatError: it is none; the message names the line and what is wrong there.
    """
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, UnicodeError) as error:
        raise FormatError(path, f"is no TOML ({error})") from None
    for key in data:
        if key not in ("rule", "effects"):
            raise FormatError(path, f"unknown key {key!r:.40}; there are effects and rule")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*rule\s*\]\]", line)]
    listed = data.get("rule", [])
    if not isinstance(listed, list) or len(lines) != len(listed):
        raise FormatError(path, "rules are written as tables that begin with a line [[rule]]")
    rules: list[Rule] = []
    for line, table in zip(lines, listed, strict=True):
        rule = _rule(path, line, table)
        for before in rules:
            if before.covers(rule):
                if rule.covers(before) and before.then != rule.then:
                    raise FormatError(
                        path, f"line {line}: says {rule.then} of what line {before.line} says {before.then} of"
                    )
                raise FormatError(path, f"line {line}: can never fit, since line {before.line} takes all its calls")
        rules.append(rule)
    return Policy(tuple(rules), _effects(path, data.get("effects", {})), path.name, str(path.resolve()))


def _effects(path: Path, table: Any) -> dict[Effect, Verdict]:
    if not isinstance(table, dict):
        raise FormatError(path, "effects: is a table of effects and verdicts")
    found: dict[Effect, Verdict] = dict(DEFAULTS)
    for effect, verdict in table.items():
        if effect not in EFFECTS:
            raise FormatError(path, f"effects: {effect!r:.40} is none of {', '.join(EFFECTS)}")
        if verdict not in VERDICTS:
            raise FormatError(path, f"effects.{effect}: {verdict!r:.40} is none of {', '.join(VERDICTS)}")
        found[effect] = verdict
    return found


def _rule(path: Path, line: int, table: Mapping[str, Any]) -> Rule:
    def wrong(problem: str) -> FormatError:
        return FormatError(path, f"line {line}: {problem}")

    for key in table:
        if key not in _KEYS:
            raise wrong(f"unknown key {key!r:.40}; there are {', '.join(_KEYS)}")
    then, effect, source = table.get("then"), table.get("effect"), table.get("from", "any")
    if then not in VERDICTS:
        raise wrong(f"then: {then!r:.40} is none of {', '.join(VERDICTS)}")
    if effect is not None and effect not in EFFECTS:
        raise wrong(f"effect: {effect!r:.40} is none of {', '.join(EFFECTS)}")
    if source not in ("any", "untrusted"):
        raise wrong(f"from: {source!r:.40} is neither any nor untrusted")
    when, tool, why = table.get("when", {}), table.get("tool", "*"), table.get("why", "")
    if not isinstance(when, dict) or not all(isinstance(pattern, str) for pattern in when.values()):
        raise wrong("when: is a table of arguments and patterns in quotes")
    if not isinstance(tool, str) or not isinstance(why, str) or not tool:
        raise wrong("tool and why are texts")
    return Rule(line, then, tool, effect, dict(when), source == "untrusted", why)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _covers(pattern: str, other: str) -> bool:
    """Whether a pattern matches all that another one does; told for equal ones, ``*``, ``prefix*``, and plain names."""
    if pattern in ("*", other):
        return True
    if not any(sign in other for sign in "*?["):
        return fnmatch.fnmatchcase(other, pattern)
    return pattern.endswith("*") and not any(sign in pattern[:-1] for sign in "*?[") and other.startswith(pattern[:-1])
