"""What comes out of the engine: pieces of answers, what they cost, and how the engine is doing (no torch)."""

from __future__ import annotations

import dataclasses

from pixtral.engine.request import FinishReason


@dataclasses.dataclass(frozen=True)
class TokenLogprobs:
    """Log probabilities at one place, as the model saw it, before penalties and filters.

    Attributes:
        token: the chosen token.
        logprob: its log probability.
        top: the likeliest tokens with theirs, best first, as many as were asked for.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one continuation; the token that ends it counts.

    Attributes:
        cached_tokens: prompt tokens whose keys and values were there already.
        image_tokens: prompt tokens that stand for patches.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    image_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Output:
    """What one step gave to one continuation.

    Attributes:
        request_id: whose it is.
        index: which continuation of the prompt, from 0.
        text: the new text that is certain: no half characters, no beginning of a stop string, no end token.
        token_ids: the new tokens; an end token is among them.
        logprobs: of each of them, where they were asked for.
        finish_reason: "stop", "length", "abort" or "error" in the last output of a continuation, else None.
        stop_reason: the token or the string that ended it, if one did.
        usage: in the last output of a continuation.
        error: what went wrong, with "error".
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

    def joined(self, later: Output) -> Output:
        """This output and a later one of the same continuation as one."""
        logprobs = None if self.logprobs is None else (*self.logprobs, *(later.logprobs or ()))
        return dataclasses.replace(
            later, text=self.text + later.text, token_ids=self.token_ids + later.token_ids, logprobs=logprobs
        )


@dataclasses.dataclass(frozen=True)
class EngineStats:
    """Where the engine stands, and what it has done since it was made.

    Attributes:
        num_running, num_waiting: continuations at work, and in the queue.
        num_blocks, num_free_blocks: places for keys and values; free ones may still hold prefixes that can be hit.
        image_cache_bytes: features of images that are kept.
        image_cache_limit: what they may take.
        steps: forward passes of the decoder.
        prompt_tokens, cached_tokens: of admitted prompts, and how many of them the prefix cache had.
        new_tokens: chosen tokens.
        finished: ended continuations by reason.
        preemptions: times that a continuation had to give its blocks back and start again.
        images_encoded, image_hits: images that went through the tower, and those that did not have to.
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
