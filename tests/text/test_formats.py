"""The chat formats of ours: golden strings and ids, masks, growing conversations, hostile text."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import byte_tokenizer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.errors import ChatError
from qafila.text import formats
from qafila.text.chat_format import ChatFormat, append_only
from qafila.text.format_templates import format_template
from qafila.text.formats import FORMATS, CodeLlamaInfill, chat_format, detect_format, template_of
from qafila.text.messages import ImagePart, Message, TextPart, ToolCall, ToolSchema
from qafila.text.template import TemplateFormat
from qafila.text.tokenizer import Tokenizer

DATE = datetime.date(2024, 9, 21)
TOKENIZERS = {
    "llama-2": byte_tokenizer.llama2,
    "code-llama": byte_tokenizer.llama2,
    "code-llama-70b": byte_tokenizer.llama2,
    "llama-3": byte_tokenizer.llama3,
    "llama-3.1": byte_tokenizer.llama3,
    "llama-3.2": byte_tokenizer.llama3,
    "llama-4": byte_tokenizer.llama4,
    "chatml": byte_tokenizer.chatml,
    "smollm2": byte_tokenizer.chatml,
    "alpaca": byte_tokenizer.llama2,
    "vicuna": byte_tokenizer.llama2,
    "koala": byte_tokenizer.llama2,
    "dolly": byte_tokenizer.llama2,
}
WEATHER = ToolSchema(
    "get_weather",
    "Get weather info for places",
    {"type": "dict", "required": ["city"], "properties": {"city": {"type": "string", "description": "The city"}}},
)


def make(name: str) -> ChatFormat:
    return chat_format(name, TOKENIZERS[name]())


def shown(chat: ChatFormat, messages: Sequence[Message], **options: object) -> str:
    return chat.tokenizer.decode(chat.render(messages, **options).ids)  # type: ignore[arg-type]


def learned(chat: ChatFormat, messages: Sequence[Message]) -> list[str]:
    """The runs of text that the mask says are to be learned."""
    rendered = chat.render(messages, add_generation_prompt=False)
    assert len(rendered.ids) == len(rendered.mask)
    runs: list[list[int]] = []
    before = False
    for token, learn in zip(rendered.ids, rendered.mask, strict=True):
        if learn and not before:
            runs.append([])
        if learn:
            runs[-1].append(token)
        before = learn
    return [chat.tokenizer.decode(run) for run in runs]


def test_every_format_is_tested() -> None:
    assert set(TOKENIZERS) == set(FORMATS)


USER = [Message("user", "Hi")]
TALK = [Message("user", " Hi "), Message("assistant", "Hello"), Message("user", "Bye")]
SYSTEM = [Message("system", "Be brief."), *USER]


@pytest.mark.parametrize(
    ("name", "messages", "expected"),
    [
        # The space after <s> and </s> is SentencePiece's dummy space, at the start of each encoded line.
        ("llama-2", SYSTEM, "<s> [INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"),
        ("llama-2", TALK, "<s> [INST] Hi [/INST] Hello </s><s> [INST] Bye [/INST]"),
        ("code-llama", TALK, "<s> [INST] Hi [/INST] Hello </s><s> [INST] Bye [/INST]"),
        (
            "code-llama-70b",
            SYSTEM,
            "<s>  Source: system \n\n Be brief.<step>  Source: user \n\n Hi<step>"
            "  Source: assistant\nDestination: user \n\n ",
        ),
        ("code-llama-70b", USER, "<s>  Source: system<step>  Source: user \n\n Hi<step>"
         "  Source: assistant\nDestination: user \n\n "),
        (
            "llama-3",
            [Message("system", "You are a helpful assistant"), Message("user", "Who are you?")],
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWho are you?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "llama-4",
            [Message("system", "You are a helpful assistant"), Message("user", "Who?")],
            "<|begin_of_text|><|header_start|>system<|header_end|>\n\nYou are a helpful assistant<|eot|>"
            "<|header_start|>user<|header_end|>\n\nWho?<|eot|><|header_start|>assistant<|header_end|>\n\n",
        ),
        ("chatml", TALK, "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
         "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"),
        ("smollm2", USER, "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
         "trained by Hugging Face<|im_end|>\n"
         "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (
            "alpaca",
            USER,
            "<s> Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nHi\n\n### Response:",
        ),
        (
            "alpaca",
            [Message("user", (TextPart("Add."), TextPart("1, 2")))],
            "<s> Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n"
            "### Input:\n1, 2\n\n### Response:",
        ),
        (
            "vicuna",
            [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye")],
            "<s> A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: Hi ASSISTANT: Hello</s> USER: Bye ASSISTANT:",
        ),
        (
            "koala",
            [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye")],
            "<s> BEGINNING OF CONVERSATION: USER: Hi GPT:Hello</s> USER: Bye GPT:",
        ),
        (
            "dolly",
            [Message("user", (TextPart("Add."), TextPart("1, 2"))), Message("assistant", "3"), Message("user", "Why?")],
            "<s> Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nAdd.\n\nInput:\n1, 2\n\n### Response:\n3\n\n### End"
            "\n\n### Instruction:\nWhy?\n\n### Response:\n",
        ),
    ],
)  # fmt: skip
def test_golden(name: str, messages: list[Message], expected: str) -> None:
    assert shown(make(name), messages) == expected


def test_llama31_builtin_tools() -> None:
    """The conversation of llama-models' llama3_1/prompt_format.md."""
    chat = chat_format("llama-3.1", byte_tokenizer.llama3(), builtin_tools=["brave_search", "wolfram_alpha"])
    call = ToolCall("call_0", "wolfram_alpha", {"query": "100th decimal of pi"})
    messages = [
        Message("system", "You are a helpful assistant.\n"),
        Message("user", "What is the 100th decimal of pi?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "7", tool_call_id="call_0"),
    ]
    assert shown(chat, messages, date=DATE) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
        "Tools: brave_search, wolfram_alpha\nCutting Knowledge Date: December 2023\nToday Date: 21 September 2024\n\n"
        "You are a helpful assistant.\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        "What is the 100th decimal of pi?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        '<|python_tag|>wolfram_alpha.call(query="100th decimal of pi")<|eom_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\n7<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert learned(chat, messages) == ['<|python_tag|>wolfram_alpha.call(query="100th decimal of pi")<|eom_id|>']


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, '{"type": "function", "name": "get_weather", "parameters": {"city": "SF"}}<|eot_id|>'),
        (
            {"ipython": True},
            '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "SF"}}<|eom_id|>',
        ),
        ({"tool_format": "function"}, '<function=get_weather>{"city": "SF"}</function><|eot_id|>'),
        ({"tool_format": "function", "ipython": True}, '<function=get_weather>{"city": "SF"}</function><|eot_id|>'),
    ],
)
def test_llama31_custom_tools(options: dict[str, object], expected: str) -> None:
    chat = chat_format("llama-3.1", byte_tokenizer.llama3(), **options)
    call = ToolCall("call_0", "get_weather", {"city": "SF"})
    messages = [Message("system", "Help."), Message("user", "Weather?"), Message("assistant", "", tool_calls=(call,))]
    text = shown(chat, messages, tools=[WEATHER], add_generation_prompt=False)
    system = "Environment: ipython\n\nHelp." if "ipython" in options else "Help."
    start = (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
    )
    assert text.startswith(start)
    told = text.removeprefix(start).split("<|eot_id|>")[0]
    if options.get("tool_format") == "function":
        assert "Use the function 'get_weather' to 'Get weather info for places':\n{\"name\": \"get_weather\"," in told
        assert '\n<function=example_function_name>{"example_name": "example_value"}</function>\n' in told
    else:
        assert told.startswith("Answer the user's question by making use of the following functions if needed.\n")
        assert '{\n    "type": "function",\n    "function": {\n        "name": "get_weather",' in told
        assert told.endswith("}\n\nReturn function calls in JSON format.")
    assert text.endswith("assistant<|end_header_id|>\n\n" + expected)
    parsed = chat.parse(chat.tokenizer.encode(expected, special=True))
    assert parsed.tool_calls == (call,)
    assert chat.parse(expected).tool_calls == (call,)


def test_llama32_and_llama4_pythonic() -> None:
    calls = (
        ToolCall("call_0", "get_weather", {"city": "San Francisco"}),
        ToolCall("call_1", "get_weather", {"city": "Seattle"}),
    )
    messages = [
        Message("user", "What is the weather in SF and Seattle?"),
        Message("assistant", "", tool_calls=calls),
        Message("tool", '"25 C"', tool_call_id="call_0"),
    ]
    written = '[get_weather(city="San Francisco"), get_weather(city="Seattle")]'
    llama32 = make("llama-3.2")
    text = shown(llama32, messages, tools=[WEATHER])
    assert text.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are an expert in composing functions. "
    )
    assert 'that you can invoke.\n\n[\n    {\n        "name": "get_weather",' in text
    assert text.endswith(
        f"assistant<|end_header_id|>\n\n{written}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"
        '"25 C"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n'
    )
    # Meta's replay example has a python tag before the list; it is read all the same.
    assert llama32.parse(f"<|python_tag|>{written}<|eot_id|>").tool_calls == calls
    llama4 = make("llama-4")
    assert shown(llama4, messages, tools=[WEATHER]).endswith(
        f"assistant<|header_end|>\n\n{written}<|eom|><|header_start|>ipython<|header_end|>\n\n"
        '"25 C"<|eom|><|header_start|>assistant<|header_end|>\n\n'
    )
    assert llama4.parse(llama4.tokenizer.encode(f"{written}<|eot|>", special=True)).tool_calls == calls


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("llama-3.1", "<|python_tag|>print(7)<|eom_id|>"),
        ("llama-4", "<|python_start|>print(7)<|python_end|><|eom|>"),
    ],
)
def test_code_interpreter(name: str, output: str) -> None:
    chat = make(name)
    ids = tuple(chat.tokenizer.encode(output, special=True))
    message = chat.parse(ids)
    assert message.tool_calls == (ToolCall("call_0", "code_interpreter", {"code": "print(7)"}),)
    assert message.ids == ids
    told = Message("assistant", "", tool_calls=message.tool_calls)
    for answer in (message, told):
        assert shown(chat, [*USER, answer], add_generation_prompt=False).endswith(output)
    # The tag as plain text, out of a model that was told to write it, is not the tag.
    plain = chat.parse(chat.tokenizer.encode(output))
    assert not plain.tool_calls
    assert plain.text == output


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-2", [" Hello </s>", " Fine </s>"]),
        ("code-llama", [" Hello </s>", " Fine </s>"]),
        ("code-llama-70b", ["Hello<step>", "Fine<step>"]),
        ("llama-3", ["Hello<|eot_id|>", "Fine<|eot_id|>"]),
        ("llama-3.1", ["Hello<|eot_id|>", "Fine<|eot_id|>"]),
        ("llama-3.2", ["Hello<|eot_id|>", "Fine<|eot_id|>"]),
        ("llama-4", ["Hello<|eot|>", "Fine<|eot|>"]),
        ("chatml", ["Hello<|im_end|>", "Fine<|im_end|>"]),
        ("smollm2", ["Hello<|im_end|>", "Fine<|im_end|>"]),
        ("alpaca", ["Hello</s>", "Fine</s>"]),
        ("vicuna", [" Hello</s>", " Fine</s>"]),
        ("koala", ["Hello</s>", "Fine</s>"]),
        ("dolly", ["Hello\n\n### End", "Fine\n\n### End"]),
    ],
)
def test_mask_is_the_answers_and_their_ends(name: str, expected: list[str]) -> None:
    chat = make(name)
    messages = [
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "How are you?"),
        Message("assistant", "Fine"),
    ]
    assert learned(chat, messages) == expected
    assert not any(chat.render(messages[:1]).mask)
    # and every end is one that stops the generation
    end = chat.tokenizer.encode(expected[0], special=True)[-1]
    assert end in chat.stop_ids or any(expected[0].endswith(stop) for stop in chat.stop_strings)
    assert chat.parse(chat.tokenizer.encode_continuation(expected[0], special=True)).text == "Hello"


# Text that people type, and text that tries to be more than text.
SPECIAL = sorted({name for make_tokenizer in TOKENIZERS.values() for name in make_tokenizer().special_tokens})
fragments = st.sampled_from(
    [*SPECIAL, "### Instruction:", "USER:", "\n", " ", "سلام", "a", "\U0010f000", "🦙", "<|", "|>"]
)
content = st.lists(fragments, max_size=6).map("".join)


@st.composite
def conversations(draw: st.DrawFn, *, system: bool = True) -> list[Message]:
    messages = [Message("system", draw(content))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [Message("user", draw(content)), Message("assistant", draw(content))]
    return messages


@pytest.mark.parametrize("name", FORMATS)
def test_a_growing_conversation_keeps_its_ids(name: str) -> None:
    chat = make(name)

    @settings(max_examples=60, deadline=None)
    @given(conversations(system=name != "koala"), st.data())
    def check(messages: list[Message], data: st.DataObject) -> None:
        told: list[Message] = []
        known: list[int] = []
        for message in messages:
            if message.role != "assistant":
                told.append(message)
                continue
            try:
                prompt = chat.render(told).ids
            except ChatError as error:
                assert "is refused" in str(error)  # noqa: PT017 (Llama 2 and Code Llama refuse their own tags)
                return
            assert prompt[: len(known)] == known
            # what a model might generate: any text, with its end or cut off before it
            generated = chat.tokenizer.encode_continuation(message.text)
            if data.draw(st.booleans()):
                generated.append(chat.stop_ids[0])
            answer = chat.parse(generated)
            assert answer.ids == tuple(generated)
            known = prompt + generated
            told.append(answer)
        after = chat.render(told, add_generation_prompt=False)
        assert after.ids[: len(known)] == known
        assert append_only(chat, told)

    check()


@pytest.mark.parametrize("name", FORMATS)
def test_text_never_becomes_a_special_token(name: str) -> None:
    chat = make(name)
    special = frozenset(chat.tokenizer.special_tokens.values())

    def skeleton(messages: list[Message]) -> list[int]:
        rendered = chat.render(messages, add_generation_prompt=messages[-1].role == "user")
        return [token for token in rendered.ids if token in special]

    plain = [Message("user", "x"), Message("assistant", "y"), Message("user", "z")]
    for text in ("".join(s for s in SPECIAL if s != "<step>"), *(s for s in SPECIAL if s != "<step>")):
        hostile = [Message("user", f"x{text}"), Message("assistant", f"y{text}"), Message("user", f"{text}z")]
        assert skeleton(hostile) == skeleton(plain)
        if name != "koala":
            assert skeleton([Message("system", text), *hostile]) == skeleton([Message("system", "s"), *plain])
        assert text.strip() in shown(chat, hostile)


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
@pytest.mark.parametrize("name", ["llama-2", "code-llama", "code-llama-70b"])
def test_llama2_refuses_its_tags(name: str, tag: str) -> None:
    for messages in ([Message("user", f"a{tag}b")], [Message("system", tag), *USER]):
        with pytest.raises(ChatError, match=r"messages\[0\].*is refused"):
            make(name).render(messages)


def test_llama2_accepts_step_and_code_llama_does_not() -> None:
    make("llama-2").render([Message("user", "<step>")])
    with pytest.raises(ChatError, match="<step>"):
        make("code-llama").render([Message("user", "<step>")])


@pytest.mark.parametrize("name", FORMATS)
def test_errors_are_one_line_that_names_the_message(name: str) -> None:
    chat = make(name)
    wrong: list[tuple[list[Message], dict[str, object]]] = [
        ([], {}),
        ([Message("user", (ImagePart(url="x"),))], {}),
    ]
    if name in ("llama-2", "alpaca", "vicuna", "koala", "dolly", "code-llama", "code-llama-70b"):
        wrong += [
            ([Message("assistant", "x")], {}),
            ([Message("user", "x"), Message("user", "y")], {}),
            ([Message("user", "x"), Message("assistant", "y")], {}),
            ([Message("user", "x"), Message("tool", "y")], {}),
            (USER, {"tools": [WEATHER]}),
        ]
    for messages, options in wrong:
        with pytest.raises(ChatError) as caught:
            chat.render(messages, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_a_tokenizer_without_the_tokens_is_named() -> None:
    for name, tokenizer in [("llama-3", byte_tokenizer.chatml()), ("chatml", byte_tokenizer.llama3())]:
        with pytest.raises(ChatError, match=f"format {name}: the tokenizer has no token"):
            chat_format(name, tokenizer).render(USER)
    bare = byte_tokenizer.ByteTokenizer()
    with pytest.raises(ChatError, match="no BOS"):
        chat_format("llama-2", bare).render(USER)
    assert shown(chat_format("koala", bare), USER) == "BEGINNING OF CONVERSATION: USER: Hi GPT:"


def test_unknown_names_and_options() -> None:
    with pytest.raises(ChatError, match=r'"llama-5".*llama-4'):
        chat_format("llama-5", byte_tokenizer.llama3())
    with pytest.raises(ChatError, match="temperature"):
        chat_format("llama-3", byte_tokenizer.llama3(), temperature=1)
    with pytest.raises(ChatError, match="tool_format"):
        chat_format("llama-3.1", byte_tokenizer.llama3(), tool_format="xml")


def test_infill() -> None:
    tokenizer = byte_tokenizer.llama2()
    infill = CodeLlamaInfill(tokenizer)
    prefix, suffix, middle, end = (tokenizer.special_tokens[f"▁<{n}>"] for n in ("PRE", "SUF", "MID", "EOT"))
    assert infill.infill("ab", "cd") == [tokenizer.bos_id, prefix, *b" ab", suffix, *b"cd", middle]
    assert infill.infill("ab", "cd", spm=True) == [tokenizer.bos_id, prefix, suffix, *b"cd", middle, *b" ab"]
    assert infill.stop_ids[0] == end
    with pytest.raises(ChatError, match="▁<PRE>"):
        CodeLlamaInfill(byte_tokenizer.llama3())


def test_llama3_ids_are_metas(llama3_tokenizer: Path) -> None:
    """Header, blank line and text are encoded one by one, as in Meta's chat_format.py."""
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    from qafila.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(llama3_tokenizer)
    ranks = load_tiktoken_bpe(str(llama3_tokenizer))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    oracle = tiktoken.Encoding("llama3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def message(role: str, text: str) -> list[int]:
        plain = oracle.encode_ordinary
        return [128006, *plain(role), 128007, *plain("\n\n"), *plain(text), 128009]

    chat = chat_format("llama-3", tokenizer)
    talk = [
        Message("system", "كن موجزا.\n"),
        Message("user", "\n\nWho are you? <|eot_id|>"),
        Message("assistant", "Llama 3"),
    ]
    expected = [128000, *message("system", talk[0].text), *message("user", talk[1].text)]
    header = [128006, *oracle.encode_ordinary("assistant"), 128007, *oracle.encode_ordinary("\n\n")]
    assert chat.render(talk[:2]).ids == expected + header
    rendered = chat.render(talk, add_generation_prompt=False)
    assert rendered.ids == expected + message("assistant", "Llama 3")
    answer = len(oracle.encode_ordinary("Llama 3")) + 1
    assert rendered.mask == [False] * (len(rendered.ids) - answer) + [True] * answer
    assert chat.stop_ids == (128001, 128008, 128009)


def test_llama4_ids_are_published(llama4_tokenizer: Path) -> None:
    from qafila.text.tokenizer import load_tokenizer

    chat = chat_format("llama-4", load_tokenizer(llama4_tokenizer))
    ids = chat.render([Message("user", "Hi")]).ids
    assert [i for i in ids if i >= 200000] == [200000, 200005, 200006, 200008, 200005, 200006]
    assert chat.stop_ids == (200001, 200007, 200008)


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        ("llama-3.1", byte_tokenizer.llama3()),
        ("llama-3", byte_tokenizer.ByteTokenizer([t for t in byte_tokenizer.LLAMA3 if t != "<|eom_id|>"])),
        ("llama-4", byte_tokenizer.llama4()),
        ("chatml", byte_tokenizer.chatml()),
    ],
)
def test_without_a_template_the_special_tokens_tell(name: str, tokenizer: Tokenizer) -> None:
    assert detect_format(None, tokenizer).name == name


def test_a_base_model_has_no_chat() -> None:
    with pytest.raises(ChatError, match="no chat template"):
        detect_format(None, byte_tokenizer.ByteTokenizer())


def test_ids_of_another_vocabulary_are_refused() -> None:
    chat = make("llama-3")
    size = chat.tokenizer.vocab_size
    answer = Message("assistant", "x", ids=(1, size))
    with pytest.raises(ChatError, match=rf"{size}, outside the vocabulary of {size} tokens"):
        chat.render([Message("user", "q"), answer])


def test_known_templates_are_what_rendering_them_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    for template, name in formats._KNOWN_TEMPLATES.items():
        assert detect_format(template, byte_tokenizer.chatml()).name == name
    known = dict(formats._KNOWN_TEMPLATES)
    monkeypatch.setattr(formats, "_KNOWN_TEMPLATES", {})
    for template, name in known.items():
        assert detect_format(template, byte_tokenizer.chatml()).name == name


def spoken(chat: ChatFormat, messages: list[Message], **options: object) -> str:
    """What a format writes, without the spaces that SentencePiece puts in front of what is encoded on its own."""
    text = shown(chat, messages, **options)
    return text.replace(" ", "") if "<s>" in text else text


@pytest.mark.parametrize("name", FORMATS)
def test_the_template_of_a_format_writes_its_text_and_opens_as_it(name: str) -> None:
    chat = make(name)
    template = format_template(name, chat.tokenizer)
    own = TemplateFormat(template, chat.tokenizer)
    talk = [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "It's \\n كيف؟\nTwo lines.")]
    system = [] if name == "koala" else [[Message("system", "Be brief."), *talk], [Message("system", "Kurz."), *USER]]
    for messages in (USER, talk, *system):
        assert spoken(own, messages) == spoken(chat, messages)
    ended = [*talk, Message("assistant", "Well.")]
    assert spoken(own, ended, add_generation_prompt=False) == spoken(chat, ended, add_generation_prompt=False)
    opened = detect_format(template, chat.tokenizer)
    assert (type(opened), opened.name) == (type(chat), name)
    assert opened.render(talk).ids == chat.render(talk).ids
    assert opened.stop_strings == chat.stop_strings


@pytest.mark.parametrize("name", ["chatml", "smollm2"])
def test_the_template_of_chatml_writes_tools(name: str) -> None:
    chat = make(name)
    call = Message("assistant", "", tool_calls=(ToolCall("c0", "get_weather", {"city": "فاس"}),))
    messages = [*USER, call, Message("tool", "warm", tool_call_id="c0", name="get_weather")]
    own = TemplateFormat(format_template(name, chat.tokenizer), chat.tokenizer)
    for said in (messages, [Message("system", "Be brief."), *messages]):
        assert shown(own, said, tools=[WEATHER]) == shown(chat, said, tools=[WEATHER])


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("chatml", "smollm2")])
def test_templates_without_tools_refuse_them(name: str) -> None:
    own = TemplateFormat(format_template(name, make(name).tokenizer), make(name).tokenizer)
    with pytest.raises(ChatError, match="has no tools"):
        own.render(USER, tools=[WEATHER])


def test_a_template_that_gives_the_format_stays() -> None:
    tokenizer = byte_tokenizer.chatml()
    theirs = next(iter(formats._KNOWN_TEMPLATES))
    assert template_of("smollm2", tokenizer, theirs) == theirs
    changed = template_of("chatml", tokenizer, theirs)
    assert detect_format(changed, tokenizer).name == "chatml"
    assert changed == format_template("chatml", tokenizer)
    assert template_of("smollm2", tokenizer, "{% broken") == format_template("smollm2", tokenizer)
