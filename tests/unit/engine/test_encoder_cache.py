"""Features by content: each image through the tower once, as long as there is room."""

from __future__ import annotations

from pixtral.engine.encoder_cache import EncoderCache, EncoderCacheManager
from pixtral.engine.request import ImageInput, Request, SchedulerConfig, SchedulerOutput
from pixtral.engine.sampling_params import SamplingParams


def filled(limit, **sizes):
    cache = EncoderCache(limit)
    for name, size in sizes.items():
        assert cache.reserve(name.encode(), size)
        cache.put(name.encode(), name)
        cache.unpin(name.encode())
    return cache


def test_the_least_recently_used_goes_first():
    cache = filled(10, a=4, b=4)
    cache.pin(b"a")
    cache.unpin(b"a")
    assert cache.reserve(b"c", 3)
    assert (b"a" in cache, b"b" in cache, cache.nbytes) == (True, False, 7)
    cache.check({b"c": 1})


def test_what_is_pinned_stays():
    cache = filled(10, a=4, b=4)
    cache.pin(b"a")
    cache.pin(b"a")
    assert not cache.reserve(b"c", 7)
    assert b"b" in cache  # nothing is dropped in vain
    cache.unpin(b"a")
    assert not cache.reserve(b"c", 7)
    cache.unpin(b"a")
    assert cache.reserve(b"c", 7) and b"a" not in cache and len(cache) == 1


def test_one_image_larger_than_the_limit():
    cache = filled(10, a=4)
    assert cache.reserve(b"huge", 50) and len(cache) == 1
    assert not cache.reserve(b"b", 1)
    cache.put(b"huge", "huge")
    cache.unpin(b"huge")
    assert cache.reserve(b"b", 1) and cache.nbytes == 1
    cache.check({b"b": 1})


def test_an_image_that_never_came_is_forgotten():
    cache = EncoderCache(10)
    cache.reserve(b"a", 4)
    cache.pin(b"a")
    cache.unpin(b"a")
    assert b"a" in cache
    cache.unpin(b"a")
    assert b"a" not in cache and cache.nbytes == 0


def asked(*images):
    length = max(image.end for image in images) + 1
    return Request(SamplingParams(), (1,) * length, length, 9, images=images)


def make_image(start, length, key):
    return ImageInput(start, length, length, key, lambda: None)


def test_an_image_is_encoded_when_its_first_token_is_planned_and_stays_until_its_last():
    cache = EncoderCache(8)
    planner = EncoderCacheManager(cache, SchedulerConfig(1, 10, max_encoder_tokens=100, feature_bytes=1))
    request = asked(make_image(2, 6, b"a"))
    plan = SchedulerOutput()
    assert planner.fit(request, 2, plan) == 2 and plan.encode == []
    request.num_computed = 2
    assert planner.fit(request, 3, plan) == 3 and [image.key for image in plan.encode] == [b"a"]
    cache.put(b"a", "features")
    request.num_computed = 5
    planner.release(request)
    assert not cache.reserve(b"b", 8), "in the middle of the image its features must stay"
    assert planner.fit(request, 9, SchedulerOutput()) == 9
    request.num_computed = 8
    planner.release(request)
    assert cache.reserve(b"b", 8)


def test_tokens_wait_before_the_first_image_for_which_there_is_no_room():
    planner = EncoderCacheManager(EncoderCache(100), SchedulerConfig(1, 10, max_encoder_tokens=10, feature_bytes=1))
    request, plan = asked(make_image(1, 6, b"a"), make_image(8, 6, b"b"), make_image(15, 2, b"c")), SchedulerOutput()
    assert planner.fit(request, 17, plan) == 8  # though the third would have fitted
    assert [image.key for image in plan.encode] == [b"a"] and plan.encoder_full
    assert planner.fit(asked(make_image(0, 1, b"d")), 2, plan) == 0, "those behind do not take the room"
    huge, plan = asked(make_image(3, 50, b"e")), SchedulerOutput()
    assert planner.fit(huge, 9, plan) == 9, "one always goes, however large"


def test_equal_images_are_encoded_once_per_step():
    planner = EncoderCacheManager(EncoderCache(100), SchedulerConfig(2, 10, max_encoder_tokens=100, feature_bytes=2))
    one, two, plan = (
        asked(make_image(0, 4, b"a"), make_image(5, 4, b"a")),
        asked(make_image(1, 4, b"a")),
        SchedulerOutput(),
    )
    assert planner.fit(one, 9, plan) == 9 and planner.fit(two, 5, plan) == 5
    assert len(plan.encode) == 1 and planner.num_hits == 1 and planner.cache.nbytes == 8
    planner.release_all(one)
    planner.cache.check({b"a": 1})
