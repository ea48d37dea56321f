"""From prompts to tokens in step, one token for everybody at a time: what generate() and chat do with the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pixtral.engine.block_manager import BLOCK_SIZE, BlockPool
from pixtral.engine.core import Core
from pixtral.engine.encoder_cache import ImageCache
from pixtral.engine.model import PREFILL_TOKENS, PackedModel, cache_dtype
from pixtral.engine.model_runner import Recompute, Runner
from pixtral.engine.prompt_lookup import PromptLookup
from pixtral.engine.request import Budget, FinishReason, Prompt, Request, check_prompt_length, context_length
from pixtral.engine.sampler import seeded_generator
from pixtral.engine.sampling_params import SamplingParams
from pixtral.engine.scheduler import Scheduler
from pixtral.errors import GenerationError
from pixtral.generation.sampling import Decodes, StopStrings, choose, penalize, warp

__all__ = [
    "Generation",
    "PackedModel",
    "Prompt",
    "PromptLookup",
    "SamplingParams",
    "Step",
    "context_length",
]

Edit = Callable[[Tensor, list[int]], Tensor]

# Room for new tokens that is made at once; the cache grows beyond it.
ROOM = 512


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step gave to the R sequences that were running.

    Attributes:
        rows: R indices into `Generation.sequences`.
        tokens: R new token ids.
        scores: (R, V) float32, what the tokens were chosen from: logits after penalties, custom edits and filters.
        logits: (R, V) float32 as the model gave them.
    """

    rows: list[int]
    tokens: list[int]
    scores: Tensor
    logits: Tensor


class Generation:
    """A batch of sequences on their way from prompts to ends.

    The first `step()` runs the prompts, packed, in passes of at most `prefill_tokens`; each later one gives one token
    to every sequence that still goes on. A sequence that ends is not computed any more; the others do not notice.
    Iterate for a plain loop (`for step in generation: ...`), or call `step()` while `running` is not empty.
    """

    def __init__(
        self,
        model: PackedModel,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        *,
        copies: int = 1,
        tokenizer: Decodes | None = None,
        generator: torch.Generator | None = None,
        edit: Edit | None = None,
        use_cache: bool = True,
        prefill_tokens: int = PREFILL_TOKENS,
        kv_cache: str | None = None,
        prompt_lookup: PromptLookup | None = None,
    ) -> None:
        """
        Args:
            model: the network.
            prompts: one or more.
            params: one for each prompt.
            copies: continuations of each prompt; the prompt is computed once and its cache copied.
            tokenizer: needed when a parameter set has stop strings.
            generator: for the draws of sequences without a seed; None is torch's global one.
            edit: changes scores before temperature and filters, given (R, V) and the R indices of sequences.
            use_cache: False computes everything anew at every step; slow, the same tokens.
            prefill_tokens: prompt tokens in one forward pass.
            kv_cache: how keys and values are kept, "bf16" or "int8"; None keeps them in the model's dtype.
            prompt_lookup: check tokens that stood in the text before, several in one forward pass; the same tokens
                come out, in fewer passes where the text repeats itself.

        Raises:
            PromptError: an empty prompt, or one that leaves no room in the context.
            GenerationError: stop strings without a tokenizer, an unknown kind of cache.
        """
        self.edit = edit
        self.generator = generator
        families = [
            _family(model, index, prompt, p, copies)
            for index, (prompt, p) in enumerate(zip(prompts, params, strict=True))
        ]
        self.sequences = [request for family in families for request in family]
        self._generators = [
            None if one.params.seed is None else seeded_generator(one.params.seed, one.index, model.device)
            for one in self.sequences
        ]
        self._stops: dict[tuple[str, ...], StopStrings] = {}
        for p in params:
            if p.stop:
                if tokenizer is None or not hasattr(tokenizer, "decode"):
                    found = "none" if tokenizer is None else f"a {type(tokenizer).__name__}"
                    raise GenerationError(
                        f"stop strings {list(p.stop)} need the tokenizer, found {found}; pass tokenizer=..."
                    )
                self._stops[p.stop] = StopStrings(p.stop, tokenizer)
        self._seen: Tensor | None = None
        budget = Budget(len(self.sequences), prefill_tokens, prefix_caching=False, grow=True)
        # a block more for each than it asks for: the scheduler likes to see it before it lets another one in
        blocks = BlockPool(sum(-(-(one.length + one.reserve) // BLOCK_SIZE) + 1 for one in self.sequences))
        images = ImageCache(0)
        cache_dtype(kv_cache, model.dtype)
        runner = Runner(model, blocks, images, kv_cache=kv_cache) if use_cache else Recompute(model, images)
        image_token = next((prompt.image_token for prompt in prompts), None)
        self._core = Core(Scheduler(budget, blocks, images), runner, prompt_lookup, image_token)
        for family in families:
            self._core.add(family)

    @property
    def running(self) -> list[int]:
        """Indices of the sequences that have not ended."""
        return [row for row, sequence in enumerate(self.sequences) if sequence.finish_reason is None]

    def finish(self, row: int, reason: FinishReason = "stop") -> None:
        """End a sequence now; its tokens so far stay."""
        self._core.finish(self.sequences[row], reason)

    def __iter__(self) -> Iterator[Step]:
        while self.running:
            yield self.step()

    @torch.no_grad()
    def step(self) -> Step:
        """One new token for every running sequence."""
        rows = self.running
        assert rows, "every sequence has ended"
        states = [self.sequences[row] for row in rows]
        while not all(self._core.is_ready(state) for state in states):
            self._core.advance()
        logits = self._core.logits(states).float()
        params = [state.params for state in states]
        scores = penalize(logits, params, self._seen_rows(rows, logits), [len(state.new_ids) for state in states])
        if self.edit is not None:
            scores = self.edit(scores, rows)
        scores = warp(scores, params)
        chosen = choose(
            scores,
            params,
            [self._generators[row] for row in rows],
            shared=self.generator,
            slots=(rows, len(self.sequences)),
        )
        tokens: list[int] = chosen.tolist()
        if self._seen is not None:
            self._seen[rows, chosen] = True
        for state, token in zip(states, tokens, strict=True):
            self._core.append(state, token, self._stop_string(state, token))
        return Step(rows, tokens, scores, logits)

    def _stop_string(self, state: Request, token: int) -> str | None:
        """The stop string that this token completes."""
        if not state.params.stop:
            return None
        stops = self._stops[state.params.stop]
        return stops.match([*state.prompt_ids[-stops.window :], *state.new_ids[-stops.window :], token])

    def _seen_rows(self, rows: list[int], logits: Tensor) -> Tensor | None:
        """(R, V) bool: tokens that each sequence holds, or None when no sequence asks for it."""
        if all(state.params.repetition_penalty == 1 for state in self.sequences):
            return None
        if self._seen is None:
            vocabulary = logits.shape[-1]
            self._seen = torch.zeros(len(self.sequences), vocabulary, dtype=torch.bool, device=logits.device)
            for row, state in enumerate(self.sequences):
                self._seen[row, [token for token in set(state.prompt_ids) if token < vocabulary]] = True
        return self._seen[rows]


def _family(model: PackedModel, index: int, prompt: Prompt, params: SamplingParams, copies: int) -> list[Request]:
    """All continuations of the `index`-th prompt."""
    room = check_prompt_length(index, len(prompt.embeds), model.text_config)
    limit = min(params.max_tokens or room, room)
    return [
        Request(
            params,
            prompt.ids,
            len(prompt.embeds),
            limit,
            index=copy,
            order=(0, index, copy),
            reserve=min(limit, ROOM),
            prompt_embeds=prompt.embeds,
        )
        for copy in range(copies)
    ]
