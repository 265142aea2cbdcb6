"""What servers with OpenAI's API have beyond it, and how each calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

Tokenizing = Literal["qafila", "vllm", "sglang", "llama.cpp"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of server.

    Attributes:
        name: of the kind. owners: what its ``/v1/models`` says in ``owned_by``.
        limit: the option for the most tokens of an answer.
        sampling: options beyond OpenAI's to their names there; what is missing is refused.
        regex: where a regular expression goes, as a path of keys; None where none is taken. lark: the same of grammars.
        completion_schema: whether text completions take ``response_format``.
        tokenizing: how it is asked for tokens; None where it cannot be.
        salt: whether it takes ``cache_salt``: cached prompts are shared among requests of one salt only.
    """

    name: str
    owners: tuple[str, ...] = ()
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    sampling: Mapping[str, str] = field(default_factory=dict)
    regex: tuple[str, ...] | None = None
    lark: tuple[str, ...] | None = None
    completion_schema: bool = False
    tokenizing: Tokenizing | None = None
    salt: bool = False


_ALIKE = {"top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty"}

# Sources: each server's request classes (vllm/entrypoints/openai/protocol.py and
# sglang/srt/entrypoints/openai/protocol.py), llama.cpp's tools/server/README.md, OpenAI's API reference.
_KNOWN: Final = (
    Dialect("qafila", ("qafila",), sampling=_ALIKE, regex=("regex",), lark=("grammar",), tokenizing="qafila"),
    Dialect(
        "vllm",
        ("vllm",),
        sampling=_ALIKE,
        regex=("structured_outputs", "regex"),
        completion_schema=True,
        tokenizing="vllm",
        salt=True,
    ),
    Dialect("sglang", ("sglang",), sampling=_ALIKE, regex=("regex",), tokenizing="sglang"),
    Dialect(
        "llama.cpp", ("llamacpp",), sampling={**_ALIKE, "repetition_penalty": "repeat_penalty"}, tokenizing="llama.cpp"
    ),
    Dialect("openai", ("openai", "openai-internal", "system"), limit="max_completion_tokens"),
)

#: A server nobody knows: it gets the common names of sampling options, and is trusted with nothing else.
OTHER: Final = Dialect("other", sampling=_ALIKE)
DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType({each.name: each for each in (*_KNOWN, OTHER)})


def dialect_of(owner: str | None) -> Dialect:
    """The kind of server whose models belong to ``owner``."""
    return next((each for each in _KNOWN if owner in each.owners), OTHER)
