"""From prompts to tokens, one step at a time: the loop beneath generate() and chat."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from pixtral.configuration import MistralConfig
from pixtral.engine.sampling import SamplingParams, choose, penalize, seeded_generator, warp
from pixtral.engine.stopping import Decodes, StopStrings
from pixtral.errors import GenerationError, PromptError
from pixtral.ops.attention import Packing
from pixtral.ops.cache import KVCache

# Prompt tokens in one forward pass: enough to keep a processor busy, few enough to bound the activations.
PREFILL_TOKENS = 4096
# Room for new tokens that is made at once; the cache grows beyond it.
ROOM = 512


class PackedModel(Protocol):
    """What the loop needs of a model: the packed interface of the classes in `pixtral.models`."""

    @property
    def text_config(self) -> MistralConfig:
        """The decoder's configuration."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, embeddings and cache."""
        ...

    def embed(self, input_ids: Tensor) -> Tensor:
        """(N,) int64 -> (N, C)."""
        ...

    def forward_packed(self, embeds: Tensor, positions: Tensor, packing: Packing, cache: KVCache | None) -> Tensor:
        """(N, C) embeddings at (N,) positions -> (N, C) hidden states after the final norm."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, C) -> (R, V)."""
        ...


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt, image features already in their places.

    Attributes:
        embeds: (S, C) in the model's dtype, S >= 1.
        ids: the S token ids, for penalties and stop strings; empty when only embeddings are known.
    """

    embeds: Tensor
    ids: tuple[int, ...] = ()


@dataclasses.dataclass
class SequenceState:
    """One continuation of a prompt.

    Attributes:
        length: prompt tokens and new tokens together.
        limit: new tokens at most; the context's end is taken into account.
        finish_reason: None while it runs; "stop" (a stop token, string or criterion) or "length".
        stop_reason: the token id or the string that ended it, if one did.
    """

    params: SamplingParams
    prompt_ids: tuple[int, ...]
    length: int
    limit: int
    generator: torch.Generator | None
    new_ids: list[int] = dataclasses.field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: int | str | None = None


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


Edit = Callable[[Tensor, list[int]], Tensor]


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


class Generation:
    """A batch of sequences on their way from prompts to ends.

    The first `step()` runs the prompts, packed, in passes of at most `prefill_tokens`; each later one runs one token
    of every sequence that still goes on. A sequence that ends is not computed any more; the others do not notice.
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

        Raises:
            PromptError: an empty prompt, or one that leaves no room in the context.
            GenerationError: stop strings without a tokenizer.
        """
        self.model = model
        self.edit = edit
        self.use_cache = use_cache
        self.prefill_tokens = prefill_tokens
        self.generator = generator
        self._prompts = list(prompts)
        self._copies = copies
        self._text = model.text_config
        self._stops: dict[tuple[str, ...], StopStrings] = {}
        self.sequences = [
            self._start(index, prompt, p, copy)
            for index, (prompt, p) in enumerate(zip(self._prompts, params, strict=True))
            for copy in range(copies)
        ]
        for p in params:
            if p.stop and tokenizer is None:
                raise GenerationError(f"stop strings {list(p.stop)} need the tokenizer; pass tokenizer=...")
            if p.stop and tokenizer is not None:
                self._stops[p.stop] = StopStrings(p.stop, tokenizer)
        self._seen: Tensor | None = None
        self._cache: KVCache | None = None
        self._cached = list(range(len(self.sequences)))  # which sequence each region of the cache belongs to

    def _start(self, index: int, prompt: Prompt, params: SamplingParams, copy: int) -> SequenceState:
        length = len(prompt.embeds)
        room = check_prompt_length(index, length, self._text)
        limit = min(params.max_tokens or room, room)
        generator = None if params.seed is None else seeded_generator(params.seed, copy, self.model.device)
        return SequenceState(params, prompt.ids, length, limit, generator)

    @property
    def running(self) -> list[int]:
        """Indices of the sequences that have not ended."""
        return [row for row, sequence in enumerate(self.sequences) if sequence.finish_reason is None]

    def finish(self, row: int, reason: Literal["stop", "length"] = "stop") -> None:
        """End a sequence now; its tokens so far stay."""
        if self.sequences[row].finish_reason is None:
            self.sequences[row].finish_reason = reason

    def __iter__(self) -> Iterator[Step]:
        while self.running:
            yield self.step()

    @torch.no_grad()
    def step(self) -> Step:
        """One new token for every running sequence."""
        rows = self.running
        assert rows, "every sequence has ended"
        if not self.use_cache:
            hidden = self._recompute(rows)
        elif self._cache is None:
            hidden = self._prefill()
        else:
            hidden = self._decode(rows)
        logits = self.model.logits(hidden).float()  # (R, V), or one row per prompt in the first step
        if len(logits) < len(rows):
            picked = [row // self._copies for row in rows]
            logits = logits[picked]
        states = [self.sequences[row] for row in rows]
        params = [state.params for state in states]
        scores = penalize(logits, params, self._seen_rows(rows, logits), [len(state.new_ids) for state in states])
        if self.edit is not None:
            scores = self.edit(scores, rows)
        scores = warp(scores, params)
        chosen = choose(
            scores,
            params,
            [state.generator for state in states],
            shared=self.generator,
            slots=(rows, len(self.sequences)),
        )
        tokens: list[int] = chosen.tolist()
        if self._seen is not None:
            self._seen[rows, chosen] = True
        for state, token in zip(states, tokens, strict=True):
            self._append(state, token)
        return Step(rows, tokens, scores, logits)

    def _append(self, state: SequenceState, token: int) -> None:
        state.new_ids.append(token)
        state.length += 1
        if token in state.params.stop_token_ids:
            state.finish_reason, state.stop_reason = "stop", token
            return
        if state.params.stop:
            stops = self._stops[state.params.stop]
            tail = [*state.prompt_ids[-stops.window :], *state.new_ids[-stops.window :]]
            state.stop_reason = stops.match(tail)
        if state.stop_reason is not None:
            state.finish_reason = "stop"
        elif len(state.new_ids) >= state.limit:
            state.finish_reason = "length"

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

    def _prefill(self) -> Tensor:
        """Run the prompts, fill the cache, and return the last hidden state of each prompt, (prompts, C)."""
        lengths = [len(prompt.embeds) for prompt in self._prompts]
        capacity = max(state.length + min(state.limit, ROOM) for state in self.sequences)
        first = max(lengths) if self._copies > 1 else capacity
        text, device = self._text, self.model.device
        assert text.head_dim is not None
        cache = KVCache(
            text.num_hidden_layers,
            text.num_key_value_heads,
            text.head_dim,
            len(lengths),
            first,
            self.model.dtype,
            device,
        )
        last: list[Tensor | None] = [None] * len(lengths)
        while cache.lengths != lengths:
            budget, q_lens = self.prefill_tokens, []
            for done, length in zip(cache.lengths, lengths, strict=True):
                q_lens.append(min(length - done, budget))
                budget -= q_lens[-1]
            spans = [(i, done, done + n) for i, (done, n) in enumerate(zip(cache.lengths, q_lens, strict=True)) if n]
            embeds = torch.cat([self._prompts[i].embeds[start:end] for i, start, end in spans])
            positions = torch.cat([torch.arange(start, end, device=device) for _, start, end in spans])
            hidden = self.model.forward_packed(embeds, positions, cache.packing(q_lens), cache)
            for (i, _, end), rows in zip(spans, torch.split(hidden, [n for n in q_lens if n]), strict=True):
                if end == lengths[i]:
                    last[i] = rows[-1]
        if self._copies > 1:
            cache = cache.select([i for i in range(len(lengths)) for _ in range(self._copies)], capacity)
        self._cache = cache
        self._prompts = []
        return torch.stack([row for row in last if row is not None])

    def _decode(self, rows: list[int]) -> Tensor:
        """Run the newest token of every running sequence; (R, C)."""
        assert self._cache is not None
        if 2 * len(rows) <= len(self._cached):  # half of the regions belong to ended sequences: give them back
            self._cache = self._cache.select([self._cached.index(row) for row in rows], self._cache.capacity)
            self._cached = rows
        going = set(rows)
        q_lens = [int(row in going) for row in self._cached]
        newest = torch.tensor([self.sequences[row].new_ids[-1] for row in rows], device=self.model.device)
        positions = torch.tensor([self.sequences[row].length - 1 for row in rows], device=self.model.device)
        packing = self._cache.packing(q_lens)
        hidden = self.model.forward_packed(self.model.embed(newest), positions, packing, self._cache)
        return hidden

    def _recompute(self, rows: list[int]) -> Tensor:
        """The slow twin of prefill and decode: whole sequences, no cache; (R, C)."""
        parts = []
        for row in rows:
            parts.append(self._prompts[row // self._copies].embeds)
            new_ids = self.sequences[row].new_ids
            if new_ids:
                parts.append(self.model.embed(torch.tensor(new_ids, device=self.model.device)))
        lengths = [self.sequences[row].length for row in rows]
        positions = torch.cat([torch.arange(length, device=self.model.device) for length in lengths])
        packing = Packing.full(lengths, causal=True)
        hidden = self.model.forward_packed(torch.cat(parts), positions, packing, None)
        return hidden[torch.tensor(lengths, device=hidden.device).cumsum(0) - 1]
