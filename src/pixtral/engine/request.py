"""Requests of the engine and the plan of one step (imports no torch).

`EngineRequest` is what a caller asks for. The engine makes one `Request` of it for each continuation, the unit that the
scheduler plans; `SchedulerOutput` says how many tokens of each run in a step.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pixtral.configuration import MistralConfig
from pixtral.engine.sampling_params import PromptLookup, SamplingParams
from pixtral.errors import PixtralError, PromptError

if TYPE_CHECKING:
    from torch import Tensor


FinishReason = Literal["stop", "length", "abort", "error"]

# What a request's own images, grammar or numbers may raise. It ends that request and leaves the others alone.
REQUEST_ERRORS = (
    PixtralError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """One image of a prompt.

    Attributes:
        start: position of its first [IMG] token in the prompt.
        length: tokens from there to its [IMG_END].
        num_features: [IMG] tokens among them, one for each patch.
        key: hash of the pixels; equal keys stand for equal pixels.
        pixels: returns the normalised (3, H, W) tensor; called when the image is encoded, possibly more than once.
    """

    start: int
    length: int
    num_features: int
    key: bytes
    pixels: Callable[[], Any]

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + self.length


class Guide(Protocol):
    """Constrains the next token of one sequence: a grammar, a schema, a list of choices."""

    def mask(self, scores: Any) -> None:
        """Set the scores (V,) float32 of tokens that are not allowed to -inf, in place."""
        ...

    def advance(self, token: int) -> None:
        """Accept the token that was sampled."""
        ...


@dataclasses.dataclass(frozen=True)
class EngineRequest:
    """What a caller asks of the engine.

    Attributes:
        request_id: a name that no unfinished request has.
        prompt_ids: the prompt, images expanded to their [IMG] tokens.
        params: how tokens are sampled; `params.n` continuations are generated.
        images: the images of the prompt in order.
        priority: smaller runs first; within one priority, first come first served.
        guide: makes the grammar of each continuation.
        skip_special_tokens: leave control tokens out of the text.
        prompt_lookup: draft tokens from the text; None is the engine's own setting.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    images: tuple[ImageInput, ...] = ()
    priority: int = 0
    guide: Callable[[], Guide] | None = None
    skip_special_tokens: bool = True
    prompt_lookup: PromptLookup | None = None


class Status(enum.Enum):
    """State of a request."""

    WAITING = "waiting"  # new or preempted; holds no blocks
    RUNNING = "running"
    FINISHED = "finished"


@dataclasses.dataclass(eq=False)
class Request:
    """One continuation of a prompt, as the scheduler sees it.

    Its tokens form one sequence: the prompt, the sampled tokens, the draft. Keys and values of the first
    `num_computed` of them are in its blocks.

    Attributes:
        params: how tokens are sampled; all tokens that end it are among its `stop_token_ids`.
        prompt_ids: of the prompt; empty when only its embeddings are known.
        num_prompt_tokens: length of the prompt.
        limit: new tokens at most, bounded by the context.
        index: which continuation of its prompt this is, from 0.
        order: (priority, arrival, index), the order of scheduling.
        reserve: new tokens for which blocks are allocated together with those of the prompt.
        prompt_embeds: (S, C), where the caller embedded the prompt.
        prompt_lookup: how drafts are made, if they are.
        leader: the continuation of the same prompt that runs it for this one too.
        followers: continuations that wait for this one to have run the prompt.
        draft: tokens that may come next, run together with the newest one.
        blocks: block table.
        block_keys: hashes of its full blocks, as far as they are known.
        num_registered: how many of its blocks can be found by their hashes.
        pinned: keys of images whose features must stay cached.
        num_cached_tokens: of the prompt, found in the prefix cache when it was first admitted.
        finish_reason: None while it runs or waits.
        stop_reason: the token or string that ended it, if one did.
    """

    params: SamplingParams
    prompt_ids: tuple[int, ...]
    num_prompt_tokens: int
    limit: int
    images: tuple[ImageInput, ...] = ()
    request_id: str = ""
    index: int = 0
    order: tuple[int, int, int] = (0, 0, 0)
    reserve: int = 0
    prompt_embeds: Tensor | None = None
    prompt_lookup: PromptLookup | None = None
    leader: Request | None = None
    followers: list[Request] = dataclasses.field(default_factory=list)
    status: Status = Status.WAITING
    new_ids: list[int] = dataclasses.field(default_factory=list)
    draft: list[int] = dataclasses.field(default_factory=list)
    num_computed: int = 0
    blocks: list[int] = dataclasses.field(default_factory=list)
    block_keys: list[bytes] = dataclasses.field(default_factory=list)
    num_registered: int = 0
    pinned: set[bytes] = dataclasses.field(default_factory=set)
    num_cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def length(self) -> int:
        """Prompt and new tokens together."""
        return self.num_prompt_tokens + len(self.new_ids)

    @property
    def num_missing(self) -> int:
        """Tokens, the draft included, whose keys and values have yet to be computed."""
        return self.num_prompt_tokens + len(self.new_ids) + len(self.draft) - self.num_computed

    @property
    def is_decoding(self) -> bool:
        """Whether everything before its newest token has been computed."""
        return self.num_computed >= self.num_prompt_tokens + len(self.new_ids) - 1

    def append(self, token: int) -> None:
        """Append a sampled token; a draft that continues differently is dropped with what was computed of it."""
        self.new_ids.append(token)
        if self.draft and self.draft[0] == token:
            del self.draft[0]
            return
        self.draft.clear()
        self.num_computed = min(self.num_computed, self.length - 1)

    def ids_between(self, start: int, end: int) -> list[int]:
        """Tokens at positions start to end, the draft included."""
        prompt = self.num_prompt_tokens
        if start >= prompt:
            sampled = len(self.new_ids)
            start, end = start - prompt, end - prompt
            if end <= sampled:
                return self.new_ids[start:end]
            return self.new_ids[start:] + self.draft[max(start - sampled, 0) : end - sampled]
        ids = list(self.prompt_ids[start:end])
        return ids if end <= prompt else ids + self.ids_between(prompt, end)


@dataclasses.dataclass(frozen=True)
class SchedulerConfig:
    """Limits of one step.

    Attributes:
        max_num_seqs: requests that run at a time.
        max_num_batched_tokens: prompt and draft tokens of a step; the newest token of a decoding request always runs.
        max_encoder_tokens: patches that one step encodes; one image always fits, however large.
        feature_bytes: of the features of one patch.
        prefix_caching: look for the beginning of a prompt among the cached blocks.
        grow: add blocks where they run out, instead of preempting.
        grow_before_evicting: up to so many blocks the cache grows rather than evict cached prefixes.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_encoder_tokens: int = 1
    feature_bytes: int = 1
    prefix_caching: bool = True
    grow: bool = False
    grow_before_evicting: int = 0


@dataclasses.dataclass
class SchedulerOutput:
    """The plan of one step.

    Attributes:
        num_scheduled_tokens: how many tokens each request runs, of those after its `num_computed`.
        encode: images to encode before.
        preempted: requests that gave their blocks back.
        encoder_full: an image found no room in the encoder cache; requests behind it must not take that room.
    """

    num_scheduled_tokens: dict[Request, int] = dataclasses.field(default_factory=dict)
    encode: list[ImageInput] = dataclasses.field(default_factory=list)
    preempted: list[Request] = dataclasses.field(default_factory=list)
    encoder_full: bool = False


def context_length(config: MistralConfig) -> int:
    """Tokens that a sequence may have, prompt and answer together."""
    window = config.sliding_window  # beyond it attention would be another one than is implemented; Pixtral has none
    return config.max_position_embeddings if window is None else min(config.max_position_embeddings, window)


def check_prompt_length(index: int, length: int, config: MistralConfig) -> int:
    """How many new tokens have room behind the `index`-th prompt.

    Raises:
        PromptError: the prompt is empty or fills the context.
    """
    context = context_length(config)
    if length == 0:
        raise PromptError(f"prompt {index} is empty, expected at least one token; start with the BOS token")
    if length >= context:
        raise PromptError(
            f"prompt {index} has {length} tokens, the context of the model is {context}, new tokens included; "
            "shorten the text or make the images smaller"
        )
    return context - length
