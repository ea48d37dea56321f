"""The network at work: prompts into the cache, then one token of every running sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pixtral.configuration import MistralConfig
from pixtral.engine.request import Prompt, SequenceState
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


class Runner:
    """Computes the next logits of sequences; owns their keys and values.

    Sequence i continues prompt i // copies. The first call runs the prompts, later ones the newest token of each
    running sequence.
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
    ) -> None:
        self.model = model
        self.sequences = sequences
        self.copies = copies
        self.use_cache = use_cache
        self.prefill_tokens = prefill_tokens
        self._prompts = list(prompts)
        self._cache: KVCache | None = None
        self._cached = list(range(len(sequences)))  # which sequence each region of the cache belongs to

    def next_logits(self, rows: Sequence[int]) -> Tensor:
        """(R, V) float32 for R running sequences; the prompts' own logits are computed once for all copies."""
        if not self.use_cache:
            return self.model.logits(self._recompute(rows)).float()
        if self._cache is not None:
            return self.model.logits(self._decode(rows)).float()
        logits = self.model.logits(self._prefill()).float()
        prompts = [row // self.copies for row in rows]
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
        if self.copies > 1:
            cache = cache.select([i for i in range(len(lengths)) for _ in range(self.copies)], capacity)
        self._cache = cache
        self._prompts = []
        return torch.stack([row for row in last if row is not None])

    def _decode(self, rows: Sequence[int]) -> Tensor:
        """Run the newest token of every running sequence; (R, C)."""
        assert self._cache is not None
        if 2 * len(rows) <= len(self._cached):  # half of the regions belong to ended sequences: give them back
            self._cache = self._cache.select([self._cached.index(row) for row in rows], self._cache.capacity)
            self._cached = list(rows)
        going = set(rows)
        q_lens = [int(row in going) for row in self._cached]
        newest = torch.tensor([self.sequences[row].new_ids[-1] for row in rows], device=self.model.device)
        positions = torch.tensor([self.sequences[row].length - 1 for row in rows], device=self.model.device)
        packing = self._cache.packing(q_lens)
        return self.model.forward_packed(self.model.embed(newest), positions, packing, self._cache)

    def _recompute(self, rows: Sequence[int]) -> Tensor:
        """The slow twin of prefill and decode: whole sequences, no cache; (R, C)."""
        parts = []
        for row in rows:
            parts.append(self._prompts[row // self.copies].embeds)
            new_ids = self.sequences[row].new_ids
            if new_ids:
                parts.append(self.model.embed(torch.tensor(new_ids, device=self.model.device)))
        lengths = [self.sequences[row].length for row in rows]
        positions = torch.cat([torch.arange(length, device=self.model.device) for length in lengths])
        packing = Packing.full(lengths, causal=True)
        hidden = self.model.forward_packed(torch.cat(parts), positions, packing, None)
        return hidden[torch.tensor(lengths, device=hidden.device).cumsum(0) - 1]
