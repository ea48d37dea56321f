"""Whatever the batch, the chunks, the room and the neighbours are: every request gives its own tokens."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from serving import CONTEXT, ask, build, engine_of, expected, joined, run, small_model

from pixtral.engine.prompt_lookup import PromptLookup
from pixtral.engine.sampling_params import SamplingParams

IMAGES = [("a", 1, 2), ("b", 1, 2), ("a", 3, 2)]
# beginnings that several prompts share, longer than a block, one with an image in it
BEGINNINGS = [(), tuple(range(40, 58)), tuple(range(40, 75)), (*range(40, 50), ("a", 3, 3), *range(50, 56))]

parts = st.tuples(
    st.sampled_from(BEGINNINGS), st.lists(st.integers(40, 43) | st.sampled_from(IMAGES), min_size=1, max_size=5)
).map(lambda both: (*both[0], *both[1]))
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.0, 0.8]),
    max_tokens=st.integers(1, 16),
    seed=st.integers(0, 3),
    top_p=st.sampled_from([1.0, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.0]),
    n=st.sampled_from([1, 1, 2]),
)


@dataclasses.dataclass(frozen=True)
class QuantizationArguments:
    """A request, the step before which it comes, and the step before which its client goes away."""

    parts: tuple[Any, ...]
    params: SamplingParams
    comes: int
    goes: int | None


asked = st.builds(
    QuantizationArguments,
    parts=parts,
    params=params,
    comes=st.integers(0, 12),
    goes=st.none() | st.none() | st.integers(1, 20),
)
sizes = st.fixed_dictionaries(
    {
        "tokens": st.sampled_from([CONTEXT, CONTEXT + 32, 1024]),
        "max_num_seqs": st.integers(1, 5),
        "max_num_batched_tokens": st.sampled_from([1, 2, 3, 5, 7, 16, 17, 64, 500]),
        "max_encoder_tokens": st.sampled_from([1, 8, 100]),
        "image_cache_bytes": st.sampled_from([0, 6 * 40 * 4, 10000]),
        "prefix_caching": st.booleans(),
        "prompt_lookup": st.sampled_from([None, None, PromptLookup(3)]),
        "max_stretch": st.sampled_from([None, 1.5]),
    }
)


@functools.cache
def alone(parts: tuple[Any, ...], params: SamplingParams) -> list[list[int]]:
    """The tokens of a request by itself: by the oracle if it is greedy and plain, else by an engine of its own."""
    if params.greedy and params.plain:
        new = min(params.max_tokens or 0, CONTEXT - len(build(parts)[0]))
        return [expected(parts, new)] * params.n
    results = run(engine_of(prefix_caching=False), ask("x", parts, params))
    return [results["x", i].ids for i in range(params.n)]


class Clock:
    """Times as a slow machine might have them: every look at the clock is later, by no rule."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        self.now += (self.looks * 7919 % 97) / 1000
        return self.now


@given(st.lists(asked, min_size=1, max_size=6), sizes)
@settings(max_examples=100)
def test_every_request_gives_its_own_tokens(requests: list[QuantizationArguments], sizes: dict[str, Any]) -> None:
    engine, outputs = engine_of(clock=Clock(), **sizes), []
    step = 0
    while engine.has_unfinished or any(one.comes >= step for one in requests):
        for name, one in enumerate(requests):
            if one.comes == step:
                engine.add_request(ask(str(name), one.parts, one.params))
            if one.goes == step:
                outputs += engine.abort(str(name))
        outputs += engine.step() if engine.has_unfinished else []
        engine.check()
        step += 1
        assert step < 2000, "somebody waits for ever"
    for (name, index), result in joined(outputs).items():
        one = requests[int(name)]
        wanted = alone(one.parts, one.params)[index]
        assert result.last is not None
        if result.last.finish_reason == "abort":
            assert one.goes is not None and result.ids == wanted[: len(result.ids)]
        else:
            assert (result.ids, result.last.finish_reason) == (wanted, "length")
    ended = sum(engine.stats().finished.values())
    assert ended == sum(one.params.n for one in requests)
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    assert stats.image_cache_bytes <= max(stats.image_cache_limit, 6 * 40 * 4 + 9 * 40 * 4)
    engine.scheduler.images.cache.clear()
    assert engine.stats().image_cache_bytes == 0
    assert small_model().training is False
