"""From the engine's outputs to the choices of an answer: texts or tool calls, log probabilities, ends, usage."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, Protocol

from pixtral.engine.output import Output, TokenLogprobs, Usage
from pixtral.text.protocol import Tokenizer

Delta = dict[str, Any]
_LOWEST = -9999.0  # OpenAI's number for impossible; JSON has no infinity


class Reader(Protocol):
    """Reads what the model says in one choice: text, tool calls, whatever it is, in the words of OpenAI's deltas."""

    def push(self, output: Output) -> list[Delta]:
        """What is certain with this output."""
        ...

    def message(self) -> dict[str, Any]:
        """The whole message; asked for once, when the last output has come."""
        ...

    def finish_reason(self, output: Output) -> str:
        """Why the choice ended; asked for with its last output."""
        ...


class TextReader:
    """An answer that is text."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def push(self, output: Output) -> list[Delta]:
        """The new text."""
        if not output.text:
            return []
        self._pieces.append(output.text)
        return [{"content": output.text}]

    def message(self) -> dict[str, Any]:
        """The text."""
        return {"role": "assistant", "content": "".join(self._pieces), "refusal": None}

    def finish_reason(self, output: Output) -> str:
        """The engine's own."""
        assert output.finish_reason is not None
        return output.finish_reason


class TokenNames:
    """Tokens as text and bytes, for log probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.of = functools.lru_cache(4096)(self._of)

    def _of(self, token: int) -> tuple[str, list[int] | None]:
        data = self._tokenizer.id_to_bytes(token)
        if data is None:
            return self._tokenizer.ids_to_text([token], False), None
        return data.decode("utf-8", "replace"), list(data)

    def entry(self, token: int, logprob: float) -> dict[str, Any]:
        """One token in OpenAI's words."""
        text, data = self.of(token)
        return {"token": text, "logprob": finite(logprob), "bytes": data}

    def content(self, logprobs: Iterable[TokenLogprobs]) -> list[dict[str, Any]]:
        """The "content" of a choice's log probabilities."""
        return [
            {**self.entry(one.token, one.logprob), "top_logprobs": [self.entry(*pair) for pair in one.top]}
            for one in logprobs
        ]


def finite(logprob: float) -> float:
    """A number that JSON has."""
    return logprob if math.isfinite(logprob) else _LOWEST


class UsageSum:
    """Tokens of all choices of a request; its prompt counts once."""

    def __init__(self) -> None:
        self.prompt_tokens = self.completion_tokens = self.cached_tokens = self.image_tokens = 0

    def add(self, usage: Usage, index: int) -> None:
        """One choice has ended."""
        self.completion_tokens += usage.completion_tokens
        if index == 0:  # the other choices find the prompt in the cache because of this one
            self.prompt_tokens, self.image_tokens = usage.prompt_tokens, usage.image_tokens
            self.cached_tokens = usage.cached_tokens

    def join(self, other: UsageSum) -> None:
        """Another prompt of the same request."""
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cached_tokens += other.cached_tokens
        self.image_tokens += other.image_tokens

    def to_dict(self) -> dict[str, Any]:
        """In OpenAI's words; image tokens are part of the prompt's."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "image_tokens": self.image_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }
