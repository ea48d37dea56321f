"""Transformers' forward() on padded batches, over the packed decoder: the one body behind both language models."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pixtral.configuration import MistralConfig
from pixtral.errors import PromptError
from pixtral.models.outputs import Trace
from pixtral.models.padding import Padding, causal_loss, keep_logits
from pixtral.ops.attention import Packing
from pixtral.ops.cache import KVCache


class LanguageModel(Protocol):
    """What `run_padded` needs to know of a model."""

    @property
    def decoder(self) -> nn.Module: ...

    @property
    def text_config(self) -> MistralConfig: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


def new_cache(config: MistralConfig, num_sequences: int, capacity: int, like: Tensor) -> KVCache:
    """An empty cache for a decoder, of the dtype and on the device of `like`."""
    assert config.head_dim is not None
    return KVCache(
        config.num_hidden_layers, config.num_key_value_heads, config.head_dim, num_sequences, capacity,
        like.dtype, like.device,
    )  # fmt: skip


def run_padded(
    model: LanguageModel,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past_key_values: KVCache | None,
    labels: Tensor | None,
    use_cache: bool | None,
    logits_to_keep: int | Tensor,
    trace: Trace,
    num_items_in_batch: int | Tensor | None,
) -> dict[str, Any]:
    """Pack, run the decoder, pad: (B, S, C) embeddings -> the fields of CausalLMOutputWithPast.

    A cache is kept when asked for, or by the configuration's `use_cache` except in training.
    """
    if inputs_embeds.dim() != 3:
        raise PromptError(f"found input of shape {tuple(inputs_embeds.shape)}; expected (batch, tokens) ids")
    batch, length = inputs_embeds.shape[:2]
    cache = past_key_values
    if cache is not None and len(cache) != batch:
        raise PromptError(f"past_key_values holds {len(cache)} sequences, the input {batch}")
    if use_cache is None:
        use_cache = model.text_config.use_cache and not (model.decoder.training and torch.is_grad_enabled())
    earlier = list(cache.lengths) if cache is not None else [0] * batch
    padding = Padding(attention_mask, (batch, length), earlier, inputs_embeds.device)
    past_columns = max(earlier, default=0)
    if attention_mask is not None:
        past_columns = max(past_columns, attention_mask.shape[1] - length) if cache is not None else 0
    if cache is None and use_cache:
        cache = new_cache(model.text_config, batch, max(padding.lengths, default=0), inputs_embeds)
    packing = Packing.full(padding.lengths, causal=True) if cache is None else cache.packing(padding.lengths)
    positions = padding.positions(earlier, position_ids)
    hidden = model.decoder(padding.pack(inputs_embeds), positions, packing, cache, trace=trace)
    logits = model.logits(keep_logits(padding.pad(hidden), logits_to_keep))
    states, weights = trace.hidden_states, trace.attentions
    return {
        "loss": None if labels is None else causal_loss(logits, labels, padding.real, num_items_in_batch),
        "logits": logits,
        "past_key_values": cache if use_cache else None,
        "hidden_states": None if states is None else tuple(padding.pad(x) for x in states),
        "attentions": None if weights is None else tuple(padding.pad_attention(w, past_columns) for w in weights),
    }
