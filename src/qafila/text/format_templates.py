"""Every chat format of ours as a Jinja template, for models that were trained with a named one.

A saved model carries its format as a template, so that whatever opens it (`transformers`, llama.cpp) writes the text it
was trained on. `qafila.text.formats.detect_format` knows these templates by their text and gives the named format
itself, whose ids and ends are those of training; each template names its format in a comment for that.

Where a format has no tools, or only in a way that a template cannot write, the template refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from qafila.text.formats_derivatives import ALPACA, ALPACA_INPUT, CHATML_TOOLS, SMOLLM2_SYSTEM, VICUNA
from qafila.text.tokenizer import Tokenizer

_REFUSE_TOOLS: Final = """\
{%- if tools %}{{ raise_exception('this chat template has no tools') }}{% endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'tool' or message.get('tool_calls') -%}
{{ raise_exception('this chat template has no tool calls') }}
{%- endif -%}
{%- endfor -%}
"""
# Sets `system` (none where there is no such message) and `turns`: user and assistant in turn.
_ALTERNATING: Final = """\
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else none -%}
{%- set turns = messages[1:] if messages[0]['role'] == 'system' else messages -%}
{%- for message in turns -%}
{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
{{ raise_exception('this chat template takes an optional system message, then user and assistant in turn') }}
{%- endif -%}
{%- endfor -%}
"""
_TURNS: Final = _REFUSE_TOOLS + _ALTERNATING

_LLAMA_2: Final = (
    _TURNS
    + """\
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{%- set text = message['content'] -%}
{%- if loop.first and system is not none -%}
{%- set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + text -%}
{%- endif -%}
{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
{%- else -%}
{{ ' ' + message['content'].strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}"""
)
_CODE_LLAMA_70B: Final = (
    _TURNS
    + """\
{{ bos_token + ' Source: system' }}
{%- if system %}{{ '\\n\\n ' + system.strip() }}{% endif -%}
{{ '<step>' }}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{{ ' Source: user' }}
{%- if message['content'] %}{{ '\\n\\n ' + message['content'].strip() }}{% endif -%}
{{ '<step>' }}
{%- else -%}
{{ ' Source: assistant\\nDestination: user\\n\\n ' + message['content'].strip() + '<step>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ ' Source: assistant\\nDestination: user\\n\\n ' }}{% endif -%}"""
)


def _headers(start: str, end: str, turn_end: str) -> str:
    """Llama 3's and 4's messages, without tools: their lists of calls are Python, which no template writes well."""
    return (
        _REFUSE_TOOLS
        + f"""\
{{{{ '<|begin_of_text|>' }}}}
{{%- for message in messages -%}}
{{{{ '{start}' + message['role'] + '{end}\\n\\n' + message['content'] + '{turn_end}' }}}}
{{%- endfor -%}}
{{%- if add_generation_prompt %}}{{{{ '{start}assistant{end}\\n\\n' }}}}{{% endif -%}}"""
    )


_LLAMA_3: Final = _headers("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_LLAMA_4: Final = _headers("<|header_start|>", "<|header_end|>", "<|eot|>")


def _chatml(default_system: str | None) -> str:
    before, after = (_quoted(part.format()) for part in CHATML_TOOLS.split("{}"))
    default = "none" if default_system is None else _quoted(default_system)
    return f"""\
{{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else {default} -%}}
{{%- set rest = messages[1:] if messages[0]['role'] == 'system' else messages -%}}
{{%- if system is not none or tools -%}}
{{{{ '<|im_start|>system\\n' }}}}
{{%- if system is not none %}}{{{{ system }}}}{{% endif -%}}
{{%- if tools -%}}
{{{{ ('' if system is none else '\\n\\n') + {before} }}}}
{{%- for tool in tools %}}{{{{ ('' if loop.first else '\\n') + (tool | tojson) }}}}{{% endfor -%}}
{{{{ {after} }}}}
{{%- endif -%}}
{{{{ '<|im_end|>\\n' }}}}
{{%- endif -%}}
{{%- for message in rest -%}}
{{{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}}}
{{%- for call in message.get('tool_calls') or [] -%}}
{{%- set told = {{'name': call['function']['name'], 'arguments': call['function']['arguments']}} -%}}
{{{{ ('' if loop.first else '\\n') + '<tool_call>\\n' + (told | tojson) + '\\n</tool_call>' }}}}
{{%- endfor -%}}
{{{{ '<|im_end|>\\n' }}}}
{{%- endfor -%}}
{{%- if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif -%}}"""


# An instruction and its input are a content of two parts; any other list is read as one text.
_PARTS: Final = """\
{%- set content = message['content'] -%}
{%- set given = none -%}
{%- if content is not string -%}
{%- if content | length == 2 -%}
{%- set given = content[1]['text'] -%}
{%- set content = content[0]['text'] -%}
{%- else -%}
{%- set content = content | map(attribute='text') | join -%}
{%- endif -%}
{%- endif -%}
"""


def _instructions(introduction: str, with_input: str, heading: str, prompt_end: str, answer_end: str) -> str:
    """Alpaca's and Dolly's: an introduction, an instruction, its input, and the response."""
    return (
        _TURNS
        + """\
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
"""
        + _PARTS
        + f"""\
{{%- if loop.first -%}}
{{%- if system is not none -%}}
{{{{ system }}}}
{{%- elif given is none -%}}
{{{{ {_quoted(introduction)} }}}}
{{%- else -%}}
{{{{ {_quoted(with_input)} }}}}
{{%- endif -%}}
{{%- endif -%}}
{{{{ '\\n\\n### Instruction:\\n' + content + '\\n\\n' }}}}
{{%- if given is not none %}}{{{{ '{heading}:\\n' + given + '\\n\\n' }}}}{{% endif -%}}
{{{{ '### Response:{prompt_end}' }}}}
{{%- else -%}}
{{{{ message['content'] + {answer_end} }}}}
{{%- endif -%}}
{{%- endfor -%}}"""
    )


def _dialogue(opening: str, *, question: str, answer: str, system: bool) -> str:
    """Vicuna's and Koala's: one line of ``USER:`` and answers, below an opening."""
    refuse = "{%- if system is not none %}{{ raise_exception('this chat template has no system message') }}{% endif -%}"
    first = f"{_quoted(opening)} if system is none else system + ' '" if system else _quoted(opening)
    return (
        _TURNS
        + ("" if system else refuse + "\n")
        + f"""\
{{%- for message in turns -%}}
{{%- if message['role'] == 'user' -%}}
{{%- if loop.first %}}{{{{ {first} }}}}{{% endif -%}}
{{{{ 'USER: ' + message['content'] + '{question}' }}}}
{{%- else -%}}
{{{{ '{answer}' + message['content'] + eos_token }}}}
{{%- endif -%}}
{{%- endfor -%}}"""
    )


def _quoted(text: str) -> str:
    """A text as Jinja's own: both quotes and line breaks escaped."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


_BODIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llama-2": _LLAMA_2,
        "code-llama": _LLAMA_2,
        "code-llama-70b": _CODE_LLAMA_70B,
        "llama-3": _LLAMA_3,
        "llama-3.1": _LLAMA_3,
        "llama-3.2": _LLAMA_3,
        "llama-4": _LLAMA_4,
        "chatml": _chatml(None),
        "smollm2": _chatml(SMOLLM2_SYSTEM),
        "alpaca": _instructions(ALPACA, ALPACA_INPUT, "### Input", "", "eos_token"),
        "vicuna": _dialogue(f"{VICUNA} ", question=" ASSISTANT:", answer=" ", system=True),
        "koala": _dialogue("BEGINNING OF CONVERSATION: ", question=" GPT:", answer="", system=False),
        "dolly": _instructions(ALPACA, ALPACA, "Input", "\\n", "'\\n\\n### End'"),
    }
)
# These begin with a BOS where the tokenizer puts one in front of texts too; the others always have it, or never.
_AS_TEXTS: Final = frozenset({"chatml", "smollm2", "alpaca", "vicuna", "koala", "dolly"})


def format_template(name: str, tokenizer: Tokenizer) -> str:
    """The Jinja template of one of ours, for a model with this tokenizer.

    Args:
        name: one of ``qafila.text.formats.FORMATS``.
        tokenizer: the model's; it tells whether a BOS stands in front.
    """
    bos = name in _AS_TEXTS and tokenizer.add_bos and tokenizer.bos_id is not None
    return _named(name, bos=bos and tokenizer.bos_id != tokenizer.token_id("<|im_start|>"))


def named_by(template: str) -> str | None:
    """The format that a template of ours is of, by its whole text; None for any other template."""
    return _KNOWN.get(template)


def _named(name: str, *, bos: bool) -> str:
    return f"{{#- Qafila chat format: {name} -#}}\n" + ("{{- bos_token -}}\n" if bos else "") + _BODIES[name]


_KNOWN: Final[Mapping[str, str]] = MappingProxyType(
    {_named(name, bos=bos): name for name in _BODIES for bos in ((False, True) if name in _AS_TEXTS else (False,))}
)
