"""Batches, as the scheduler plans them; nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qafila.engine.blocks import BlockPool, root_key
from qafila.engine.scheduler import Answer, Scheduler
from qafila.engine.step_arrays import StepArrays


def scheduler(blocks: int = 32, *, tokens: int = 40, rows: int = 8, running: int = 8) -> Scheduler[Answer]:
    return Scheduler(BlockPool(blocks), max_tokens=tokens, max_rows=rows, max_running=running)


def answer(length: int, *, of: int = 1, priority: int = 0, arrival: int = 0, end: int = 1000) -> Answer:
    return Answer([of] * length, end=end, root=root_key("m"), priority=priority, arrival=(arrival, 0))


def run(schedule: Scheduler[Answer], next_id: int = 2) -> list[tuple[Answer, int]]:
    """One step: who got how many tokens; those with logits get a token each."""
    batch = schedule.plan()
    done = [(answer, answer.count) for answer in batch]
    for one in batch:
        schedule.advance(one, one.count)
        if one.rows:
            one.ids.append(next_id)
    schedule.pool.check()
    return done


def test_decoding_goes_before_prompts_and_prompts_are_cut() -> None:
    schedule = scheduler()
    first, second, third = answer(10, of=1, arrival=1), answer(50, of=2, arrival=2), answer(20, of=3, arrival=3)
    for one in (first, second, third):
        schedule.add(one)
    assert run(schedule) == [(first, 10), (second, 30)]
    assert run(schedule) == [(first, 1), (second, 20), (third, 19)]
    assert run(schedule) == [(first, 1), (second, 1), (third, 1)]
    assert third.rows == 1


def test_rows_and_running_answers_are_limited() -> None:
    schedule = scheduler(rows=3, running=3)
    answers = [answer(5, of=n, arrival=n) for n in range(5)]
    for one in answers:
        schedule.add(one)
    assert run(schedule) == [(one, 5) for one in answers[:3]]
    schedule.remove(answers[1])
    assert [one for one, _ in run(schedule)] == [answers[0], answers[2], answers[3]]


def test_priority_then_arrival() -> None:
    schedule = scheduler(running=2)
    low, high, late = answer(5, of=1, arrival=1), answer(5, of=2, priority=1, arrival=2), answer(5, of=3, arrival=3)
    for one in (late, low, high):
        schedule.add(one)
    assert [one for one, _ in run(schedule)] == [high, low]


def test_the_newest_of_the_lowest_priority_gives_way() -> None:
    schedule = scheduler(4, running=4)
    old, new = answer(31, of=1, arrival=1), answer(20, of=2, arrival=2)
    schedule.add(old)
    schedule.add(new)
    run(schedule)
    run(schedule)
    assert schedule.running == [old]
    run(schedule)
    assert schedule.running == [old]
    schedule.remove(old)
    schedule.pool.check()
    assert run(schedule) == [(new, 20)]


def test_two_that_fill_the_cache_together_take_turns() -> None:
    schedule = scheduler(4, running=4)
    old, new = answer(16, of=1, arrival=1), answer(15, of=2, arrival=2)
    schedule.add(new)
    schedule.add(old)
    for _ in range(40):
        run(schedule)
    assert schedule.preemptions > 0
    assert schedule.running == [old]
    assert len(old.ids) == 16 + 40
    schedule.remove(old)
    before = len(new.ids)
    assert run(schedule)[0][0] is new
    # Its full blocks were found again.
    assert new.computed == before


def test_nobody_overtakes_the_first_that_does_not_fit() -> None:
    schedule = scheduler(6)
    small, big, other = answer(40, of=1, arrival=1), answer(80, of=2, arrival=2), answer(3, of=3, arrival=3)
    for one in (small, big, other):
        schedule.add(one)
    run(schedule)
    assert schedule.running == [small]
    run(schedule)
    assert schedule.waiting == [big, other]
    schedule.remove(small)
    run(schedule)
    assert schedule.running == [big]


def test_whoever_needs_the_same_prefix_waits_for_it_but_not_others() -> None:
    schedule = scheduler()
    first, same, other = answer(64, of=1, arrival=1), answer(70, of=1, arrival=2), answer(5, of=2, arrival=3)
    for one in (first, same, other):
        schedule.add(one)
    assert run(schedule) == [(first, 40)]
    assert run(schedule) == [(first, 24), (other, 5)]
    assert run(schedule) == [(first, 1), (other, 1), (same, 70 - 64)]


def test_a_cancelled_producer_is_not_waited_for() -> None:
    schedule = scheduler()
    first, same = answer(64, of=1, arrival=1), answer(70, of=1, arrival=2)
    schedule.add(first)
    schedule.add(same)
    run(schedule)
    schedule.remove(first)
    assert run(schedule) == [(same, 38)]
    assert same.cached == 32


class Always:
    def propose(self, ids: Sequence[int], most: int) -> Sequence[int]:
        return [9] * 100

    def feedback(self, accepted: int, proposed: int) -> None:
        raise AssertionError


def test_guesses_take_what_is_left_and_drive_nobody_out() -> None:
    schedule = scheduler(3, tokens=20, rows=6, running=6)
    first, second = answer(13, of=1, arrival=1), answer(5, of=2, arrival=2)
    first.proposer = second.proposer = Always()
    schedule.add(first)
    schedule.add(second)
    run(schedule)
    batch = schedule.plan()
    assert [(one.count, one.rows, len(one.guesses)) for one in batch] == [(5, 5, 4), (1, 1, 0)]
    assert schedule.pool.available == 0
    step = StepArrays().build(batch)
    assert step.token_ids.tolist() == [2, 9, 9, 9, 9, 2]
    assert step.positions.tolist() == [13, 14, 15, 16, 17, 5]
    assert step.starts.tolist() == [0, 5, 6]
    assert step.wanted.tolist() == [0, 1, 2, 3, 4, 5]


def test_guesses_do_not_keep_a_prompt_out() -> None:
    schedule = scheduler(32, tokens=6, rows=4, running=4)
    first, second = answer(5, of=1, arrival=1), answer(20, of=2, arrival=2)
    first.proposer = Always()
    schedule.add(first)
    run(schedule)
    schedule.add(second)
    for _ in range(8):
        run(schedule)
    assert len(second.ids) > 20


def test_guesses_end_with_the_answer() -> None:
    schedule = scheduler()
    one = answer(13, end=17)
    one.proposer = Always()
    schedule.add(one)
    run(schedule)
    schedule.plan()
    # One token is sampled after the last guess.
    assert len(one.guesses) == 2


def test_arrays_of_a_decode_step_are_the_same_while_the_batch_is() -> None:
    schedule, arrays = scheduler(), StepArrays()
    answers = [answer(14, of=1, arrival=1), answer(40, of=2, arrival=2)]
    for one in answers:
        schedule.add(one)
    seen = set()
    for step_number in range(40):
        batch = schedule.plan()
        step = arrays.build(batch)
        fresh = StepArrays().build(batch)
        for name in ("token_ids", "positions", "starts", "adapters", "wanted"):
            np.testing.assert_array_equal(getattr(step, name), getattr(fresh, name))
        for s, one in enumerate(batch):
            row = step.blocks[s]
            assert row[: len(one.blocks)].tolist() == one.blocks
            assert (row[len(one.blocks) :] == -1).all()
        seen.add(id(step.token_ids))
        for one in batch:
            schedule.advance(one, one.count)
            if one.rows:
                one.ids.append(step_number)
        if step_number == 20:
            schedule.remove(answers.pop(0))
    assert len(seen) < 8
