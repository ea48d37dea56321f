"""What the three models share: where their weights are, first weights, gradient checkpointing, one attention step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixtral.configuration import Config
from pixtral.errors import ConfigError
from pixtral.models.outputs import Trace
from pixtral.ops.attention import attention, attention_eager
from pixtral.ops.kv_cache import LayerCache, Packing


class PixtralModule(nn.Module):
    """Base of PixtralVisionModel, MistralForCausalLM and LlavaForConditionalGeneration."""

    config: Config
    initializer_range: float
    main_device: torch.device | None = None  # where a model computes whose weights wait elsewhere
    supports_gradient_checkpointing = True

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the first floating-point parameter."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the first parameter, or where it is brought when it waits on the disk."""
        device = next(self.parameters()).device
        return self.main_device if device.type == "meta" and self.main_device is not None else device

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of parameters, tied ones once; weights in fewer bits count as what they stand for."""
        count = sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)
        return count if only_trainable else count + sum(_folded(module) for module in self.modules())

    def get_memory_footprint(self) -> int:
        """Bytes of the parameters and of packed weights, tied ones once."""
        return sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))

    def init_weights(self) -> None:
        """Normal weights of the configuration's `initializer_range`, zero biases, unit norms."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, bool] | None = None) -> None:
        """Recompute each layer in the backward pass of training, instead of keeping its activations.

        Args:
            gradient_checkpointing_kwargs: as Transformers takes it; `{"use_reentrant": False}` is what happens anyway.

        Raises:
            ConfigError: other arguments of checkpointing.
        """
        if (gradient_checkpointing_kwargs or {"use_reentrant": False}) != {"use_reentrant": False}:
            raise ConfigError(
                f"found gradient_checkpointing_kwargs {gradient_checkpointing_kwargs}; layers are recomputed without "
                "re-entering autograd: leave it out, or pass {'use_reentrant': False}"
            )
        self._set_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self._set_checkpointing(False)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass."""
        return any(m.gradient_checkpointing for m in self.modules() if isinstance(m, LayerStack))

    def _set_checkpointing(self, on: bool) -> None:
        for module in self.modules():
            if isinstance(module, LayerStack):
                module.gradient_checkpointing = on


def _folded(module: nn.Module) -> int:
    """How many weights a linear layer stands for beyond the numbers in its `weight`; 0 unless it is quantized."""
    rows, columns = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if not isinstance(rows, int) or not isinstance(columns, int):
        return 0
    weight = getattr(module, "weight", None)
    return rows * columns - (weight.numel() if isinstance(weight, Tensor) else 0)


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
    """Attention as a layer calls it: the fast path, or the slow twin when its weights are wanted."""

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
