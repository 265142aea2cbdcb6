"""What a new vocabulary gets for the chat format that its model will speak: special tokens, roles, chat template."""

from __future__ import annotations

from dataclasses import dataclass

from qafila.errors import UsageError
from qafila.text.tokenizer import Roles
from qafila.text.tokenizer_special import llama3_family

LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SETS = ("llama-3", "chatml", "plain")


@dataclass(frozen=True)
class SpecialSet:
    """Special tokens in the order of their ids, which follow the ordinary ones.

    Attributes:
        name: one of `SETS`.
        tokens: their texts. bos, eos, pad: the texts of those with a role. add_bos: prompts begin with the BOS.
        stops: what ends an answer.
        template: the chat template; None for a vocabulary of plain text.
    """

    name: str
    tokens: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str
    add_bos: bool
    stops: tuple[str, ...]
    template: str | None

    def ids(self, first: int) -> dict[str, int]:
        """The id of each token, the first one's being ``first``."""
        return {text: first + i for i, text in enumerate(self.tokens)}

    def roles(self, first: int) -> Roles:
        """The roles of a vocabulary whose first special id is ``first``."""
        ids = self.ids(first)
        bos = None if self.bos is None else ids[self.bos]
        return Roles(bos, ids[self.eos], None, ids[self.pad], add_bos=self.add_bos)


def special_set(name: str, reserved: int | None = None) -> SpecialSet:
    """The set of that name.

    Args:
        name: ``llama-3``: Llama 3's own 256, in its order, so that the vocabulary can be a tiktoken file; ``chatml``;
            or ``plain``: begin, end and padding, and no chat.
        reserved: how many tokens without a meaning yet; by default as many as make 256 (``llama-3``), or 16 in all.

    Raises:
        UsageError: there is no such set, or it cannot have so few reserved tokens.
    """
    if name not in SETS:
        raise UsageError(f"special tokens {name[:40]!r}: there is no such set; there are {', '.join(SETS)}")
    if reserved is not None and not 0 <= reserved <= 65_536:
        raise UsageError(f"reserved tokens: {reserved} is not from 0 to 65536")
    if name == "llama-3":
        family = llama3_family()
        published = family.specials
        named = sum("reserved" not in text for text in published)
        if reserved is not None and reserved < 2:
            raise UsageError(f"reserved tokens: {reserved} is too few, llama-3 has 2 between its named ones")
        wanted = len(published) if reserved is None else named + reserved
        more = [f"<|reserved_special_token_{i}|>" for i in range(len(published) - named, wanted - named)]
        tokens = (*published, *more)[:wanted]
        stops = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
        return SpecialSet(name, tokens, family.bos, family.eos, family.pad, True, stops, LLAMA3_TEMPLATE)
    named_tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    if name == "plain":
        named_tokens = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
    count = 16 - len(named_tokens) if reserved is None else reserved
    tokens = (*named_tokens, *(f"<|reserved_special_token_{i}|>" for i in range(count)))
    if name == "plain":
        return SpecialSet(name, tokens, tokens[0], tokens[1], "<|pad|>", True, (tokens[1],), None)
    return SpecialSet(name, tokens, None, tokens[0], "<|pad|>", False, ("<|im_end|>", tokens[0]), CHATML_TEMPLATE)
