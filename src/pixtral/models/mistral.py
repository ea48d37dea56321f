"""The decoder: packed embeddings to hidden states and logits (Mistral Nemo 12B; arXiv:2310.06825)."""

from __future__ import annotations

from torch import Tensor, nn

from pixtral.configuration import MistralConfig
from pixtral.errors import PromptError
from pixtral.layers.blocks import MLP, RMSNorm, Rotation, line_rotation
from pixtral.layers.linear import applied, project
from pixtral.layers.outputs import CausalLMOutputWithPast, Trace
from pixtral.layers.stack import AttentionStep, LayerStack
from pixtral.models.generative import GenerativeModel
from pixtral.models.padded import causal_lm_fields, run_padded
from pixtral.ops.kv_cache import KVCache, Packing
from pixtral.ops.rowwise import add, rotate_pair


class MistralAttention(nn.Module):
    """Grouped-query attention without biases; `head_dim` is independent of the hidden size."""

    def __init__(self, config: MistralConfig, index: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.index = index
        self.head_dim = config.head_dim
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rotation: Rotation, attend: AttentionStep, cache: KVCache | None, wanted: Tensor | None
    ) -> Tensor:
        """(N, C) -> (N, C), or the `wanted` rows of it."""
        rows = project(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (y.view(len(y), y.shape[1] // self.head_dim, self.head_dim) for y in rows)
        layer = None if cache is None else cache.on(self.index, x.device)
        q, k = rotate_pair(q, k, *rotation)
        return applied(self.o_proj, _pick(attend(q, k, v, layer), wanted))


class MistralDecoderLayer(nn.Module):
    """One block of the decoder: norm, attention, norm, feed-forward."""

    quantized_as = "decoder"

    def __init__(self, config: MistralConfig, index: int) -> None:
        super().__init__()
        self.self_attn = MistralAttention(config, index)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        attend: AttentionStep,
        cache: KVCache | None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """(N, C) -> (N, C), or (R, C): the `wanted` rows of it."""
        attended = self.self_attn(self.input_layernorm(x), rotation, attend, cache, wanted)
        x = add(_pick(x, wanted), attended)
        return add(x, self.mlp(self.post_attention_layernorm(x)))


def _pick(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows]


class MistralModel(LayerStack):
    """Token embeddings, blocks and the final norm."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MistralDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        packing: Packing,
        cache: KVCache | None = None,
        wanted: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Hidden states of packed tokens.

        Args:
            embeds: (N, C) token embeddings and image features.
            positions: (N,) int64 place of each token in its sequence.
            packing: how the rows divide into sequences; from `cache.packing` when there is a cache.
            cache: keys and values of earlier tokens; this call's are written to it.
            wanted: (R,) int64 rows; for the others the last layer ends with its attention. None: all.
            trace: collects hidden states and attention weights of all rows.

        Returns:
            (N, C) after the final norm, or (R, C).
        """
        config = self.config
        assert config.head_dim is not None and config.rope_theta is not None
        longest = max(packing.kv_lens, default=0)
        if config.sliding_window is not None and longest > config.sliding_window:
            raise PromptError(
                f"{longest} tokens exceed the sliding window of {config.sliding_window} in the model's configuration; "
                "Pixtral has none: set sliding_window to null, or shorten the prompt"
            )
        assert wanted is None or trace is None, "a trace is of all rows"
        trace = trace or Trace()
        rotation = line_rotation(positions, config.head_dim, config.rope_theta, embeds.dtype)
        attend = AttentionStep(packing, trace, config.attention_dropout if self.training else 0.0)
        x = embeds
        for layer in self.layers:
            trace.add(x)
            x = self.run_layer(layer, x, rotation, attend, cache, wanted if layer is self.layers[-1] else None)
        if cache is not None:
            cache.advance(packing.q_lens)
        out: Tensor = self.norm(x)
        trace.add(out)
        return out.to(embeds.device)  # the last layers may live elsewhere


class MistralForCausalLM(GenerativeModel):
    """The decoder with its output layer; `from_pretrained` also reads it out of a whole Pixtral."""

    architecture = "MistralForCausalLM"
    config_class = MistralConfig
    config: MistralConfig
    main_input_name = "input_ids"

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.model = MistralModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.init_weights()

    @property
    def decoder(self) -> MistralModel:
        """The blocks that `forward_packed` runs."""
        return self.model

    @property
    def text_config(self) -> MistralConfig:
        """The decoder's configuration."""
        return self.config

    def embed(self, input_ids: Tensor) -> Tensor:
        """(N,) token ids -> (N, C)."""
        out: Tensor = self.model.embed_tokens(input_ids)
        return out.to(input_ids.device)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> CausalLMOutputWithPast | tuple[object, ...]:
        """Transformers' signature: padded batches (B, S), padding on either side.

        Raises:
            PromptError: not exactly one of input_ids and inputs_embeds, or shapes that do not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise PromptError("forward() needs exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids)
        trace = Trace.wanted(output_hidden_states, output_attentions)
        padded = run_padded(self, inputs_embeds, attention_mask, position_ids, past_key_values, use_cache, trace)
        fields = causal_lm_fields(self, padded, labels, logits_to_keep, num_items_in_batch)
        output = CausalLMOutputWithPast(**fields)
        return output.to_tuple() if return_dict is False else output
