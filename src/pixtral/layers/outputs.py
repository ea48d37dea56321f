"""What forward() returns: fields by attribute, by name and by place, as in Transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pixtral.ops.kv_cache import KVCache


class ModelOutput:
    """Base of the outputs: a dataclass that is also a mapping and a tuple of its fields that are not None."""

    def get(self, name: str, default: Any = None) -> Any:
        """The field of that name, or the default when it is None or there is no such field."""
        return getattr(self, name) if name in self else default

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self.values())

    def keys(self) -> list[str]:
        """Names of the fields that are not None, in order."""
        assert dataclasses.is_dataclass(self)
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]

    def values(self) -> list[Any]:
        """The fields that are not None, in order."""
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Names and fields that are not None, in order."""
        return [(name, getattr(self, name)) for name in self.keys()]

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclasses.dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """Of the vision tower.

    Attributes:
        last_hidden_state: (1, N, C), the patches of all images one after another.
        pooler_output: from get_image_features, one (patches, text hidden) tensor per image.
        hidden_states: on request, layers + 1 tensors like last_hidden_state.
        attentions: on request, per layer (1, H, N, N), zero between images.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass
class LlavaModelOutputWithPast(ModelOutput):
    """Of the network without its output layer.

    Attributes:
        last_hidden_state: (B, S, C) after the final norm, zero where the input is padding.
        past_key_values, hidden_states, attentions: as of `CausalLMOutputWithPast`.
        image_hidden_states: (all patches, C), the features put into the prompt.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_hidden_states: Tensor | None = None


@dataclasses.dataclass
class CausalLMOutputWithPast(ModelOutput):
    """Of the decoder.

    Attributes:
        loss: with labels, the mean cross entropy of the next token.
        logits: (B, S, V), zero where the input is padding.
        past_key_values: with use_cache, to be passed to the next call.
        hidden_states: on request, layers + 1 tensors (B, S, C), the last after the final norm.
        attentions: on request, per layer (B, H, S, keys), zero where either side is padding.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass
class LlavaCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Of the whole network; `image_hidden_states` is (all patches, C), the features put into the prompt."""

    image_hidden_states: Tensor | None = None


@dataclasses.dataclass
class Trace:
    """Collects what a caller wants to see from inside the layers; None where it does not."""

    hidden_states: list[Tensor] | None = None
    attentions: list[list[Tensor]] | None = None

    @classmethod
    def wanted(cls, output_hidden_states: bool | None, output_attentions: bool | None) -> Trace:
        """A trace with lists for what was asked for."""
        return cls([] if output_hidden_states else None, [] if output_attentions else None)

    def add(self, hidden: Tensor) -> None:
        """Keep a hidden state if they are wanted."""
        if self.hidden_states is not None:
            self.hidden_states.append(hidden)
