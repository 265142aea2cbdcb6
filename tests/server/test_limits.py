"""Who is let in when: rates of each key, the queue, and the time limit."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator

import pytest
from scripted_client import ScriptedClient

from qafila.chat.client import ChatRequest
from qafila.server.deadline import within
from qafila.server.errors import ApiError
from qafila.server.limits import Limits
from qafila.server.models import Entry, Models
from qafila.server.service import Caller, Service
from qafila.server.settings import Settings
from qafila.text.messages import Message


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


ANN, BOB = Caller("ann"), Caller("bob")


async def refused(limits: Limits, caller: Caller = ANN) -> ApiError:
    with pytest.raises(ApiError) as error:
        async with limits.admit(caller):
            pass
    assert error.value.status == 429
    return error.value


async def once(limits: Limits, caller: Caller = ANN) -> None:
    async with limits.admit(caller):
        pass


def test_a_rate_of_requests_is_each_keys_own_and_refills_evenly() -> None:
    async def check() -> None:
        clock = Clock()
        limits = Limits(Settings(requests_per_minute=6), clock)
        for _ in range(6):
            await once(limits)
        error = await refused(limits)
        assert error.headers == {"Retry-After": "10"}
        assert "6 requests per minute" in error.message
        await once(limits, BOB)
        await once(limits, Caller("carl", requests_per_minute=1))
        assert "1 requests per minute" in (await refused(limits, Caller("carl", requests_per_minute=1))).message
        clock.now += 9.9
        await refused(limits)
        clock.now += 0.1
        await once(limits)
        await refused(limits)
        assert limits.rejected == {"requests": 4}

    asyncio.run(check())


def test_tokens_are_a_debt_that_has_to_be_slept_off() -> None:
    async def check() -> None:
        clock = Clock()
        limits = Limits(Settings(tokens_per_minute=600), clock)
        await once(limits)
        limits.spent(ANN, 900)  # nobody knew before how long it would get
        assert (await refused(limits)).headers == {"Retry-After": "31"}  # 300 owed and one to come, ten a second
        await once(limits, BOB)
        clock.now += 30.2
        await once(limits)

    asyncio.run(check())


def test_headers_tell_what_is_left() -> None:
    async def check() -> None:
        clock = Clock()
        limits = Limits(Settings(requests_per_minute=60), clock)
        caller = Caller("ann", tokens_per_minute=6000)
        async with limits.admit(caller):
            limits.spent(caller, 1000)
        assert dict(limits.headers(caller)) == {
            b"x-ratelimit-limit-requests": b"60",
            b"x-ratelimit-remaining-requests": b"59",
            b"x-ratelimit-reset-requests": b"1.000s",
            b"x-ratelimit-limit-tokens": b"6000",
            b"x-ratelimit-remaining-tokens": b"5000",
            b"x-ratelimit-reset-tokens": b"10.000s",
        }
        assert Limits(Settings()).headers(ANN) == []

    asyncio.run(check())


def test_requests_at_once_of_one_key() -> None:
    async def check() -> None:
        limits = Limits(Settings(max_concurrent=2))
        async with limits.admit(ANN), limits.admit(ANN):
            assert "2 requests under way" in (await refused(limits)).message
            await once(limits, BOB)
        await once(limits)
        assert limits.running == 0

    asyncio.run(check())


def test_the_queue_ends_and_says_when_to_come_back() -> None:
    async def check() -> None:
        clock = Clock()
        limits = Limits(Settings(max_running=1, max_waiting=1), clock)
        async with limits.admit(ANN):
            clock.now += 30.0
        async with limits.admit(ANN):
            waiting = asyncio.ensure_future(once(limits, BOB))
            await asyncio.sleep(0)
            assert (limits.running, limits.waiting) == (1, 1)
            error = await refused(limits)
            # Requests take about 2 + 0.1 (30 - 2) = 4.8 s here, and two have to go before.
            assert (error.code, error.headers) == ("server_busy", {"Retry-After": "10"})
        await waiting
        assert (limits.running, limits.waiting) == (0, 0)
        assert limits.rejected == {"queue_full": 1}

    asyncio.run(check())


def test_who_waits_is_let_in_key_by_key() -> None:
    async def check() -> list[str]:
        limits = Limits(Settings(max_running=1))
        order: list[str] = []

        async def wait(caller: Caller, name: str) -> None:
            async with limits.admit(caller):
                order.append(name)

        async with limits.admit(ANN):
            names = [(ANN, "a1"), (ANN, "a2"), (ANN, "a3"), (BOB, "b1"), (BOB, "b2")]
            tasks = [asyncio.ensure_future(wait(caller, name)) for caller, name in names]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(check()) == ["a1", "b1", "a2", "b2", "a3"]


def test_who_goes_away_leaves_no_place_behind() -> None:
    """Also in the moment in which their place comes free."""

    async def check() -> None:
        limits = Limits(Settings(max_running=1, max_waiting=3))
        for same_moment in (False, True):
            inside = limits.admit(ANN)
            await inside.__aenter__()
            leaving, staying = (asyncio.ensure_future(once(limits, each)) for each in (BOB, ANN))
            await asyncio.sleep(0)
            if same_moment:
                await inside.__aexit__(None, None, None)
                leaving.cancel()
            else:
                leaving.cancel()
                await asyncio.sleep(0)
                assert limits.waiting == 1
                await inside.__aexit__(None, None, None)
            await asyncio.wait_for(staying, 1)
            assert leaving.cancelled()
            assert (limits.running, limits.waiting) == (0, 0)

    asyncio.run(check())


def test_many_requests_at_random_leave_nothing_behind() -> None:
    async def check() -> None:
        limits = Limits(Settings(max_running=4, max_waiting=10))
        choose = random.Random(1)
        most = 0

        async def one(caller: Caller) -> None:
            nonlocal most
            with contextlib.suppress(ApiError):
                async with limits.admit(caller):
                    most = max(most, limits.running)
                    await asyncio.sleep(choose.random() / 1000)

        tasks = []
        for i in range(2000):
            tasks.append(asyncio.ensure_future(one(Caller(f"key{i % 5}"))))
            if choose.random() < 0.3:
                choose.choice(tasks).cancel()
            if choose.random() < 0.5:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most == 4
        assert (limits.running, limits.waiting) == (0, 0)
        assert all(account.running == 0 for account in limits._accounts.values())
        assert 0 < limits.rejected["queue_full"] < 2000

    asyncio.run(check())


# The time limit.


async def ticks(closed: list[str], pause: float) -> AsyncGenerator[int, None]:
    try:
        for i in range(1000):
            await asyncio.sleep(pause)
            yield i
    finally:
        closed.append("closed")


def test_events_that_take_too_long_are_closed_and_told() -> None:
    async def check(pause: float, slow_reader: float) -> None:
        closed: list[str] = []
        seen = 0

        async def read() -> None:
            nonlocal seen
            async for _ in within(ticks(closed, pause), 0.05):
                seen += 1
                await asyncio.sleep(slow_reader)

        with pytest.raises(ApiError) as error:
            await read()
        assert error.value.status == 504
        assert closed == ["closed"]
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
        assert seen < 30

    asyncio.run(check(0.002, 0))  # between events and within one
    asyncio.run(check(10, 0))
    asyncio.run(check(0, 0.01))  # while the reader takes its time


def test_events_in_time_are_left_alone_and_a_cancelled_reader_is_cancelled() -> None:
    async def check() -> None:
        closed: list[str] = []
        events = within(ticks(closed, 0), 5)
        assert [await anext(events) for _ in range(3)] == [0, 1, 2]
        await events.aclose()
        assert closed == ["closed"]
        slow = within(ticks(closed, 10), 5)
        task = asyncio.ensure_future(anext(slow))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(check())


def test_the_service_charges_what_a_request_took_even_if_nobody_waited_for_its_end() -> None:
    async def check() -> None:
        client = ScriptedClient(["a", "b", "c", "d"])

        async def load() -> ScriptedClient:
            return client

        charged: list[int] = []
        limits = Limits(Settings())
        limits.spent = lambda caller, tokens: charged.append(tokens)  # type: ignore[method-assign]
        service = Service(Models({"m": Entry("m", "m", load)}), gate=limits, timeout=0.2)
        request = ChatRequest((Message("user", "hi"),))
        _, events = await service.run(ANN, "m", request)
        async for _ in events:
            pass
        _, events = await service.run(ANN, "m", request)
        await anext(events)
        await anext(events)
        await events.aclose()
        client.delay = 1.0
        _, events = await service.run(ANN, "m", request)
        with pytest.raises(ApiError, match=r"longer than the 0\.2 seconds"):
            await anext(events)
        assert charged == [9, 7, 5]
        assert limits.running == 0
        assert client.cancelled == 2

    asyncio.run(check())
