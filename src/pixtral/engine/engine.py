"""Engine: many requests at once, joining and leaving at any step."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from pixtral.engine.block_manager import BLOCK_SIZE, BlockPool
from pixtral.engine.config import EngineConfig
from pixtral.engine.core import Core
from pixtral.engine.encoder_cache import ImageCache
from pixtral.engine.input_processor import Admission
from pixtral.engine.model import PackedModel
from pixtral.engine.model_runner import Runner
from pixtral.engine.outputs import EngineStats, Output, TokenLogprobs, Usage
from pixtral.engine.request import REQUEST_ERRORS, Budget, EngineRequest, FinishReason, Plan, Request
from pixtral.engine.sampler import Choice, Voice, sample
from pixtral.engine.scheduler import Scheduler
from pixtral.engine.token_budget import Pace
from pixtral.errors import GenerationError
from pixtral.text.stream import AnswerText, StreamTokenizer


@dataclasses.dataclass
class _Live:
    """One continuation beside its Request: how its tokens are chosen, read and told."""

    voice: Voice
    text: AnswerText | None
    told: int = 0  # new tokens that outputs have given
    pieces: str = ""
    logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
    error: Exception | None = None


class Engine:
    """Add requests, call `step()` while `has_unfinished`; every step gives the new tokens of all who got some.

    Not for several threads at once: `AsyncEngine` has one of its own for it.
    """

    def __init__(
        self,
        model: PackedModel,
        config: EngineConfig,
        *,
        tokenizer: StreamTokenizer | None = None,
        eos_token_ids: Sequence[int] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            model: the network, in eval mode.
            config: sizes.
            tokenizer: reads answers; without one outputs have no text.
            eos_token_ids: tokens that end every answer that does not ignore them.
            clock: seconds, for the length of steps.

        Raises:
            ConfigError: the memory for keys and values does not hold one context.
        """
        self.model = model
        self.config = config
        self._admission = Admission(model, config, tokenizer is not None, tuple(eos_token_ids))
        self._tokenizer = tokenizer
        self._clock = clock
        blocks = BlockPool(self._admission.num_blocks, BLOCK_SIZE)
        images = ImageCache(config.image_cache_bytes)
        budget = Budget(
            config.max_num_seqs,
            config.max_num_batched_tokens,
            max_encoder_tokens=config.max_encoder_tokens,
            feature_bytes=model.text_config.hidden_size * model.dtype.itemsize,
            prefix_caching=config.prefix_caching,
        )
        self.scheduler = Scheduler(budget, blocks, images)
        self.runner = Runner(model, blocks, images, kv_cache=config.kv_cache, image_token=self._admission.image_token)
        self._core = Core(self.scheduler, self.runner, config.prompt_lookup, self._admission.image_token)
        self._pace = Pace(config.max_stretch, config.max_num_batched_tokens)
        self._families: dict[str, list[Request]] = {}
        self._live: dict[Request, _Live] = {}
        self._finished: collections.Counter[str] = collections.Counter()
        self._num_new_tokens = 0
        self._news: dict[Request, None] = {}  # those whose outputs have something to say

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self._admission.max_model_len

    @property
    def has_unfinished(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._live)

    def is_known(self, request_id: str) -> bool:
        """Whether a request of this name has continuations that have not ended."""
        return request_id in self._families

    def add_request(self, request: EngineRequest) -> None:
        """Take a request in; it runs from the next step on, as soon as there is room.

        Raises:
            PromptError: an empty prompt, one that leaves no room for an answer, or images that do not fit it.
            GenerationError: an identifier that is in use, or parameters that this engine cannot honour.
        """
        if request.request_id in self._families:
            raise GenerationError(f"request_id {request.request_id!r} is in use; give every request its own")
        family = self._admission.admit(request)
        self._live |= {one: self._begin(one, request) for one in family}
        self._families[request.request_id] = family
        self._core.add(family)

    def abort(self, request_id: str) -> list[Output]:
        """End a request now; its last outputs. Nothing for one that has ended or never was."""
        for request in self._families.get(request_id, ()):
            self._core.finish(request, "abort")
            self._news[request] = None
        return self._tell()

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Schedule, encode, run, sample: one forward pass, and a token or more for everyone who has got that far."""
        begin = self._clock()
        decoding = sum(request.is_decoding for request in self.scheduler.running)
        plan = self._core.plan(self._pace.limit(decoding, self.scheduler.num_seated - decoding))
        if plan.encode:
            self._encode(plan)
            begin = self._clock()
        try:
            self._core.run(plan)
        except REQUEST_ERRORS as error:
            for request in list(plan.tokens):  # whichever it was; those that wait have nothing to do with it
                self._fail(request, error)
        self._choose()
        prompt_tokens = sum(plan.tokens.values()) - decoding
        self._pace.note(decoding, max(prompt_tokens, 0), self._clock() - begin)
        return self._tell()

    def stats(self) -> EngineStats:
        """Where the engine stands."""
        blocks, images = self.scheduler.blocks, self.scheduler.images
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            num_blocks=blocks.num_blocks,
            num_free_blocks=blocks.num_free,
            image_cache_bytes=images.cache.nbytes,
            image_cache_limit=images.cache.limit,
            steps=self._core.num_steps,
            prompt_tokens=self.scheduler.num_prompt_tokens,
            cached_tokens=self.scheduler.num_cached_tokens,
            new_tokens=self._num_new_tokens,
            finished=dict(self._finished),
            preemptions=self.scheduler.num_preemptions,
            images_encoded=self.runner.num_encoded,
            image_hits=images.num_hits,
        )

    def check(self) -> None:
        """Assert that nothing is lost and nothing is held in vain."""
        self.scheduler.check()
        alive = {*self.scheduler.running, *self.scheduler.waiting}
        assert alive == set(self._live) == {one for family in self._families.values() for one in family}

    def _encode(self, plan: Plan) -> None:
        """Images of the plan through the tower; a broken one ends those who asked for it."""
        try:
            self.runner.encode(plan.encode)
            return
        except REQUEST_ERRORS:
            pass  # one at a time shows whose it is
        for image in plan.encode:
            try:
                self.runner.encode([image])
            except REQUEST_ERRORS as error:
                for request in [one for one in plan.tokens if image.key in one.pinned]:
                    self._fail(request, error)
                    del plan.tokens[request]

    def _choose(self) -> None:
        """Tokens for all who are ready; with drafts that come true, several."""
        while ready := [request for request in self.scheduler.running if self._core.is_ready(request)]:
            choices = sample(self._core.logits(ready), [self._live[request].voice for request in ready])
            for request, choice in zip(ready, choices, strict=True):
                self._take(request, choice)

    def _take(self, request: Request, choice: Choice) -> None:
        live = self._live[request]
        if choice.error is not None:
            self._fail(request, choice.error)
            return
        stop = None
        if live.text is not None and choice.token not in request.params.stop_token_ids:
            live.pieces += live.text.push(choice.token)
            stop = live.text.stop
        if choice.logprobs is not None:
            live.logprobs.append(choice.logprobs)
        self._num_new_tokens += 1
        self._news[request] = None
        self._core.append(request, choice.token, stop)

    def _fail(self, request: Request, error: Exception) -> None:
        self._live[request].error = error
        self._news[request] = None
        self._core.finish(request, "error")

    def _tell(self) -> list[Output]:
        """Outputs of all who have something new to say; those who have ended are forgotten."""
        outputs = []
        for request in self._news:
            live, ended = self._live[request], request.finish_reason
            if ended is not None and live.text is not None and live.text.stop is None:
                live.pieces += live.text.finish()
            outputs.append(self._output(request, live, ended))
            live.told, live.pieces, live.logprobs = len(request.new_ids), "", []
            if ended is not None:
                self._finished[ended] += 1
                del self._live[request]
                family = self._families[request.request_id]
                family.remove(request)
                if not family:
                    del self._families[request.request_id]
        self._news = {}
        return outputs

    def _begin(self, one: Request, request: EngineRequest) -> _Live:
        text = None
        if self._tokenizer is not None:
            text = AnswerText(self._tokenizer, request.params.stop, request.skip_special_tokens)
        return _Live(Voice(one, None if request.guide is None else request.guide()), text)

    def _output(self, request: Request, live: _Live, ended: FinishReason | None) -> Output:
        usage = None
        if ended is not None:
            usage = Usage(
                request.num_prompt_tokens,
                len(request.new_ids),
                request.num_cached_tokens or 0,
                sum(image.length for image in request.images),
            )
        return Output(
            request.request_id,
            request.index,
            live.pieces,
            tuple(request.new_ids[live.told :]),
            None if request.params.logprobs is None else tuple(live.logprobs),
            ended,
            request.stop_reason,
            usage,
            live.error,
        )
