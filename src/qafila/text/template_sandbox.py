"""The sandbox that checkpoints' Jinja templates run in: a template is a program from a stranger's file.

jinja2's ``ImmutableSandboxedEnvironment`` keeps templates from Python's internals. It does not keep them from looping
for ever or from filling the memory, so every loop, call, filter, comparison, literal and output is paid for out of a
budget that grows with the messages rendered and with nothing that the template says:

* the steps and the characters moved are counted (``spend``);
* no value may grow beyond a size (``weigh``): nested lists count with everything in them, because ``str`` and ``==``
  walk them;
* filters, attributes and methods are on a list; what can multiply its input (``*``, ``replace``, ``indent``, widths in
  format strings) is computed only if the result fits.

The counting is deterministic: no clock, no thread, no signal, so the same template and messages always fare the same.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sized, ValuesView
from functools import wraps
from typing import Any

from jinja2 import Undefined, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, TemplateReference
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Joiner, Namespace

BASE_BUDGET = 2_000_000
BASE_SIZE = 1_000_000
MAX_SOURCE = 128 * 1024  # published ones have up to 30 KB; compiling takes 2 KB of memory a character
MAX_INTEGER_BITS = 4096
MAX_RANGE = 100_000
MAX_WIDTH = 1000

_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby", "int",
    "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe",
    "select", "selectattr", "sort", "string", "title", "trim", "truncate", "unique", "upper", "urlencode",
    "wordcount",
)  # fmt: skip
_STRING_METHODS = frozenset(
    (
        "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum", "isalpha",
        "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
        "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
        "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
        "title", "upper", "zfill",
    )
)  # fmt: skip
_MAPPING_METHODS = frozenset(("get", "items", "keys", "values", "copy"))
_SEQUENCE_METHODS = frozenset(("count", "index", "copy"))
_DEEP_FILTERS = frozenset(("sort", "unique", "min", "max", "groupby", "dictsort"))
_PERCENT = re.compile(r"%(?:\(\w*\))?[-+ #0]{0,3}\d{0,3}(?:\.\d{1,2})?[sdifgeGErxXc%]")
_STRFTIME = re.compile(r"%[-_]?[A-Za-z%]")
_CONTAINERS: tuple[type, ...] = (
    Mapping, list, tuple, set, frozenset, Namespace, KeysView, ValuesView, ItemsView,
)  # fmt: skip


class LimitError(TemplateError):
    """The template wants more than it may have."""


class TemplateNamespace(Namespace):
    """``namespace(...)``: plain values only, so that what it holds can be weighed."""

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str) or name.startswith("_") or isinstance(value, Namespace):
            raise SecurityError("a namespace holds plain values under names that do not begin with an underscore")
        super().__setitem__(name, value)


class GenerationTag(Extension):
    """``{% generation %} ... {% endgeneration %}``, as transformers has it: the body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the statements between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """A Jinja environment with transformers' options and additions, and with a budget.

    One instance serves one template, and one rendering at a time.
    """

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], finalize=self._output
        )
        self._left = BASE_BUDGET
        self._largest = BASE_SIZE
        self._known: dict[int, int] = {}
        self.now: Callable[[], datetime.datetime] = datetime.datetime.now
        special: dict[str, Callable[..., Any]] = {
            "tojson": self._tojson,
            "indent": self._indent,
            "replace": self._replace,
            "join": self._join,
            "round": self._round,
            "sum": self._sum,
            "format": self._format_filter,
        }
        self.filters = {name: self._guarded(name, self.filters[name]) for name in _FILTERS} | special
        self.tests = {name: self._guarded(name, test, deep=True) for name, test in self.tests.items()}
        self.globals = {
            "range": self._range,
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": TemplateNamespace,
            "joiner": Joiner,
            "raise_exception": self._raise_exception,
            "strftime_now": self._strftime_now,
        }

    # The budget

    def begin(self, variables: Mapping[str, Any], messages: int) -> None:
        """Fill the budget for rendering these variables, which hold that many messages."""
        self._known = {}
        self._left, self._largest = 2**62, 2**62
        size = self.weigh(variables, remember=True)
        self._left = BASE_BUDGET + 64 * size + 64 * messages**2
        self._largest = BASE_SIZE + 8 * size

    def spend(self, amount: int) -> None:
        """Take from the budget; LimitError when it is empty."""
        self._left -= amount
        if self._left < 0:
            raise LimitError("the template does more work than any conversation needs (an endless loop?)")

    def weigh(self, value: Any, *, remember: bool = False) -> int:
        """The size of a value and all that is in it, in characters or elements; LimitError where that is too much.

        Looking costs too: a step for each element visited. What was handed in is known and not walked again.
        """
        total = 0
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str | range):
                total += 1 + len(item)
            elif isinstance(item, int) and item.bit_length() > MAX_INTEGER_BITS:
                raise LimitError("the template makes a number that is too large")
            elif isinstance(item, _CONTAINERS):
                known = self._known.get(id(item))
                if known is not None:
                    total += known
                elif remember:
                    children = self._children(item)
                    self._known[id(item)] = 0  # of a cycle, were there one, counted once
                    size = 1 + sum(self.weigh(child, remember=True) for child in children)
                    self._known[id(item)] = size
                    total += size
                else:
                    self.spend(1 + len(item) if isinstance(item, Sized) else 1)
                    children = self._children(item)
                    total += 1 + len(children)
                    if total <= self._largest:
                        stack.extend(children)
            else:
                total += 1
            if total > self._largest:
                raise LimitError("the template makes a value that is too large")
        return total

    @staticmethod
    def _children(item: Any) -> list[Any]:
        if isinstance(item, Namespace):
            return list(object.__getattribute__(item, "_Namespace__attrs").values())
        if isinstance(item, Mapping):
            return [*item.keys(), *item.values()]
        return list(item)

    def _fits(self, size: int) -> None:
        if size > self._largest:
            raise LimitError("the template makes a value that is too large")
        self.spend(max(size, 0))

    def _pay_for(self, *values: Any) -> None:
        """Pay for looking at arguments, strings by length and containers by count; all must be of legal size."""
        for value in values:
            known = isinstance(value, Mapping | list | tuple | range)
            self.spend(1 + len(value) // 8 if isinstance(value, str) else 1 + len(value) if known else 1)
            self.weigh(value)

    def _result(self, value: Any) -> Any:
        """A value just made: paid for in full; iterators pay while they run."""
        if isinstance(value, Iterator):
            return self._counted(value)
        if id(value) not in self._known:
            self.spend(self.weigh(value))
        return value

    def _counted(self, iterator: Iterable[Any]) -> Iterator[Any]:
        for item in iterator:
            self.spend(8)
            yield item

    # What compiled templates call: see template_guard

    def guard_loop(self, iterable: Any, cost: int) -> Any:
        """Pay for a loop in advance (or, over an iterator, as it runs): so much an item."""
        try:
            self.spend(len(iterable) * cost)
        except TypeError:
            return self._counted(iterable) if isinstance(iterable, Iterator) else iterable
        return iterable

    def guard_step(self, cost: int) -> None:
        """Pay for running through a body that can be entered by a call."""
        self.spend(cost)

    def guard_value(self, value: Any) -> Any:
        """Pay in full for a value that is compared, joined or written as a literal."""
        self.spend(self.weigh(value))
        return value

    def _output(self, value: Any) -> Any:
        self.spend(self.weigh(value))
        return value

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call something from a template: paid for, and methods that multiply only if the result fits."""
        owner = getattr(obj, "__self__", None)
        name = getattr(obj, "__name__", "")
        if owner is self and name.startswith("guard_"):
            return obj(*args)
        self.spend(40)
        given = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}
        self._pay_for(*args, *given.values())
        if isinstance(owner, str):
            self._pay_for(owner)
            if name == "replace":
                return self._replace(owner, *args, **given)
            if name == "join":
                return self._join(args[0] if args else (), owner)
            if name in ("center", "ljust", "rjust", "zfill") and not (args and _within(args[0], MAX_WIDTH)):
                raise LimitError(f"{name}: the width must be a number of at most {MAX_WIDTH}")
        if obj is TemplateNamespace or obj is Joiner:
            return obj(*args, **given)
        return self._result(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operator: computed only if the result is of legal size."""
        self._pay_for(left, right)
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(count, int):
                    self._fits(self.weigh(sequence) * max(count, 0))
        elif operator == "**" and not (_within(left, 2**32) and _within(right, 64)):
            raise LimitError("**: the numbers are too large")
        elif operator == "%" and isinstance(left, str):
            return self._percent(left, right)
        return self._result(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Subscript or slice; a slice is a new value and paid for."""
        value = super().getitem(obj, argument)
        return self._result(value) if isinstance(argument, slice) else value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only listed methods of plain values, and the public attributes of Jinja's own objects."""
        if isinstance(obj, str):
            return attr in _STRING_METHODS
        if isinstance(obj, Mapping):
            return attr in _MAPPING_METHODS
        if isinstance(obj, list | tuple):
            return attr in _SEQUENCE_METHODS or (isinstance(obj, tuple) and attr in ("grouper", "list"))
        own = LoopContext | Macro | TemplateReference | BlockReference | Undefined | Namespace
        return isinstance(obj, own) and bool(super().is_safe_attribute(obj, attr, value))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` in a template: without format specifications, whose widths know no bounds."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        formatter: Callable[..., str] = wrapped
        pattern: str = value.__self__

        def guarded(*args: Any, **kwargs: Any) -> str:
            if ":" in pattern:
                raise LimitError("format: a format specification after a colon is not supported")
            self._fits(len(pattern) + pattern.count("{") * sum(map(self.weigh, (*args, *kwargs.values()))))
            return formatter(*args, **kwargs)

        return guarded

    # Filters and globals

    def _guarded(self, name: str, function: Any, deep: bool = False) -> Callable[..., Any]:
        deep = deep or name in _DEEP_FILTERS
        own = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or environment that Jinja passes first

        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.spend(10)
            self._pay_for(*args[own:], *kwargs.values())
            if deep:
                self.spend(sum(map(self.weigh, (*args[own:], *kwargs.values()))))
            return self._result(function(*args, **kwargs))

        return guarded

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # As transformers has it: plain JSON, no HTML escapes. Piece by piece, for deep nesting multiplies the indent.
        self._pay_for(value)
        wide = len(indent) > 16 if isinstance(indent, str) else indent is not None and not 0 <= indent <= 16
        if wide:
            raise LimitError("tojson: the indent must be at most 16")
        if separators is not None and sum(map(len, separators)) > 16:
            raise LimitError("tojson: the separators are too long")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        pieces = []
        size = 0
        for piece in encoder.iterencode(value):
            size += len(piece)
            self._fits(size if size > self._largest else len(piece))
            pieces.append(piece)
        return "".join(pieces)

    def _indent(self, text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        pad = width if isinstance(width, str) else " " * width if _within(width, MAX_WIDTH) else None
        if pad is None or len(pad) > MAX_WIDTH:
            raise LimitError(f"indent: the width must be at most {MAX_WIDTH}")
        text = str(text)
        lines = text.splitlines()
        if text.endswith("\n"):
            lines.append("")
        self._fits(len(text) + len(lines) * (len(pad) + 1))
        rest = [pad + line if blank or line else line for line in lines[1:]]
        result = "\n".join([*lines[:1], *rest])
        return pad + result if first else result

    def _replace(self, text: Any, old: Any, new: Any, count: int | None = None) -> str:
        text, old, new = str(text), str(old), str(new)
        times = text.count(old) if old else len(text) + 1
        self._fits(len(text) + times * len(new))
        made: str = text.replace(old, new, -1 if count is None else count)
        return made

    def _join(self, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        items = [item if attribute is None else self.getitem(item, attribute) for item in self._counted(values)]
        self._fits(sum(map(self.weigh, items)) + len(items) * len(d))
        return str(d).join(map(str, items))

    def _round(self, value: Any, precision: int = 0, method: str = "common") -> float:
        if not _within(precision, 30) or (isinstance(value, int) and abs(value) >= 2**64):
            raise LimitError("round: the number or its precision is too large")
        if method not in ("common", "ceil", "floor"):
            raise TemplateError("round: the method is common, ceil or floor")
        if method == "common":
            rounded: float = round(value, precision)
            return rounded
        step = 10**precision
        return float((math.ceil if method == "ceil" else math.floor)(value * step) / step)

    def _sum(self, values: Iterable[Any], attribute: str | int | None = None, start: float = 0) -> float:
        items = [item if attribute is None else self.getitem(item, attribute) for item in self._counted(values)]
        if not all(isinstance(item, int | float) for item in (start, *items)):
            raise TemplateError("sum: not all of these are numbers")
        return sum(items, start)

    def _percent(self, pattern: str, values: Any) -> str:
        if pattern.count("%") != sum(match.group().count("%") for match in _PERCENT.finditer(pattern)):
            raise LimitError(f"%: the format {pattern[:40]!r} is not supported")
        self._fits(len(pattern) + pattern.count("%") * (1000 + self.weigh(values)))
        made: str = pattern % values
        return made

    def _format_filter(self, pattern: Any, *args: Any, **kwargs: Any) -> str:
        self._pay_for(pattern, *args, *kwargs.values())
        return self._percent(str(pattern), kwargs or args)

    def _range(self, *args: int) -> range:
        made = range(*args)
        if not all(_within(arg, 2**53) for arg in args) or len(made) > MAX_RANGE:
            raise LimitError(f"range: longer than {MAX_RANGE} items")
        return made

    def _raise_exception(self, message: object) -> None:
        raise TemplateError(str(message)[:500])

    def _strftime_now(self, pattern: str) -> str:
        if len(pattern) > 200 or pattern.count("%") != sum(m.group().count("%") for m in _STRFTIME.finditer(pattern)):
            raise LimitError(f"strftime_now: the format {pattern[:40]!r} is not supported")
        return self.now().strftime(pattern)


def _within(value: object, limit: int) -> bool:
    return isinstance(value, int) and -limit <= value <= limit
