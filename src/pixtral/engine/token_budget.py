"""How many prompt tokens a step may hold beside decoding requests, from measured step times (imports no torch).

Without a limit the chunks of a long prompt lengthen the steps that they share, and the latency between tokens of all
other requests rises. What a prompt token costs, and how much of it is hidden by reading the weights, depends on model
and machine, so it is measured.
"""

from __future__ import annotations

START = 32  # tokens, before anything is known
LEAST = 4
MEMORY = 0.3  # share of the newest measurement in an estimate
OUTLIER = 4.0  # a measurement counts as at most so many times the estimate
MOST_SHARED = 4.0  # at most so many times longer, where many prompts wait


class _Rate:
    """Seconds per token, an exponential mean over steps weighted by their tokens."""

    def __init__(self) -> None:
        self._seconds = self._tokens = 0.0

    @property
    def value(self) -> float | None:
        return self._seconds / self._tokens if self._tokens else None

    def observe(self, seconds: float, tokens: int) -> None:
        old = self.value
        if old is not None:
            seconds = min(seconds, OUTLIER * old * tokens)
        self._seconds = (1 - MEMORY) * self._seconds + seconds
        self._tokens = (1 - MEMORY) * self._tokens + tokens


class TokenBudget:
    """Keeps steps that hold prompt tokens near `stretch` times the length of steps that only decode."""

    def __init__(self, stretch: float | None, most: int) -> None:
        """
        Args:
            stretch: above 1; None sets no limit.
            most: tokens that are never exceeded.
        """
        self._stretch = stretch
        self._most = most
        self._alone: dict[int, float] = {}  # seconds of steps that only decode, by the bit length of the number of rows
        self._added = _Rate()  # what prompt tokens add to them
        self._prefill = _Rate()  # prompt tokens in steps that hold nothing else
        self._tried = START  # largest number of prompt tokens observed beside decoding requests

    def limit(self, num_decoding: int, num_prompts: int = 1) -> int | None:
        """Prompt tokens that a step with `num_decoding` decoding requests may hold; None where there is no limit.

        Args:
            num_decoding: requests that decode.
            num_prompts: requests that could run prompt tokens. Where they are many and decoding requests few, steps may
                be longer.
        """
        if self._stretch is None or not num_decoding:
            return None
        alone, prefill = self._time_alone(num_decoding), self._prefill.value
        added = self._added.value or prefill
        if alone is None or added is None:
            return min(START, self._most)
        share = min(1 + max(num_prompts - 1, 0) / num_decoding, MOST_SHARED)
        seconds = (self._stretch - 1) * alone * share
        wanted = min(round(seconds / added), 2 * self._tried)
        if prefill is not None:
            # a step with prompt tokens has a fixed cost: fewer and fewer tokens would not make it shorter
            wanted = max(wanted, int(seconds / prefill / 2))
        return max(LEAST, min(wanted, self._most))

    def observe(self, num_decoding: int, num_prompt: int, seconds: float) -> None:
        """Take the measured duration of a step into account."""
        if not num_prompt:
            if num_decoding:
                size = num_decoding.bit_length()
                old = self._alone.get(size)
                new = seconds if old is None else (1 - MEMORY) * old + MEMORY * min(seconds, OUTLIER * old)
                self._alone[size] = new
        elif not num_decoding:
            self._prefill.observe(seconds, num_prompt)
        else:
            self._tried = max(self._tried, num_prompt)
            alone = self._time_alone(num_decoding)
            if alone is not None:
                # a few tokens may be hidden entirely by reading the weights
                self._added.observe(max(seconds - alone, 0.02 * alone), num_prompt)

    def _time_alone(self, num_decoding: int) -> float | None:
        """As of the nearest number of rows that was observed."""
        size = num_decoding.bit_length()
        nearest = min(self._alone, key=lambda known: abs(known - size), default=None)
        return None if nearest is None else self._alone[nearest]
