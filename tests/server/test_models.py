"""Models that are loaded, unloaded, and share one memory."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from scripted_client import ScriptedClient

from qafila.chat.client import ChatRequest, Generation, whole
from qafila.errors import FormatError, ModelNotFoundError, UsageError
from qafila.server.app import create_app
from qafila.server.errors import ApiError
from qafila.server.local_models import adapter_entry, local_entry
from qafila.server.model_list import entries_from, read_model_list, upstream_of
from qafila.server.models import Entry, Models
from qafila.server.service import Service
from qafila.text.messages import Message


class Shelf:
    """Makes entries of so many bytes, and remembers what was opened and closed."""

    def __init__(self, *, load_seconds: float = 0.0) -> None:
        self.log: list[str] = []
        self.load_seconds = load_seconds
        self.failures: list[Exception] = []
        self.most = 0

    def entry(self, name: str, size: int | None = 10, base: Entry | None = None) -> Entry:
        async def load():
            if base is not None:
                assert base.client is not None
            await asyncio.sleep(self.load_seconds)
            if self.failures:
                raise self.failures.pop()
            self.log.append(f"+{name}")
            client = ScriptedClient()
            close = client.close

            async def closing():
                await asyncio.sleep(0)
                self.log.append(f"-{name}")
                await close()

            client.close = closing
            return client

        async def measure():
            return size

        return Entry(name, name, load, None if size is None else measure, base)

    def models(self, *names: str, **options) -> Models:
        return Models({name: self.entry(name) for name in names}, **options)


def run(work):
    return asyncio.run(asyncio.wait_for(work, 20))


async def use(models: Models, name: str, seconds: float = 0.0) -> None:
    async with models.lease(name) as client:
        await asyncio.sleep(seconds)
        assert not client.closed
        if models.memory_limit is not None:
            assert models.held <= models.memory_limit


def test_a_model_is_loaded_once_by_all_who_ask_first():
    shelf = Shelf(load_seconds=0.02)

    async def work():
        models = shelf.models("a", "b")
        await asyncio.gather(*(use(models, "a") for _ in range(20)))
        assert shelf.log == ["+a"]
        await models.close()

    run(work())
    assert shelf.log == ["+a", "-a"]


@pytest.mark.parametrize("name", ["c", "", "/etc/passwd", "hf:owner/name", "../a", "a/b"])
def test_only_registered_names_are_models(name):
    async def work():
        models = Shelf().models("a", "b")
        with pytest.raises(ApiError, match="there are a, b") as caught:
            await use(models, name)
        assert (caught.value.status, caught.value.param, caught.value.code) == (404, "model", "model_not_found")

    run(work())


def test_the_idle_model_used_longest_ago_makes_room():
    shelf = Shelf()

    async def work():
        models = shelf.models("a", "b", "c", memory_limit=20)
        for name in ("a", "b", "a", "c", "b"):
            await use(models, name)
            await asyncio.sleep(0.002)
        assert models.held == 20
        await models.close()

    run(work())
    assert shelf.log[:6] == ["+a", "+b", "-b", "+c", "-a", "+b"]


def test_a_model_in_use_stays_and_who_needs_its_memory_waits():
    shelf = Shelf()

    async def work():
        models = shelf.models("a", "b", memory_limit=10)
        first = asyncio.create_task(use(models, "a", 0.1))
        await asyncio.sleep(0.01)
        began = time.monotonic()
        await use(models, "b")
        assert time.monotonic() - began > 0.08
        await first
        await models.close()

    run(work())
    assert shelf.log == ["+a", "-a", "+b", "-b"]


def test_who_waits_too_long_is_told_when_to_come_back():
    shelf = Shelf()

    async def work():
        models = shelf.models("a", "b", memory_limit=10, max_wait=0.05)
        first = asyncio.create_task(use(models, "a", 0.2))
        await asyncio.sleep(0.01)
        with pytest.raises(ApiError, match="no memory") as caught:
            await use(models, "b")
        assert caught.value.status == 503
        assert int(caught.value.headers["Retry-After"]) > 0
        await first
        await use(models, "b")  # and later it gets its turn
        await models.close()

    run(work())
    assert shelf.log == ["+a", "-a", "+b", "-b"]


def test_a_busy_model_does_not_keep_another_out_for_ever():
    shelf = Shelf()

    async def work():
        models = shelf.models("a", "b", memory_limit=10, patience=0.05)
        stop = asyncio.Event()

        async def always():
            while not stop.is_set():
                await use(models, "a", 0.02)

        # Three at a time: "a" is never idle by itself.
        busy = [asyncio.create_task(always()) for _ in range(3)]
        await asyncio.sleep(0.03)
        began = time.monotonic()
        await use(models, "b")
        waited = time.monotonic() - began
        await asyncio.sleep(0.1)
        stop.set()
        await asyncio.gather(*busy)
        await models.close()
        return waited

    assert 0.04 < run(work()) < 2
    assert shelf.log[:4] == ["+a", "-a", "+b", "-b"]
    assert shelf.log[4] == "+a"  # those who waited meanwhile went on


def test_who_goes_away_while_waiting_takes_nothing_along():
    shelf = Shelf(load_seconds=0.05)

    async def work():
        models = shelf.models("a", "b", memory_limit=10)
        first = asyncio.create_task(use(models, "a", 0.1))
        await asyncio.sleep(0.06)
        gone = asyncio.create_task(use(models, "b"))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await first
        await asyncio.sleep(0.01)
        assert shelf.log == ["+a"]  # nobody wanted b any more
        # While it is being read, it is read to its end: the next one finds it open.
        gone = asyncio.create_task(use(models, "b"))
        await asyncio.sleep(0.02)
        gone.cancel()
        await asyncio.sleep(0.06)
        assert shelf.log == ["+a", "-a", "+b"]
        await use(models, "b")
        await models.close()

    run(work())
    assert shelf.log == ["+a", "-a", "+b", "-b"]


def test_idle_models_are_unloaded():
    shelf = Shelf()

    async def work():
        models = Models({"a": shelf.entry("a"), "far": shelf.entry("far", None)}, idle_unload=0.05)
        for _ in range(4):  # used again and again it stays
            await use(models, "a")
            await asyncio.sleep(0.02)
        await use(models, "far")
        assert shelf.log == ["+a", "+far"]
        async with models.lease("a"):
            await asyncio.sleep(0.1)
            assert shelf.log == ["+a", "+far"]
        await asyncio.sleep(0.1)
        assert shelf.log == ["+a", "+far", "-a"]  # what takes no memory here stays
        assert models.held == 0
        await use(models, "a")
        await models.close()

    run(work())
    assert shelf.log[-3:-1] in (["+a", "-a"], ["+a", "-far"])


@pytest.mark.parametrize("error", [FormatError("secret/path.gguf", "is damaged"), ModelNotFoundError("no secret/path")])
def test_a_model_that_fails_says_so_and_may_be_tried_again(error, caplog):
    shelf = Shelf()

    async def work():
        models = shelf.models("a", "b", memory_limit=10, failure_pause=0.05)
        shelf.failures.append(error)
        for _ in range(2):  # the second time without trying
            with pytest.raises(ApiError, match="could not be loaded") as caught:
                await use(models, "a")
            assert caught.value.status == 503
            assert "secret" not in caught.value.message
            assert caught.value.__cause__ is error
        assert models.held == 0
        await use(models, "b")
        await asyncio.sleep(0.06)
        await use(models, "a")
        await models.close()

    run(work())
    assert caplog.text.count(str(error)) == 1
    assert shelf.log[:3] == ["+b", "-b", "+a"]


def test_an_error_nobody_foresaw_is_raised_to_all_and_tried_again_at_once():
    shelf = Shelf(load_seconds=0.01)
    shelf.failures.append(RuntimeError("a bug"))

    async def work():
        models = shelf.models("a")
        results = await asyncio.gather(*(use(models, "a") for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [RuntimeError] * 3
        await use(models, "a")
        await models.close()

    run(work())


def test_what_can_never_fit_is_refused_at_once():
    async def work():
        models = Models({"a": Shelf().entry("a", 11)}, memory_limit=10)
        began = time.monotonic()
        with pytest.raises(ApiError) as caught:
            await use(models, "a")
        assert time.monotonic() - began < 1
        assert "--memory-limit" in str(caught.value.__cause__)

    run(work())


def test_adapters_open_and_close_with_their_base():
    shelf = Shelf()

    async def work():
        base = shelf.entry("base", 6)
        models = Models(
            {"base": base, "tuned": shelf.entry("tuned", 2, base), "other": shelf.entry("other", 5)}, memory_limit=10
        )
        await use(models, "tuned")
        assert shelf.log == ["+base", "+tuned"]
        assert models.held == 8
        async with models.lease("tuned"):  # which keeps the base open, too
            waiting = asyncio.create_task(use(models, "other"))
            await asyncio.sleep(0.03)
            assert not waiting.done()
        await waiting
        assert sorted(shelf.log[2:4]) == ["-base", "-tuned"]
        assert shelf.log.index("-tuned") < shelf.log.index("-base")
        assert models.held == 5
        await use(models, "tuned")
        await models.close()
        assert models.held == 0

    run(work())
    assert shelf.log.index("-tuned", 6) < shelf.log.index("-base", 6)


def test_closing_waits_for_what_is_being_opened_and_sends_away_who_waits():
    shelf = Shelf(load_seconds=0.05)

    async def work():
        models = shelf.models("a", "b", memory_limit=10)
        first = asyncio.create_task(use(models, "a"))
        second = asyncio.create_task(use(models, "b"))
        await asyncio.sleep(0.01)
        await models.close()
        return await asyncio.gather(first, second, return_exceptions=True)

    _, refused = run(work())
    assert isinstance(refused, ApiError)
    assert refused.status == 503
    assert shelf.log.count("+a") == shelf.log.count("-a")


def test_many_models_under_random_use_never_take_more_than_the_limit():
    import random

    rng, shelf = random.Random(1), Shelf(load_seconds=0.001)

    async def work():
        entries = {f"m{i}": shelf.entry(f"m{i}", rng.randint(1, 9)) for i in range(8)}
        entries |= {f"t{i}": shelf.entry(f"t{i}", 1, entries[f"m{i}"]) for i in range(4)}
        models = Models(entries, memory_limit=20, patience=0.01, idle_unload=0.003)

        async def one():
            task = asyncio.create_task(use(models, rng.choice(list(entries)), rng.random() * 0.005))
            if rng.random() < 0.2:
                await asyncio.sleep(rng.random() * 0.005)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled() and task.exception() is not None:
                raise task.exception()

        for _ in range(15):
            await asyncio.gather(*(one() for _ in range(12)))
        await models.close()
        assert models.held == 0

    run(work())
    opened = [name[1:] for name in shelf.log if name[0] == "+"]
    closed = [name[1:] for name in shelf.log if name[0] == "-"]
    assert sorted(opened) == sorted(closed)


# With the default model.

QUESTION = ChatRequest(
    (Message("user", "What is the capital of Japan?"),), generation=Generation(temperature=0, max_tokens=8)
)
SMALL = {"threads": 1, "context": 512}


def resident() -> int:
    with Path("/proc/self/status").open(encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024


def test_two_real_models_take_turns_in_one_memory(default_gguf):
    async def work():
        entries = {name: local_entry(name, default_gguf, SMALL) for name in ("one", "two")}
        size = await entries["one"].size()
        first = Models({"first": local_entry("first", default_gguf, SMALL)})
        async with first.lease("first") as client:  # what a process takes once (code, arenas) does not count
            await whole(client.chat(QUESTION))
        del client
        await first.close()
        models = Models(entries, memory_limit=int(size * 1.5))
        texts, began = [], resident()
        for name in ("one", "two") * 3:
            async with models.lease(name) as client:
                messages, _ = await whole(client.chat(QUESTION))
                texts.append(messages[0].text)
            assert [each.client is not None for each in entries.values()] == [name == "one", name == "two"]
            del client
        await models.close()
        return texts, resident() - began, size

    texts, kept, size = run(work())
    assert len(set(texts)) == 1
    assert "Tokyo" in texts[0]
    # Six were loaded: had they not been given back, it were six times their size.
    assert kept < size


def test_the_estimate_is_what_a_model_takes(default_gguf):
    async def work():
        entry = local_entry("one", default_gguf, SMALL)
        size = await entry.size()
        models = Models({"one": entry})
        async with models.lease("one") as client:
            runner = client.llama.engine.runner
            exact = runner.kv_bytes
        await models.close()
        return size, exact

    size, cache = run(work())
    # Weights of 98 MB in the file, and the cache to the byte.
    assert size - cache > 90_000_000
    assert size - cache < 140_000_000


def test_an_adapter_of_a_file_that_is_not_there_leaves_the_base_alone(default_gguf, tmp_path):
    async def work():
        base = local_entry("base", default_gguf, SMALL)
        models = Models({"base": base, "tuned": adapter_entry("tuned", tmp_path / "none", base)})
        with pytest.raises(ApiError, match=r"tuned.*could not be loaded"):
            await use(models, "tuned")
        async with models.lease("base") as client:
            messages, _ = await whole(client.chat(QUESTION))
        await models.close()
        return messages[0].text

    assert "Tokyo" in run(work())


# What is registered.


def test_a_file_registers_models_adapters_and_upstreams(tmp_path):
    (tmp_path / "small.gguf").touch()
    file = tmp_path / "models.toml"
    file.write_text(
        """
        [defaults]
        threads = 2
        [models.chat]
        source = "default"
        context = 4096
        [models."team/small"]
        source = "small.gguf"
        threads = 1
        draft = "small.gguf"
        [models.tuned]
        adapter = "./adapters/tuned"
        base = "chat"
        [upstreams.big]
        url = "http://10.0.0.7:8000"
        key_env = "BIG_KEY"
        models = { big = "org/big" }
        kind = "vllm"
        """,
        encoding="utf-8",
    )
    found, upstreams = read_model_list(file)
    assert [(entry.name, entry.source) for entry in found] == [
        ("chat", "default"),
        ("team/small", str(tmp_path / "small.gguf")),
        ("tuned", str(tmp_path / "adapters" / "tuned")),
    ]
    assert found[2].base is found[0]
    assert [(u.url, u.models, u.key_env, u.kind) for u in upstreams] == [
        ("http://10.0.0.7:8000", {"big": "org/big"}, "BIG_KEY", "vllm")
    ]
    # Both name and kind are given: nobody is asked.
    entries = entries_from(["first=default"], file=file)
    assert list(entries) == ["first", "chat", "team/small", "tuned", "big"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models = 3", "models: expected a table"),
        ("[models.a]", "models.a.source: missing"),
        ("[models.a]\nsource = 3", "models.a.source: expected text"),
        ("[models.a]\nsource = 'x'\nthread = 3", "models.a.thread: unknown key; known are format"),
        ("[models.a]\nsource = 'x'\nthreads = '3'", "models.a.threads: expected a whole number"),
        ("[models.a]\nsource = 'x'\nthreads = true", "models.a.threads: expected a whole number"),
        ("[models.'a b']\nsource = 'x'", "models.a b: is no name"),
        ("[models.'../x']\nsource = 'x'", "is no name"),
        ("[models.t]\nadapter = 'x'", "models.t.base: missing"),
        ("[models.t]\nadapter = 'x'\nbase = 'y'", "models.t.base: there is no model 'y'"),
        ("[models.t]\nadapter = 'x'\nbase = 'y'\nthreads = 1", "models.t.threads: unknown key; known are adapter"),
        ("[defaults]\nsource = 'x'", "defaults.source: unknown key"),
        ("[server]", "server: unknown key; known are defaults"),
        ("[upstreams.u]", "upstreams.u.url: missing"),
        ("[upstreams.u]\nurl = 'ftp://x'", "upstreams.u: upstream: 'ftp://x' is no URL"),
        ("[upstreams.u]\nurl = 'http://me:pw@x'", "user or password"),
        ("[upstreams.u]\nurl = 'http://x'\nkind = 'y'", "kind 'y' is none of qafila"),
        ("[upstreams.u]\nurl = 'http://x'\nmodels = ['a', 'a']", "each once"),
        ("[upstreams.u]\nurl = 'http://x'\nmodels = {a = 1}", "models.a: expected text"),
        ("[upstreams.u]\nurl = 'http://x'\ntimeout = 0", "timeout must be"),
        ("x = [", "is no TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, words):
    file = tmp_path / "models.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_model_list(file)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert "pw" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_model_list(tmp_path / "none.toml")


def test_values_of_the_command_line():
    assert list(entries_from([])) == ["default"]
    assert list(entries_from(["default", "other=default"], ["tuned@other=folder"])) == ["default", "other", "tuned"]
    with pytest.raises(UsageError, match="two models are called 'default'"):
        entries_from(["default", "default"])
    upstream = upstream_of("http://x", ["a", "b=org/b"])
    assert upstream.models == {"a": "a", "b": "org/b"}
    with pytest.raises(UsageError, match="twice"):
        upstream_of("http://x", ["a", "a=b"])


def test_adapters_are_listed_with_their_base():
    from fastapi.testclient import TestClient

    shelf = Shelf()
    base = shelf.entry("base")
    app = create_app(Service(Models({"base": base, "tuned": shelf.entry("tuned", 1, base)})))
    with TestClient(app, base_url="http://127.0.0.1") as http:
        listed = http.get("/v1/models").json()["data"]
    assert [(each["id"], each["root"], each["parent"]) for each in listed] == [
        ("base", "base", None),
        ("tuned", "base", "base"),
    ]
    assert shelf.log == []
