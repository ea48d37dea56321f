"""What the engine works on: a prompt with its images, one continuation on its way, what comes out (no torch)."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pixtral.configuration import MistralConfig
from pixtral.engine.sampling_params import SamplingParams
from pixtral.errors import PixtralError, PromptError

if TYPE_CHECKING:
    from torch import Tensor


FinishReason = Literal["stop", "length", "abort", "error"]

# What a request's own images, grammar or numbers may raise; other requests must not suffer from it.
REQUEST_ERRORS = (
    PixtralError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt as its embeddings, image features already in their places.

    Attributes:
        embeds: (S, C) in the model's dtype, S >= 1.
        ids: the S token ids, for penalties, stop strings and prompt lookup; empty when only embeddings are known.
        image_token: the id at whose places the features of images stand.
    """

    embeds: Tensor
    ids: tuple[int, ...] = ()
    image_token: int | None = None


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """One image in a prompt.

    Attributes:
        start: place of its first [IMG] in the prompt.
        length: tokens from there to its last [IMG].
        num_features: [IMG] tokens among them, one for each patch.
        key: names the content: equal keys, equal pixels.
        pixels: gives the normalised (3, H, W) tensor; asked for when the image is encoded, perhaps more than once.
    """

    start: int
    length: int
    num_features: int
    key: bytes
    pixels: Callable[[], Any]

    @property
    def end(self) -> int:
        """The place behind its last [IMG]."""
        return self.start + self.length


class Guide(Protocol):
    """Says which tokens may come next in one sequence: a grammar, a schema, a list of choices."""

    def mask(self, scores: Any) -> None:
        """Set the scores (V,) float32 of tokens that may not come to -inf, in place."""
        ...

    def advance(self, token: int) -> None:
        """The token was chosen."""
        ...


@dataclasses.dataclass(frozen=True)
class EngineRequest:
    """What a caller asks of the engine.

    Attributes:
        request_id: any name that no unfinished request has.
        prompt_ids: the prompt, images expanded to their [IMG] tokens.
        params: how tokens are chosen; `params.n` continuations come out.
        images: the images of the prompt in order.
        priority: smaller goes first; within one priority, who came first.
        guide: makes the grammar of each continuation.
        skip_special_tokens: leave control tokens out of the text.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    images: tuple[ImageInput, ...] = ()
    priority: int = 0
    guide: Callable[[], Guide] | None = None
    skip_special_tokens: bool = True


class Status(enum.Enum):
    """Where a request stands."""

    WAITING = "waiting"  # new, or preempted: holds no blocks
    RUNNING = "running"
    FINISHED = "finished"


@dataclasses.dataclass(eq=False)
class Request:
    """One continuation of a prompt on its way through the engine; the scheduler's view of it.

    Its tokens lie in one line: the prompt, what was chosen, the draft. Keys and values of the first `num_computed` of
    them are in its blocks.

    Attributes:
        params: how tokens are chosen; all tokens that end it are among its `stop_token_ids`.
        prompt_ids: of the prompt; empty when only its embeddings are known.
        num_prompt_tokens: how long the prompt is.
        limit: new tokens at most, the context's end taken into account.
        index: which continuation of its prompt this is, from 0.
        order: (priority, arrival, index): who goes first.
        reserve: new tokens for which blocks are taken together with those of the prompt.
        prompt_embeds: (S, C), where the prompt was embedded by the caller.
        leader: the continuation of the same prompt that runs it for this one too.
        followers: continuations that wait for this one to have run the prompt.
        draft: tokens that may come next, run together with the newest one.
        blocks: places of its keys and values.
        block_keys: the names of its full blocks, as far as they are known.
        num_registered: how many of its blocks can be found under their names.
        pinned: images whose features must stay.
        num_cached_tokens: of the prompt, found in the prefix cache when it was first admitted.
        finish_reason: None while it goes on.
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
        """A token was chosen; what was computed of a draft that says otherwise does not count."""
        self.new_ids.append(token)
        if self.draft and self.draft[0] == token:
            del self.draft[0]
            return
        self.draft.clear()
        self.num_computed = min(self.num_computed, self.length - 1)

    def ids_between(self, start: int, end: int) -> list[int]:
        """Tokens of the line at places start to end, the draft included."""
        prompt = self.num_prompt_tokens
        if start >= prompt:
            said = len(self.new_ids)
            start, end = start - prompt, end - prompt
            if end <= said:
                return self.new_ids[start:end]
            return self.new_ids[start:] + self.draft[max(start - said, 0) : end - said]
        ids = list(self.prompt_ids[start:end])
        return ids if end <= prompt else ids + self.ids_between(prompt, end)


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


# FOLDED pixtral.engine.request: What a step may hold, and what it does hold (no torch).


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one step may hold.

    Attributes:
        max_num_seqs: requests that run at a time.
        max_num_batched_tokens: prompt and draft tokens of a step; a decoding request's newest token always goes.
        max_encoder_tokens: patches that one step encodes; one image always goes, however large.
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
        encode: images that have to be encoded before.
        preempted: requests that gave their blocks back.
        images_closed: somebody waits for room for an image; those behind must not take it.
    """

    tokens: dict[Request, int] = dataclasses.field(default_factory=dict)
    encode: list[ImageInput] = dataclasses.field(default_factory=list)
    preempted: list[Request] = dataclasses.field(default_factory=list)
    images_closed: bool = False
