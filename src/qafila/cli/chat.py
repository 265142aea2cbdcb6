"""`qafila chat`: a conversation in the terminal, or lines on a pipe answered one by one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qafila.cli import options as opt
from qafila.cli import stdin, terminal
from qafila.errors import ContextLengthError, QafilaError, UsageError

if TYPE_CHECKING:
    from qafila.chat.llama import Llama
    from qafila.chat.options import Options
    from qafila.text.messages import Message

HELP = """\
/system TEXT   set the system prompt (empty: none) and start over
/reset         forget the conversation
/save FILE     write the conversation as JSON
/help          this list
/quit          leave (also Ctrl-D)
Ctrl-C stops an answer. Lines end with Enter; end a line with \\ to go on in the next."""


class Conversation:
    """The messages so far, and the model that answers them."""

    def __init__(self, llama: Llama, system: str | None, options: Options) -> None:
        self.llama = llama
        self.options = options
        self.system = system
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        from qafila.text.messages import Message

        self.messages = [Message("system", self.system)] if self.system else []

    def answer(self, text: str) -> Generator[str, None, None]:
        """Pieces of the answer to ``text``; a question that cannot be answered leaves no trace.

        Closing the iterator stops the answer; what was said so far stays in the conversation.
        """
        from qafila.text.messages import Message

        question = Message("user", text)
        stream = self.llama.chat([*self.messages, question], stream=True, **self.options)
        try:
            yield from stream
        finally:
            result = stream.stop()
            if result.message is not None and result.ids:
                self.messages += [question, result.message]

    def save(self, path: Path) -> None:
        """Write the conversation as JSON, whole or not at all."""
        from qafila.weights.storage import staging

        messages = [message.to_dict() for message in self.messages]
        text = json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n"
        with staging(path.parent) as stage, stage.open(path.name) as write:
            write(text.encode())


def _say(conversation: Conversation, text: str) -> None:
    pieces = conversation.answer(text)
    try:
        for piece in pieces:
            terminal.show(piece)
    except KeyboardInterrupt:
        pieces.close()
        sys.stdout.write(" [stopped]")
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()


def _file_named(text: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"{text}: there is no such home folder") from None
    if not path.name or "\0" in text:
        raise UsageError(f"/save {text}: is no name of a file")
    return path


def _run_command(conversation: Conversation, line: str, say: Callable[[str], None] = print) -> bool:
    """Carry out a line that begins with a slash, saying what was done; False ends the chat."""
    word, _, argument = line.partition(" ")
    argument = argument.strip()
    if word in ("/quit", "/exit", "/bye"):
        return False
    if word == "/reset":
        conversation.reset()
        say("(forgotten)")
    elif word == "/system":
        conversation.system = argument or None
        conversation.reset()
        say("(system prompt set)" if argument else "(no system prompt)")
    elif word == "/save":
        if argument:
            conversation.save(_file_named(argument))
            say(f"(saved to {argument})")
        else:
            say("/save needs a file name")
    elif word == "/help":
        say(HELP)
    else:
        say(f"no command {word}; /help lists them (begin with a space to say it to the model)")
    return True


@contextmanager
def _line_editing() -> Iterator[None]:
    """Arrow keys, and a history kept between chats (in QAFILA_HOME, readable by its owner alone)."""
    try:
        import readline
    except ImportError:  # Python built without it: plain lines
        yield
        return
    from qafila.weights.cache import home

    file = home() / "chat_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        readline.read_history_file(file)
    except OSError:
        yield  # a history that cannot be kept is no reason not to talk
        return
    readline.set_history_length(1000)
    try:
        yield
    finally:
        try:
            readline.write_history_file(file)
        except OSError as error:
            print(f"note: {file}: the history was not kept ({error.strerror or error})", file=sys.stderr)


def _read_line() -> str:
    lines = [input("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("… "))
    return "\n".join(lines)


def _talk(conversation: Conversation) -> None:
    while True:
        try:
            line = _read_line()
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D leaves)")
            continue
        except EOFError:
            print()
            return
        except UnicodeDecodeError:
            print("error: this line is not UTF-8 text; set the terminal to UTF-8", file=sys.stderr)
            continue
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                if not _run_command(conversation, line):
                    return
            else:
                _say(conversation, line.strip())
        except ContextLengthError as error:
            print(f"error: {error}; /reset starts over", file=sys.stderr)
        except QafilaError as error:
            print(f"error: {error}", file=sys.stderr)


def command(
    model: opt.Model = "default",
    system: opt.System = None,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    presence_penalty: opt.PresencePenalty = None,
    frequency_penalty: opt.FrequencyPenalty = None,
    stop: opt.Stop = None,
    seed: opt.Seed = None,
    json_schema: opt.JsonSchema = None,
    regex: opt.Regex = None,
    grammar: opt.Grammar = None,
    format: opt.Format = None,
    adapter: opt.Adapter = None,
    draft: opt.Draft = None,
    threads: opt.Threads = None,
    context: opt.Context = None,
    kv_type: opt.KvType = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    as_json: Annotated[bool, typer.Option("--json", help="With lines on a pipe: one JSON object an answer.")] = False,
) -> None:
    """Talk with a model. With input on a pipe, each line is a question that is answered in turn."""
    from qafila.chat.llama import Llama
    from qafila.text.tokenizer import check_text

    check_text(system or "")
    interactive = stdin.is_terminal() and not as_json
    if interactive:
        print(f"loading {model} ...", file=sys.stderr)
    options = opt.generation(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        stop=stop,
        seed=seed,
        json_schema=json_schema,
        regex=regex,
        grammar=grammar,
    )
    llama = Llama.load(
        model,
        format=format,
        device=device,
        dtype=dtype,
        threads=threads,
        context=context,
        kv_type=kv_type,
        adapter=adapter,
        draft=draft,
    )
    name = llama.format.name  # a model without a chat format says so before the first question
    conversation = Conversation(llama, system, options)
    if not interactive:
        _answer_lines(conversation, as_json)
        return
    print(f"{model} ({name}, context {llama.config.context_length:,}). /help lists commands.")
    with terminal.direction_from_text(), _line_editing():
        _talk(conversation)


def _answer_lines(conversation: Conversation, as_json: bool) -> None:
    for raw in stdin.lines():
        line = raw.strip()
        if not line:
            continue
        if raw.startswith("/"):
            # Among JSON answers, what the commands say would be no JSON.
            if not _run_command(conversation, line, partial(print, file=sys.stderr) if as_json else print):
                return
        elif as_json:
            text = "".join(conversation.answer(line))
            print(json.dumps({"question": line, "answer": text}, ensure_ascii=False), flush=True)
        else:
            for piece in conversation.answer(line):
                terminal.show(piece)
            print(flush=True)
