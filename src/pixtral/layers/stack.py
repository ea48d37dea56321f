"""A stack of layers with gradient checkpointing, and the attention step that its layers call."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixtral.layers.outputs import Trace
from pixtral.ops.attention import attention, attention_eager
from pixtral.ops.kv_cache import LayerCache, Packing


class LayerStack(nn.Module):
    """A module whose layers run one after another."""

    layers: nn.ModuleList
    gradient_checkpointing = False

    def run_layer(self, layer: nn.Module, *inputs: object) -> Tensor:
        """One layer, recomputed in the backward pass when that is switched on."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
        else:
            out = layer(*inputs)
        return out


class AttentionStep:
    """Attention for all layers of one forward pass: the fast path, or the slow twin where its weights are returned."""

    def __init__(self, packing: Packing, trace: Trace, dropout: float = 0.0, *, native: bool = True) -> None:
        """
        Args:
            native: use the kernels where they can be used; not between products of PyTorch's, whose threads wait
                actively after each and keep the kernels' threads from their cores.
        """
        self.packing = packing
        self.trace = trace
        self.dropout = dropout
        self.native = native

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(N, H, D), (N, K, D), (N, K, D) -> (N, H * D)."""
        packing = self.packing.on(q.device)
        if self.trace.attentions is not None:
            out, weights = attention_eager(q, k, v, packing, cache)
            self.trace.attentions.append(weights)
        else:
            out = attention(q, k, v, packing, cache, self.dropout, native=self.native)
        return out.flatten(1)
