"""Which requests run how many tokens in the next step (imports no torch).

Requests are ordered by priority, then by arrival. A step gives every decoding request its newest token, then prompt
tokens in that order, first to running requests, then to waiting ones, until the token budget is spent (chunked
prefill). A long prompt leaves half of the budget to shorter ones behind it. When blocks run out, the last request in
the order is preempted and starts again later; the first in the order can have all blocks, so every request finishes.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from pixtral.engine.block_manager import BlockManager
from pixtral.engine.encoder_cache import EncoderCache, EncoderCacheManager
from pixtral.engine.request import Request, SchedulerConfig, SchedulerOutput, Status


class Scheduler:
    """Keeps requests in order and allocates blocks and room in the encoder cache."""

    def __init__(self, config: SchedulerConfig, blocks: BlockManager, encoder_cache: EncoderCache) -> None:
        self.config = config
        self.blocks = blocks
        self.encoder = EncoderCacheManager(encoder_cache, config)
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.num_preemptions = 0
        self.num_prompt_tokens = 0  # of requests that have been let in
        self.num_cached_tokens = 0  # of these, found

    @property
    def num_schedulable(self) -> int:
        """Requests that run, or could run if there are blocks for them."""
        return min(len(self.running) + len(self.waiting), self.config.max_num_seqs)

    def add(self, request: Request) -> None:
        """Queue a new request."""
        assert request.status is Status.WAITING
        bisect.insort(self.waiting, request, key=_order)

    def remove(self, request: Request) -> None:
        """Free everything that a finished request holds."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
            self._release(request)
        elif request.status is Status.WAITING:
            self.waiting.remove(request)
            if request.leader is not None:
                request.leader.followers.remove(request)
        request.status = Status.FINISHED
        request.draft.clear()
        if request.followers:  # the prompt that they wait for is run by the first of them
            successor, *rest = request.followers
            successor.leader, successor.followers = None, rest
            for follower in rest:
                follower.leader = successor
            request.followers = []

    def schedule(self, max_prompt_tokens: int | None = None) -> SchedulerOutput:
        """The next step.

        Args:
            max_prompt_tokens: a smaller budget for prompts, this time.
        """
        plan = SchedulerOutput()
        decoding = [request for request in self.running if request.is_decoding and request.num_missing]
        spare = max(self.config.max_num_batched_tokens - len(decoding), 1)
        kept = any(not request.is_decoding for request in self.running)  # drafts leave a token for prompts
        for request in decoding:
            if request.status is Status.RUNNING:  # not preempted meanwhile
                spare -= self._plan_newest(request, spare - kept, plan)
        if max_prompt_tokens is not None:
            spare = min(spare, max_prompt_tokens)
        prompts = [request for request in self.running if not request.is_decoding]
        for place, request in enumerate(prompts):
            if spare:
                spare -= self._plan_prompt(request, self._share(request, prompts[place + 1 :], spare), plan)
        if not plan.preempted:
            spare = self._admit(spare, plan)
        if spare and prompts:  # what no other request has taken
            self._plan_prompt(prompts[0], plan.num_scheduled_tokens.get(prompts[0], 0) + spare, plan)
        return plan

    def update(self, plan: SchedulerOutput) -> None:
        """Account for a step that has run: its tokens are computed, full blocks findable, images unpinned."""
        for request, count in plan.num_scheduled_tokens.items():
            request.num_computed += count
            if self._is_cached(request):
                self.blocks.register_full(request)
            self.encoder.release(request)

    def fork(self, leader: Request) -> tuple[list[Request], list[tuple[int, int]]]:
        """Let the followers of a prompt that has run continue from its blocks, as far as there is room.

        Full blocks are shared, the last one is copied. Followers without room are scheduled like new requests.

        Returns:
            The followers that run now, and the (from, to) blocks to copy for them.
        """
        forked: list[Request] = []
        copies: list[tuple[int, int]] = []
        for follower in leader.followers:
            follower.leader = None
            full = leader.num_prompt_tokens // self.blocks.block_size
            own = self.blocks.blocks_for(leader.num_prompt_tokens + follower.reserve) - full
            if len(self.running) < self.config.max_num_seqs and self._is_room(own):
                copies += self.blocks.fork_table(leader, follower, own)
                follower.num_cached_tokens = follower.num_computed
                self._run(follower)
                forked.append(follower)
        leader.followers = []
        return forked, copies

    def check(self) -> None:
        """Assert that no block or image is lost, and none is held by a request that does not run."""
        assert self.running == sorted(self.running, key=_order) and self.waiting == sorted(self.waiting, key=_order)
        assert all(r.status is Status.RUNNING for r in self.running)
        assert all(r.status is Status.WAITING and not (r.blocks or r.pinned or r.num_computed) for r in self.waiting)
        self.blocks.check(request.blocks for request in self.running)
        pins: dict[bytes, int] = {}
        for request in self.running:
            assert len(request.blocks) * self.blocks.block_size >= request.num_computed
            for key in request.pinned:
                pins[key] = pins.get(key, 0) + 1
        self.encoder.cache.check(pins)

    def _plan_newest(self, request: Request, spare: int, plan: SchedulerOutput) -> int:
        """Plan a decoding request's newest token, and of its draft what `spare` allows; returns how much of that."""
        count = min(request.num_missing, 1 + spare)
        if not self._make_room(request, request.num_computed + count, plan):
            return 0
        count = self.encoder.fit(request, count, plan)  # a prompt may end with an image
        if count:
            plan.num_scheduled_tokens[request] = count
        return max(count - 1, 0)

    def _share(self, request: Request, behind: Sequence[Request], spare: int) -> int:
        """How much of the budget a prompt may take: half, if a request behind it has less left to run."""
        missing = request.num_missing
        if missing <= spare:
            return spare
        waiting = itertools.islice(self.waiting, self.config.max_num_seqs)
        shorter = any(other.num_missing < missing for other in itertools.chain(behind, waiting))
        return -(-spare // 2) if shorter else spare

    def _plan_prompt(self, request: Request, share: int, plan: SchedulerOutput) -> int:
        count = self.encoder.fit(request, min(request.num_missing, share), plan)
        if count:  # its blocks have been its own since it was admitted
            plan.num_scheduled_tokens[request] = count
        return count

    def _admit(self, spare: int, plan: SchedulerOutput) -> int:
        """Admit waiting requests in order while their whole prompts have room; returns the rest of the budget."""
        for request in list(self.waiting):
            if not spare or len(self.running) >= self.config.max_num_seqs:
                break
            if request.leader is not None:
                continue
            hits: list[int] = []
            if self._is_cached(request):
                # at least one token is run, since its logits are needed
                hits = self.blocks.find(self.blocks.block_keys(request, request.length - 1))
            own = self.blocks.blocks_for(request.length + request.reserve) - len(hits)
            # running requests will each need a block soon: waiting is better than being preempted at once
            if not self._is_room(own + len(self.running) + self.blocks.count_free(hits)):
                break
            self.blocks.share(hits)
            request.num_computed = len(hits) * self.blocks.block_size
            share = self._share(request, (), spare)
            count = self.encoder.fit(request, min(request.num_missing, share), plan)
            if not count:
                self.blocks.release(hits)
                request.num_computed = 0
                break
            request.blocks = hits + self.blocks.allocate(own)
            request.num_registered = len(hits)
            if request.num_cached_tokens is None:
                request.num_cached_tokens = request.num_computed
                self.num_prompt_tokens += request.num_prompt_tokens
                self.num_cached_tokens += request.num_computed
            self._run(request)
            plan.num_scheduled_tokens[request] = count
            spare -= count
        return spare

    def _run(self, request: Request) -> None:
        self.waiting.remove(request)
        request.status = Status.RUNNING
        bisect.insort(self.running, request, key=_order)

    def _is_room(self, count: int) -> bool:
        blocks = self.blocks
        if self.config.grow:
            free = blocks.num_empty if blocks.num_blocks < self.config.grow_before_evicting else blocks.num_free
            if count > free:
                blocks.grow(max(count - free, blocks.num_blocks // 2))
        return count <= blocks.num_free

    def _make_room(self, request: Request, end: int, plan: SchedulerOutput) -> bool:
        """Allocate blocks for the first `end` tokens; the last requests are preempted, if need be this one."""
        count = self.blocks.blocks_for(end) - len(request.blocks)
        if count <= 0:
            return True
        while not self._is_room(count):
            victim = self.running[-1]
            self._preempt(victim, plan)
            if victim is request:
                return False
        request.blocks += self.blocks.allocate(count)
        return True

    def _preempt(self, victim: Request, plan: SchedulerOutput) -> None:
        self.running.remove(victim)
        assert victim not in plan.num_scheduled_tokens, "the last in the order is planned last"
        self._release(victim)
        victim.draft.clear()
        victim.num_computed = 0
        victim.status = Status.WAITING
        bisect.insort(self.waiting, victim, key=_order)
        plan.preempted.append(victim)
        self.num_preemptions += 1

    def _release(self, request: Request) -> None:
        if request.finish_reason == "error":  # its keys and values may be NaN
            self.blocks.unregister(request.blocks)
        elif self._is_cached(request):
            self.blocks.register_full(request)
        self.blocks.release_table(request)
        self.encoder.release_all(request)

    def _is_cached(self, request: Request) -> bool:
        """Whether other requests may share its blocks; prompts given as embeddings have no keys."""
        return self.config.prefix_caching and request.prompt_embeds is None


def _order(request: Request) -> tuple[int, int, int]:
    return request.order
