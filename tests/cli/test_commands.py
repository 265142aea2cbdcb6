"""`run`, `chat`, `tokenize` and `convert`, as a user calls them."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from qafila.chat.llama import Completion, Llama, Stream
from qafila.cli import chat
from qafila.cli.main import main
from qafila.errors import QafilaError
from qafila.text.messages import Message
from qafila.weights.load import gguf_tokenizer

QAFILA = [sys.executable, "-m", "qafila"]


def qafila(*args, stdin=""):
    return subprocess.run([*QAFILA, *map(str, args)], input=stdin.encode(), capture_output=True, check=False)


def error_line(done):
    assert done.returncode == 2, done
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_run_is_the_same_for_the_same_seed(default_gguf):
    args = ("run", default_gguf, "Name a colour.", "-n", 6, "--seed", 3, "--json")
    first, second = (json.loads(qafila(*args).stdout) for _ in range(2))
    assert first["ids"] == second["ids"]
    assert first["seed"] == 3
    assert first["usage"]["completion_tokens"] == len(first["ids"]) <= 6
    assert first["finish_reason"] in ("stop", "length")


def test_run_reads_the_prompt_from_a_pipe_and_can_continue_raw_text(default_gguf):
    done = qafila("run", default_gguf, "--raw", "-t", 0, "-n", 6, stdin="1, 2, 3, 4,")
    assert done.returncode == 0
    assert "5" in done.stdout.decode()


def test_answers_that_must_match(default_gguf, tmp_path):
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text(
        '{"type": "object", "properties": {"n": {"enum": [3, 5]}}, "required": ["n"], "additionalProperties": false}'
    )
    grammar.write_text('start: "left" | "right"')
    for given in (schema, schema.read_text()):
        done = qafila("run", default_gguf, "A number?", "--json-schema", given, "-n", 40, "-t", 0)
        assert json.loads(done.stdout)["n"] in (3, 5), done
    assert qafila("run", default_gguf, "Which way?", "--grammar", grammar).stdout.strip() in (b"left", b"right")
    assert qafila("chat", default_gguf, "--regex", "[0-9]{3}", stdin="A number?\n").stdout.strip().isdigit()


def test_options_of_the_engine(default_gguf, tmp_path, capsys):
    plain = json.loads(qafila("run", default_gguf, "hi", "-n", 4, "-t", 0, "--json").stdout)
    for options in (("--threads", 1), ("--context", 64), ("--draft", default_gguf)):
        done = json.loads(qafila("run", default_gguf, "hi", "-n", 4, "-t", 0, "--json", *options).stdout)
        assert (done["ids"], done["logprobs"]) == (plain["ids"], plain["logprobs"])
    for options, words in (
        (("--kv-type", "int3"), "kv_type 'int3'"),
        (("--context", 16), "KV cache holds 16"),
        (("--adapter", tmp_path), "adapter_config.json"),
        (("--grammar", tmp_path / "none"), "none: no such file"),
        (("--json-schema", "{oops"), "JSON schema"),
        (("--regex", "a", "--json-schema", "{}"), "do not go together"),
        (("--presence-penalty", 5), "presence_penalty"),
        (("--dtype", "float32"), "dtype"),
    ):
        status = main(["run", str(default_gguf), "hi", "-n", "4", *map(str, options)])
        told = capsys.readouterr()
        assert (status, told.out) == (2, "")
        (line,) = told.err.splitlines()
        assert line.startswith("error: ")
        assert words in line


def test_chat_answers_every_line_of_a_pipe(default_gguf):
    lines = "What is the capital of Japan?\n\nAnd of Italy?\n"
    done = qafila("chat", default_gguf, "-t", 0, "-n", 24, "--json", stdin=lines)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [a["question"] for a in answers] == ["What is the capital of Japan?", "And of Italy?"]
    assert "Tokyo" in answers[0]["answer"]
    assert "Rome" in answers[1]["answer"]


def test_chat_commands_on_a_pipe(default_gguf, tmp_path):
    file = tmp_path / "talk.json"
    lines = f"/system You are terse.\nHello\n/save {file}\n/nonsense\n/quit\nnever asked\n"
    done = qafila("chat", default_gguf, "-t", 0, "-n", 8, stdin=lines)
    assert done.returncode == 0, done.stderr
    saved = json.loads(file.read_text())["messages"]
    assert [m["role"] for m in saved] == ["system", "user", "assistant"]
    assert saved[0]["content"] == "You are terse."
    assert b"no command /nonsense" in done.stdout
    assert b"never asked" not in done.stdout


class Terminal:
    """A program under a pseudo-terminal: what it wrote so far, and a way to wait for more."""

    def __init__(self, *args, **environment):
        self.side, other = pty.openpty()
        self.process = subprocess.Popen(
            [*QAFILA, *args],
            stdin=other,
            stdout=other,
            stderr=other,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        os.close(other)
        self.seen = b""

    def wait_for(self, wanted, seconds=90):
        """Everything up to and with ``wanted``, which is then behind us."""
        deadline = time.monotonic() + seconds
        while wanted not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.side], [], [], 1)[0]:
                self.seen += os.read(self.side, 65536)
        before, _, self.seen = self.seen.partition(wanted)
        return before + wanted

    def type(self, line):
        os.write(self.side, line + b"\n")

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.side)


def test_ctrl_c_stops_the_answer_and_not_the_program(default_gguf, tmp_path):
    with Terminal("chat", default_gguf, "-t", "0", QAFILA_HOME=str(tmp_path)) as terminal:
        terminal.wait_for(b"/help lists commands")
        terminal.wait_for(b"> ")
        terminal.type(b"Write a very long story about a caravan.")
        terminal.wait_for(b"caravan.\r\n")
        terminal.wait_for(b" ")
        terminal.process.send_signal(2)
        terminal.wait_for(b"[stopped]")
        terminal.wait_for(b"> ")
        terminal.type(b"/quit")
        assert terminal.process.wait(timeout=30) == 0
    assert (tmp_path / "chat_history").stat().st_mode & 0o777 == 0o600
    assert "caravan" in (tmp_path / "chat_history").read_text()


def test_tokenize_there_and_back(default_gguf):
    text = "Hello world\nمرحبا بالعالم\n\n\ttabs \r kept\n"
    encoded = qafila("tokenize", default_gguf, "--json", stdin=text)
    arrays = [json.loads(line) for line in encoded.stdout.splitlines()]
    assert len(arrays) == 4
    assert arrays[2] == []
    decoded = qafila("tokenize", default_gguf, "--decode", stdin=encoded.stdout.decode())
    assert decoded.stdout.decode() == text


def test_tokenize_takes_a_tokenizer_file_alone(shared_data):
    done = qafila("tokenize", shared_data / "models" / "llama2_tokenizer.model", "Hello", "--bos", "--json")
    assert json.loads(done.stdout) == [1, 15043]


def test_convert_says_what_it_wrote(default_gguf, tmp_path):
    done = qafila("convert", default_gguf, tmp_path / "q.gguf", "--to", "gguf", "--quant", "q4_0", "--json")
    report = json.loads(done.stdout)
    assert report["files"] == ["q.gguf"]
    assert report["bytes"] == (tmp_path / "q.gguf").stat().st_size < 105_000_000
    answer = qafila("run", tmp_path / "q.gguf", "What is the capital of Japan?", "-t", 0, "-n", 12)
    assert "Tokyo" in answer.stdout.decode()


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (("run", "no-such-model", "hi"), "no-such-model"),
        (("run", "{gguf}", "hi", "--top-p", "7"), "top_p"),
        (("run", "{gguf}", "hi", "--raw", "--system", "x"), "--raw"),
        (("run", "{gguf}", "hi", "--format", "klingon"), "klingon"),
        (("run", "{gguf}", "word " * 9000), "8192"),
        (("convert", "{gguf}", "{tmp}/x", "--to", "hf", "--quant", "Q4_0"), "--quant"),
        (("convert", "{gguf}", "{tmp}/x", "--to", "gguf", "--quant", "Q7"), "Q7"),
        (("convert", "{gguf}", "{gguf}", "--to", "gguf"), "same"),
        (("convert", "{gguf}", "/proc/x", "--to", "hf"), "/proc/x"),
        (("tokenize", "{gguf}", "12x", "--decode"), "line 1"),
        (("tokenize", "{gguf}", "99999999", "--decode"), "99999999"),
        (("tokenize", "{tmp}/none.json", "x"), "none.json"),
    ],
)
def test_bad_input_is_one_line_and_status_2(args, wanted, default_gguf, tmp_path):
    filled = [a.replace("{gguf}", str(default_gguf)).replace("{tmp}", str(tmp_path)) for a in args]
    assert wanted in error_line(qafila(*filled))
    assert not any(tmp_path.iterdir())


def test_input_that_is_not_text(default_gguf):
    done = subprocess.run(
        [*QAFILA, "tokenize", default_gguf], input=b"ok\n\xff\xfe\n", capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"line 2: not UTF-8" in done.stderr


class FakeLlama:
    """Answers with the question in capitals: for what is around the model."""

    def __init__(self):
        self.asked = []

    def chat(self, messages, *, stream, **options):
        self.asked.append(messages[-1].text)
        ids = (1, 2)
        message = Message("assistant", messages[-1].text.upper(), ids=ids)
        done = Completion(text=message.text, ids=ids, prompt_ids=(0,), logprobs=(0.0, 0.0), finish_reason="stop",
                          seed=0, message=message)  # fmt: skip
        return Stream(iter([message.text]), lambda: done)


@pytest.fixture
def typed(monkeypatch):
    """Standard input, as bytes (or closed, with None), for a command called in this process."""

    def type_in(data):
        wrapped = None if data is None else io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", wrapped)

    return type_in


def test_a_space_says_a_slash_to_the_model(typed, capsys):
    typed(b" /help me\n/nonsense\n")
    llama = FakeLlama()
    chat._answer_lines(chat.Conversation(llama, None, {}), as_json=False)
    assert llama.asked == ["/help me"]
    assert "no command /nonsense" in capsys.readouterr().out


def test_among_json_answers_is_nothing_else(typed, capsys):
    typed(b"/reset\nhello\n/nonsense\n/help\n")
    chat._answer_lines(chat.Conversation(FakeLlama(), None, {}), as_json=True)
    said = capsys.readouterr()
    assert json.loads(said.out) == {"question": "hello", "answer": "HELLO"}
    assert "forgotten" in said.err


@pytest.mark.parametrize("name", [".", "/", "..", "~no-such-user/x", "a\0b", "{tmp}", "{tmp}/none/x", "n" * 300])
def test_save_refuses_what_is_no_file(name, tmp_path):
    conversation = chat.Conversation(FakeLlama(), "Be brief.", {})
    with pytest.raises(QafilaError):
        chat._run_command(conversation, f"/save {name.replace('{tmp}', str(tmp_path))}")
    assert not any(tmp_path.iterdir())


def test_a_line_of_the_terminal_that_is_no_text_is_not_the_end(monkeypatch, capsys):
    def broken():
        b"\xff".decode()

    lines = iter([broken, lambda: "hello", lambda: "/quit"])
    monkeypatch.setattr(chat, "_read_line", lambda: next(lines)())
    llama = FakeLlama()
    chat._talk(chat.Conversation(llama, None, {}))
    assert llama.asked == ["hello"]
    assert "not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (("tokenize", "{gguf}"), "standard input is closed"),
        (("run", "{gguf}"), "standard input is closed"),
        (("run", "~no-such-user/x", "hi"), "home folder"),
        (("run", "n" * 5000, "hi"), "too long"),
        (("run", "/dev/null", "hi"), "neither a regular file nor a folder"),
        (("tokenize", "{gguf}", "٣", "--decode"), "expected token ids"),
        (("tokenize", "{gguf}", "1" * 30, "--decode"), "expected token ids"),
        (("tokenize", "{gguf}", "12345678901", "--decode"), "12345678901 is not a token id"),
        (("chat", "{gguf}", "--system", "\udcff"), "half a surrogate pair"),
        (("convert", "{gguf}", "{tmp}/x", "--to", "hf", "--max-shard-size", "inf"), "max-shard-size"),
        (("convert", "{gguf}", "{tmp}/x", "--to", "hf", "--shards", "2"), "--shards"),
        (("run", "{gguf}", "hi", "--system", "x"), "--system needs a chat format"),
    ],
)
def test_bad_input_without_a_process_of_its_own(args, wanted, default_gguf, tmp_path, typed, capsys, monkeypatch):
    typed(None)
    monkeypatch.setattr(Llama, "can_chat", False)
    named = {"{gguf}": str(default_gguf), "{tmp}": str(tmp_path)}
    filled = []
    for arg in args:
        for name, value in named.items():
            arg = arg.replace(name, value)
        filled.append(arg)
    assert main(filled) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert wanted in said.err.lower()
    assert not any(tmp_path.iterdir())


def test_tokenize_opens_a_folder_with_a_gguf(default_gguf, tmp_path, capsys):
    (tmp_path / "m.gguf").symlink_to(default_gguf)
    assert main(["tokenize", str(tmp_path), "Hello", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == gguf_tokenizer(default_gguf).encode("Hello")


def test_a_file_name_that_is_no_text(default_gguf, tmp_path):
    (tmp_path / "m\udcff.gguf").symlink_to(default_gguf)
    done = subprocess.run([*QAFILA, "info", "m\udcff.gguf"], capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"m?.gguf" in done.stdout
