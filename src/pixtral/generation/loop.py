"""The loop of generate(): all sequences of a call advance in step, one token each, as custom processors expect it.

Scheduler, model runner, sampler and detokenizer are the engine's; only the order of events is its own: scores pass
through functions that see the whole batch, and draws without a seed come from torch's generator, as in Transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pixtral.engine.block_manager import BlockManager
from pixtral.engine.core import EngineCore
from pixtral.engine.encoder_cache import EncoderCache
from pixtral.engine.input_processor import ROOM
from pixtral.engine.model import PREFILL_TOKENS, PackedModel, cache_dtype
from pixtral.engine.model_runner import ModelRunner, Span, embed_spans, wanted_logits
from pixtral.engine.request import FinishReason, ImageInput, Request, SchedulerConfig, check_prompt_length
from pixtral.engine.sampler import SamplingState
from pixtral.engine.sampling_ops import pick, warp
from pixtral.engine.sampling_params import PromptLookup, SamplingParams
from pixtral.engine.scheduler import Scheduler
from pixtral.errors import GenerationError
from pixtral.ops.kv_cache import Packing
from pixtral.text.detokenizer import Decodes, Detokenizer

Edit = Callable[[Tensor, list[int]], Tensor]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt as its embeddings, image features already in their positions.

    Attributes:
        embeds: (S, C) in the model's dtype, S >= 1.
        ids: the S token ids, for penalties, stop strings and prompt lookup; empty when only embeddings are known.
        image_token: the id of the tokens that stand for image features.
    """

    embeds: Tensor
    ids: tuple[int, ...] = ()
    image_token: int | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step gave to the R sequences that were running.

    Attributes:
        rows: R indices into `Generation.sequences`.
        tokens: R new token ids.
        scores: (R, V) float32, what the tokens were sampled from: logits after penalties, custom edits and filters.
        logits: (R, V) float32 as the model gave them.
    """

    rows: list[int]
    tokens: list[int]
    scores: Tensor
    logits: Tensor


class Generation:
    """A batch of sequences from prompts to ends.

    The first `step()` runs the prompts, packed, in passes of at most `prefill_tokens`; each later one gives one token
    to every sequence that has not ended. Iterate for a plain loop (`for step in generation: ...`), or call `step()`
    while `running` is not empty.
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
            copies: continuations of each prompt; the prompt is computed once.
            tokenizer: needed when a parameter set has stop strings.
            generator: for the draws of sequences without a seed; None is torch's global one.
            edit: changes scores before temperature and filters, given (R, V) and the R indices of sequences.
            use_cache: False computes everything anew at every step; slow, the same tokens.
            prefill_tokens: prompt tokens in one forward pass.
            kv_cache: number format of keys and values, "bf16" or "int8"; None is the model's dtype.
            prompt_lookup: draft tokens from earlier text and check several in one forward pass; the same tokens come
                out, in fewer passes where the text repeats itself.

        Raises:
            PromptError: an empty prompt, or one that leaves no room in the context.
            GenerationError: stop strings without a tokenizer, an unknown kind of cache.
        """
        self.edit = edit
        self.generator = generator
        families = [
            _family(model, index, prompt, p, copies, prompt_lookup)
            for index, (prompt, p) in enumerate(zip(prompts, params, strict=True))
        ]
        self.sequences = [request for family in families for request in family]
        self._sampling = [SamplingState(request) for request in self.sequences]
        self._detokenizers = [_detokenizer(request, tokenizer) for request in self.sequences]
        config = SchedulerConfig(len(self.sequences), prefill_tokens, prefix_caching=False, grow=True)
        # a block more for each than it asks for: the scheduler wants to see it before it admits another one
        blocks = BlockManager(0)
        blocks.grow(sum(blocks.blocks_for(one.length + one.reserve) + 1 for one in self.sequences))
        encoder_cache = EncoderCache(0)
        cache_dtype(kv_cache, model.dtype)
        runner = (
            ModelRunner(model, blocks, encoder_cache, kv_cache=kv_cache) if use_cache else UncachedModelRunner(model)
        )
        image_token = next((prompt.image_token for prompt in prompts), None)
        self._core = EngineCore(Scheduler(config, blocks, encoder_cache), runner, image_token)
        for family in families:
            self._core.add(family)

    @property
    def running(self) -> list[int]:
        """Indices of the sequences that have not ended."""
        return [row for row, sequence in enumerate(self.sequences) if sequence.finish_reason is None]

    def finish(self, row: int, reason: FinishReason = "stop") -> None:
        """End a sequence now; it keeps its tokens."""
        self._core.finish(self.sequences[row], reason)

    def __iter__(self) -> Iterator[Step]:
        while self.running:
            yield self.step()

    @torch.no_grad()
    def step(self) -> Step:
        """One new token for every running sequence."""
        rows = self.running
        assert rows, "every sequence has ended"
        requests = [self.sequences[row] for row in rows]
        while not all(self._core.is_ready(request) for request in requests):
            self._core.run(self._core.plan())
        logits = self._core.logits(requests).float()
        states = [self._sampling[row] for row in rows]
        scores = logits
        if not all(state.plain for state in states):
            scores = logits.clone()
            for state, row_scores in zip(states, scores, strict=True):
                state.adjust(row_scores)
        if self.edit is not None:
            scores = self.edit(scores, rows)
        scores = warp(scores, [state.params for state in states])
        tokens = choose(scores, states, shared=self.generator, slots=(rows, len(self.sequences)))
        for row, state, token in zip(rows, states, tokens, strict=True):
            state.add(token)
            detokenizer, stop = self._detokenizers[row], None
            if detokenizer is not None:
                detokenizer.push(token)
                stop = detokenizer.stop
            self._core.append(state.request, token, stop)
        return Step(rows, tokens, scores, logits)


class UncachedModelRunner:
    """The slow twin of `ModelRunner`: no cache, every sequence whole in every step. Prompts come as embeddings."""

    def __init__(self, model: PackedModel) -> None:
        self.model = model

    def encode(self, images: Sequence[ImageInput]) -> None:
        """Do nothing: there are no images."""
        assert not images

    def run(self, spans: Sequence[Span]) -> Tensor:
        """(R, V): the logits that the spans need. Spans that need none are left for later."""
        device = self.model.device
        whole = [Span(span.request, 0, span.end, span.num_logits) for span in spans if span.num_logits]
        if not whole:
            return torch.empty(0, self.model.text_config.vocab_size, device=device)
        positions = torch.cat([torch.arange(span.end, device=device) for span in whole])
        packing = Packing.full([span.end for span in whole], causal=True)
        return wanted_logits(self.model, embed_spans(self.model, whole, None, None), positions, packing, None, whole)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Do nothing: there are no blocks."""

    def forget(self, request: Request) -> None:
        """Do nothing: nothing is kept."""


def choose(
    scores: Tensor,
    states: Sequence[SamplingState],
    *,
    shared: torch.Generator | None = None,
    slots: tuple[Sequence[int], int] | None = None,
) -> list[int]:
    """One token for each row: the likeliest for greedy rows, drawn from softmax(scores) for the others.

    Args:
        scores: (R, V) float32, after `warp`.
        states: R continuations; those with a seed draw from their own generator.
        shared: the generator of all others; None is torch's global one.
        slots: (places, total): rows without a seed draw as rows `places` of a batch of `total`, so that the noise a row
            gets does not depend on which of its neighbours are still running. With all rows present this is
            `torch.multinomial(probs, 1)`, so that one torch.manual_seed gives Transformers' tokens.

    Raises:
        GenerationError: a row without any possible token, or with NaN.
    """
    chosen = scores.argmax(-1)
    best = scores.gather(-1, chosen[:, None])  # NaN if there is one: argmax finds it
    if not bool(best.isfinite().all()):
        row = int(best.isfinite().logical_not().flatten().nonzero()[0])
        raise GenerationError(
            f"row {row} of the scores has {float(best[row])} as its best value, so no token can be chosen; a logits "
            "processor forbids every token, or the model's weights or inputs are broken (NaN)"
        )
    drawn = [row for row, state in enumerate(states) if not state.params.greedy]
    probs = scores.softmax(-1) if drawn else scores
    common = [row for row in drawn if states[row].params.seed is None]
    for row in drawn:
        if row not in common:
            uniform = torch.tensor([states[row].uniform()], dtype=torch.float64, device=probs.device)
            chosen[row] = pick(probs[row : row + 1], uniform)[0]
    if common:
        places, total = slots if slots is not None else (range(len(scores)), len(scores))
        everyone = probs.new_full((total, probs.shape[-1]), 1.0)
        everyone[[places[row] for row in common]] = probs[common]
        tokens = torch.multinomial(everyone, 1, generator=shared).squeeze(1)
        chosen[common] = tokens[[places[row] for row in common]]
    tokens_list: list[int] = chosen.tolist()
    return tokens_list


def _family(
    model: PackedModel, index: int, prompt: Prompt, params: SamplingParams, copies: int, lookup: PromptLookup | None
) -> list[Request]:
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
            prompt_lookup=lookup,
        )
        for copy in range(copies)
    ]


def _detokenizer(request: Request, tokenizer: Decodes | None) -> Detokenizer | None:
    """Finds stop strings as Transformers does: they may begin in the prompt, and control tokens count by name."""
    stops = request.params.stop
    if not stops:
        return None
    if tokenizer is None or not hasattr(tokenizer, "decode"):
        found = "none" if tokenizer is None else f"a {type(tokenizer).__name__}"
        raise GenerationError(f"stop strings {list(stops)} need the tokenizer, found {found}; pass tokenizer=...")
    return Detokenizer(tokenizer, stops, skip_special_tokens=False, prompt_ids=request.prompt_ids)
