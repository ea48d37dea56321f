"""How many prompt tokens a step may take while answers are being written, learned from how long steps last (no torch).

Without it a long prompt would stretch the steps that it is read in, and everybody's answer would stutter. How much a
prompt token costs, and how much of it hides behind the reading of the weights, depends on model and machine: so it is
measured.
"""

from __future__ import annotations

START = 32  # tokens, before anything is known
LEAST = 4
MEMORY = 0.3  # share of the newest measurement in an estimate
OUTLIER = 4.0  # a measurement counts as at most so many times the estimate
MOST_SHARED = 4.0  # times that what prompts may add grows at most, where many of them wait


class _Rate:
    """Seconds per token: of the newest steps, each with the weight of its tokens."""

    def __init__(self) -> None:
        self._seconds = self._tokens = 0.0

    @property
    def value(self) -> float | None:
        return self._seconds / self._tokens if self._tokens else None

    def note(self, seconds: float, tokens: int) -> None:
        old = self.value
        if old is not None:
            seconds = min(seconds, OUTLIER * old * tokens)
        self._seconds = (1 - MEMORY) * self._seconds + seconds
        self._tokens = (1 - MEMORY) * self._tokens + tokens


class Pace:
    """Keeps steps with prompts and answers in them near `stretch` times the length of steps with answers alone."""

    def __init__(self, stretch: float | None, most: int) -> None:
        """
        Args:
            stretch: above 1; None sets no limit.
            most: tokens that are never exceeded.
        """
        self._stretch = stretch
        self._most = most
        self._alone: dict[int, float] = {}  # seconds of steps without prompts, by the rows' number of binary digits
        self._added = _Rate()  # what prompt tokens add to them
        self._reading = _Rate()  # of prompt tokens in steps that hold nothing else
        self._tried = START  # as many tokens as have been seen to go

    def limit(self, num_decoding: int, num_prompts: int = 1) -> int | None:
        """Prompt tokens for a step with so many decoding rows; None where there is no limit.

        Args:
            num_decoding: answers that are being written.
            num_prompts: prompts that could be read. Where many wait for a first token and few for the next one, steps
                may be longer.
        """
        if self._stretch is None or not num_decoding:
            return None
        alone, reading = self._time_alone(num_decoding), self._reading.value
        added = self._added.value or reading
        if alone is None or added is None:
            return min(START, self._most)
        share = min(1 + max(num_prompts - 1, 0) / num_decoding, MOST_SHARED)
        seconds = (self._stretch - 1) * alone * share
        wanted = min(round(seconds / added), 2 * self._tried)
        if reading is not None:
            # a step with prompts may cost something whatever it reads: to read less and less would not make it shorter
            wanted = max(wanted, int(seconds / reading / 2))
        return max(LEAST, min(wanted, self._most))

    def note(self, num_decoding: int, num_prompt: int, seconds: float) -> None:
        """A step with so many decoding rows and prompt tokens took so long."""
        if not num_prompt:
            if num_decoding:
                size = num_decoding.bit_length()
                old = self._alone.get(size)
                new = seconds if old is None else (1 - MEMORY) * old + MEMORY * min(seconds, OUTLIER * old)
                self._alone[size] = new
        elif not num_decoding:
            self._reading.note(seconds, num_prompt)
        else:
            self._tried = max(self._tried, num_prompt)
            alone = self._time_alone(num_decoding)
            if alone is not None:
                # a few tokens may hide wholly behind the weights' reading
                self._added.note(max(seconds - alone, 0.02 * alone), num_prompt)

    def _time_alone(self, num_decoding: int) -> float | None:
        """As of the nearest number of rows that has been seen."""
        size = num_decoding.bit_length()
        nearest = min(self._alone, key=lambda known: abs(known - size), default=None)
        return None if nearest is None else self._alone[nearest]
