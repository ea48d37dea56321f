"""How Hypothesis looks for examples: the same ones in every run, or more and always others with `nightly`."""

from __future__ import annotations

import hypothesis
import torch

EXAMPLES = 50  # for a test that says nothing else


class TorchRandom:
    """PyTorch's random numbers begin anew with every example, so that one alone gives what it gave among others."""

    def seed(self, number: int) -> None:
        torch.manual_seed(number)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


TORCH = TorchRandom()  # Hypothesis holds it weakly


def register() -> None:
    """The profiles, of which --hypothesis-profile may choose another one."""
    hypothesis.register_random(TORCH)
    common = hypothesis.settings(deadline=None, database=None, print_blob=True)
    hypothesis.settings.register_profile("pixtral", common, derandomize=True, max_examples=EXAMPLES)
    hypothesis.settings.register_profile(
        "nightly",
        common,
        derandomize=False,
        max_examples=20 * EXAMPLES,
        # a night has time, and a machine that is busy is no failure
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("pixtral")


def examples(count: int) -> hypothesis.settings:
    """As many examples for a test, and in proportion with another profile."""
    return hypothesis.settings(max_examples=count * hypothesis.settings().max_examples // EXAMPLES)
