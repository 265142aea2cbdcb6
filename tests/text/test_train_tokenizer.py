"""Trained vocabularies: the same each time, equal to `tokenizers` and to every form they are written in."""

from __future__ import annotations

import itertools
import json
import lzma
import random

import pytest
import tiktoken.load
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from qafila.errors import DataError, UsageError
from qafila.text.formats import chat_format, detect_format
from qafila.text.messages import Message
from qafila.text.special_sets import SETS, special_set
from qafila.text.text_sources import Mixture, TextSource, chunks_of
from qafila.text.tokenizer import load_tokenizer, tokenizer_from_gguf
from qafila.text.tokenizer_files import tokenizer_from_bytes
from qafila.text.tokenizer_special import llama3_family
from qafila.text.train_tokenizer import PATTERNS, train_tokenizer

ENGLISH = "The caravan went on through the desert, and the camels carried what the travellers couldn't: 1,250 loads.\n"
ARABIC = "سارت القافلة في الصحراء، وحملت الجِمالُ ما لم يحمله المسافرون من المتاع؛ ١٢٥٠ حملاً.\n"


def corpus(sentence: str, seed: int, lines: int = 300) -> list[str]:
    """Lines of words made of parts of the sentence's words: many different ones, some often."""
    draw = random.Random(seed)
    parts = [word[i : i + 3] for word in sentence.split() for i in range(0, len(word), 2)]
    words = ["".join(draw.choice(parts) for _ in range(draw.randrange(1, 5))) for _ in range(3000)]
    return [" ".join(words[int(draw.paretovariate(0.4)) % 3000] for _ in range(15)) + "\n" for _ in range(lines)]


def sources(english: float = 1.0, arabic: float = 1.0) -> list[TextSource]:
    return [
        TextSource("en", lambda: iter([ENGLISH * 20, *corpus(ENGLISH, 1)]), english),
        TextSource("ar", lambda: iter([ARABIC * 20, *corpus(ARABIC, 2)]), arabic),
    ]


LINES = [
    ENGLISH, ARABIC, "", "   ", " x  y\n\n z", "I'LL 12345 12 1", "مَرْحَبًا بكم", "😀🐫 é e\u0301", "<|eot_id|>",
    "\t{a: [1]}\r\n", *corpus(ENGLISH + ARABIC, 3, 40),
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("specials", SETS)
def test_the_folder_is_opened_by_us_and_by_tokenizers_with_equal_ids(pattern, specials, tmp_path):
    trained = train_tokenizer(sources(), 900, pattern=pattern, specials=specials)
    folder = trained.save(tmp_path / "made")
    ours, theirs = load_tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ours.vocab_size == theirs.get_vocab_size() == 900
    assert (ours.roles, ours.special_tokens) == (trained.tokenizer.roles, trained.tokenizer.special_tokens)
    for line in LINES:
        expected = theirs.encode(line, add_special_tokens=False).ids if "<|" not in line else ours.encode(line)
        assert ours.encode(line) == trained.tokenizer.encode(line) == expected
        assert ours.decode(ours.encode(line)) == line


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_gguf_form_has_equal_ids(pattern):
    made = train_tokenizer(sources(), 900, pattern=pattern).tokenizer
    again = tokenizer_from_gguf(made.to_gguf())
    assert again.roles == made.roles
    assert [again.encode(line) for line in LINES] == [made.encode(line) for line in LINES]


def test_the_tiktoken_form_is_one_of_llama_3_and_runs_on_tiktoken(tmp_path):
    made = train_tokenizer(sources(), 1000).tokenizer
    (tmp_path / "tokenizer.model").write_bytes(made.to_tiktoken())
    again = tokenizer_from_bytes(made.to_tiktoken())
    assert (again.roles, again.vocab_size) == (made.roles, 1000)
    ranks = tiktoken.load.load_tiktoken_bpe(str(tmp_path / "tokenizer.model"))
    theirs = tiktoken.Encoding("t", pat_str=made.pre.pattern, mergeable_ranks=ranks, special_tokens={})
    for line in LINES:
        assert made.encode(line) == again.encode(line) == theirs.encode_ordinary(line)


@pytest.mark.parametrize(("specials", "name"), [("llama-3", "llama-3"), ("chatml", "chatml")])
def test_chats_through_transformers_and_through_our_format(specials, name, tmp_path):
    folder = train_tokenizer(sources(), 800, specials=specials).save(tmp_path / "made")
    ours, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    talk = [("system", "Be brief."), ("user", "مرحبا 123"), ("assistant", "Hello."), ("user", " and now?")]
    messages = [Message(role, text) for role, text in talk]
    plain = [{"role": role, "content": text} for role, text in talk]
    template = (folder / "chat_template.jinja").read_text()
    assert detect_format(template, ours).name == name
    for prompt in (True, False):
        expected = theirs.apply_chat_template(plain, add_generation_prompt=prompt, return_dict=False)
        assert chat_format(name, ours).render(messages, add_generation_prompt=prompt).ids == expected
    assert theirs("hello مرحبا").input_ids == ours.encode("hello مرحبا", bos=True)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert set(chat_format(name, ours).stop_ids) <= set(generation["eos_token_id"])


def test_the_same_text_gives_the_same_vocabulary_with_any_number_of_threads(tmp_path, monkeypatch):
    files = []
    for threads in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", threads)
        folder = train_tokenizer(sources(), 1050, specials="chatml").save(tmp_path / threads)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]


def test_the_merges_are_those_of_the_library_on_the_whole_text():
    made = train_tokenizer(sources(), 900, specials="plain").tokenizer
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.Tokenizer.from_str(json.dumps(made.to_tokenizer_json())).pre_tokenizer
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=884, min_frequency=2, show_progress=False, initial_alphabet=alphabet
    )
    learner.train_from_iterator([text for source in sources() for text in source.texts()], trainer)
    assert [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]] == list(made.merges)


def test_weights_share_out_the_bytes_and_short_sources_are_read_again():
    mixture = Mixture(sources(3.0, 1.0), limit=20_000)
    list(mixture.chunks())
    english, arabic = mixture.consumed
    assert english.nbytes == pytest.approx(3 * arabic.nbytes, abs=8000)
    short = TextSource("short", lambda: iter(["x" * 1000]), 1.0)
    mixture = Mixture([short, TextSource("long", lambda: iter(["y" * 100] * 32), 1.0)], weighted=True)
    list(mixture.chunks())
    assert [source.nbytes for source in mixture.consumed] == [4000, 3200]
    assert [source.passes for source in mixture.consumed] == [4, 1]
    far = Mixture([short, TextSource("long", lambda: iter(["y" * 100] * 99), 1.0)], weighted=True)
    assert list(far.chunks()) == list(far.chunks())
    assert [source.nbytes for source in far.consumed] == [4000, 9900]


def test_a_limit_without_weights_takes_equally_of_each_and_plain_sources_come_once():
    plain = Mixture(sources())
    assert "".join(plain.chunks()) == "".join(text for source in sources() for text in source.texts())
    limited = Mixture(sources(), limit=10_000)
    list(limited.chunks())
    assert 10_000 <= limited.nbytes < 16_000
    assert max(s.nbytes for s in limited.consumed) - min(s.nbytes for s in limited.consumed) < 8000


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab \n\t،م", max_size=300), st.integers(1, 40))
def test_chunks_join_to_the_text_and_do_not_cut_words(text, size):
    chunks = list(chunks_of(text, size))
    assert "".join(chunks) == text
    assert all(chunk for chunk in chunks)
    assert all(len(chunk) <= size for chunk in chunks)
    for left, right in itertools.pairwise(chunks):
        if left[-1].isalpha() and right[0].isalpha():
            assert not any(letter in left[1:] for letter in " "), (left, right)


def test_what_cannot_be_learned_says_why(tmp_path):
    with pytest.raises(UsageError, match=r"--vocab 512: must be above 512"):
        train_tokenizer(sources(), 512)
    with pytest.raises(DataError, match=r"give \d+ tokens and no more; give more text"):
        train_tokenizer(sources(), 50_000)
    with pytest.raises(UsageError, match="--pattern nothing"):
        train_tokenizer(sources(), 900, pattern="nothing")
    with pytest.raises(UsageError, match="special tokens 'x'"):
        special_set("x")
    with pytest.raises(UsageError, match="is too few"):
        special_set("llama-3", 1)
    with pytest.raises(DataError, match="no text in it"):
        train_tokenizer([TextSource("empty.txt", lambda: iter([""]))], 900)
    with pytest.raises(DataError, match=r"odd\.txt: text 2 holds half a surrogate pair"):
        train_tokenizer([TextSource("odd.txt", lambda: iter(["a", "\ud800"]))], 900)
    with pytest.raises(UsageError, match="weight 0 must be above 0"):
        train_tokenizer(sources(english=0.0), 900)
    folder = tmp_path / "made"
    trained = train_tokenizer(sources(), 900)
    trained.save(folder)
    with pytest.raises(UsageError, match="already exists"):
        trained.save(folder)
    trained.save(folder, overwrite=True)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        trained.save(folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_the_llama_3_set_is_the_published_one_and_takes_more_reserved_tokens():
    assert special_set("llama-3").tokens == llama3_family().specials
    fewer, more = special_set("llama-3", 2), special_set("llama-3", 300)
    assert fewer.tokens == llama3_family().specials[:12]
    assert len(set(more.tokens)) == 310
    assert more.tokens[:256] == llama3_family().specials


@pytest.mark.slow
def test_on_books_of_both_languages(shared_data, tmp_path):
    def books(name):
        def texts():
            with lzma.open(shared_data / name, "rt", encoding="utf-8") as file:
                yield from (json.loads(line)["text"] for line in file)

        return TextSource(name, texts)

    both = [books("books_ar.jsonl.xz"), books("books_en.jsonl.xz")]
    folder = train_tokenizer(both, 16_384, limit=4_000_000).save(tmp_path / "made")
    ours, theirs = load_tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for source in both:
        for text in itertools.islice(source.texts(), 20, 26):
            for line in text[:300_000].splitlines(keepends=True):
                assert ours.encode(line) == theirs.encode(line, add_special_tokens=False).ids
