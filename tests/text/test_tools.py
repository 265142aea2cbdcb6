from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.errors import ChatError
from qafila.text.messages import ToolCall
from qafila.text.tools import MAX_CALLS, parse_tool_calls, python_literal, render_tool_call, render_tool_calls


def parsed(text: str) -> list[tuple[str, dict[str, object]]] | None:
    calls = parse_tool_calls(text)
    return None if calls is None else [(call.name, dict(call.arguments)) for call in calls]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # llama-models prompt formats: 3.1 JSON, <function=>, built-in; 3.2 and 4 pythonic
        (
            '{\n    "type": "function",\n    "name": "trending_songs",\n'
            '    "parameters": {"n": "10", "genre": "all"}\n}',
            [("trending_songs", {"n": "10", "genre": "all"})],
        ),
        ('<function=trending_songs>{"n": 10}</function>', [("trending_songs", {"n": 10})]),
        (
            '<function=getWeather>{"location":"New York","date":"2023-08-05"}',
            [("getWeather", {"location": "New York", "date": "2023-08-05"})],
        ),
        (
            'brave_search.call(query="latest price of 1oz gold")',
            [("brave_search", {"query": "latest price of 1oz gold"})],
        ),
        (
            "[get_weather(city='San Francisco', metric='celsius'), get_weather(city='Seattle', metric='celsius')]",
            [
                ("get_weather", {"city": "San Francisco", "metric": "celsius"}),
                ("get_weather", {"city": "Seattle", "metric": "celsius"}),
            ],
        ),
        ("[get_user_info(user_id=7890, special='black')]", [("get_user_info", {"user_id": 7890, "special": "black"})]),
        ("[initialize()]", [("initialize", {})]),
        (
            '[f(liquid={"name": "water", "n": [1, -2.5, None, True]}, t=(1, 2))]',
            [("f", {"liquid": {"name": "water", "n": [1, -2.5, None, True]}, "t": [1, 2]})],
        ),
        ("[f(a=true, b=null)]", [("f", {"a": True, "b": None})]),
        ('[ns.tool(x="a]b")]', [("ns.tool", {"x": "a]b"})]),
        # what the reference drops or breaks: several calls, quotes, OpenAI's spelling, ChatML's tags
        ('{"name": "a", "parameters": {}}; {"name": "b", "parameters": {"x": 1}}', [("a", {}), ("b", {"x": 1})]),
        ('{"name": "a", "arguments": {}}\n{"name": "b", "arguments": {}}', [("a", {}), ("b", {})]),
        ('<function=f>{"q": "it\'s {nested}"}</function>', [("f", {"q": "it's {nested}"})]),
        ('{"type":"function","function":{"name":"f","arguments":"{\\"x\\": 1}"}}', [("f", {"x": 1})]),
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', [("f", {"x": 1})]),
        (
            '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]</tool_call>',
            [("f", {}), ("g", {})],
        ),
        (
            '<tool_call>\n{"name": "f", "arguments": {"x": "</tool_call>"}}\n</tool_call>',
            [("f", {"x": "</tool_call>"})],
        ),
        (
            "[f(x='# Title\\n----------', y='((((((((((((((((((((((((((((((((((')]",
            [("f", {"x": "# Title\n" + "-" * 10, "y": "(" * 34})],
        ),
        ('<function=بحث>{"سؤال": "ما الخبر؟"}</function>', [("بحث", {"سؤال": "ما الخبر؟"})]),
    ],
)
def test_calls(text: str, expected: list[tuple[str, dict[str, object]]]) -> None:
    assert parsed(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The weather is nice.",
        "[]",
        "[1, 2, 3]",
        "[f(1)]",
        "[f(x=1), 42]",
        "[[f(x=1)]]",
        "f(x=1)",
        "[(f(x=1),)]",
        "[f(x=1",
        "[f(x=1, x=2)]",
        "[f(**{'x': 1})]",
        "[f(x=g())]",
        "[f(x=y)]",
        "[f(x=1+1)]",
        "[f(x=b'1')]",
        "[f(x=1e999)]",
        "[f(x={1: 2})]",
        "[__import__('os').system(command='true')]",
        "[f(x=__import__('os'))]",
        "[f()() ]",
        '{"answer": 42}',
        '{"name": "Ada", "born": 1815}',
        '{"name": "a", "parameters": {}} and that is all',
        '<tool_call>{"name": "a", "arguments": {}} and more</tool_call>',
        '{"name": 3, "parameters": {}}',
        '{"name": "a", "parameters": [1]}',
        '{"name": "a", "parameters": {"x": NaN}}',
        'You can write brave_search.call(query="x") to search.',
        "<function=f>no json</function>",
        "[link](https://example.org) and [f(x)]",
        "[ فقرة (نص) ]",
    ],
)
def test_prose_is_none(text: str) -> None:
    assert parsed(text) is None


def test_the_order_is_the_references() -> None:
    inner = '{"name": "b", "parameters": {"t": "<function=a>{}</function>"}}'
    assert parsed(inner) == [("a", {})]  # <function=> wins, as in the reference
    assert parsed("[a(q=\"brave_search.call(query='x')\")]") == [("a", {"q": "brave_search.call(query='x')"})]


def test_ids_are_told_apart() -> None:
    calls = parse_tool_calls("[f(), g()]", id_prefix="call_7")
    assert calls is not None
    assert [call.id for call in calls] == ["call_7_0", "call_7_1"]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[f(x=" + "[" * 90 + "]" * 90 + ")]",
        "[f(x=" + "-" * 10_000 + "1)]",
        "[f(x='a\\\n' " + "-" * 10_000 + '1, y="""\'""")]',
        '[f(x=f"{' + "-" * 10_000 + '1}")]',
        "[f(x=" + "not " * 10_000 + "1)]",
        "[" + "f(),".replace(",", ", ") * 20_000 + "]",
        '{"name": "a", "parameters": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}",
        '{"name": "a", "parameters": {}};' * (MAX_CALLS + 2),
        "<function=f>{}" * (MAX_CALLS + 2),
        "<function=" * 20_000,
        "[f(x=" + "9" * 20_000 + ")]",
        "[f(x='\x00')]",
        "[f" + ".a" * 20_000 + "()]",
        "x" * 300_000,
        "brave_search.call(query=" * 8_000,
    ],
)
def test_hostile_text_is_prose_and_quick(text: str) -> None:
    start = time.process_time()
    assert parsed(text) is None
    assert time.process_time() - start < 2


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
names = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True).filter(
    lambda name: (
        name not in ("as", "if", "in", "is", "or", "and", "def", "del", "for", "not", "try", "elif", "else", "from")
        and name
        not in ("pass", "with", "break", "class", "raise", "while", "yield", "async", "await", "import", "return")
        and name not in ("except", "global", "lambda", "assert", "finally", "continue", "nonlocal", "code", "query")
    )
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(names, st.dictionaries(names, json_values, max_size=3)), min_size=1, max_size=3))
def test_what_is_written_is_read_again(calls: list[tuple[str, dict[str, object]]]) -> None:
    made = [ToolCall(f"call_{i}", name, arguments) for i, (name, arguments) in enumerate(calls)]
    assert parsed(render_tool_calls(made, "pythonic")) == calls
    if not any("<function=" in json.dumps(arguments) for _, arguments in calls):
        assert parsed(render_tool_calls(made, "json")) == calls
        assert parsed(render_tool_calls(made, "function")) == calls


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="[](){}<>=,;:\"'\\ abf01.-function_callquery\n", max_size=60))
def test_any_text_is_calls_or_prose(text: str) -> None:
    calls = parse_tool_calls(text)
    for call in calls or ():
        json.dumps(dict(call.arguments), allow_nan=False)


def test_rendering() -> None:
    call = ToolCall("c", "get_weather", {"city": "San Francisco", "days": 2, "hot": True, "x": None})
    assert render_tool_call(call, "pythonic") == 'get_weather(city="San Francisco", days=2, hot=True, x=None)'
    assert render_tool_call(call, "function") == (
        '<function=get_weather>{"city": "San Francisco", "days": 2, "hot": true, "x": null}</function>'
    )
    assert render_tool_call(call, "json") == (
        '{"type": "function", "name": "get_weather", "parameters": '
        '{"city": "San Francisco", "days": 2, "hot": true, "x": null}}'
    )
    search = ToolCall("c", "brave_search", {"query": "gold"})
    assert render_tool_calls([search], "pythonic") == 'brave_search.call(query="gold")'
    assert render_tool_call(ToolCall("c", "code_interpreter", {"code": "print(1)"}), "json") == "print(1)"


@pytest.mark.parametrize(
    ("call", "style", "problem"),
    [
        (ToolCall("c", "f", {"not a name": 1}), "pythonic", '"not a name"'),
        (ToolCall("c", "f", {"x": math.nan}), "json", "not JSON"),
        (ToolCall("c", "f", {"x": math.inf}), "pythonic", "float"),
        (ToolCall("c", "f", {"x": object()}), "function", "not JSON"),
        (ToolCall("c", "brave_search", {"q": "gold"}), "json", '"query"'),
        (ToolCall("c", "brave_search", {"query": 'a "b"'}), "json", "double quotes"),
    ],
)
def test_what_cannot_be_written(call: ToolCall, style: str, problem: str) -> None:
    with pytest.raises(ChatError) as caught:
        render_tool_call(call, style)  # type: ignore[arg-type]
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deep_arguments_are_refused() -> None:
    value: object = 1
    for _ in range(2000):
        value = [value]
    with pytest.raises(ChatError, match="nested"):
        python_literal(value)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "parameters": {"a": 1e999}}',
        '{"name": "f", "parameters": {"a": "\\ud800"}}',
        "[f(a='\\ud800')]",
        f"[f(a=0x{'f' * 9000})]",
    ],
)
def test_what_cannot_be_written_again_is_no_call(text: str) -> None:
    """Infinity, half a surrogate pair, a number that Python does not print: no JSON holds them."""
    assert parse_tool_calls(text) is None
