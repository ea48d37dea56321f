"""GenerativeModel: a decoder with its output layer, the packed interface of the engine, and generate()."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from pixtral.configuration import GenerationConfig, LlavaConfig, MistralConfig
from pixtral.generation import GenerationMixin
from pixtral.layers.linear import applied
from pixtral.models.pretrained import PreTrainedModel
from pixtral.ops.kv_cache import KVCache, Packing


class GenerativeModel(GenerationMixin, PreTrainedModel):
    """Base of the models that generate text.

    Attributes:
        lm_head: the output layer.
        generation_config: defaults of generate().
    """

    lm_head: nn.Linear

    def __init__(self, config: LlavaConfig | MistralConfig) -> None:
        super().__init__(config)
        text = config.text_config if isinstance(config, LlavaConfig) else config
        self.generation_config = GenerationConfig(
            bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
        )

    if TYPE_CHECKING:

        @property
        def decoder(self) -> nn.Module:
            """The blocks of the decoder, with the token embeddings and the final norm."""

    def can_generate(self) -> bool:
        """True."""
        return True

    def get_decoder(self) -> nn.Module:
        """The blocks of the decoder, with the token embeddings and the final norm."""
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.decoder.get_submodule("embed_tokens")

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.lm_head

    def forward_packed(
        self,
        embeds: Tensor,
        positions: Tensor,
        packing: Packing,
        cache: KVCache | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """(N, C) embeddings -> (N, C) hidden states, or those of the `wanted` rows; see `MistralModel.forward`."""
        out: Tensor = self.decoder(embeds, positions, packing, cache, wanted)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, C) hidden states -> (R, V)."""
        return applied(self.lm_head, hidden).to(hidden.device)

    def _set_generation_config(self, config: GenerationConfig) -> None:
        self.generation_config = config
