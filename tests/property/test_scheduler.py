"""The scheduler with a model that costs nothing: whatever comes, nothing is lost, mixed up or left behind."""

from __future__ import annotations

import itertools
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from profiles import examples

from pixtral.engine.block_manager import BlockManager
from pixtral.engine.encoder_cache import EncoderCache
from pixtral.engine.request import ImageInput, Request, SchedulerConfig, SchedulerOutput, Status
from pixtral.engine.sampling_params import SamplingParams
from pixtral.engine.scheduler import Scheduler

SIZE = 4  # tokens of a block
BLOCKS = 9
IMG = 9

# what prompts are made of: words, or an image (its content, its number of patches)
pieces = st.lists(st.integers(1, 3) | st.tuples(st.sampled_from("ab"), st.sampled_from([2, 5])), min_size=1, max_size=9)


def build(parts):
    """Ids and images of a prompt; images of one size have the same ids."""
    ids, images = [], []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
        elif len(ids) + part[1] < BLOCKS * SIZE - 6:
            name, patches = part
            images.append(ImageInput(len(ids), patches, patches, f"{name}{patches}".encode(), lambda: None))
            ids += [IMG] * patches
    return tuple(ids) or (1,), tuple(images)


def truths(request, end):
    """What the keys and values at each place depend on: every token and every pixel up to it."""
    pixels = {i: (image.key, i - image.start) for image in request.images for i in range(image.start, image.end)}
    line, seen = [], 0
    for i, token in enumerate(request.ids_between(0, end)):
        seen = hash((seen, token, pixels.get(i)))
        line.append(seen)
    return line


class Machine(RuleBasedStateMachine):
    """Requests come, run, end and are aborted in any order."""

    @initialize(
        seqs=st.integers(1, 4),
        tokens=st.integers(1, 12),
        patches=st.integers(1, 8),
        room=st.integers(1, 12),
        caching=st.booleans(),
        drafts=st.booleans(),
    )
    def start(self, seqs, tokens, patches, room, caching, drafts):
        budget = SchedulerConfig(seqs, tokens, max_encoder_tokens=patches, feature_bytes=1, prefix_caching=caching)
        self.scheduler = Scheduler(budget, BlockManager(BLOCKS, SIZE), EncoderCache(room))
        self.random = random.Random(seqs)
        self.drafts = drafts
        self.content = {}
        self.alive = []
        self.arrival = itertools.count()
        self.encoded = set()

    @rule(parts=pieces, new=st.integers(1, 24), priority=st.sampled_from([0, 0, 0, 1]), n=st.sampled_from([1, 1, 3]))
    def add(self, parts, new, priority, n):
        ids, images = build(parts)
        limit = min(new, BLOCKS * SIZE - len(ids))
        arrival = next(self.arrival)
        family = [
            Request(
                SamplingParams(), ids, len(ids), limit, images=images, order=(priority, arrival, index), index=index
            )
            for index in range(n)
        ]
        leader, *followers = family
        leader.followers = followers
        for follower in followers:
            follower.leader = leader
        for request in family:
            self.scheduler.add(request)
            self.alive.append(request)

    @rule(which=st.integers(0, 99))
    def abort(self, which):
        if self.alive:
            self.scheduler.remove(self.alive.pop(which % len(self.alive)))

    @rule(prompt_tokens=st.none() | st.integers(1, 5))
    def step(self, prompt_tokens=None):
        scheduler = self.scheduler
        for request in scheduler.running:
            if self.drafts and request.new_ids and request.is_decoding:
                room = request.limit - len(request.new_ids) - 1
                request.draft[:] = [self.random.randint(1, 2) for _ in range(min(room, self.random.randint(0, 3)))]
        decoding = [request for request in scheduler.running if request.is_decoding]
        before = {request: request.num_computed for request in scheduler.running}
        plan = scheduler.schedule(prompt_tokens)
        self.check_plan(plan, decoding, prompt_tokens)
        for image in plan.encode:
            scheduler.encoder.cache.put(image.key, image.key)
        for request, count in plan.num_scheduled_tokens.items():
            self.run(request, count)
        assert all(
            request.num_computed == before.get(request, request.num_computed) for request in plan.num_scheduled_tokens
        )
        scheduler.update(plan)
        for request in [request for request in plan.num_scheduled_tokens if request.num_computed >= request.length]:
            self.say(request)
            if request.followers:
                forked, copies = scheduler.fork(request)
                for source, target in copies:
                    for i in range(SIZE):
                        self.content[target * SIZE + i] = self.content.get(source * SIZE + i)
                for follower in forked:
                    self.say(follower)
        scheduler.check()

    def check_plan(self, plan: SchedulerOutput, decoding, prompt_tokens):
        """Every decoding request has its token; prompts keep to the budget; images to theirs."""
        budget = self.scheduler.config
        for request in decoding:
            assert (
                request in plan.num_scheduled_tokens
                or request in plan.preempted
                or any(image.end == request.num_prompt_tokens for image in request.images)
            )
        newest = sum(request in plan.num_scheduled_tokens for request in decoding)
        assert sum(plan.num_scheduled_tokens.values()) - newest <= max(budget.max_num_batched_tokens - newest, 1)
        if prompt_tokens is not None:
            assert (
                sum(n for request, n in plan.num_scheduled_tokens.items() if request not in decoding) <= prompt_tokens
            )
        assert len(self.scheduler.running) <= budget.max_num_seqs
        assert len(plan.encode) <= 1 or sum(i.num_features for i in plan.encode) <= budget.max_encoder_tokens
        assert len({image.key for image in plan.encode}) == len(plan.encode)

    def run(self, request, count):
        """Read what was computed before, write what this step computes, with the images at hand."""
        start = request.num_computed
        for place, truth in enumerate(truths(request, start + count)):
            slot = request.blocks[place // SIZE] * SIZE + place % SIZE
            if place < start:
                assert self.content[slot] == truth, "somebody else's keys and values"
            else:
                self.content[slot] = truth
        for image in request.images:
            if image.start < start + count and image.end > start:
                assert self.scheduler.encoder.cache.get(image.key) == image.key

    def say(self, request):
        """Choose a token, or several if the draft comes true."""
        while request.status is Status.RUNNING and request.num_computed >= request.length:
            request.append(self.random.randint(1, 2))
            if len(request.new_ids) >= request.limit:
                self.scheduler.remove(request)
                self.alive.remove(request)

    @invariant()
    def nothing_is_lost(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check()
            queued = self.scheduler.running + self.scheduler.waiting
            assert sorted(map(id, queued)) == sorted(map(id, self.alive))

    def teardown(self):
        """Nobody is left behind, and in the end everything is free."""
        if not hasattr(self, "scheduler"):
            return
        tokens = sum(request.num_prompt_tokens + request.limit for request in self.alive)
        for _ in range(20 + 5 * tokens * (1 + len(self.alive))):
            if not self.alive:
                break
            first = min(self.scheduler.running or self.alive, key=lambda request: request.order)
            had = (first.num_computed, first.length)
            holders = {one: one.num_computed for one in self.scheduler.running if one is not first and one.pinned}
            self.step()
            if first in self.alive and had == (first.num_computed, first.length):
                # it may wait for the room of an image that others are in the middle of, who get on meanwhile
                assert any(image.start == first.num_computed for image in first.images), "stuck"
                assert any(one.num_computed > place for one, place in holders.items()), "stuck"
        assert not self.alive
        scheduler = self.scheduler
        assert scheduler.blocks.num_free == BLOCKS
        scheduler.encoder.cache.clear()
        assert scheduler.encoder.cache.nbytes == 0
        scheduler.check()


Machine.TestCase.settings = settings(examples(100), stateful_step_count=30)
test_machine = Machine.TestCase
