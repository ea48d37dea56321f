"""The whole network: where features go, which layers they come from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import IMG, VARIANTS, llava_dict, random_batch, random_llava

import pixtral
from pixtral.errors import CheckpointError, ConfigError, ImageError, PromptError
from pixtral.layers.outputs import BaseModelOutputWithPooling


def test_features_replace_exactly_the_image_tokens() -> None:
    model = random_llava()
    ids = torch.tensor([5, IMG, 12, IMG, IMG, 13, 6])
    features = [torch.full((1, 40), 1.0), torch.full((2, 40), 2.0)]
    embeds = model.embed(ids, features)
    assert embeds[[1, 3, 4]].tolist() == [[1.0] * 40, [2.0] * 40, [2.0] * 40]
    others = torch.tensor([0, 2, 5, 6])  # [IMG_BREAK] and [IMG_END] among them
    assert embeds[others].equal(model.get_input_embeddings()(ids[others]))
    assert model.embed(ids).equal(model.get_input_embeddings()(ids)) and model.embed(ids, []).equal(model.embed(ids))


def test_the_image_token_is_the_configurations() -> None:
    model = random_llava(llava_dict(image_token_index=50))
    ids = torch.tensor([50, IMG])
    embeds = model.embed(ids, [torch.zeros(1, 40)])
    assert not embeds[0].any() and embeds[1].any()


@pytest.mark.parametrize(("tokens", "features"), [(2, [3]), (3, [1, 1]), (0, [1]), (4, [])])
def test_counts_that_do_not_match(tokens: int, features: list[int]) -> None:
    model = random_llava()
    ids = torch.tensor([5] + [IMG] * tokens)
    parts = [torch.zeros(n, 40) for n in features]
    if not features:
        assert model.embed(ids, parts).shape == (5, 40)  # text about [IMG] without images: the embedding itself
        return
    sizes = ", ".join(map(str, features))
    with pytest.raises(
        PromptError, match=rf"do not match: found {tokens} image tokens .* expected {sum(features)} .*image: {sizes}\)"
    ):
        model.embed(ids, parts)


def test_layers_of_features() -> None:
    """Entry 0 is what enters the first block; negative entries count from the end; a list is joined."""
    images = [torch.randn(3, 8, 12)]
    model = random_llava(VARIANTS["pixtral"])
    states = model.model.vision_tower(images[0][None], output_hidden_states=True).hidden_states
    for layer in (-4, -1, 0, 1, 3):
        expected = model.model.multi_modal_projector(states[layer][0])
        torch.testing.assert_close(model.encode_images(images, layer)[0], expected)
    model = random_llava(llava_dict(vision_feature_layer=[0, -2, 3]))
    states = model.model.vision_tower(images[0][None], output_hidden_states=True).hidden_states
    joined = torch.cat([states[i][0] for i in (0, -2, 3)], dim=-1)
    torch.testing.assert_close(model.encode_images(images)[0], model.model.multi_modal_projector(joined))


@pytest.mark.parametrize("layers", [4, -5, [0, 1], []])
def test_layers_that_are_not_there(layers: Any) -> None:
    with pytest.raises(ConfigError, match=r"vision_feature_layer is .*4 states.*projector takes 1 of them"):
        random_llava().encode_images([torch.randn(3, 8, 8)], layers)


def test_no_class_token_to_drop() -> None:
    pixels = torch.randn(1, 3, 8, 8)
    model = random_llava(llava_dict(vision_feature_select_strategy="default"))
    with pytest.raises(ConfigError, match=r"strategy 'default', which drops a class token.*set it to 'full'"):
        model.get_image_features(pixels)
    assert len(model.get_image_features(pixels, vision_feature_select_strategy="full").pooler_output) == 1
    model = random_llava()
    with pytest.raises(ConfigError, match="strategy 'some'"):
        model.get_image_features(pixels, vision_feature_select_strategy="some")
    assert random_llava(llava_dict(vision_feature_select_strategy="default"))(torch.tensor([[5]])).logits.any()


def test_image_features_and_their_reuse() -> None:
    model = random_llava()
    batch = random_batch(model.config)
    runs = []
    model.model.vision_tower.ln_pre.register_forward_hook(lambda *_: runs.append(1))
    full = model(**batch.inputs())
    assert len(runs) == 1, "one pass of the tower for all images"
    features = model.get_image_features(batch.pixel_values, image_sizes=batch.image_sizes)
    assert isinstance(features, BaseModelOutputWithPooling) and features.hidden_states is None
    assert features.last_hidden_state.shape == (1, 25, 32)
    assert [tuple(x.shape) for x in features.pooler_output] == [(6, 40), (1, 40), (8, 40), (10, 40)]
    runs.clear()
    ids, mask = batch.input_ids, batch.attention_mask
    again = model(input_ids=ids, attention_mask=mask, mm_encoder_outputs={"image": features})
    assert torch.equal(again.logits, full.logits) and not runs
    assert torch.equal(again.image_hidden_states, full.image_hidden_states)
    states = model.get_image_features(
        batch.pixel_values, image_sizes=batch.image_sizes, output_hidden_states=True
    ).hidden_states
    assert len(states) == 4 and states[-1].equal(features.last_hidden_state)


def test_encoded_nothing_is_text() -> None:
    model, ids = random_llava(), torch.tensor([[5, 6]])
    for nothing in ({}, {"image": BaseModelOutputWithPooling()}):
        output = model(ids, mm_encoder_outputs=nothing)
        assert torch.equal(output.logits, model(ids).logits) and output.image_hidden_states is None


def test_images_on_the_first_step_only() -> None:
    model = random_llava()
    batch = random_batch(model.config, [[(2, 2)]])
    cache = model(**batch.inputs()).past_key_values
    step = model(torch.tensor([[5]]), past_key_values=cache)
    assert step.image_hidden_states is None and step.logits.shape == (1, 1, 96)
    with pytest.raises(PromptError, match="found 0 image tokens"):
        model(torch.tensor([[5]]), batch.pixel_values, past_key_values=cache)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_ids": None}, PromptError, "exactly one of"),
        ({"inputs_embeds": torch.zeros(1, 11, 40)}, PromptError, "exactly one of"),
        ({"mm_encoder_outputs": {}}, PromptError, "pixel_values or mm_encoder_outputs"),
        ({"image_sizes": torch.tensor([[8, 8], [8, 8]])}, ImageError, "found 1 images and image_sizes"),
        ({"image_sizes": torch.tensor([[8, 4]])}, PromptError, "found 4 image tokens in the prompt, expected 2"),
        ({"pixel_values": torch.zeros(3, 8, 8)}, ImageError, r"pixel_values \(3, 8, 8\)"),
        ({"pixel_values": torch.zeros(1, 1, 8, 8)}, ImageError, r"shape \(1, 8, 8\)"),
        ({"vision_feature_layer": 9}, ConfigError, "vision_feature_layer is 9"),
    ],
)
def test_input_that_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    model = random_llava()
    batch = random_batch(model.config, [[(2, 2)]])
    with pytest.raises(error, match=message):
        model(**{**batch.inputs(), **change})


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="pixels"):
        random_llava()(torch.tensor([[5]]), pixels=torch.zeros(1))


def test_no_images_in_pixel_values() -> None:
    model, ids = random_llava(), torch.tensor([[5, 6]])
    nothing = torch.zeros(0, 3, 8, 8)
    assert torch.equal(model(ids, nothing).logits, model(ids).logits)
    assert model.encode_images([]) == []
    with pytest.raises(ImageError, match="no images in pixel_values"):
        model.get_image_features(nothing)


def test_names_of_parts_and_facts() -> None:
    model = random_llava()
    assert model.decoder is model.model.language_model and model.text_config is model.config.text_config
    assert model.get_input_embeddings() is model.model.language_model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head
    assert model.main_input_name == "input_ids" and model.supports_gradient_checkpointing
    bias = random_llava(VARIANTS["one_kv_head"]).model.multi_modal_projector.linear_1.bias
    assert bias is None and model.model.multi_modal_projector.linear_1.bias is not None


def test_one_class_for_each_network() -> None:
    model = random_llava()
    assert type(model.model) is pixtral.LlavaModel and type(model.model.vision_tower) is pixtral.PixtralVisionModel
    assert type(model) is pixtral.LlavaForConditionalGeneration
    assert model.model.vision_tower.config is model.config.vision_config


def test_the_body_alone(tmp_path: Path) -> None:
    """LlavaModel gives the hidden states from which the whole makes its logits; also when it is read by itself."""
    model = random_llava()
    batch = random_batch(model.config, [[(2, 3)], []])
    whole, body = model(**batch.inputs()), model.model(**batch.inputs())
    torch.testing.assert_close(
        model.lm_head(body.last_hidden_state)[batch.attention_mask.bool()], whole.logits[batch.attention_mask.bool()]
    )
    assert torch.equal(body.image_hidden_states, whole.image_hidden_states)
    assert body.past_key_values.lengths == whole.past_key_values.lengths
    model.save_pretrained(tmp_path)
    alone = pixtral.LlavaModel.from_pretrained(tmp_path)
    assert torch.equal(alone(**batch.inputs()).last_hidden_state, body.last_hidden_state)
    assert alone.name_or_path == str(tmp_path)
    with pytest.raises(CheckpointError, match="LlavaForConditionalGeneration"):
        alone.save_pretrained(tmp_path / "body")
