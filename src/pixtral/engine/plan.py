"""What a step may hold, and what it does hold (no torch)."""

from __future__ import annotations

import dataclasses

from pixtral.engine.request import ImageInput, Request


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one step may hold.

    Attributes:
        max_num_seqs: requests that run at a time.
        max_num_batched_tokens: prompt and draft tokens of a step; a decoding request's newest token always goes.
        max_encoder_tokens: patches that one step encodes; one picture always goes, however large.
        feature_bytes: of the features of one patch.
        prefix_caching: look for the beginning of a prompt among the blocks that are there.
        grow: make more blocks where they run out, instead of preempting.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_encoder_tokens: int = 1
    feature_bytes: int = 1
    prefix_caching: bool = True
    grow: bool = False


@dataclasses.dataclass
class Plan:
    """One step.

    Attributes:
        tokens: how many tokens each request runs, of those that come after its `num_computed`.
        encode: pictures that have to be encoded before.
        preempted: requests that gave their blocks back.
        images_closed: somebody waits for room for a picture; those behind must not take it.
    """

    tokens: dict[Request, int] = dataclasses.field(default_factory=dict)
    encode: list[ImageInput] = dataclasses.field(default_factory=list)
    preempted: list[Request] = dataclasses.field(default_factory=list)
    images_closed: bool = False
