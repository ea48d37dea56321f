"""How the tokens of one request are sampled and when it ends; every setting is checked (imports no torch)."""

from __future__ import annotations

import dataclasses
import math
import numbers

from pixtral.errors import GenerationError

DEFAULT_NGRAM = 2
MAX_BIAS = 100.0
MAX_LOGPROBS = 100
_PENALTIES = (0.01, 100.0)  # a logit divided by much less is infinite
_GREEDY_BELOW = 1e-6  # a logit divided by less may leave the range of float32, and there is nothing left to draw


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one sequence are sampled and when it ends, in the words of OpenAI's API and vLLM.

    Attributes:
        temperature: divides the logits; 0, or less than 1e-6, takes the likeliest token (greedy), and the other three
            are not used then.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability; 1 keeps all.
        min_p: drop tokens less likely than this share of the likeliest one; 0 drops none.
        repetition_penalty: divides positive and multiplies negative logits of tokens already there, prompt included
            (arXiv:1909.05858); 1 changes nothing.
        presence_penalty: subtracted from the logits of tokens that the answer holds already, -2 to 2.
        frequency_penalty: subtracted as many times as the answer holds the token, -2 to 2.
        logit_bias: (token, what is added to its logit) pairs, -100 to 100.
        seed: draw from a generator of this sequence's own, so that neighbours in the batch change nothing.
        n: continuations of the prompt, each with draws of its own.
        max_tokens: new tokens at most; None goes on to the end of the context.
        min_tokens: new tokens before one of `stop_token_ids` may come.
        ignore_eos: the model's own end tokens end nothing.
        stop: strings that end the sequence once they stand in its text (needs a tokenizer).
        stop_token_ids: tokens that end the sequence, beside the model's own; the token itself is kept.
        logprobs: give the log probability of every new token as the model saw it, before penalties and filters, and
            of this many of the likeliest tokens; None gives nothing.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, math.inf, "0 for greedy, about 0.7 to sample")
        _check_number("top_p", self.top_p, 0.0, 1.0, "1 keeps all tokens")
        _check_number("min_p", self.min_p, 0.0, 1.0, "0 keeps all tokens")
        _check_number("repetition_penalty", self.repetition_penalty, *_PENALTIES, "1 changes nothing")
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0, "0 changes nothing")
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "0 changes nothing")
        _check_integer("top_k", self.top_k, 0, "0 keeps all tokens")
        _check_integer("n", self.n, 1, "each is a continuation of its own")
        _check_integer("min_tokens", self.min_tokens, 0, "0 lets the sequence end at once")
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 1, "None goes on to the end of the context")
        if self.seed is not None:
            _check_integer("seed", self.seed, -(2**63), "any 64-bit integer")
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, 0, "0 gives those of the tokens that were chosen")
            if self.logprobs > MAX_LOGPROBS:
                raise GenerationError(f"logprobs is {self.logprobs}, expected at most {MAX_LOGPROBS}")
        if not isinstance(self.ignore_eos, bool):
            raise GenerationError(f"ignore_eos is {self.ignore_eos!r}, expected True or False")
        for token in self.stop_token_ids:
            _check_integer("stop_token_ids", token, 0, "token ids are not negative")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise GenerationError(f"stop is {self.stop!r}, expected strings of at least one character")
        for token, bias in self.logit_bias:
            _check_integer("logit_bias", token, 0, "token ids are not negative")
            _check_number("logit_bias", bias, -MAX_BIAS, MAX_BIAS, "0 changes nothing")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < _GREEDY_BELOW

    @property
    def plain(self) -> bool:
        """Whether the scores are the model's logits, unchanged."""
        return self.repetition_penalty == 1 and not (
            self.presence_penalty or self.frequency_penalty or self.logit_bias or self.min_tokens
        )


@dataclasses.dataclass(frozen=True)
class PromptLookup:
    """Settings of prompt-lookup decoding (github.com/apoorvumang/prompt-lookup-decoding), named as in Transformers.

    Attributes:
        num_tokens: draft tokens that one forward pass checks, at most (`prompt_lookup_num_tokens`).
        max_ngram: how many of the newest tokens are matched at first; fewer, down to one, where they do not occur
            earlier (`max_matching_ngram_size`).
    """

    num_tokens: int
    max_ngram: int = DEFAULT_NGRAM

    def __post_init__(self) -> None:
        _check_integer("prompt_lookup_num_tokens", self.num_tokens, 1, "10 is usual, None switches it off")
        _check_integer("max_matching_ngram_size", self.max_ngram, 1, f"None is {DEFAULT_NGRAM}")


def _check_number(name: str, value: object, low: float, high: float, hint: str) -> None:
    good = isinstance(value, numbers.Real) and not isinstance(value, bool) and low <= float(value) <= high
    if not good or value == math.inf:
        span = f"a number from {low:g} to {high:g}" if high < math.inf else f"a number, at least {low:g}"
        raise GenerationError(f"{name} is {value!r}, expected {span}; {hint}")


def _check_integer(name: str, value: object, low: int, hint: str) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not low <= int(value) < 2**64:
        raise GenerationError(f"{name} is {value!r}, expected an integer of at least {low}; {hint}")
