"""Outputs of the engine: new tokens and text of requests, usage, statistics (imports no torch)."""

from __future__ import annotations

import dataclasses

from pixtral.engine.request import FinishReason


@dataclasses.dataclass(frozen=True)
class TokenLogprobs:
    """Log probabilities of one token, as the model gave them, before penalties and filters.

    Attributes:
        token: the sampled token.
        logprob: its log probability.
        top: the likeliest tokens with theirs, best first, as many as were requested.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one continuation; the token that ends it counts.

    Attributes:
        cached_tokens: prompt tokens found in the prefix cache.
        image_tokens: prompt tokens that stand for patches.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    image_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """What one step added to one continuation.

    Attributes:
        request_id: of the request.
        index: which continuation of the prompt, from 0.
        text: the new text that is final: whole characters, nothing that may begin a stop string, no end token.
        token_ids: the new tokens; an end token is among them.
        logprobs: of each of them, where they were asked for.
        finish_reason: "stop", "length", "abort" or "error" in the last output of a continuation, else None.
        stop_reason: the token or the string that ended it, if one did.
        usage: in the last output of a continuation.
        error: what ended it, with finish_reason "error".
        encode_seconds: time that this step spent in the vision tower on images of the request.
        time: when the step ended, by the engine's clock.
    """

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    usage: Usage | None = None
    error: BaseException | None = None
    encode_seconds: float = 0.0
    time: float = 0.0

    def joined(self, later: RequestOutput) -> RequestOutput:
        """This output and a later one of the same continuation as one."""
        logprobs = None if self.logprobs is None else (*self.logprobs, *(later.logprobs or ()))
        return dataclasses.replace(
            later,
            text=self.text + later.text,
            token_ids=self.token_ids + later.token_ids,
            logprobs=logprobs,
            encode_seconds=self.encode_seconds + later.encode_seconds,
        )


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """State of the engine, and its counters since it was made.

    Attributes:
        num_running, num_waiting: continuations that run, and that wait.
        num_blocks, num_free_blocks: blocks of the key-value cache; free ones may still hold cached prefixes.
        image_cache_bytes: features in the encoder cache.
        image_cache_limit: what they may take.
        steps: forward passes of the decoder.
        prompt_tokens, cached_tokens: of admitted prompts, and how many of them the prefix cache had.
        new_tokens: sampled tokens.
        finished: finished continuations by reason.
        preemptions: how often a continuation lost its blocks and started again.
        images_encoded, image_hits: images that the tower encoded, and those found in the encoder cache.
    """

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    image_cache_bytes: int
    image_cache_limit: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    finished: dict[str, int]
    preemptions: int
    images_encoded: int
    image_hits: int
