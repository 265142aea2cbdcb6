"""Constrained answers: grammars compiled by llguidance, and masks of the tokens they allow.

A grammar is checked and compiled before its request enters the batch. Masks are computed in threads of their own beside
the forward pass (llguidance lets go of the GIL).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from qafila.engine.grammar_schema import check_schema
from qafila.engine.request import GrammarSpec
from qafila.errors import QafilaError, TokenizerError, UsageError
from qafila.sampling import Mask
from qafila.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

#: Longest text of a grammar. What fits compiles in about a second at worst, without holding anybody else up.
MAX_CHARACTERS = 100_000
#: Most rules of a Lark grammar: llguidance's recursion runs along chains of them.
MAX_RULES = 500

_KINDS = {"json_schema": "JSON schema", "json_object": "JSON schema", "regex": "regex", "lark": "Lark grammar"}
_RULE = re.compile(r"^\s*[?!]?[A-Za-z_][\w.\-]*(?:\[[^\]\n]*\])?\s*:", re.MULTILINE)
_EMBEDDED = re.compile(r"%json\s*(?=\{)")
# Between the parts of a JSON text. Unlimited, it lets a model write spaces for ever.
_WHITESPACE = r"[ \t\r\n]{1,64}"


class GrammarCompiler:
    """Grammars over one vocabulary; its tables are made at the first grammar and kept.

    Args:
        tokenizer: of the model.
        stop_ids: tokens that may end an answer where its grammar lets it end; the tokenizer's EOS is one of them.
        vocabulary: width of the model's logits, where it is more than the tokenizer's.
        threads: that masks are computed in.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, stop_ids: Collection[int] = (), vocabulary: int | None = None, threads: int = 2
    ) -> None:
        self._tokenizer = tokenizer
        ends = {i for i in stop_ids if i < tokenizer.vocab_size}
        if tokenizer.eos_id is not None:
            ends.add(tokenizer.eos_id)
        self._stop_ids = sorted(ends)
        self._vocabulary = max(vocabulary or 0, tokenizer.vocab_size)
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._tables: LLTokenizer | None = None

    def __call__(self, spec: GrammarSpec) -> Callable[[], GrammarMatcher]:
        """Compile; what comes back makes a matcher for one answer."""
        return self.compile(spec).matcher

    def compile(self, spec: GrammarSpec) -> Grammar:
        """Check and compile a grammar.

        Raises:
            UsageError: it is malformed, uses something that is not supported (the message names it), is too large or
                matches nothing.
        """
        kind = _KINDS.get(spec.kind)
        if kind is None or not isinstance(spec.text, str):
            raise UsageError(f"grammar: unknown kind {spec.kind!r:.40}; known are {', '.join(_KINDS)}")
        if len(spec.text) > MAX_CHARACTERS:
            raise UsageError(
                f"{kind}: {len(spec.text)} characters are too many; make it simpler, at most {MAX_CHARACTERS}"
            )
        from llguidance import LLMatcher

        if spec.kind == "lark":
            text = LLMatcher.grammar_from_lark(_checked_lark(spec.text))
        elif spec.kind == "regex":
            text = LLMatcher.grammar_from_regex(spec.text)
        else:
            schema = {"type": "object"} if spec.kind == "json_object" else _parsed(spec.text)
            check_schema(schema)
            options = {"lenient": False, "whitespace_flexible": True, "whitespace_pattern": _WHITESPACE}
            text = LLMatcher.grammar_from_json_schema(json.dumps({} if schema is True else schema), overrides=options)  # type: ignore[arg-type]
        matcher = LLMatcher(self._tokenizer_tables(), text, log_level=0, limits=_limits())
        if matcher.is_error():
            raise UsageError(f"{kind}: {_one_line(matcher.get_error())}")
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="qafila-grammar")
        grammar = Grammar(matcher, -(-self._tokenizer.vocab_size // 32), self._vocabulary, self._pool)
        first = grammar.matcher()
        try:
            nothing = not first.mask().any()
        except QafilaError as error:
            if "NoExtension" not in str(error):
                raise UsageError(f"{kind}: {error}") from None
            nothing = True
        if nothing:
            raise UsageError(f"{kind}: it matches nothing that this model could write")
        return grammar

    def _tokenizer_tables(self) -> LLTokenizer:
        if self._tables is None:
            if not self._stop_ids:
                raise TokenizerError("a grammar needs a token that ends an answer; the tokenizer names no EOS")
            from llguidance import LLTokenizer

            # Not a TokenizerWrapper by type: that class would only copy these attributes.
            vocabulary = _Vocabulary(self._tokenizer, self._stop_ids[0])
            self._tables = LLTokenizer(vocabulary, eos_token=self._stop_ids)  # type: ignore[arg-type]
        return self._tables


class Grammar:
    """A compiled grammar, for any number of answers."""

    def __init__(self, matcher: LLMatcher, words: int, vocabulary: int, pool: ThreadPoolExecutor) -> None:
        self._matcher = matcher
        self._words = words
        self._vocabulary = vocabulary
        self._pool = pool

    def matcher(self) -> GrammarMatcher:
        """Follows one answer, from its beginning."""
        return GrammarMatcher(self._matcher.deep_copy(), self._words, self._vocabulary, self._pool)


class GrammarMatcher:
    """Follows one answer through its grammar. Not for use by several threads at once."""

    def __init__(self, matcher: LLMatcher, words: int, vocabulary: int, pool: ThreadPoolExecutor) -> None:
        self._matcher = matcher
        self._words = words
        self._mask = np.zeros(-(-vocabulary // 32), dtype=np.uint32)
        self._pool = pool
        self._asked: Future[None] | None = None
        self._known = False

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return self._matcher.is_stopped()

    def ask(self) -> None:
        """Start computing the next token's mask in another thread; returns at once."""
        if not self._known and self._asked is None:
            self._asked = self._pool.submit(self._compute)

    def mask(self) -> Mask:
        """The tokens that may come next, ``[ceil(V / 32)]``; where the answer may end, its stop tokens are among them.

        Good until the next token is accepted. Waits for what was asked, or computes it now.

        Raises:
            QafilaError: the grammar is too complex to go on with.
        """
        if not self._known:
            asked, self._asked = self._asked, None
            if asked is None:
                self._compute()
            else:
                asked.result()
            self._known = True
        return self._mask

    def accept(self, token_id: int) -> bool:
        """Move on by a token that the mask allowed; whether the answer is complete with it.

        Raises:
            QafilaError: the grammar does not allow the token.
        """
        if self._asked is not None:
            self._asked.result()
            self._asked = None
        self._known = False
        if not self._matcher.consume_token(token_id):
            raise QafilaError(f"the grammar does not allow token {token_id}: {_one_line(self._matcher.get_error())}")
        return self._matcher.is_stopped()

    def _compute(self) -> None:
        # The tokenizer's vocabulary may be shorter than the model's; what lies beyond stays forbidden.
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, 4 * self._words)
        if self._matcher.is_error():
            raise QafilaError(f"the grammar is too complex: {_one_line(self._matcher.get_error())}")


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, eos_id: int) -> None:
        self.eos_token_id = eos_id
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted(set(tokenizer.special_tokens.values()))
        self.tokens: Sequence[bytes] = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode_continuation(text if isinstance(text, str) else text.decode(errors="replace"))


def _limits() -> LLParserLimits:
    """About 20 ms to compile a lexer and 15 ms a mask, at worst."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _parsed(text: str) -> object:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise UsageError("JSON schema: it is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"JSON schema: it is no JSON ({error})") from None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON value")


def _checked_lark(text: str) -> str:
    """The grammar, its embedded schemas checked and their white space bounded."""
    if len(_RULE.findall(text)) > MAX_RULES:
        raise UsageError(f"Lark grammar: more than {MAX_RULES} rules are too many")
    pieces, position = [], 0
    while found := _EMBEDDED.search(text, position):
        try:
            schema, end = json.JSONDecoder(parse_constant=_no_constant).raw_decode(text, found.end())
        except RecursionError:
            raise UsageError("JSON schema: it is nested too deeply") from None
        except ValueError as error:
            raise UsageError(f"Lark grammar: what follows %json is no JSON ({error})") from None
        check_schema(schema)
        bounded = {"x-guidance": {"whitespace_pattern": _WHITESPACE}, **schema}
        pieces += [text[position : found.end()], json.dumps(bounded)]
        position = end
    return "".join(pieces) + text[position:]


def _one_line(error: str) -> str:
    """The telling lines of an llguidance error, in one."""
    lines = [line.strip() for line in error.split("<state>")[0].splitlines()]
    lines = [line for line in lines if line and not set(line) <= set("^| ") and not re.match(r"\d+ \|", line)]
    return " ".join(lines)[:300]
