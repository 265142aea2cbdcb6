"""`run`, `chat`, `tokenize` and `convert`, as a user calls them."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest

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
