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
        self._per_token: float | None = None  # seconds that a prompt token adds to them
        self._reading: float | None = None  # seconds of a prompt token in steps that hold nothing else
        self._last = START

    def limit(self, num_decoding: int) -> int | None:
        """Prompt tokens for a step with so many decoding rows; None where there is no limit."""
        if self._stretch is None or not num_decoding:
            return None
        alone = self._time_alone(num_decoding)
        per_token = self._per_token or self._reading
        if alone is None or per_token is None:
            return min(START, self._most)
        wanted = round((self._stretch - 1) * alone / per_token)
        return max(LEAST, min(wanted, 2 * self._last, self._most))

    def note(self, num_decoding: int, num_prompt: int, seconds: float) -> None:
        """A step with so many decoding rows and prompt tokens took so long."""
        if not num_prompt:
            if num_decoding:
                size = num_decoding.bit_length()
                self._alone[size] = _blend(self._alone.get(size), seconds)
        elif not num_decoding:
            self._reading = _blend(self._reading, seconds / num_prompt)
        else:
            alone = self._time_alone(num_decoding)
            self._last = max(num_prompt, LEAST)
            if alone is not None:
                # a few tokens may hide wholly behind the weights' reading
                cost = max(seconds - alone, 0.02 * alone) / num_prompt
                self._per_token = _blend(self._per_token, cost)

    def _time_alone(self, num_decoding: int) -> float | None:
        """As of the nearest number of rows that has been seen."""
        size = num_decoding.bit_length()
        nearest = min(self._alone, key=lambda known: abs(known - size), default=None)
        return None if nearest is None else self._alone[nearest]


def _blend(old: float | None, new: float) -> float:
    return new if old is None else (1 - MEMORY) * old + MEMORY * min(new, OUTLIER * old)
