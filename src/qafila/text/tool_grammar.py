"""From tool schemas to the grammar that a model's answer follows while tools are there, as text for llguidance.

Under this grammar every call that is finished can be read, names a tool that was given, and has the arguments that the
tool's schema asks for. Prose stays free, but for what `tools.parse_tool_calls` or `call_stream.CallStream` would take
for a call:

- it contains no ``<tool_call>`` and no ``<function=``;
- where it begins with ``{``, it holds none of the words that make an object a call (``"parameters"``, ``"arguments"``,
  ``"function"``, each in quotes);
- where it begins with ``[``, it is no list of calls, nor of anything in round brackets;
- it does not begin with ``name.call(query="``.

Besides what `argument_schema` says of arguments, an answer has at most `MAX_CALLS` calls, and at most 16 (in JSON
arguments 64) white-space characters between two parts of a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeAlias

from qafila.errors import UsageError
from qafila.text.argument_schema import moved, readable
from qafila.text.messages import ToolSchema
from qafila.text.python_grammar import WHITESPACE, PythonGrammar, is_python_name, lark_string
from qafila.text.tools import MAX_CALLS

CallStyle: TypeAlias = Literal["json", "function", "pythonic", "chatml"]
STYLES: tuple[CallStyle, ...] = ("json", "function", "pythonic", "chatml")

# What `tools` reads as a name, by style.
_NAMES: Mapping[str, re.Pattern[str]] = {
    "json": re.compile(r"[^\W\d][\w.\-]{0,255}"),
    "chatml": re.compile(r"[^\W\d][\w.\-]{0,255}"),
    "function": re.compile(r"[^<>{}\s]{1,256}"),
}
# What Python's str.strip() takes away, and the same without.
_SPACE = r"\t-\r\x1c-\x20\x85\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_ANY = "(?s:.*)"
# An object that tools._json_call may take for a call; an escaped letter might hide a key. To ask for the name as well
# costs llguidance too many states.
_OBJECT_CALL = f'/[{_SPACE}]*\\{{{_ANY}("(parameters|arguments|function)"|\\\\u00[4-7]){_ANY}/'
_MARKER = f"/{_ANY}<(tool_call>|function=){_ANY}/"
_BRACKETS = f"/[{_SPACE}]*\\[{_ANY}\\({_ANY}\\][{_SPACE}]*/"
_LIST_CALL = f"/[{_SPACE}]*\\[[{_SPACE}]*[\\w.]+[{_SPACE}]*\\({_ANY}/"
_BUILTIN = f'/[{_SPACE}]*[^{_SPACE}.(]+\\.call\\(query="{_ANY}/'
_NEVER = f"{_MARKER} | {_OBJECT_CALL} | {_LIST_CALL} | {_BUILTIN}"
_PROSE = f"/{_ANY}/ & ~({_NEVER} | {_BRACKETS})"


def call_grammar(
    tools: Sequence[ToolSchema],
    style: CallStyle,
    *,
    choice: Literal["auto", "required"] = "auto",
    names: Collection[str] | None = None,
    parallel: bool = True,
    answer: str | None = None,
    begin: str | None = None,
) -> str:
    """The grammar of an answer, as text of an llguidance Lark grammar (``GrammarSpec("lark", ...)``).

    Args:
        tools: what the model was told of.
        style: how it writes calls (``ChatFormat.call_style``).
        choice: ``auto`` allows prose, calls, and in the styles with tags prose before calls; ``required`` calls only.
        names: of the tools that may be called; None for all.
        parallel: allow several calls, one after another.
        answer: a JSON schema, as text, that an answer without calls must match instead of being prose.
        begin: a special token that may stand before calls (``ChatFormat.call_token``: Llama 3.1's ``<|python_tag|>``).

    Raises:
        UsageError: no tools, a name that the style cannot write or that no tool has, two tools of one name, a schema
            that is none, or a keyword that calls of this style do not support. What ``%json`` does not support is
            refused by name when the engine compiles the grammar.
    """
    if style not in STYLES:
        raise UsageError(f"call style {style!r:.40}: it is none of {', '.join(STYLES)}")
    chosen = _chosen(tools, style, names)
    writer = _Style(style, answer is not None and choice == "auto")
    calls = [writer.call(tool, f"tools[{index}].parameters") for index, tool in chosen]
    first, more = [first for first, _ in calls], [more for _, more in calls]
    several = f" (MORE ({' | '.join(more)})){{0,{MAX_CALLS - 1}}}" if parallel else ""
    special = f"{_special(begin)}? " if begin else ""
    sentence = f"{writer.opening('REQUIRED')}({' | '.join(first)}){several}{writer.end}"
    if choice == "required":
        rules = f"start: {special}{sentence}\n"
    elif answer is not None:
        rules = f"start: {special}{sentence} | answer\nanswer: %json {_schema_text(answer)}\n"
    else:
        after = f" | {_special(begin)} {sentence}" if begin else ""
        rules = f"start: PROSE | {writer.opening('AFTER')}({' | '.join(first)}){several}{writer.end}{after}\n"
    return rules + writer.text()


def words_grammar() -> str:
    """The grammar of an answer that is no call and holds none, in any style; text as of `call_grammar`."""
    return f"start: PROSE\nPROSE: {_PROSE}\n"


class _Style:
    """How one style writes calls: rules and terminals for them.

    While prose is possible, a call must be told from it by one terminal: the lexer takes the longest match and never
    goes back. So the first call's terminals reach from its first character to where it can only be a call.

    Args:
        style: which.
        json_answer: where the answer beside calls is JSON, calls in JSON are too: the two share their terminals.
    """

    def __init__(self, style: CallStyle, json_answer: bool) -> None:
        self._style = style
        self._whole = json_answer and style == "json"
        self._python = PythonGrammar()
        self._lines: list[str] = []
        self.end = " LIST_END" if style == "pythonic" else ""

    def opening(self, prefix: str) -> str:
        """What stands before the first call's own part: a terminal, and its prefix by whether prose may precede."""
        return f"{prefix} " if self._style in ("chatml", "function") else ""

    def call(self, tool: ToolSchema, where: str) -> tuple[str, str]:
        """The rules of a tool's call: as the first, and as a later one."""
        schema = readable(tool.parameters, where)
        name, number = lark_string(tool.name), len(self._lines)
        if self._style == "pythonic":
            inner = self._python.keywords(schema, where)
            self._lines.append(f"c{number}: {inner + ' ' if inner else ''}CALL_END\n")
            first = f'F{number}: "[" WS {name} WS "(" WS\nN{number}: {name} WS "(" WS\n'
            self._lines[-1] += first
            return f"F{number} c{number}", f"N{number} c{number}"
        if self._style == "function":
            self._lines.append(f'c{number}: N{number} %json {_compact(schema)} CLOSE\nN{number}: {name} ">"\n')
            return f"c{number}", f"c{number}"
        if self._whole:
            inner = moved(schema, "#/properties/parameters")
            whole = {
                "type": "object",
                "properties": {"type": {"const": "function"}, "name": {"const": tool.name}, "parameters": inner},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
            self._lines.append(f"c{number}: %json {_compact(whole)}\n")
            return f"c{number}", f"c{number}"
        opened = f"N{number}: {'OPEN ' if self._style == 'json' else ''}{name} ARGUMENTS\n"
        self._lines.append(f"c{number}: N{number} %json {_compact(schema)} CLOSE\n{opened}")
        return f"c{number}", f"c{number}"

    def text(self) -> str:
        """All rules and terminals but ``start``."""
        common = [f"WS: /{WHITESPACE}/", f"PROSE: {_PROSE}"]
        before = f"(/{_ANY}/ & ~({_NEVER}))"
        if self._style == "pythonic":
            common += ['CALL_END: WS ")"', "MORE: COMMA", self._python.text().rstrip()]
        elif self._style == "function":
            common += ['REQUIRED: "<function="', f'AFTER: {before} "<function="', 'CLOSE: WS "</function>"']
            common.append('MORE: ";" WS "<function="')
        else:
            key = "parameters" if self._style == "json" else "arguments"
            kind = '("\\"type\\"" WS ":" WS "\\"function\\"" WS "," WS)?' if self._style == "json" else ""
            common.append(f'OPEN: "{{" WS {kind} "\\"name\\"" WS ":" WS "\\""')
            common.append(f'ARGUMENTS: "\\"" WS "," WS "\\"{key}\\"" WS ":" WS')
            if self._style == "json":
                common += ['CLOSE: WS "}"', 'MORE: ";" WS']
            else:
                common += ['REQUIRED: "<tool_call>" WS OPEN', f'AFTER: {before} "<tool_call>" WS OPEN']
                common += ['CLOSE: WS "}" WS "</tool_call>"', 'MORE: WS "<tool_call>" WS OPEN']
        return "".join(self._lines) + "\n".join(common) + "\n"


def _chosen(
    tools: Sequence[ToolSchema], style: CallStyle, names: Collection[str] | None
) -> list[tuple[int, ToolSchema]]:
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        pattern = _NAMES.get(style)
        if pattern is None:
            good = all(is_python_name(part) for part in tool.name.split("."))
        else:
            good = pattern.fullmatch(tool.name) is not None and tool.name.isprintable()
        if not good:
            kind = "Python name" if pattern is None else "name"
            raise UsageError(f"tools[{index}].name: {tool.name!r:.80} is no {kind} that calls of this model can have")
        if tool.name in seen:
            raise UsageError(f"tools[{index}].name: there are two tools of the name {tool.name!r:.80}")
        seen.add(tool.name)
    if missing := sorted(set(names or ()) - seen):
        raise UsageError(f"tool_choice: there is no tool of the name {missing[0]!r:.80}")
    chosen = [(i, tool) for i, tool in enumerate(tools) if names is None or tool.name in names]
    if not chosen:
        raise UsageError("tools: there is none to call")
    return chosen


def _schema_text(answer: str) -> str:
    try:
        schema = json.loads(answer)
    except (ValueError, RecursionError):
        raise UsageError("response_format: the schema is no JSON") from None
    if not isinstance(schema, dict):
        raise UsageError("response_format: the schema must be an object")
    return _compact(schema)


def _compact(schema: object) -> str:
    """A schema on one line, so that nothing in it can be read as a rule; short, as grammars must be."""
    return json.dumps(schema, separators=(",", ":"))


def _special(token: str) -> str:
    if not re.fullmatch(r"<[^<>\s]+>", token):
        raise UsageError(f"the token {token!r:.40} cannot stand in a grammar")
    return token
