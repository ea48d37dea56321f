"""TokenBudget: a long prompt stretches the steps of running answers as far as it may, on machines of all kinds."""

from __future__ import annotations

import random
import statistics

import pytest

from pixtral.engine.token_budget import LEAST, START, TokenBudget


class Machine:
    """Steps cost what reading the weights or the arithmetic costs, whichever is more, with some noise."""

    def __init__(self, weights, token, row, noise=0.0):
        self.weights, self.token, self.row, self.noise = weights, token, row, noise
        self.random = random.Random(1)

    def seconds(self, rows, tokens):
        exact = max(self.weights, self.token * (rows + tokens)) + self.row * rows
        hiccup = 5 if self.noise and self.random.random() < 0.02 else 1
        return exact * (1 + self.noise * self.random.random()) * hiccup


MACHINES = [
    Machine(0.020, 0.0017, 0.001),  # memory hides ten tokens
    Machine(0.250, 0.028, 0.0),
    Machine(0.0, 0.0001, 0.0005),  # nothing hides
    Machine(0.020, 0.0017, 0.001, noise=0.3),
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("rows", [1, 4, 30])
def test_steps_with_a_prompt_come_near_the_stretch(machine, rows):
    pace = TokenBudget(2.0, 2048)
    times = [machine.seconds(rows, 0) for _ in range(20)]
    for seconds in times:
        pace.observe(rows, 0, seconds)
    alone = statistics.median(times)
    stretches = []
    for _ in range(60):
        tokens = pace.limit(rows)
        assert tokens is not None and LEAST <= tokens <= 2048
        seconds = machine.seconds(rows, tokens)
        pace.observe(rows, tokens, seconds)
        stretches.append(seconds / alone)
    assert 1.5 < statistics.median(stretches[20:]) < 2.4
    assert statistics.median(stretches) < 2.5


def test_no_limit_without_answers_or_without_a_stretch():
    assert TokenBudget(2.0, 100).limit(0) is None
    assert TokenBudget(None, 100).limit(5) is None


def test_before_anything_is_known():
    assert TokenBudget(2.0, 2048).limit(3) == START
    assert TokenBudget(2.0, 7).limit(3) == 7
    pace = TokenBudget(2.0, 2048)
    pace.observe(0, 1000, 1.0)  # a prompt alone: a millisecond for each token
    assert pace.limit(3) == START
    pace.observe(3, 0, 0.02)
    assert pace.limit(3) == 20
    assert pace.limit(200) == 20  # as of the nearest number of rows


def test_one_slow_step_does_not_stop_the_reading():
    pace = TokenBudget(2.0, 2048)
    for _ in range(10):
        pace.observe(4, 0, 0.02)
        pace.observe(4, 20, 0.04)
    before = pace.limit(4)
    pace.observe(4, 20, 10.0)
    assert before == 20 and pace.limit(4) >= 10


def test_a_fixed_cost_of_steps_with_prompts_does_not_stop_the_reading():
    """Reading less would make such steps no shorter, only more of them."""
    pace = TokenBudget(2.0, 2048)
    pace.observe(0, 1000, 0.02)
    for _ in range(40):
        tokens = pace.limit(4)
        pace.observe(4, 0, 0.005)
        pace.observe(4, tokens, 0.005 + 0.006 + 0.00002 * tokens)
    assert pace.limit(4) >= 100


def test_many_who_wait_for_a_first_token_may_hold_up_few():
    pace = TokenBudget(2.0, 2048)
    pace.observe(0, 1000, 1.0)
    pace.observe(4, 0, 0.02)
    assert pace.limit(4, 1) == 20
    assert pace.limit(4, 3) == 30
    assert pace.limit(4, 100) == 2 * START  # no more than twice what has been tried
    for _ in range(3):
        pace.observe(4, 60, 0.08)
    assert pace.limit(4, 100) == 80  # and only four times as much


def test_a_short_rest_of_a_prompt_does_not_count_as_all_that_goes():
    pace = TokenBudget(2.0, 2048)
    for _ in range(4):
        pace.observe(4, 0, 0.02)
        pace.observe(4, 100, 0.022)
    pace.observe(4, 3, 0.0201)
    assert pace.limit(4) >= 200
