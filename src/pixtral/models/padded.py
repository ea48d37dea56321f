"""Transformers' forward() on padded batches: packed on the way in, padded on the way out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixtral.configuration import MistralConfig
from pixtral.errors import PromptError
from pixtral.layers.outputs import Trace
from pixtral.ops.kv_cache import KVCache, Packing


class Padding:
    """Which places of a (B, S) batch hold a token.

    Args:
        attention_mask: (B, S) or, with earlier tokens in a cache, (B, earlier + S), of which the last S columns count;
            nonzero marks a token. None: every place holds one.
        shape: B and S of this call's input.
        earlier: tokens of each sequence in the cache, which the mask's earlier columns must agree with.
        device: of the input.

    Raises:
        PromptError: the mask does not fit the input or the cache.
    """

    def __init__(
        self,
        attention_mask: Tensor | None,
        shape: tuple[int, int],
        earlier: Sequence[int],
        device: torch.device,
    ) -> None:
        batch, length = shape
        if attention_mask is None:
            attention_mask = torch.ones(batch, length, dtype=torch.bool, device=device)
        if attention_mask.dim() != 2 or len(attention_mask) != batch or attention_mask.shape[1] < length:
            raise PromptError(
                f"found an attention_mask of shape {tuple(attention_mask.shape)} for an input of {batch} x {length} "
                "tokens; expected one row for each prompt and a column for each token"
            )
        past = attention_mask[:, : attention_mask.shape[1] - length].bool().sum(1).tolist()
        if past != list(earlier) and attention_mask.shape[1] > length:
            raise PromptError(
                f"found {past} earlier tokens in the attention_mask, but past_key_values holds {list(earlier)}; pass "
                "the mask of all tokens in the cache and of the new ones, or of the new ones alone"
            )
        self.real = attention_mask[:, attention_mask.shape[1] - length :].to(device).bool()  # (B, S)
        self.lengths: tuple[int, ...] = tuple(self.real.sum(1).tolist())

    def pack(self, x: Tensor) -> Tensor:
        """(B, S, ...) -> (N, ...)."""
        return x[self.real]

    def pad(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, S, ...), zero at the padding."""
        real = self.real.to(x.device)  # hidden states of a model over several devices stay where they arose
        out = x.new_zeros(*real.shape, *x.shape[1:])
        return out.masked_scatter(real.view(*real.shape, *[1] * (x.dim() - 1)), x)

    def positions(self, earlier: Sequence[int], position_ids: Tensor | None) -> Tensor:
        """(N,) int64: each token's place in its sequence, padding not counted, after `earlier[i]` tokens."""
        if position_ids is not None:
            batch, length = self.real.shape
            if position_ids.shape not in ((batch, length), (1, length), (length,)):
                raise PromptError(
                    f"found position_ids of shape {tuple(position_ids.shape)}, expected {tuple(self.real.shape)}: one "
                    "place for each token of this call"
                )
            return self.pack(position_ids.expand(self.real.shape).to(self.real.device))
        start = torch.tensor(earlier, device=self.real.device)[:, None]
        return self.pack(self.real.long().cumsum(1) - 1 + start)

    def pad_attention(self, weights: Sequence[Tensor], past_columns: int) -> Tensor:
        """Weights (H, q_i, kv_i) of each sequence -> (B, H, S, past_columns + S), zero at the padding.

        Keys of earlier calls stand at the right end of the first `past_columns` columns.
        """
        batch, length = self.real.shape
        out = weights[0].new_zeros(batch, len(weights[0]), length, past_columns + length)
        for i, weight in enumerate(weights):
            rows = self.real[i].nonzero().flatten().to(weight.device)
            earlier = weight.shape[2] - len(rows)
            past = torch.arange(past_columns - earlier, past_columns, device=rows.device)
            columns = torch.cat([past, rows + past_columns])
            out[i, :, rows[:, None], columns] = weight
        return out


def causal_loss(logits: Tensor, labels: Tensor, real: Tensor, num_items_in_batch: int | Tensor | None = None) -> Tensor:
    """Cross entropy of each next token, in float32; labels of -100, and those that follow padding, do not count.

    (Transformers predicts the first token of a left-padded prompt from the padding before it. Here the loss does not
    depend on the side.)

    Args:
        logits: (B, S, V).
        labels: (B, S), the tokens themselves; the shift by one happens here.
        real: (B, S), False at the padding.
        num_items_in_batch: divide the sum by this instead of the number of labels (gradient accumulation).
    """
    if labels.shape != logits.shape[:2]:
        raise PromptError(
            f"found labels of shape {tuple(labels.shape)} for logits of {tuple(logits.shape)}; expected a label for "
            "each token (and no logits_to_keep beside labels)"
        )
    target = F.pad(labels, (0, 1), value=-100)[:, 1:].to(logits.device).masked_fill(~real, -100)
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), ignore_index=-100, reduction=reduction)
    return loss if num_items_in_batch is None else loss / num_items_in_batch


def keep_logits(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The rows of (B, S, C) of which logits are wanted.

    Args:
        hidden: (B, S, C).
        logits_to_keep: the last so many, or all (0); (R,) places; (B, R) places in each prompt; or (B, S) booleans,
            which give (R, C) rows without a batch axis.
    """
    if isinstance(logits_to_keep, int):
        return hidden[:, -logits_to_keep:] if logits_to_keep else hidden
    if logits_to_keep.dim() == 2 and logits_to_keep.dtype != torch.bool:
        return hidden.take_along_dim(logits_to_keep[..., None], dim=1)
    return hidden[logits_to_keep] if logits_to_keep.dim() == 2 else hidden[:, logits_to_keep]


class Decoder(Protocol):
    """What `run_padded` needs to know of a model."""

    @property
    def decoder(self) -> nn.Module: ...

    @property
    def text_config(self) -> MistralConfig: ...


class LanguageModel(Decoder, Protocol):
    """A decoder with an output layer."""

    def logits(self, hidden: Tensor) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class Padded:
    """What the decoder gave for a padded batch.

    Attributes:
        hidden: (B, S, C) after the final norm.
        real: (B, S), False at the padding.
        cache: to be passed to the next call, where one is kept.
        hidden_states, attentions: where they were asked for, see `CausalLMOutputWithPast`.
    """

    hidden: Tensor
    real: Tensor
    cache: KVCache | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


def new_cache(config: MistralConfig, num_sequences: int, capacity: int, like: Tensor) -> KVCache:
    """An empty cache for a decoder, of the dtype and on the device of `like`."""
    assert config.head_dim is not None
    heads = config.num_key_value_heads
    return KVCache(config.num_hidden_layers, heads, config.head_dim, num_sequences, capacity, like.dtype, like.device)


def run_padded(
    model: Decoder,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past_key_values: KVCache | None,
    use_cache: bool | None,
    trace: Trace,
) -> Padded:
    """Pack (B, S, C) embeddings, run the decoder, pad what it gives.

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
    states, weights = trace.hidden_states, trace.attentions
    return Padded(
        padding.pad(hidden),
        padding.real,
        cache if use_cache else None,
        None if states is None else tuple(padding.pad(x) for x in states),
        None if weights is None else tuple(padding.pad_attention(w, past_columns) for w in weights),
    )


def causal_lm_fields(
    model: LanguageModel,
    padded: Padded,
    labels: Tensor | None,
    logits_to_keep: int | Tensor,
    num_items_in_batch: int | Tensor | None,
) -> dict[str, Any]:
    """The fields of CausalLMOutputWithPast: logits of the hidden states, and with labels their loss."""
    logits = model.logits(keep_logits(padded.hidden, logits_to_keep))
    return {
        "loss": None if labels is None else causal_loss(logits, labels, padded.real, num_items_in_batch),
        "logits": logits,
        "past_key_values": padded.cache,
        "hidden_states": padded.hidden_states,
        "attentions": padded.attentions,
    }
