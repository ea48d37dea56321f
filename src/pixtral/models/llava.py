"""The whole network: tower, projector and decoder; image features replace the embeddings of [IMG] tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pixtral.configuration import Config, LlavaConfig, MistralConfig
from pixtral.errors import ConfigError, ImageError, PromptError
from pixtral.images.pixels import crop_images
from pixtral.layers.blocks import activation
from pixtral.layers.linear import applied
from pixtral.layers.outputs import (
    BaseModelOutputWithPooling,
    LlavaCausalLMOutputWithPast,
    LlavaModelOutputWithPast,
    Trace,
)
from pixtral.models.generative import GenerativeModel
from pixtral.models.mistral import MistralModel
from pixtral.models.padded import causal_lm_fields, run_padded
from pixtral.models.pretrained import PreTrainedModel
from pixtral.models.vision import PixtralVisionModel
from pixtral.ops.kv_cache import KVCache


class LlavaMultiModalProjector(nn.Module):
    """Features of the tower to the decoder's width: linear, activation, linear."""

    quantized_as = "vision"

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        layers = config.vision_feature_layer
        width = config.vision_config.hidden_size * (len(layers) if isinstance(layers, list) else 1)
        bias = config.multimodal_projector_bias
        self.linear_1 = nn.Linear(width, config.text_config.hidden_size, bias=bias)
        self.act = activation(config.projector_hidden_act)
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """(N, vision hidden) -> (N, text hidden)."""
        return applied(self.linear_2, self.act(applied(self.linear_1, features)))


def check_feature_layers(layers: int | list[int], config: LlavaConfig) -> int | list[int]:
    """The layers that a call asks for in the place of the configuration's, if there are such.

    Raises:
        ConfigError: the tower has no such layer, or the projector was made for another number of them.
    """
    wanted = layers if isinstance(layers, list) else [layers]
    depth = config.vision_config.num_hidden_layers + 1
    made_for = config.vision_feature_layer
    count = len(made_for) if isinstance(made_for, list) else 1
    if len(wanted) != count or not all(-depth <= layer < depth for layer in wanted):
        raise ConfigError(
            f"vision_feature_layer is {layers!r}; the tower has {depth} states, 0 to {depth - 1} or counted from the "
            f"end, and the projector takes {count} of them"
        )
    return layers


class LlavaModel(PreTrainedModel):
    """Tower, projector and decoder, without the output layer. Inside, tokens and patches are packed without padding."""

    config_class = LlavaConfig
    config: LlavaConfig
    main_input_name = "input_ids"

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.vision_tower = PixtralVisionModel(config.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        self.language_model = MistralModel(config.text_config)
        self.init_weights(self.multi_modal_projector, self.language_model)  # the tower has done it

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, config: Config | None = None, **options: Any
    ) -> LlavaModel:
        """Read a whole Pixtral and return it without its output layer; options as of other models."""
        whole = LlavaForConditionalGeneration.from_pretrained(pretrained_model_name_or_path, config=config, **options)
        model = whole.model
        model.name_or_path, model.loaded_from, model.quantizer = whole.name_or_path, whole.loaded_from, whole.quantizer
        for name in ("hf_device_map", "offloaded"):  # of a model in several places
            if hasattr(whole, name):
                setattr(model, name, getattr(whole, name))
        return model

    @property
    def decoder(self) -> MistralModel:
        """The blocks of the decoder."""
        return self.language_model

    @property
    def text_config(self) -> MistralConfig:
        """The decoder's configuration."""
        return self.config.text_config

    def get_decoder(self) -> MistralModel:
        """The blocks of the decoder, with the token embeddings and the final norm."""
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.decoder.embed_tokens

    def encode_images(
        self,
        images: Sequence[Tensor],
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        trace: Trace | None = None,
    ) -> list[Tensor]:
        """(3, H, W) normalised pixels each -> (rows * columns, text hidden) each, all in one pass of the tower.

        Raises:
            ConfigError: the tower or the projector has no such layers, or the strategy is not "full".
        """
        return self._encode(images, vision_feature_layer, vision_feature_select_strategy, trace)[1] if images else []

    def _encode(
        self,
        images: Sequence[Tensor],
        vision_feature_layer: int | list[int] | None,
        vision_feature_select_strategy: str | None,
        trace: Trace | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """What the tower gives (N, C), and the projected features of each image."""
        strategy = vision_feature_select_strategy or self.config.vision_feature_select_strategy
        if strategy != "full":
            raise ConfigError(
                f"found vision_feature_select_strategy {strategy!r}, which drops a class token; Pixtral's tower has "
                "none: set it to 'full'"
            )
        tower = self.vision_tower
        layers = self.config.vision_feature_layer
        if vision_feature_layer is not None:
            layers = check_feature_layers(vision_feature_layer, self.config)
        if layers in (-1, self.config.vision_config.num_hidden_layers):
            features = last = tower.encode(images, trace)
        else:
            trace = trace or Trace()
            trace.hidden_states = []
            last = tower.encode(images, trace)
            wanted = layers if isinstance(layers, list) else [layers]
            features = torch.cat([trace.hidden_states[i] for i in wanted], dim=-1)
        rows_cols = [tower.grid(pixels) for pixels in images]
        projected: Tensor = self.multi_modal_projector(features)
        return last, list(torch.split(projected, [rows * cols for rows, cols in rows_cols]))

    def embed(self, input_ids: Tensor, image_features: Sequence[Tensor] | None = None) -> Tensor:
        """(N,) token ids -> (N, C), with the features of the images at the [IMG] tokens, in order.

        Raises:
            PromptError: there are more or fewer [IMG] tokens than features.
        """
        embeds: Tensor = self.decoder.embed_tokens(input_ids).to(input_ids.device)
        if image_features:
            embeds = self._place(embeds, input_ids == self.config.image_token_index, image_features)
        return embeds

    def _place(self, embeds: Tensor, mask: Tensor, image_features: Sequence[Tensor]) -> Tensor:
        features = torch.cat(list(image_features)).to(embeds.device, embeds.dtype)
        found = int(mask.sum())
        if found != len(features):
            sizes = ", ".join(str(len(f)) for f in image_features)
            raise PromptError(
                f"Image features and image tokens do not match: found {found} image tokens in the prompt, expected "
                f"{len(features)} (patches of each image: {sizes}); expand [IMG] with the pixels' own processor"
            )
        return embeds.masked_scatter(mask[..., None], features)

    def get_image_features(
        self,
        pixel_values: Tensor | Sequence[Tensor],
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Features of a padded batch of images; `pooler_output` has one (patches, text hidden) tensor per image."""
        trace = Trace.wanted(output_hidden_states, None)
        images = crop_images(pixel_values, image_sizes)
        if not images:
            raise ImageError("found no images in pixel_values; get_image_features() needs at least one")
        last, features = self._encode(images, vision_feature_layer, vision_feature_select_strategy, trace)
        states = tuple(x[None] for x in trace.hidden_states or ()) if output_hidden_states else None
        return BaseModelOutputWithPooling(last[None], tuple(features), states)

    def embed_padded(
        self,
        input_ids: Tensor | None,
        pixel_values: Tensor | Sequence[Tensor] | None,
        inputs_embeds: Tensor | None,
        vision_feature_layer: int | list[int] | None,
        vision_feature_select_strategy: str | None,
        image_sizes: Tensor | Sequence[Sequence[int]] | None,
        mm_encoder_outputs: Mapping[str, BaseModelOutputWithPooling] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, C) embeddings with the features of images in their positions, and those features (all patches, C).

        Raises:
            PromptError: not exactly one of input_ids and inputs_embeds, or image tokens and features of different
                number.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise PromptError("forward() needs exactly one of input_ids and inputs_embeds")
        if pixel_values is not None and mm_encoder_outputs is not None:
            raise PromptError("forward() takes pixel_values or mm_encoder_outputs (encoded images), not both")
        features: Sequence[Tensor] = ()
        if pixel_values is not None:
            features = self.encode_images(
                crop_images(pixel_values, image_sizes), vision_feature_layer, vision_feature_select_strategy
            )
        elif mm_encoder_outputs is not None and "image" in mm_encoder_outputs:
            features = mm_encoder_outputs["image"].pooler_output or ()
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, features)
        elif features:
            image_token = torch.tensor(self.config.image_token_index, device=inputs_embeds.device)
            mask = (inputs_embeds == self.embed(image_token)).all(-1)
            inputs_embeds = self._place(inputs_embeds, mask, features)
        return inputs_embeds, torch.cat(list(features)) if features else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        mm_encoder_outputs: Mapping[str, BaseModelOutputWithPooling] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LlavaModelOutputWithPast | tuple[object, ...]:
        """Transformers' signature: padded batches (B, S), padding on either side, images in order of appearance.

        Raises:
            PromptError: not exactly one of input_ids and inputs_embeds, image tokens and features of different
                number, or shapes that do not fit.
        """
        embeds, images = self.embed_padded(
            input_ids,
            pixel_values,
            inputs_embeds,
            vision_feature_layer,
            vision_feature_select_strategy,
            image_sizes,
            mm_encoder_outputs,
        )
        trace = Trace.wanted(output_hidden_states, output_attentions)
        padded = run_padded(self, embeds, attention_mask, position_ids, past_key_values, use_cache, trace)
        output = LlavaModelOutputWithPast(
            padded.hidden, padded.cache, padded.hidden_states, padded.attentions, image_hidden_states=images
        )
        return output.to_tuple() if return_dict is False else output


class LlavaForConditionalGeneration(GenerativeModel):
    """Pixtral: images and text in, text out."""

    architecture = "LlavaForConditionalGeneration"
    config_class = LlavaConfig
    config: LlavaConfig
    main_input_name = "input_ids"

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.model = LlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.language_model.embed_tokens.weight
        else:
            self.init_weights(self.lm_head)

    @property
    def decoder(self) -> MistralModel:
        """The blocks that `forward_packed` runs."""
        return self.model.language_model

    @property
    def text_config(self) -> MistralConfig:
        """The decoder's configuration."""
        return self.config.text_config

    @property
    def vision_tower(self) -> PixtralVisionModel:
        """Short for `model.vision_tower`, as in Transformers 4."""
        return self.model.vision_tower

    @property
    def multi_modal_projector(self) -> LlavaMultiModalProjector:
        """Short for `model.multi_modal_projector`, as in Transformers 4."""
        return self.model.multi_modal_projector

    @property
    def language_model(self) -> MistralModel:
        """Short for `model.language_model`, as in Transformers 4."""
        return self.model.language_model

    def encode_images(
        self,
        images: Sequence[Tensor],
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        trace: Trace | None = None,
    ) -> list[Tensor]:
        """As `LlavaModel.encode_images`."""
        return self.model.encode_images(images, vision_feature_layer, vision_feature_select_strategy, trace)

    def embed(self, input_ids: Tensor, image_features: Sequence[Tensor] | None = None) -> Tensor:
        """As `LlavaModel.embed`."""
        return self.model.embed(input_ids, image_features)

    def get_image_features(
        self,
        pixel_values: Tensor | Sequence[Tensor],
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """As `LlavaModel.get_image_features`."""
        return self.model.get_image_features(
            pixel_values, vision_feature_layer, vision_feature_select_strategy, image_sizes, output_hidden_states
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        image_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        mm_encoder_outputs: Mapping[str, BaseModelOutputWithPooling] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> LlavaCausalLMOutputWithPast | tuple[object, ...]:
        """Transformers' signature: padded batches (B, S), padding on either side, images in order of appearance.

        Raises:
            PromptError: not exactly one of input_ids and inputs_embeds, image tokens and features of different
                number, or shapes that do not fit.
        """
        embeds, images = self.model.embed_padded(
            input_ids,
            pixel_values,
            inputs_embeds,
            vision_feature_layer,
            vision_feature_select_strategy,
            image_sizes,
            mm_encoder_outputs,
        )
        trace = Trace.wanted(output_hidden_states, output_attentions)
        padded = run_padded(self, embeds, attention_mask, position_ids, past_key_values, use_cache, trace)
        fields = causal_lm_fields(self, padded, labels, logits_to_keep, num_items_in_batch)
        output = LlavaCausalLMOutputWithPast(**fields, image_hidden_states=images)
        return output.to_tuple() if return_dict is False else output
