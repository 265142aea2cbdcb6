"""The checkpoint's own Jinja chat template, and the chat format it makes.

The template renders text; what has to become tokens is more than text: which ``<|...|>`` was written by the template
and which by a person who would like to be the system, where the assistant speaks, and which ids an answer had. So the
template is rendered a second time with marks around everything that is not its own (``template_marks``).
"""

from __future__ import annotations

import datetime
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from qafila.errors import ChatError
from qafila.text.chat_format import ChatFormat, Rendered, TokenWriter, require_messages
from qafila.text.messages import Message, ToolSchema
from qafila.text.template_guard import Guard
from qafila.text.template_marks import Marks, marked, message_data, strings
from qafila.text.template_sandbox import MAX_SOURCE, LimitError, TemplateEnvironment
from qafila.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qafila.text.tool_grammar import CallStyle

# Tokens that end an answer in the vocabularies of the field; a template's own is found by rendering (see stop_ids).
_END_TOKENS = (
    "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end|>",
    "<end_of_turn>", "</s>",
)  # fmt: skip


# What tells the model to write its calls as a Python list, such as "[func_name1(params_name1=params_value1)]".
_PYTHONIC = re.compile(r"\[\w+\(\w+=")


class JinjaTemplate:
    """A chat template, compiled for the sandbox.

    Args:
        source: the template's text.
        clock: what ``strftime_now`` reads.

    Raises:
        ChatError: the text is no Jinja template, or too long.
    """

    def __init__(self, source: str, *, clock: Callable[[], datetime.datetime] = datetime.datetime.now) -> None:
        if len(source) > MAX_SOURCE:
            raise ChatError(f"chat template: {len(source)} characters, more than the {MAX_SOURCE} a template may have")
        self.source = source
        self.clock = clock
        self._lock = threading.Lock()
        self._environment = TemplateEnvironment()
        self._template = self._guarded(self._compile)

    def render(self, variables: Mapping[str, Any], *, now: datetime.datetime | None = None) -> str:
        """The text that the template makes of plain data (messages, tools, bos_token, ...).

        Args:
            variables: strings, numbers, lists and dictionaries only.
            now: the time that ``strftime_now`` tells, instead of the clock's.

        Raises:
            ChatError: the template fails, tries to escape, or wants more time or memory than it may have.
        """
        with self._lock:
            text: str = self._guarded(lambda: self._render(variables, now))
            return text

    def _compile(self) -> Template:
        parsed = self._environment.parse(self.source)
        guarded = Guard().visit(parsed)
        assert isinstance(guarded, nodes.Template)
        return self._environment.from_string(guarded)

    def _render(self, variables: Mapping[str, Any], now: datetime.datetime | None) -> str:
        messages = variables.get("messages")
        self._environment.begin(variables, len(messages) if isinstance(messages, Sequence) else 0)
        self._environment.now = self.clock if now is None else lambda: now
        pieces = []
        for piece in self._template.root_render_func(self._template.new_context(dict(variables))):
            self._environment.spend(1 + len(piece) // 16)
            pieces.append(piece)
        return "".join(pieces)

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except ChatError:
            raise
        except TemplateSyntaxError as error:
            problem = f"line {error.lineno}: {error.message}"
        except LimitError as error:
            problem = f"stopped: {error.message}"
        except SecurityError as error:
            problem = f"stopped: it tries what a template may not: {error.message}"
        except TemplateError as error:
            problem = error.message or type(error).__name__
        except RecursionError:
            problem = "stopped: it is nested too deeply"
        except MemoryError:
            problem = "stopped: it needs too much memory"
        except Exception as error:  # whatever an untrusted program can provoke
            problem = f"it fails with {type(error).__name__}: {error}"
        line = " ".join(problem.split())[:300]
        raise ChatError(
            f"chat template: {line}; name a chat format to use instead of the checkpoint's template"
        ) from None


@dataclass(frozen=True, slots=True)
class _Atom:
    """A piece of rendered text: a special token of the template's, or text, and the mark it stands in (-1: none)."""

    text: str
    start: int
    token: int | None = None
    mark: int = -1


class TemplateFormat(ChatFormat):
    """A checkpoint's Jinja template as a chat format.

    Text out of messages and tools never becomes a special token. Tokens are those of the rendered text, except that
    an answer's text is tokenised on its own, as it was when it was generated. Answers that carry ``ids`` are spliced
    in as they are, so that conversations grow append-only wherever the template itself does
    (``chat_format.append_only`` tells).

    Where marks change what the template renders (one that looks into the text, such as dropping hidden reasoning), its
    plain rendering is used, and text that spells a special token is then refused.

    Args:
        template: Jinja source, or a template.
        tokenizer: the checkpoint's.
        clock: today, where ``render`` is given no date.

    Raises:
        ChatError: the source is no template.
    """

    name = "template"

    def __init__(
        self,
        template: str | JinjaTemplate,
        tokenizer: Tokenizer,
        *,
        clock: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        super().__init__(tokenizer)
        self.template = JinjaTemplate(template, clock=clock) if isinstance(template, str) else template
        specials = sorted((text for text in tokenizer.special_tokens if text), key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, specials)) or r"(?!)")
        self._first_characters = frozenset(text[0] for text in specials)
        self._constants = {
            "bos_token": self._text_of(tokenizer.bos_id),
            "eos_token": self._text_of(tokenizer.eos_id),
        }
        self._stop_ids: tuple[int, ...] | None = None
        self._lead: str | None = None

    def _text_of(self, token_id: int | None) -> str:
        if token_id is None:
            return ""
        found = (text for text, special in self.tokenizer.special_tokens.items() if special == token_id)
        return next(found, None) or self.tokenizer.decode([token_id])

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        if self._stop_ids is None:
            known = [self.tokenizer.eos_id, *map(self.tokenizer.special_tokens.get, _END_TOKENS)]
            known.append(self._rendered_end())
            self._stop_ids = tuple(dict.fromkeys(token for token in known if token is not None))
        return self._stop_ids

    @property
    def call_style(self) -> CallStyle | None:
        """As ``ChatFormat.call_style``: by what the template mentions."""
        source = self.template.source
        if "tools" not in source:
            return None
        if "<tool_call>" in source:
            return "chatml"
        if _PYTHONIC.search(source):
            return "pythonic"
        return "function" if "<function=" in source else "json"

    def _space_before_answers(self) -> str:
        """White space that the template writes behind its prompt, before an answer (Llama 2's: one space).

        It is the answer's: the model, prompted without it, generates it.
        """
        if self._lead is None:
            self._lead = ""
            question, answer = Message("user", "Hi"), "Zebra"
            try:
                prompt = self._text([question], (), True, None, None)
                text = self._text([question, Message("assistant", answer)], (), False, None, None)
            except ChatError:
                return ""
            before, found, _ = text.partition(answer)
            if found and before.startswith(prompt) and before[len(prompt) :].isspace():
                self._lead = before[len(prompt) :]
        return self._lead

    def _rendered_end(self) -> int | None:
        """The first special token that the template writes after an answer."""
        answer = "Zebra"
        try:
            text = self._text([Message("user", "Hi"), Message("assistant", answer)], (), False, None, None)
        except ChatError:
            return None
        after = self._special_text.search(text, text.rfind(answer) + len(answer)) if answer in text else None
        return None if after is None else self.tokenizer.special_tokens[after.group()]

    def text(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSchema] = (),
        add_generation_prompt: bool = True,
        date: datetime.date | None = None,
    ) -> str:
        """The plain text that the template renders, as ``transformers`` shows it.

        Raises:
            ChatError: the template fails or refuses these messages.
        """
        return self._text(messages, tools, add_generation_prompt, date, None)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSchema] = (),
        add_generation_prompt: bool = True,
        date: datetime.date | None = None,
    ) -> Rendered:
        """As ``ChatFormat.render``."""
        require_messages(messages)
        # Of an answer with ids only the place counts; without white space around it, that is exact.
        shown = [m if m.ids is None else replace(m, content=m.text.strip()) for m in messages]
        plain = self._text(shown, tools, add_generation_prompt, date, None)
        marks: Marks | None = Marks(shown, tools, self._first_characters, plain + self.template.source)
        text = self._text(shown, tools, add_generation_prompt, date, marks)
        if marks is None or not marks.agree(text, plain):
            self._refuse_special_text(shown, tools)
            marks, text = None, plain
        starts: dict[int, int] = {}
        for index, message in enumerate(shown):
            if message.role == "assistant" and (marks is None or message.tool_calls or not message.text.strip()):
                start = self._start_of_answer(shown[:index], tools, date, marks, text)
                if start is not None:
                    starts[index] = start
            elif message.role == "assistant" and marks is not None and (lead := self._space_before_answers()):
                at = text.find(marks.opening(index))
                if text.endswith(lead, 0, max(at, 0)):
                    starts[index] = at - len(lead)
        atoms = self._atoms(text, marks, starts)
        return self._write(atoms, shown, starts, marks)

    def _start_of_answer(
        self,
        before: Sequence[Message],
        tools: Sequence[ToolSchema],
        date: datetime.date | None,
        marks: Marks | None,
        text: str,
    ) -> int | None:
        """Where the prompt of an answer ends in the text: found by rendering that prompt."""
        if not before:
            return None
        try:
            prompt = self._text(before, tools, True, date, marks)
        except ChatError:
            return None
        return len(prompt) if text.startswith(prompt) else None

    def _text(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        add_generation_prompt: bool,
        date: datetime.date | None,
        marks: Marks | None,
    ) -> str:
        variables: dict[str, Any] = {
            **self._constants,
            "messages": [message_data(message, index, marks) for index, message in enumerate(messages)],
            "add_generation_prompt": add_generation_prompt,
            "tools": marked([tool.to_dict() for tool in tools], marks) if tools else None,
            "documents": None,
        }
        now = None if date is None else datetime.datetime(date.year, date.month, date.day)
        return self.template.render(variables, now=now)

    def _refuse_special_text(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> None:
        for index, message in enumerate(messages):
            for text in strings(message_data(message, index, None)):
                if match := self._special_text.search(text):
                    raise ChatError(
                        f'messages[{index}]: its text spells the special token "{match.group()}", which cannot be made '
                        "harmless because the checkpoint's template rewrites it; change the text or name a chat format"
                    )
        for index, tool in enumerate(tools):
            for text in strings(tool.to_dict()):
                if match := self._special_text.search(text):
                    raise ChatError(
                        f'tools[{index}]: its text spells the special token "{match.group()}"; change the text'
                    )

    def _atoms(self, text: str, marks: Marks | None, starts: Mapping[int, int]) -> list[_Atom]:
        atoms: list[_Atom] = []
        for piece, start, mark in marks.split(text) if marks else [(text, 0, -1)]:
            if mark >= 0:
                atoms.append(_Atom(piece, start, mark=mark))
                continue
            cuts = sorted({0, len(piece), *(s - start for s in starts.values() if start < s < start + len(piece))})
            for left, right in pairwise(cuts):
                position = left
                for match in self._special_text.finditer(piece, left, right):
                    if match.start() > position:
                        atoms.append(_Atom(piece[position : match.start()], start + position))
                    token = self.tokenizer.special_tokens[match.group()]
                    atoms.append(_Atom(match.group(), start + match.start(), token))
                    position = match.end()
                if right > position:
                    atoms.append(_Atom(piece[position:right], start + position))
        return atoms

    def _write(
        self, atoms: Sequence[_Atom], messages: Sequence[Message], starts: Mapping[int, int], marks: Marks | None
    ) -> Rendered:
        answers: dict[int, tuple[int, int]] = {}  # first atom of an answer -> its end, its message
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            own = [i for i, atom in enumerate(atoms) if marks and atom.mark == marks.answer(index)]
            found = bool(own) and not message.tool_calls
            if index in starts:
                first = next((i for i, atom in enumerate(atoms) if atom.start >= starts[index]), len(atoms))
            elif own:
                first = own[0]
            else:
                continue
            last = own[-1] + 1 if own and (found or index not in starts) else first
            answers[first] = (self._end_of_answer(atoms, last, found=found or index not in starts), index)
        writer = TokenWriter(self.tokenizer)
        position = 0
        if (
            self.tokenizer.add_bos
            and self.tokenizer.bos_id is not None
            and (not atoms or atoms[0].token != self.tokenizer.bos_id)
        ):
            writer.token(self.tokenizer.bos_id)
        while position < len(atoms) or position in answers:
            if position in answers:
                end, index = answers.pop(position)
                self._write_answer(writer, atoms[position:end], messages[index].ids)
                position = end
                continue
            atom = atoms[position]
            if atom.token is None:
                writer.text(atom.text)
            elif position != 1 or atom.token != self.tokenizer.bos_id or atoms[0].token != atom.token:
                writer.token(atom.token)
            position += 1
        return writer.finish()

    def _end_of_answer(self, atoms: Sequence[_Atom], position: int, *, found: bool) -> int:
        """The atom after the token that ends the answer; the given one where no such token follows."""
        for i in range(position, len(atoms)):
            if atoms[i].token in self.stop_ids:
                return i + 1
            if found and (atoms[i].token is not None or atoms[i].mark >= 0):
                break
        return position

    def _write_answer(self, writer: TokenWriter, atoms: Sequence[_Atom], ids: tuple[int, ...] | None) -> None:
        writer.break_run()
        end = atoms[-1].token if atoms else None
        if ids is None:
            for atom in atoms:
                if atom.token is None:
                    writer.text(atom.text, learn=True)
                else:
                    writer.token(atom.token, learn=True)
            return
        writer.ids(ids, learn=True)
        if end is not None and ids[-1:] != (end,) and not (ids and ids[-1] in self.stop_ids):
            writer.token(end, learn=True)
        elif ids and ids[-1] in self.stop_ids:
            writer.cut()
