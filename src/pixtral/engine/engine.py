"""Engine: many requests at once, which join and leave at any step (continuous batching)."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from pixtral.engine.block_manager import BLOCK_SIZE, BlockManager
from pixtral.engine.config import EngineConfig
from pixtral.engine.core import EngineCore
from pixtral.engine.encoder_cache import EncoderCache
from pixtral.engine.input_processor import InputProcessor
from pixtral.engine.model import PackedModel, cache_dtype
from pixtral.engine.model_runner import ModelRunner
from pixtral.engine.outputs import EngineStats, RequestOutput, TokenLogprobs, Usage
from pixtral.engine.request import (
    REQUEST_ERRORS,
    EngineRequest,
    FinishReason,
    ImageInput,
    Request,
    SchedulerConfig,
    SchedulerOutput,
)
from pixtral.engine.sampler import SampledToken, SamplingState, sample
from pixtral.engine.scheduler import Scheduler
from pixtral.engine.token_budget import TokenBudget
from pixtral.errors import GenerationError
from pixtral.ops.kv_cache import token_bytes
from pixtral.text.detokenizer import Decodes, Detokenizer

KEPT_BYTES = 1 << 30  # a cache that grows keeps prefixes of finished requests up to this size


@dataclasses.dataclass
class _Continuation:
    """What the engine keeps of one continuation beside its Request."""

    sampling: SamplingState
    detokenizer: Detokenizer | None
    num_returned: int = 0  # new tokens that outputs have held
    text: str = ""  # since the last output, as the next two
    logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
    encode_seconds: float = 0.0
    error: Exception | None = None


class Engine:
    """Add requests, call `step()` while `has_unfinished`; every step returns the new tokens of all that got some.

    Not thread-safe: `SharedEngine` serves iterators of one or several threads, `AsyncEngine` an event loop.
    """

    def __init__(
        self,
        model: PackedModel,
        config: EngineConfig,
        *,
        tokenizer: Decodes | None = None,
        eos_token_ids: Sequence[int] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            model: the network, in eval mode.
            config: sizes.
            tokenizer: decodes answers; without one outputs have no text.
            eos_token_ids: tokens that end every answer that does not ignore them.
            clock: seconds, for the length of steps.

        Raises:
            ConfigError: the memory for keys and values does not hold one context.
        """
        self.model = model
        self.config = config
        self._input_processor = InputProcessor(model, config, tokenizer is not None, tuple(eos_token_ids))
        self._tokenizer = tokenizer
        self._clock = clock
        blocks = BlockManager(self._input_processor.num_blocks, BLOCK_SIZE)
        encoder_cache = EncoderCache(config.image_cache_bytes)
        dtype = cache_dtype(config.kv_cache, model.dtype)
        limits = SchedulerConfig(
            config.max_num_seqs,
            config.max_num_batched_tokens,
            max_encoder_tokens=config.max_encoder_tokens,
            feature_bytes=model.text_config.hidden_size * model.dtype.itemsize,
            prefix_caching=config.prefix_caching,
            grow=config.kv_cache_bytes is None,
            grow_before_evicting=KEPT_BYTES // (BLOCK_SIZE * token_bytes(model.text_config, dtype)),
        )
        image_token = self._input_processor.image_token
        self.scheduler = Scheduler(limits, blocks, encoder_cache)
        self.runner = ModelRunner(model, blocks, encoder_cache, kv_cache=config.kv_cache, image_token=image_token)
        self._core = EngineCore(self.scheduler, self.runner, image_token)
        self._budget = TokenBudget(config.max_stretch, config.max_num_batched_tokens)
        self._families: dict[str, list[Request]] = {}
        self._continuations: dict[Request, _Continuation] = {}
        self._finished: collections.Counter[str] = collections.Counter()
        self._num_new_tokens = 0
        self._updated: dict[Request, None] = {}  # those that have something for the next output

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self._input_processor.max_model_len

    @property
    def has_unfinished(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._continuations)

    def is_known(self, request_id: str) -> bool:
        """Whether a request of this name has unfinished continuations."""
        return request_id in self._families

    def add_request(self, request: EngineRequest) -> None:
        """Take a request in; it runs from the next step on, as soon as there is room.

        Raises:
            PromptError: an empty prompt, one that leaves no room for an answer, or images that do not fit it.
            GenerationError: an identifier that is in use, or parameters that this engine cannot honour.
        """
        if request.request_id in self._families:
            raise GenerationError(f"request_id {request.request_id!r} is in use; give every request its own")
        family = self._input_processor.process(request)
        self._continuations |= {one: self._continuation(one, request) for one in family}
        self._families[request.request_id] = family
        self._core.add(family)

    def abort(self, request_id: str) -> list[RequestOutput]:
        """End a request now; returns its last outputs, none for one that has ended or never was."""
        for request in self._families.get(request_id, ()):
            self._core.finish(request, "abort")
            self._updated[request] = None
        return self._outputs()

    @property
    def cache_bytes(self) -> int:
        """Memory that keys, values and image features take now."""
        return self.runner.cache.nbytes + self.scheduler.encoder.cache.nbytes

    def step(self) -> list[RequestOutput]:
        """Schedule, encode, run, sample: one forward pass, and a token or more for every request that is ready."""
        # the hooks of an offloaded model leave tensors in it, which inference mode would make useless for training
        with torch.no_grad() if hasattr(self.model, "hf_device_map") else torch.inference_mode():
            return self._step()

    def _step(self) -> list[RequestOutput]:
        num_decoding = sum(request.is_decoding for request in self.scheduler.running)
        plan = self._core.plan(self._budget.limit(num_decoding, self.scheduler.num_schedulable - num_decoding))
        if plan.encode:
            self._encode(plan)
        begin = self._clock()
        self._run(plan)
        self._sample()
        num_prompt_tokens = sum(plan.num_scheduled_tokens.values()) - num_decoding
        self._budget.observe(num_decoding, max(num_prompt_tokens, 0), self._clock() - begin)
        return self._outputs()

    def stats(self) -> EngineStats:
        """State and counters of the engine."""
        blocks, encoder = self.scheduler.blocks, self.scheduler.encoder
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            num_blocks=blocks.num_blocks,
            num_free_blocks=blocks.num_free,
            image_cache_bytes=encoder.cache.nbytes,
            image_cache_limit=encoder.cache.limit,
            steps=self._core.num_steps,
            prompt_tokens=self.scheduler.num_prompt_tokens,
            cached_tokens=self.scheduler.num_cached_tokens,
            new_tokens=self._num_new_tokens,
            finished=dict(self._finished),
            preemptions=self.scheduler.num_preemptions,
            images_encoded=self.runner.num_encoded,
            image_hits=encoder.num_hits,
        )

    def check(self) -> None:
        """Assert that no request, block or image is lost or held without need."""
        self.scheduler.check()
        alive = {*self.scheduler.running, *self.scheduler.waiting}
        assert alive == set(self._continuations) == {one for family in self._families.values() for one in family}

    def _run(self, plan: SchedulerOutput) -> None:
        """One forward pass. Where it fails, each request runs alone, and those that fail alone are ended."""
        try:
            self._core.run(plan)
        except REQUEST_ERRORS as error:
            scheduled = list(plan.num_scheduled_tokens.items())
            for request, count in scheduled:
                try:
                    if len(scheduled) == 1:
                        raise error
                    self._core.run(SchedulerOutput({request: count}))
                except REQUEST_ERRORS as own:
                    self._fail(request, own)
            self._undo_growth(error)

    def _undo_growth(self, error: Exception) -> None:
        """Give blocks back for which there was no memory, with the requests that hold them."""
        blocks = self.scheduler.blocks
        held = self.runner.cache.capacity // blocks.block_size
        if blocks.num_blocks > held:
            for request in [one for one in self.scheduler.running if max(one.blocks, default=0) >= held]:
                self._fail(request, error)
            blocks.shrink(held)

    def _encode(self, plan: SchedulerOutput) -> None:
        """Run the images of the plan through the tower; a broken one ends the requests that have it."""
        begin = self._clock()
        try:
            self.runner.encode(plan.encode)
        except REQUEST_ERRORS:  # encoding one at a time shows which image it is
            for image in plan.encode:
                try:
                    self.runner.encode([image])
                except REQUEST_ERRORS as error:
                    for request in _requests_with(image, plan):
                        self._fail(request, error)
                        del plan.num_scheduled_tokens[request]
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)  # or the tower's time would be measured as the decoder's
        seconds = self._clock() - begin
        for request in {request for image in plan.encode for request in _requests_with(image, plan)}:
            self._continuations[request].encode_seconds += seconds

    def _sample(self) -> None:
        """Sample for all requests that are ready; several tokens where drafts are accepted."""
        while ready := [request for request in self.scheduler.running if self._core.is_ready(request)]:
            states = [self._continuations[request].sampling for request in ready]
            for request, sampled in zip(ready, sample(self._core.logits(ready), states), strict=True):
                self._append(request, sampled)

    def _append(self, request: Request, sampled: SampledToken) -> None:
        one = self._continuations[request]
        if sampled.error is not None:
            self._fail(request, sampled.error)
            return
        stop = None
        if one.detokenizer is not None and sampled.token not in request.params.stop_token_ids:
            one.text += one.detokenizer.push(sampled.token)
            stop = one.detokenizer.stop
        if sampled.logprobs is not None:
            one.logprobs.append(sampled.logprobs)
        self._num_new_tokens += 1
        self._updated[request] = None
        self._core.append(request, sampled.token, stop)

    def _fail(self, request: Request, error: Exception) -> None:
        self._continuations[request].error = error
        self._updated[request] = None
        self._core.finish(request, "error")

    def _outputs(self) -> list[RequestOutput]:
        """Outputs of all updated continuations; finished ones are forgotten."""
        outputs = []
        for request in self._updated:
            one, reason = self._continuations[request], request.finish_reason
            if reason is not None and one.detokenizer is not None and one.detokenizer.stop is None:
                one.text += one.detokenizer.finish()
                if one.detokenizer.stop is not None and reason == "length":  # completed by the last characters
                    reason = "stop"
                    request.finish_reason, request.stop_reason = reason, one.detokenizer.stop
            outputs.append(_output(request, one, reason, self._clock()))
            one.num_returned, one.text, one.logprobs, one.encode_seconds = len(request.new_ids), "", [], 0.0
            if reason is not None:
                self._finished[reason] += 1
                del self._continuations[request]
                family = self._families[request.request_id]
                family.remove(request)
                if not family:
                    del self._families[request.request_id]
        self._updated = {}
        return outputs

    def _continuation(self, one: Request, request: EngineRequest) -> _Continuation:
        detokenizer = None
        if self._tokenizer is not None:
            detokenizer = Detokenizer(
                self._tokenizer, request.params.stop, skip_special_tokens=request.skip_special_tokens
            )
        return _Continuation(SamplingState(one, None if request.guide is None else request.guide()), detokenizer)


def _requests_with(image: ImageInput, plan: SchedulerOutput) -> list[Request]:
    """The scheduled requests that need an image in this step."""
    return [request for request in plan.num_scheduled_tokens if image.key in request.pinned]


def _output(request: Request, one: _Continuation, reason: FinishReason | None, time: float) -> RequestOutput:
    usage = None
    if reason is not None:
        usage = Usage(
            request.num_prompt_tokens,
            len(request.new_ids),
            request.num_cached_tokens or 0,
            sum(image.length for image in request.images),
        )
    return RequestOutput(
        request.request_id,
        request.index,
        one.text,
        tuple(request.new_ids[one.num_returned :]),
        None if request.params.logprobs is None else tuple(one.logprobs),
        reason,
        request.stop_reason,
        usage,
        one.error,
        one.encode_seconds,
        time,
    )
