"""Files of texts and examples: every form, every container, and every mistake with its file and line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qafila.data import records
from qafila.data.examples import read_examples
from qafila.data.forms import Example
from qafila.data.problems import ExampleError, Origin, Problem, Problems
from qafila.errors import DataError, FormatError, QafilaError, UsageError
from qafila.text.messages import Message, TextPart

ARABIC = "السلام عليكم ورحمة الله"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ARABIC}]}


def write(path: Path, *values: Any) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


def only(path: Path, value: Any, form: str = "auto", **fields: str) -> Example:
    (made,) = read_examples(write(path / "one.jsonl", value), form, fields=fields)
    return made


def spoken(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in messages]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (CHAT, [("user", "Hi"), ("assistant", ARABIC)]),
        (CHAT["messages"], [("user", "Hi"), ("assistant", ARABIC)]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            [("system", "s"), ("user", "q"), ("assistant", "a")],
        ),
        # As FastChat: what an assistant says before anybody asked is dropped.
        (
            {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "q"},
                               {"from": "gpt", "value": "a"}]},
            [("user", "q"), ("assistant", "a")],
        ),
        ({"instruction": "q", "input": "", "output": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"instruction": "q", "context": "", "response": "a", "category": "qa"}, [("user", "q"), ("assistant", "a")]),
        ({"prompt": "q", "completion": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"prompt": "q", "response": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"Prompt": "q", "Completion": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
         [("user", "q"), ("assistant", "a")]),
        ({"input": "q", "output": "a"}, [("user", "q"), ("assistant", "a")]),
    ],
)  # fmt: skip
def test_conversations(tmp_path: Path, value: Any, expected: list[tuple[str, str]]) -> None:
    made = only(tmp_path, value)
    assert made.kind == "chat"
    assert spoken(made.messages) == expected
    assert made.origin == Origin(str(tmp_path / "one.jsonl"), 1)


def test_an_input_is_a_part_of_its_own(tmp_path: Path) -> None:
    for value in (
        {"instruction": "q", "input": ARABIC, "output": "a"},
        {"instruction": "q", "context": ARABIC, "response": "a"},
    ):
        made = only(tmp_path, value)
        assert made.has_input
        assert made.messages[0].content == (TextPart("q"), TextPart(ARABIC))


def test_texts(tmp_path: Path) -> None:
    assert only(tmp_path, {"text": ARABIC}).text == ARABIC
    assert only(tmp_path, ARABIC).text == ARABIC
    assert only(tmp_path, {"content": "code"}).text == "code"


def test_names_of_fields_can_be_given(tmp_path: Path) -> None:
    made = only(tmp_path, {"en": "Hello", "ar": "مرحبا"}, "prompt", prompt="en", completion="ar")
    assert spoken(made.messages) == [("user", "Hello"), ("assistant", "مرحبا")]
    with pytest.raises(DataError, match=r'one.jsonl:1: no field "fr"; there are en'):
        only(tmp_path, {"en": "Hello"}, "prompt", prompt="fr")
    with pytest.raises(UsageError, match="no form has it"):
        only(tmp_path, CHAT, "auto", nonsense="x")
    with pytest.raises(UsageError, match="there are auto, text"):
        only(tmp_path, CHAT, "nonsense")


def test_tools_and_calls(tmp_path: Path) -> None:
    made = only(
        tmp_path,
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"a": "١"}}'},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "a"},
            ],
            "tools": '[{"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}]',
        },
    )
    assert [message.role for message in made.messages] == ["user", "assistant", "tool", "assistant"]
    assert made.messages[1].tool_calls[0].arguments == {"a": "١"}
    assert made.tools[0].name == "f"


def test_weights_say_what_is_only_read(tmp_path: Path) -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "weight": 1},
    ]
    assert only(tmp_path, {"messages": turns}).learn == (True, False, True, True)
    with pytest.raises(ExampleError, match="weight is 0 or 1"):
        only(tmp_path, {"messages": [turns[0], dict(turns[1], weight=0.5)]})
    with pytest.raises(ExampleError, match="no answer of the assistant to learn") as caught:
        only(tmp_path, {"messages": turns[:2]})
    assert caught.value.kind == "no-target"


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"messages": [{"role": "user", "content": "q"}], "chosen": {"role": "assistant", "content": "good"},
         "rejected": {"role": "assistant", "content": "bad"}},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "good"},
         "rejected": {"from": "gpt", "value": "bad"}},
        {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
        {"prompt": "q",
         "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
         "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}]},
        {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
         "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}]},
    ],
)  # fmt: skip
def test_preferences(tmp_path: Path, value: Any) -> None:
    made = only(tmp_path, {**value, "margin": 1 / 3})
    assert made.kind == "preference"
    assert spoken(made.messages) == [("user", "q")]
    assert (spoken(made.chosen), spoken(made.rejected)) == ([("assistant", "good")], [("assistant", "bad")])
    assert made.margin == pytest.approx(1 / 3)


def test_the_shared_part_of_a_preference_ends_before_an_answer(tmp_path: Path) -> None:
    head = "\n\nHuman: a\n\nAssistant: b"
    made = only(
        tmp_path,
        {"chosen": f"{head}\n\nHuman: c\n\nAssistant: d", "rejected": f"{head}\n\nHuman: other\n\nAssistant: e"},
    )
    assert spoken(made.messages) == [("user", "a")]
    assert [m.role for m in made.chosen] == ["assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("roles", "index"),
    [
        (["assistant", "user"], 0),
        (["user", "user", "assistant"], 1),
        (["user", "assistant", "assistant"], 2),
        (["user", "system", "assistant"], 1),
        (["system", "assistant"], 1),
        (["user", "tool", "assistant"], 1),
        (["tool"], 0),
    ],
)
def test_roles_out_of_order_have_a_line(tmp_path: Path, roles: list[str], index: int) -> None:
    path = write(tmp_path / "a.jsonl", CHAT, {"messages": [{"role": role, "content": "x"} for role in roles]})
    with pytest.raises(ExampleError, match=rf"a\.jsonl:2: messages\[{index}\]: {roles[index]} ") as caught:
        list(read_examples(path))
    assert caught.value.kind == "order"


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        (b"{", "malformed", "not valid JSON"),
        (b'{"text": "\xff"}', "malformed", "not UTF-8 text"),
        (b'{"text": "a\\ud800b"}', "malformed", "half a surrogate pair"),
        (b'{"messages": [{"role": "user", "content": "\\udfff"}, {"role": "assistant", "content": "x"}]}',
         "malformed", "half a surrogate pair"),
        (b"[" * 100_000, "malformed", "nested too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "malformed", "nested too deeply"),
        (b"9" * 5000, "malformed", ""),
        (b"7", "malformed", "expected an object, not 7"),
        (b"null", "malformed", "expected an object, not null"),
        (b'{"foo": 1, "bar": 2}', "malformed", "no form has these fields: foo, bar"),
        (b'{"a\\nb\\u001b[2J": 1}', "malformed", r"fields: a\nb\x1b[2J;"),
        (b'{"text": 3}', "malformed", "text: expected text, not 3"),
        (b'{"text": " "}', "empty", "text: empty"),
        (b'{"messages": []}', "empty", "none"),
        (b'{"messages": "x"}', "malformed", "expected a list of messages"),
        (b'{"messages": [{"role": "wizard", "content": "x"}]}', "malformed", '"wizard" is none of'),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "no-target", "no answer"),
        (b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}', "empty", "empty"),
        (b'{"conversations": [{"from": "alien", "value": "x"}]}', "malformed", "none of human"),
        (b'{"conversations": [{"from": "function_call", "value": "no"}]}', "malformed", "not valid JSON"),
        (b'{"instruction": "x", "input": 4, "output": "y"}', "malformed", "input: expected text"),
        (b'{"instruction": "x", "output": "  "}', "empty", "output: empty"),
        (b'{"prompt": "q", "chosen": "a", "rejected": "a"}', "no-target", "the same"),
        (b'{"prompt": "q", "chosen": "a", "rejected": ""}', "empty", "rejected: empty"),
        (b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": NaN}', "malformed", "margin"),
        (b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e999}', "malformed", "margin"),
        (b'{"prompt": "q", "chosen": "a", "rejected": "b", "margin": "much"}', "malformed", "margin"),
        (b'{"chosen": 1, "rejected": 2}', "malformed", "chosen"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, line: bytes, kind: str, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(ExampleError) as caught:
        list(read_examples(path))
    assert caught.value.kind == kind
    assert str(caught.value).startswith(f"{path}:3: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistakes_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"text {i}"}) for i in range(2000)]
    for place in (7, 70, 700):
        lines[place] = "{broken"
    lines[3] = json.dumps({"text": ""})
    path.write_text("\n".join(lines), encoding="utf-8")
    problems = Problems(keep=2)
    assert len(list(read_examples(path, problems=problems))) == 1996
    assert dict(problems.counts) == {"malformed": 3, "empty": 1}
    assert problems.seen == 2000
    told = problems.lines()
    assert told[0].startswith("3 malformed")
    assert [line.split(": ")[0] for line in told[1:3]] == [f"  {path}:8", f"  {path}:71"]
    assert told[3] == "  ... and 1 more"
    assert problems.to_dict()["counts"] == {"malformed": 3, "empty": 1}


def test_too_many_mistakes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' * 989 + "x\n" * 11, encoding="utf-8")
    with pytest.raises(DataError, match=r"11 of 1,000 records cannot be used, more than the 1\.0%.*a\.jsonl:990: not"):
        list(read_examples(path, problems=Problems()))
    path.write_text('{"text": "fine"}\n' * 990 + "x\n" * 10, encoding="utf-8")
    assert len(list(read_examples(path, problems=Problems()))) == 990
    path.write_text("x\n" * 5 + '{"text": "fine"}\n' * 2, encoding="utf-8")
    assert len(list(read_examples(path, problems=Problems()))) == 2
    with pytest.raises(DataError, match="5 of 7"):
        list(read_examples(path, problems=Problems(least=4)))


def test_a_hopeless_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("x\n" * 50_000, encoding="utf-8")
    problems = Problems()
    with pytest.raises(DataError):
        list(read_examples(path, problems=problems))
    assert problems.seen < 5000


def test_problems_of_parts_add_up() -> None:
    whole, first, second = Problems(keep=2), Problems(keep=2), Problems(keep=2)
    for number in range(5):
        for into in (whole, first if number < 3 else second):
            into.add(Problem("malformed", Origin("f", number), "x"))
            into.seen += 1
    first.merge(second)
    assert (first.first, first.counts, first.seen) == (whole.first, whole.counts, whole.seen)


def test_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "a"}\r\n\r\n  \n{"text": "b\\r\\n"}\r\n')
    assert [(e.text, e.origin.line) for e in read_examples(path)] == [("a", 1), ("b\r\n", 4)]
    text = tmp_path / "a.txt"
    text.write_bytes(b"\xef\xbb\xbf" + f"{ARABIC}\r\nb\r\n".encode())
    assert [e.text for e in read_examples(text)] == [f"{ARABIC}\nb\n"]
    for encoding in ("utf-16", "utf-16-be"):
        text.write_bytes((b"" if encoding == "utf-16" else b"\xfe\xff") + ARABIC.encode(encoding))
        with pytest.raises(FormatError, match="convert it to UTF-8"):
            list(read_examples(text))


@pytest.mark.parametrize("pack", [None, gzip.compress, lzma.compress, bz2.compress])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
def test_packed_files(tmp_path: Path, pack: Any, name: str) -> None:
    data = (ARABIC if name == "a.txt" else json.dumps({"text": ARABIC})).encode()
    suffix = {None: "", gzip.compress: ".gz", lzma.compress: ".xz", bz2.compress: ".bz2"}[pack]
    path = tmp_path / (name + suffix)
    path.write_bytes(pack(data) if pack else data)
    assert [e.text for e in read_examples(path)] == [ARABIC]
    if pack:
        path.write_bytes(pack(data * 100)[:-9])
        with pytest.raises(FormatError, match="damaged or cut short"):
            list(read_examples(path))


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a"}, {"text": 3}], indent=1), encoding="utf-8")
    problems = Problems()
    assert [str(e.origin) for e in read_examples(path, problems=problems)] == [f"{path}: record 1"]
    assert str(problems.first[0].origin) == f"{path}: record 2"
    path.write_text('{"text": "a"}\n{"text": "b"}\nno\n', encoding="utf-8")
    assert [e.text for e in read_examples(path, problems=Problems())] == ["a", "b"]
    path.write_text("[1, 2", encoding="utf-8")
    with pytest.raises(FormatError, match="is no JSON"):
        list(read_examples(path))


def test_a_long_text_comes_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PORTION", 64)
    whole = "\n".join(f"line {i} {ARABIC}" for i in range(40)) + "x" * 300 + "ش" * 200
    path = tmp_path / "a.txt"
    path.write_text(whole, encoding="utf-8")
    made = list(read_examples(path))
    assert "".join(e.text for e in made) == whole
    assert [e.first for e in made] == [True] + [False] * (len(made) - 1)
    assert [e.last for e in made] == [False] * (len(made) - 1) + [True]
    for example in made:
        assert whole.startswith(example.text, len("".join(e.text for e in made[: made.index(example)])))
    assert made[3].origin.line == "".join(e.text for e in made[:3]).count("\n") + 1


def test_text_that_is_no_utf8_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\r\n" + ARABIC.encode("cp1256"))
    with pytest.raises(ExampleError) as caught:
        list(read_examples(path))
    assert str(caught.value).startswith(f"{path}:3: not UTF-8 text (byte 0xc7)")
    problems = Problems(least=100)
    assert list(read_examples(path, problems=problems)) == []
    assert problems.first[0].origin == Origin(str(path), 3)


def test_the_line_is_the_file_s_in_a_text_of_many_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PORTION", 64)
    path = tmp_path / "a.txt"
    lines = [f"line {number}".encode() for number in range(1, 101)]
    lines[76] += b" \xff"
    path.write_bytes(b"\n".join(lines))
    problems = Problems(least=100)
    assert list(read_examples(path, problems=problems))
    assert [str(problem) for problem in problems.first] == [f"{path}:77: not UTF-8 text (byte 0xff); convert the file"]


def test_a_mistake_in_json_is_at_a_character_of_its_line(tmp_path: Path) -> None:
    """The decoder would say line 1, of a record that is in line 4."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n\n{"text": "cut"\n', encoding="utf-8")
    with pytest.raises(ExampleError) as caught:
        list(read_examples(path))
    assert str(caught.value) == f"{path}:4: not valid JSON (Expecting ',' delimiter, at character 15)"


def test_folders(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.md", "a.txt", "c/x.jsonl", ".hidden/h.txt", "b/.h.txt", "skipped.bin", "d.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"text": "json"}' if name.endswith("jsonl") else name, encoding="utf-8")
    assert [e.text for e in read_examples(tmp_path)] == ["a.txt", "b/1.md", "b/2.txt", "json", "d.py"]


def test_what_is_not_there_or_of_no_kind(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"text")
    (tmp_path / "x.jsonl.zst").write_bytes(b"x")
    for path, problem in [
        ("none.jsonl", "no such file"),
        ("x.bin", "the name tells no kind"),
        ("x.jsonl.zst", "unpack it first"),
        ("", "no file in this folder"),
    ]:
        if not path:
            (tmp_path / "empty").mkdir()
            path = "empty"
        with pytest.raises(DataError if "zst" not in path else FormatError, match=problem):
            list(read_examples(tmp_path / path))
    assert [e.text for e in read_examples(tmp_path / "x.bin", "text")] == ["text"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    turns = [{"role": "user", "content": "q", "name": None}, {"role": "assistant", "content": ARABIC, "name": None}]
    parquet.write_table(pyarrow.table({"messages": [turns, turns], "id": [1, 2]}), path)
    assert [spoken(e.messages)[1][1] for e in read_examples(path)] == [ARABIC, ARABIC]
    parquet.write_table(pyarrow.table({"text": ["a", None, ARABIC]}), path)
    problems = Problems()
    assert [e.text for e in read_examples(path, problems=problems)] == ["a", ARABIC]
    assert str(problems.first[0]) == f"{path}: row 2: no form has these fields: none; name form and fields"
    parquet.write_table(pyarrow.table({"prose": ["a"], "n": [1]}), path)
    with pytest.raises(DataError, match=r"row 1: no form has these fields: prose, n"):
        list(read_examples(path))
    parquet.write_table(pyarrow.table({"text": [b"\xff\xfe"]}), path)
    with pytest.raises(DataError, match="row 1"):
        list(read_examples(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match="no Parquet file"):
        list(read_examples(path))


def test_a_line_without_end_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD", 100)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * 1000 + b'"}\n{"text": "b"}\n')
    problems = Problems()
    assert [e.text for e in read_examples(path, problems=problems)] == ["b"]
    assert "the line is longer than" in problems.first[0].reason


SEEDS = (
    json.dumps(CHAT, ensure_ascii=False).encode(),
    b'{"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{\\"name\\": \\"f\\"}"},'
    b'{"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}]}',
    b'{"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b", "margin": 0.5}',
    b'{"chosen": "\\n\\nHuman: q\\n\\nAssistant: a", "rejected": "\\n\\nHuman: q\\n\\nAssistant: b"}',
    b'{"instruction": "q", "input": "c", "output": "a", "tools": "[]"}',
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["role", "content", "from", "value", "messages", "conversations", "chosen", "rejected", "prompt", "text",
             "tools", "tool_calls", "function", "name", "arguments", "ids", "weight", "type", "margin", "completion"]
        ),
        inner | st.sampled_from(["user", "assistant", "human", "gpt", "tool", "text"]),
        max_size=4,
    ),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_lines_load_or_raise_one_line(tmp_path: Path, data: st.DataObject) -> None:
    line = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(line)))
        line[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    path = tmp_path / f"a.{data.draw(st.sampled_from(['jsonl', 'json', 'txt']))}"
    path.write_bytes(bytes(line))
    loads_or_raises(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES)
def test_any_json_loads_or_raises_one_line(tmp_path: Path, value: Any) -> None:
    loads_or_raises(write(tmp_path / "a.jsonl", value))


def loads_or_raises(path: Path) -> None:
    told = f"{path}: x"
    try:
        for example in read_examples(path):
            assert example.text or example.messages or example.chosen
    except QafilaError as error:
        told = str(error)
    assert "\n" not in told
    assert told.startswith(str(path))
