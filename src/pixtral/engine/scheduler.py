"""Who runs how many tokens in the next step: decoding first, long prompts in pieces, no one left behind (no torch).

Requests stand in one order, by priority, then by arrival. A step gives every decoding request its token, then prompt
tokens in that order, first to those that run, then to those that wait, until the budget is spent; a long prompt lets
half of it through to shorter ones behind it. Whoever runs out of blocks takes them from the last in the order, which
starts again later; since the first in the order can have all of them, it always gets on, and so everybody becomes
first some day.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from pixtral.engine.block_manager import BlockPool, fork_table, name_blocks, register_full, release_table
from pixtral.engine.encoder_cache import ImageCache, ImagePlanner
from pixtral.engine.request import Budget, Plan, Request, Status


class Scheduler:
    """Keeps the order; hands out blocks and room for images."""

    def __init__(self, budget: Budget, blocks: BlockPool, images: ImageCache) -> None:
        self.budget = budget
        self.blocks = blocks
        self.images = ImagePlanner(images, budget)
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.num_preemptions = 0
        self.num_prompt_tokens = 0  # of requests that have been let in
        self.num_cached_tokens = 0  # of these, found

    @property
    def num_seated(self) -> int:
        """Requests that run, or could if there are blocks for them."""
        return min(len(self.running) + len(self.waiting), self.budget.max_num_seqs)

    def add(self, request: Request) -> None:
        """A new request, at its place in the order."""
        assert request.status is Status.WAITING
        bisect.insort(self.waiting, request, key=_order)

    def remove(self, request: Request) -> None:
        """A request has ended, at whatever point: everything that it held is free."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
            self._give_back(request)
        elif request.status is Status.WAITING:
            self.waiting.remove(request)
            if request.leader is not None:
                request.leader.followers.remove(request)
        request.status = Status.FINISHED
        request.draft.clear()
        if request.followers:  # they wait for a prompt that this one will not have run
            heir, *rest = request.followers
            heir.leader, heir.followers = None, rest
            for follower in rest:
                follower.leader = heir
            request.followers = []

    def schedule(self, max_prompt_tokens: int | None = None) -> Plan:
        """The next step.

        Args:
            max_prompt_tokens: a smaller budget for prompts, this time.
        """
        plan = Plan()
        decoding = [request for request in self.running if request.is_decoding and request.num_missing]
        spare = max(self.budget.max_num_batched_tokens - len(decoding), 1)
        kept = any(not request.is_decoding for request in self.running)  # one token, that drafts may not take
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
        if spare and prompts:  # what nobody has taken
            self._plan_prompt(prompts[0], plan.tokens.get(prompts[0], 0) + spare, plan)
        return plan

    def update(self, plan: Plan) -> None:
        """The step has run: its tokens are computed, full blocks can be found, images may go."""
        for request, count in plan.tokens.items():
            request.num_computed += count
            if self._is_cached(request):
                register_full(self.blocks, request)
            self.images.release(request)

    def fork(self, leader: Request) -> tuple[list[Request], list[tuple[int, int]]]:
        """The prompt has run: those who waited for it go on from its blocks, as far as there is room.

        Full blocks are shared, the last one is copied. Those for which there is no room wait for themselves.

        Returns:
            The followers that run now, and the (from, to) blocks whose content must be copied for them.
        """
        forked: list[Request] = []
        copies: list[tuple[int, int]] = []
        for follower in leader.followers:
            follower.leader = None
            full = leader.num_prompt_tokens // self.blocks.block_size
            own = self.blocks.blocks_for(leader.num_prompt_tokens + follower.reserve) - full
            if len(self.running) < self.budget.max_num_seqs and self._is_room(own):
                copies += fork_table(self.blocks, leader, follower, own)
                follower.num_cached_tokens = follower.num_computed
                self._run(follower)
                forked.append(follower)
        leader.followers = []
        return forked, copies

    def check(self) -> None:
        """Assert that nothing is lost and nothing is held by those who do not run."""
        assert self.running == sorted(self.running, key=_order) and self.waiting == sorted(self.waiting, key=_order)
        assert all(r.status is Status.RUNNING for r in self.running)
        assert all(r.status is Status.WAITING and not (r.blocks or r.pinned or r.num_computed) for r in self.waiting)
        self.blocks.check(request.blocks for request in self.running)
        pins: dict[bytes, int] = {}
        for request in self.running:
            assert len(request.blocks) * self.blocks.block_size >= request.num_computed
            for key in request.pinned:
                pins[key] = pins.get(key, 0) + 1
        self.images.cache.check(pins)

    def _plan_newest(self, request: Request, spare: int, plan: Plan) -> int:
        """A decoding request's newest token, and of its draft what `spare` allows; gives what was taken of that."""
        count = min(request.num_missing, 1 + spare)
        if not self._make_room(request, request.num_computed + count, plan):
            return 0
        count = self.images.fit(request, count, plan)  # a prompt may end with an image
        if count:
            plan.tokens[request] = count
        return max(count - 1, 0)

    def _share(self, request: Request, behind: Sequence[Request], spare: int) -> int:
        """Of the budget for prompts; half of it, if there is somebody behind who has less left to read."""
        missing = request.num_missing
        if missing <= spare:
            return spare
        waiting = itertools.islice(self.waiting, self.budget.max_num_seqs)
        shorter = any(other.num_missing < missing for other in itertools.chain(behind, waiting))
        return -(-spare // 2) if shorter else spare

    def _plan_prompt(self, request: Request, share: int, plan: Plan) -> int:
        count = self.images.fit(request, min(request.num_missing, share), plan)
        if count:  # its blocks have been its own since it was admitted
            plan.tokens[request] = count
        return count

    def _admit(self, spare: int, plan: Plan) -> int:
        """Let waiting requests in, in order, as long as their whole prompts have room; the rest of the budget."""
        for request in list(self.waiting):
            if not spare or len(self.running) >= self.budget.max_num_seqs:
                break
            if request.leader is not None:
                continue
            hits: list[int] = []
            if self._is_cached(request):
                # one token at least is left to run, since its logits are wanted
                hits = self.blocks.find(name_blocks(request, self.blocks.block_size, request.length - 1))
            own = self.blocks.blocks_for(request.length + request.reserve) - len(hits)
            # those that run will each need a block soon: better to wait than to be preempted at once
            if not self._is_room(own + len(self.running) + self.blocks.count_free(hits)):
                break
            self.blocks.share(hits)
            request.num_computed = len(hits) * self.blocks.block_size
            share = self._share(request, (), spare)
            count = self.images.fit(request, min(request.num_missing, share), plan)
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
            plan.tokens[request] = count
            spare -= count
        return spare

    def _run(self, request: Request) -> None:
        self.waiting.remove(request)
        request.status = Status.RUNNING
        bisect.insort(self.running, request, key=_order)

    def _is_room(self, count: int) -> bool:
        if count > self.blocks.num_free and self.budget.grow:
            self.blocks.grow(max(count - self.blocks.num_free, self.blocks.num_blocks // 2))
        return count <= self.blocks.num_free

    def _make_room(self, request: Request, end: int, plan: Plan) -> bool:
        """Blocks for the first `end` tokens; the last in the order give theirs, if need be this one itself."""
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

    def _preempt(self, victim: Request, plan: Plan) -> None:
        self.running.remove(victim)
        assert victim not in plan.tokens, "the last in the order is planned last"
        self._give_back(victim)
        victim.draft.clear()
        victim.num_computed = 0
        victim.status = Status.WAITING
        bisect.insort(self.waiting, victim, key=_order)
        plan.preempted.append(victim)
        self.num_preemptions += 1

    def _give_back(self, request: Request) -> None:
        if self._is_cached(request):
            register_full(self.blocks, request)
        release_table(self.blocks, request)
        self.images.release_all(request)

    def _is_cached(self, request: Request) -> bool:
        """Whether blocks of the request can be found by others: embeddings have no names."""
        return self.budget.prefix_caching and request.prompt_embeds is None


def _order(request: Request) -> tuple[int, int, int]:
    return request.order
