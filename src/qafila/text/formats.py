"""The chat formats by name, and which of them a checkpoint uses."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from qafila.errors import ChatError
from qafila.text.chat_format import ChatFormat
from qafila.text.format_templates import format_template, named_by
from qafila.text.formats_derivatives import (
    SMOLLM2_SYSTEM,
    SMOLLM2_TEMPLATE,
    AlpacaFormat,
    ChatMLFormat,
    DollyFormat,
    KoalaFormat,
    VicunaFormat,
)
from qafila.text.formats_llama import Llama3Format, Llama4Format, Llama31Format, Llama32Format
from qafila.text.formats_llama2 import CodeLlama70BFormat, CodeLlamaFormat, CodeLlamaInfill, Llama2Format
from qafila.text.messages import Message, ToolCall, ToolSchema
from qafila.text.tokenizer import Tokenizer

__all__ = ["FORMATS", "ChatFormat", "CodeLlamaInfill", "chat_format", "detect_format", "template_of"]

FORMATS: Mapping[str, Callable[..., ChatFormat]] = MappingProxyType(
    {
        "llama-2": Llama2Format,
        "code-llama": CodeLlamaFormat,
        "code-llama-70b": CodeLlama70BFormat,
        "llama-3": Llama3Format,
        "llama-3.1": Llama31Format,
        "llama-3.2": Llama32Format,
        "llama-4": Llama4Format,
        "chatml": ChatMLFormat,
        "smollm2": partial(ChatMLFormat, default_system=SMOLLM2_SYSTEM),
        "alpaca": AlpacaFormat,
        "vicuna": VicunaFormat,
        "koala": KoalaFormat,
        "dolly": DollyFormat,
    }
)


# Templates, by their whole text, whose format is known without rendering them (a test renders them): it saves starting
# Jinja. Where a BOS stands in front depends on more than the text, so these go with tokenizers that ask for none.
_KNOWN_TEMPLATES: Mapping[str, str] = MappingProxyType({SMOLLM2_TEMPLATE: "smollm2"})


def chat_format(name: str, tokenizer: Tokenizer, **options: Any) -> ChatFormat:
    """The chat format of that name over a tokenizer.

    Args:
        name: one of ``FORMATS``.
        tokenizer: the model's.
        options: what the format's class takes besides, such as ``builtin_tools`` of ``llama-3.1``.

    Raises:
        ChatError: there is no such format, or it has no such option.
    """
    if name not in FORMATS:
        raise ChatError(f'chat format "{name}": there is none of that name; there are {", ".join(FORMATS)}')
    try:
        made = FORMATS[name](tokenizer, **options)
    except TypeError:
        raise ChatError(f'chat format "{name}": it does not take the options {", ".join(options)}') from None
    made.name = name
    return made


def detect_format(template: str | None, tokenizer: Tokenizer) -> ChatFormat:
    """The chat format of a checkpoint.

    Args:
        template: the checkpoint's own Jinja template, if it has one.
        tokenizer: the checkpoint's.

    Returns:
        The format of ours that gives the template's very tokens on a set of conversations, with and without tools,
        system text and answers; the template itself (``TemplateFormat``) where there is none. Without a template, the
        format that the special tokens belong to. A template that `template_of` wrote gives the format it was made of.

    Raises:
        ChatError: no template, and no special tokens of a chat format: a base model; or a template that is none.
    """
    candidates = _candidates(tokenizer)
    if template is None:
        if candidates:
            return candidates[0]
        raise ChatError(
            "chat: the checkpoint has no chat template and its tokenizer no tokens of a chat format; "
            f"name a format ({', '.join(FORMATS)}) or complete text instead of chatting"
        )
    ours = named_by(template)
    if ours is not None:
        return chat_format(ours, tokenizer)
    known = _KNOWN_TEMPLATES.get(template)
    if known is not None and not tokenizer.add_bos:
        found = next((candidate for candidate in candidates if candidate.name == known), None)
        if found is not None:
            return found
    from qafila.text.template import TemplateFormat  # jinja2 is loaded only for a checkpoint that has a template

    own = TemplateFormat(template, tokenizer)
    return next((candidate for candidate in candidates if _equal(candidate, own)), own)


def template_of(name: str, tokenizer: Tokenizer, own: str | None) -> str:
    """The template that a model carries which was trained with the format of that name.

    Args:
        name: one of ``FORMATS``.
        tokenizer: the model's.
        own: the template it had before; it stays where it gives the format's very tokens.

    Raises:
        ChatError: there is no such format.
    """
    named = chat_format(name, tokenizer)
    if own is not None:
        try:
            if _equal(named, detect_format(own, tokenizer)):
                return own
        except ChatError:
            pass  # a template that is none, or a tokenizer without the format's tokens: training said so already
    return format_template(name, tokenizer)


def _candidates(tokenizer: Tokenizer) -> list[ChatFormat]:
    special = tokenizer.special_tokens
    names: tuple[str, ...] = ()
    if "<|header_start|>" in special and "<|eot|>" in special:
        names = ("llama-4",)
    elif "<|start_header_id|>" in special and "<|eot_id|>" in special:
        # Llama 3.1 and later have a token for the end of a message in the place of a reserved one.
        names = ("llama-3.1", "llama-3.2", "llama-3") if "<|eom_id|>" in special else ("llama-3",)
    elif "<|im_start|>" in special and "<|im_end|>" in special:
        names = ("chatml", "smollm2")
    elif "<step>" in special:
        names = ("code-llama-70b",)
    found = [chat_format(name, tokenizer) for name in names]
    return [*found, chat_format("llama-3", tokenizer, strip=True)] if "llama-3" in names else found


def _equal(named: ChatFormat, own: ChatFormat) -> bool:
    for messages, tools in _PROBES:
        for prompt in (True, False):
            try:
                expected = own.render(messages, add_generation_prompt=prompt, tools=tools, date=_PROBE_DATE)
                found = named.render(messages, add_generation_prompt=prompt, tools=tools, date=_PROBE_DATE)
            except ChatError:
                if tools and _ignores_tools(own):
                    continue
                return False
            if expected.ids != found.ids and not (tools and _ignores_tools(own)):
                return False
    return True


def _ignores_tools(own: ChatFormat) -> bool:
    """Whether a template renders nothing of the tools it is given: any format may then bring its own way."""
    user = [Message("user", "Hi")]
    try:
        return own.render(user, tools=_PROBE_TOOLS).ids == own.render(user).ids
    except ChatError:
        return False


_PROBE_DATE = datetime.date(2024, 7, 26)
_PROBE_TOOLS = (ToolSchema("add", "Add two numbers", {"type": "object", "properties": {"a": {"type": "number"}}}),)
_HELLO = (Message("user", "Hello!"),)
_TALK = (*_HELLO, Message("assistant", "Hi there."), Message("user", "كيف الحال؟\nTwo lines, 12345."))
_SYSTEM = Message("system", "Answer briefly.")
_CALL = (
    Message("user", "2+2?"),
    Message("assistant", "", tool_calls=(ToolCall("call_0", "add", {"a": 2}),)),
    Message("tool", "4", tool_call_id="call_0", name="add"),
)
_PROBES: tuple[tuple[tuple[Message, ...], tuple[ToolSchema, ...]], ...] = (
    (_HELLO, ()),
    ((Message("user", "  Space around. \n"),), ()),
    (_TALK, ()),
    ((_SYSTEM, *_HELLO), ()),
    ((_SYSTEM, *_TALK, Message("assistant", "Fine."), Message("user", "Bye")), ()),
    (_CALL, _PROBE_TOOLS),
)
