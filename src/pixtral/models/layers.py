"""What tower and decoder share: root-mean-square norm and the gated feed-forward block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of a `hidden_act` field."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu,
        "swish": F.silu,
        "gelu": F.gelu,
        "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
        "relu": F.relu,
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    }
    return functions[name]


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv:1910.07467), computed in float32, scaled in the input's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class MLP(nn.Module):
    """Gated feed-forward block (arXiv:2002.05202): down(act(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.act = activation(hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        hidden: Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return hidden
