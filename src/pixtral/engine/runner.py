"""The network at work: prompts into the cache, then the newest token of every running sequence, and its draft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pixtral.configuration import MistralConfig
from pixtral.engine.lookahead import Chunk, Lookahead
from pixtral.engine.lookup import PromptLookup
from pixtral.engine.request import Prompt, SequenceState
from pixtral.errors import GenerationError
from pixtral.ops.attention import Packing
from pixtral.ops.cache import KVCache

# Prompt tokens in one forward pass: enough to keep a processor busy, few enough to bound the activations.
PREFILL_TOKENS = 4096
# Room for new tokens that is made at once; the cache grows beyond it.
ROOM = 512
# Number formats of the cache, by the names of `GenerationConfig.kv_cache`; None is the model's own.
CACHE_DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8}


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


def cache_dtype(kv_cache: str | None, model_dtype: torch.dtype) -> torch.dtype:
    """The number format of keys and values.

    Raises:
        GenerationError: there is none of that name.
    """
    if kv_cache is None:
        return model_dtype
    if kv_cache not in list(CACHE_DTYPES):
        kinds = ", ".join(map(repr, CACHE_DTYPES))
        raise GenerationError(f"kv_cache is {kv_cache!r}, expected {kinds}, or None for the model's dtype")
    return CACHE_DTYPES[kv_cache]


class Runner:
    """Computes the next logits of sequences; owns their keys and values.

    Sequence i continues prompt i // copies. The first call runs the prompts, later ones the newest token of each
    running sequence; with prompt lookup also draft tokens behind it, and the calls for which they come true run
    nothing.
    """

    def __init__(
        self,
        model: PackedModel,
        prompts: Sequence[Prompt],
        sequences: Sequence[SequenceState],
        *,
        copies: int,
        use_cache: bool,
        prefill_tokens: int,
        kv_cache: str | None = None,
        prompt_lookup: PromptLookup | None = None,
    ) -> None:
        self.model = model
        self.sequences = sequences
        self.copies = copies
        self.use_cache = use_cache
        self.prefill_tokens = prefill_tokens
        self.cache_dtype = cache_dtype(kv_cache, model.dtype)
        self._ahead: list[Lookahead] = []  # one for each sequence, with prompt lookup
        if prompt_lookup is not None:
            self._ahead = [
                Lookahead(state, prompts[row // copies], prompt_lookup) for row, state in enumerate(sequences)
            ]
        self._prompts = list(prompts)
        self._prompt_lengths = [state.length for state in sequences]
        self._cache: KVCache | None = None
        self._cached = list(range(len(sequences)))  # which sequence each region of the cache belongs to

    def next_logits(self, rows: Sequence[int]) -> Tensor:
        """(R, V) float32 for R running sequences; the prompts' own logits are computed once for all copies."""
        if not self._ahead:
            return self._run({row: Chunk(self.sequences[row].new_ids, 1) for row in rows}).float()
        ahead = [self._ahead[row] for row in rows]
        if not all(one.ready for one in ahead):
            # the others go further ahead in the same pass, so that all need the next one together
            chunks = {row: self._ahead[row].chunk() for row in rows}
            chunks = {row: chunk for row, chunk in chunks.items() if chunk.count}
            logits = torch.split(self._run(chunks), [chunk.count for chunk in chunks.values()])
            for row, part in zip(chunks, logits, strict=True):
                self._ahead[row].put(part)
        return torch.stack([one.take() for one in ahead]).float()

    def _run(self, chunks: Mapping[int, Chunk]) -> Tensor:
        """One forward pass over chunks of sequences, in the order of the sequences; (N, V), all counts together."""
        assert list(chunks) == sorted(chunks)
        if not self.use_cache:
            return self.model.logits(self._recompute(chunks))
        if self._cache is not None:
            return self.model.logits(self._decode(self._cache, chunks))
        logits = self.model.logits(self._prefill())
        prompts = [row // self.copies for row in chunks]
        return logits if prompts == list(range(len(logits))) else logits[prompts]

    def _prefill(self) -> Tensor:
        """Run the prompts, fill the cache, and return the last hidden state of each prompt, (prompts, C)."""
        lengths = [len(prompt.embeds) for prompt in self._prompts]
        capacity = max(state.length + min(state.limit, ROOM) for state in self.sequences)
        first = max(lengths) if self.copies > 1 else capacity
        text, device = self.model.text_config, self.model.device
        assert text.head_dim is not None
        cache = KVCache(
            text.num_hidden_layers,
            text.num_key_value_heads,
            text.head_dim,
            len(lengths),
            first,
            self.cache_dtype,
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
        if self.copies > 1:
            cache = cache.select([i for i in range(len(lengths)) for _ in range(self.copies)], capacity)
        self._cache = cache
        self._prompts = []
        return torch.stack([row for row in last if row is not None])

    def _decode(self, cache: KVCache, chunks: Mapping[int, Chunk]) -> Tensor:
        """Run the last tokens of chunks, (N, C); other sequences take no rows."""
        running = [row for row in self._cached if self.sequences[row].finish_reason is None]
        if 2 * len(running) <= len(self._cached):  # half of the regions belong to ended sequences: give them back
            cache = cache.select([self._cached.index(row) for row in running], cache.capacity)
            self._cache, self._cached = cache, running
        starts = {row: self._prompt_lengths[row] + len(chunk.ids) - chunk.count for row, chunk in chunks.items()}
        # behind a start lie only draft tokens that were not chosen
        cache.crop([starts.get(row, filled) for row, filled in zip(self._cached, cache.lengths, strict=True)])
        q_lens = [chunks[row].count if row in chunks else 0 for row in self._cached]
        ids = [token for chunk in chunks.values() for token in chunk.ids[-chunk.count :]]
        places = [torch.arange(starts[row], starts[row] + chunk.count) for row, chunk in chunks.items()]
        embeds = self.model.embed(torch.tensor(ids, device=self.model.device))
        positions = torch.cat(places).to(self.model.device)
        return self.model.forward_packed(embeds, positions, cache.packing(q_lens), cache)

    def _recompute(self, chunks: Mapping[int, Chunk]) -> Tensor:
        """The slow twin of prefill and decode: whole sequences, no cache; (N, C)."""
        parts: list[Tensor] = []
        lengths: list[int] = []
        wanted: list[int] = []
        for row, chunk in chunks.items():
            parts.append(self._prompts[row // self.copies].embeds)
            if chunk.ids:
                parts.append(self.model.embed(torch.tensor(chunk.ids, device=self.model.device)))
            lengths.append(self._prompt_lengths[row] + len(chunk.ids))
            end = sum(lengths)
            wanted += range(end - chunk.count, end)
        positions = torch.cat([torch.arange(length, device=self.model.device) for length in lengths])
        packing = Packing.full(lengths, causal=True)
        hidden = self.model.forward_packed(torch.cat(parts), positions, packing, None)
        return hidden[torch.tensor(wanted, device=hidden.device)]
