"""The scheduler's order, spelt out for a few requests; tests/property has the rest."""

from __future__ import annotations

from pixtral.engine.block_manager import BlockManager
from pixtral.engine.encoder_cache import EncoderCache
from pixtral.engine.request import Request, SchedulerConfig, Status
from pixtral.engine.sampling_params import SamplingParams
from pixtral.engine.scheduler import Scheduler

SIZE = 4


def scheduler_of(blocks=20, seqs=4, tokens=10, **kwargs):
    return Scheduler(SchedulerConfig(seqs, tokens, **kwargs), BlockManager(blocks, SIZE), EncoderCache(100))


def add(scheduler, length, name, start=0, **kwargs):
    ids = tuple(range(start, start + length))
    made = Request(SamplingParams(), ids, length, 50, request_id=name, order=(0, len(name), ord(name[0])), **kwargs)
    scheduler.add(made)
    return made


def step(scheduler, **kwargs):
    """Plan, run, and say something wherever a token can be chosen; what each ran, by name."""
    plan = scheduler.schedule(**kwargs)
    scheduler.update(plan)
    for request in plan.num_scheduled_tokens:
        if request.num_computed >= request.length:
            request.append(7)
    scheduler.check()
    return {request.request_id: count for request, count in plan.num_scheduled_tokens.items()}


def test_answers_first_then_prompts_in_order():
    scheduler = scheduler_of()
    add(scheduler, 3, "a")
    add(scheduler, 12, "b", 100)
    add(scheduler, 5, "c", 200)
    add(scheduler, 12, "d", 300)
    assert step(scheduler) == {"a": 3, "b": 4, "c": 3}
    assert step(scheduler) == {"a": 1, "b": 8, "c": 1}
    assert step(scheduler) == {"a": 1, "b": 1, "c": 1, "d": 7}
    assert step(scheduler, max_prompt_tokens=0) == {"a": 1, "b": 1, "c": 1}


def test_a_long_prompt_lets_shorter_ones_through():
    scheduler = scheduler_of(blocks=60, seqs=3)
    add(scheduler, 100, "a")
    add(scheduler, 100, "b", 100)
    assert step(scheduler) == {"a": 10}  # one that is as long waits
    add(scheduler, 8, "c", 200)
    for _ in range(4):
        assert step(scheduler) == {"a": 5, "b": 3, "c": 2}
    add(scheduler, 4, "d", 300)  # has no seat yet: what it would take goes to the first
    assert step(scheduler) == {"c": 1, "a": 7, "b": 2}


def test_a_smaller_budget_for_prompts_this_time():
    scheduler = scheduler_of()
    add(scheduler, 2, "a")
    step(scheduler)
    add(scheduler, 9, "b", 100)
    assert step(scheduler, max_prompt_tokens=4) == {"a": 1, "b": 4}
    assert step(scheduler, max_prompt_tokens=0) == {"a": 1}
    assert step(scheduler) == {"a": 1, "b": 5}


def test_drafts_share_what_the_newest_tokens_leave():
    scheduler = scheduler_of(tokens=6)
    first, second = add(scheduler, 2, "a"), add(scheduler, 2, "b", 100)
    step(scheduler)
    first.draft += [7, 7, 7]
    second.draft += [7, 8, 8]
    assert step(scheduler) == {"a": 4, "b": 2}
    assert second.draft == [8, 8] and second.num_computed == second.length == 4 and second.num_missing == 2


def test_the_last_gives_way_and_comes_back():
    scheduler = scheduler_of(blocks=6, tokens=20)
    first, last = add(scheduler, 7, "a"), add(scheduler, 7, "b", 100)
    for _ in range(6):  # until both have three blocks, full
        assert set(step(scheduler)) == {"a", "b"}
    said = list(last.new_ids)
    assert step(scheduler) == {"a": 1} and last.status is Status.WAITING and scheduler.num_preemptions == 1
    scheduler.remove(first)
    assert step(scheduler) == {"b": 5}  # of 13: the beginning is still there
    assert last.new_ids == [*said, 7]


def test_no_one_overtakes_who_waits_for_blocks():
    scheduler = scheduler_of(blocks=6, tokens=40)
    add(scheduler, 10, "a")
    step(scheduler)
    add(scheduler, 17, "b", 100)
    add(scheduler, 1, "c", 200)
    assert step(scheduler) == {"a": 1}
    assert [request.request_id for request in scheduler.waiting] == ["b", "c"]


def test_who_leads_is_followed_by_the_next_when_it_goes():
    scheduler = scheduler_of()
    family = [add(scheduler, 20, "a"), add(scheduler, 20, "a"), add(scheduler, 20, "a")]
    for index, request in enumerate(family):
        request.order, request.leader = (0, 0, index), family[0] if index else None
    family[0].followers = family[1:]
    assert step(scheduler) == {"a": 10} and family[0].num_computed == 10
    scheduler.remove(family[0])
    assert family[1].leader is None and family[1].followers == [family[2]] and family[2].leader is family[1]
    plan = scheduler.schedule()
    assert plan.num_scheduled_tokens == {family[1]: 10} and family[1].num_cached_tokens == 8
