"""The network against Transformers 5.23 on random small configurations: every number it returns, in float32."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import transformers
from random_models import MIXED, VARIANTS, Batch, Pair, llava_dict, random_batch, random_pair, randomize
from torch import Tensor
from transformers.models.pixtral.modeling_pixtral import PixtralVisionRotaryEmbedding, apply_rotary_pos_emb

from pixtral.configuration import MistralConfig, PixtralVisionConfig
from pixtral.layers.blocks import grid_rotation, rotate
from pixtral.layers.outputs import BaseModelOutputWithPooling
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.mistral import MistralForCausalLM
from pixtral.models.vision import PixtralVisionModel

LOGITS = {"rtol": 0.0, "atol": 1e-4}
GRIDS = {
    "no image": ((), ()),
    "one image": (((3, 4),),),
    "equal images": (((2, 3), (2, 3)), ((2, 3),)),
    "0, 1 and 3 images": MIXED,
    "a wide one": (((1, 70),), ((20, 1), (1, 1))),
}
SIDES = ("left", "right")


@functools.cache
def pair_of(name: str, attention: str = "sdpa") -> Pair:
    """The pair of a variant, built once; tests must not change it."""
    return random_pair(VARIANTS[name], attention=attention)


@pytest.fixture(params=list(VARIANTS))
def pair(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param)


def both(pair: Pair, batch: Batch, **more: Any) -> tuple[Any, Any]:
    with torch.no_grad():
        return pair.ours(**batch.inputs(**more)), pair.theirs(**batch.inputs(**more))


def assert_relative(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """The largest difference is small beside the largest value."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    error = (ours - theirs).abs().max().item() / theirs.abs().max().item()
    assert error <= tolerance, f"relative error {error:.2g}"


def labels_of(batch: Batch) -> Tensor:
    """The tokens, without padding and each prompt's first, which Transformers would predict from left padding."""
    real = batch.attention_mask.bool()
    return batch.input_ids.masked_fill(~(real & (real.cumsum(1) > 1)), -100)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# names and shapes


def test_parameter_names_and_shapes_are_transformers(pair: Pair) -> None:
    ours, theirs = pair.ours.state_dict(), pair.theirs.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert dict(pair.ours.named_parameters()).keys() == dict(pair.theirs.named_parameters()).keys()
    assert pair.ours.num_parameters() == pair.theirs.num_parameters()
    assert not list(pair.ours.buffers())


def test_parts_have_transformers_names() -> None:
    values = llava_dict()
    tower = transformers.PixtralVisionModel(transformers.PixtralVisionConfig(**values["vision_config"]))
    assert PixtralVisionModel(PixtralVisionConfig.from_dict(values["vision_config"])).state_dict().keys() == (
        tower.state_dict().keys()
    )
    text = transformers.MistralForCausalLM(transformers.MistralConfig(**values["text_config"]))
    assert MistralForCausalLM(MistralConfig.from_dict(values["text_config"])).state_dict().keys() == (
        text.state_dict().keys()
    )


# the vision tower


@pytest.mark.parametrize(
    ("rows", "cols", "head_dim", "theta"), [(3, 5, 16, 1e4), (70, 2, 64, 1e4), (1, 130, 8, 50.0), (9, 9, 88, 1e4)]
)
def test_grid_rotation(rows: int, cols: int, head_dim: int, theta: float) -> None:
    parameters = {"rope_type": "axial", "rope_theta": theta}
    config = transformers.PixtralVisionConfig(
        hidden_size=2 * head_dim, num_attention_heads=2, rope_parameters=parameters
    )
    q, k = torch.randn(2, rows * cols, 2, head_dim).unbind()
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"), -1).reshape(-1, 2)
    cos, sin = PixtralVisionRotaryEmbedding(config)(q, places)
    their_q, their_k = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1)
    rotation = grid_rotation([(rows, cols)], head_dim, theta, q.dtype, q.device)
    torch.testing.assert_close(rotate(q, rotation), their_q, rtol=0, atol=1e-6 * q.abs().max().item() * 4)
    torch.testing.assert_close(rotate(k, rotation), their_k, rtol=0, atol=1e-6 * k.abs().max().item() * 4)


@pytest.mark.parametrize("grids", list(GRIDS)[1:])
def test_vision_features(pair: Pair, grids: str) -> None:
    batch = random_batch(pair.ours.config, GRIDS[grids])
    with torch.no_grad():
        ours = pair.ours.model.vision_tower(batch.pixel_values, batch.image_sizes, output_hidden_states=True)
        theirs = pair.theirs.model.vision_tower(batch.pixel_values, batch.image_sizes, output_hidden_states=True)
    assert_relative(ours.last_hidden_state, theirs.last_hidden_state)
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_relative(a, b)


def test_vision_features_without_sizes() -> None:
    pair = pair_of("pixtral")
    pixels = torch.randn(3, 3, 12, 20)
    with torch.no_grad():
        ours, theirs = pair.ours.model.vision_tower(pixels), pair.theirs.model.vision_tower(pixels)
    assert_relative(ours.last_hidden_state, theirs.last_hidden_state)


def test_vision_attentions() -> None:
    pair = pair_of("pixtral", "eager")
    batch = random_batch(pair.ours.config, MIXED)
    with torch.no_grad():
        ours = pair.ours.model.vision_tower(batch.pixel_values, batch.image_sizes, output_attentions=True)
        theirs = pair.theirs.model.vision_tower(batch.pixel_values, batch.image_sizes, output_attentions=True)
    assert_relative(ours.last_hidden_state, theirs.last_hidden_state)
    assert len(ours.attentions) == len(theirs.attentions) == 3
    for a, b in zip(ours.attentions, theirs.attentions, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["pixtral", "inner_layer", "several_layers"])
def test_image_features(name: str) -> None:
    pair = pair_of(name)
    batch = random_batch(pair.ours.config, MIXED)
    with torch.no_grad():
        ours = pair.ours.get_image_features(batch.pixel_values, image_sizes=batch.image_sizes)
        theirs = pair.theirs.get_image_features(batch.pixel_values, image_sizes=batch.image_sizes)
    assert len(ours.pooler_output) == len(theirs.pooler_output) == 4
    for a, b in zip(ours.pooler_output, theirs.pooler_output, strict=True):
        assert_relative(a, b)
    assert_relative(ours.last_hidden_state, theirs.last_hidden_state)


def test_image_features_of_another_layer() -> None:
    pair = pair_of("pixtral")
    batch = random_batch(pair.ours.config, MIXED)
    arguments = (batch.pixel_values, 1, "full")
    with torch.no_grad():
        ours = pair.ours.get_image_features(*arguments, image_sizes=batch.image_sizes)
        theirs = pair.theirs.get_image_features(*arguments, image_sizes=batch.image_sizes)
    assert_relative(torch.cat(ours.pooler_output), torch.cat(theirs.pooler_output))
    ours, theirs = both(pair, batch, vision_feature_layer=1, vision_feature_select_strategy="full")
    real = batch.attention_mask.bool()
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], **LOGITS)


# the whole network


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("grids", GRIDS)
def test_all_logits(pair: Pair, grids: str, side: str) -> None:
    batch = random_batch(pair.ours.config, GRIDS[grids], side=side, seed=len(grids))
    ours, theirs = both(pair, batch)
    real = batch.attention_mask.bool()
    assert ours.logits.shape == theirs.logits.shape
    assert theirs.logits[real].std() > 0.1, "logits too small to compare"
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], **LOGITS)
    if batch.pixel_values is None:
        assert ours.image_hidden_states is None
    else:
        assert_relative(ours.image_hidden_states, theirs.image_hidden_states)


@pytest.mark.parametrize("seed", range(3))
def test_all_logits_of_random_sizes(seed: int) -> None:
    """Shapes that nobody chose."""
    draw = torch.Generator().manual_seed(seed)

    def pick(*values: int) -> int:
        return values[int(torch.randint(len(values), (), generator=draw))]

    kv, group, heads = pick(1, 2, 3), pick(1, 2, 4), pick(1, 2, 3)
    values = llava_dict(
        text={
            "num_attention_heads": kv * group,
            "num_key_value_heads": kv,
            "head_dim": pick(2, 10, 24),
            "hidden_size": pick(12, 30),
            "intermediate_size": pick(7, 33),
            "num_hidden_layers": pick(1, 2, 5),
            "rms_norm_eps": 10.0 ** -pick(5, 6, 3),
        },
        vision={
            "hidden_size": heads * pick(4, 8, 20),
            "num_attention_heads": heads,
            "intermediate_size": pick(5, 31),
            "patch_size": pick(2, 3, 5),
            "hidden_act": ("silu", "gelu")[pick(0, 1)],
        },
        projector_hidden_act=("gelu", "gelu_pytorch_tanh", "quick_gelu")[pick(0, 1, 2)],
    )
    pair = random_pair(values, seed=seed)
    grids = [[(pick(1, 2, 5), pick(1, 3, 4)) for _ in range(pick(0, 1, 3))] for _ in range(4)]
    batch = random_batch(pair.ours.config, grids, side=SIDES[seed % 2], seed=seed)
    ours, theirs = both(pair, batch)
    real = batch.attention_mask.bool()
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], **LOGITS)


@pytest.mark.parametrize("side", SIDES)
def test_hidden_states_and_attentions(side: str) -> None:
    pair = pair_of("multi_head", "eager")
    batch = random_batch(pair.ours.config, MIXED, side=side)
    ours, theirs = both(pair, batch, output_hidden_states=True, output_attentions=True)
    real = batch.attention_mask.bool()
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], **LOGITS)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 4
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert a.shape == b.shape
        assert_relative(a[real], b[real])
    assert len(ours.attentions) == len(theirs.attentions) == 3
    for a, b in zip(ours.attentions, theirs.attentions, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.transpose(1, 2)[real], b.transpose(1, 2)[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("num_items", [None, 7, torch.tensor(11)])
def test_loss(side: str, num_items: int | Tensor | None) -> None:
    pair = pair_of("pixtral")
    batch = random_batch(pair.ours.config, MIXED, side=side)
    labels = labels_of(batch)
    labels[:, ::3] = -100
    more = {} if num_items is None else {"num_items_in_batch": num_items}
    ours, theirs = both(pair, batch, labels=labels, **more)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-5, atol=1e-5)
    assert ours[0] is ours.loss and theirs[0] is theirs.loss


@pytest.mark.parametrize(
    "keep", [0, 1, 4, torch.tensor([0, 3, -1]), torch.tensor([2]), torch.tensor([[0, 1], [5, 2]]), "mask"]
)
def test_logits_to_keep(keep: int | Tensor | str) -> None:
    pair = pair_of("pixtral")
    batch = random_batch(pair.ours.config, [[(2, 3)], [(2, 3)]])
    batch.attention_mask = torch.ones_like(batch.attention_mask)
    keep = batch.input_ids > 50 if isinstance(keep, str) else keep
    ours, theirs = both(pair, batch, logits_to_keep=keep)
    assert ours.logits.shape == theirs.logits.shape
    torch.testing.assert_close(ours.logits, theirs.logits, **LOGITS)


def test_input_embeddings() -> None:
    pair = pair_of("pixtral")
    batch = random_batch(pair.ours.config, MIXED)
    embeds = pair.ours.get_input_embeddings()(batch.input_ids).detach()
    torch.testing.assert_close(embeds, pair.theirs.get_input_embeddings()(batch.input_ids).detach())
    full, _ = both(pair, batch)
    real = batch.attention_mask.bool()
    with torch.no_grad():
        for pixels in ({}, {"pixel_values": batch.pixel_values, "image_sizes": batch.image_sizes}):
            inputs = {"inputs_embeds": embeds, "attention_mask": batch.attention_mask, **pixels}
            ours, theirs = pair.ours(**inputs), pair.theirs(**inputs)
            torch.testing.assert_close(ours.logits[real], theirs.logits[real], **LOGITS)
            assert torch.equal(ours.logits, full.logits) == bool(pixels)


def test_encoded_images_in_the_place_of_pixels() -> None:
    pair = pair_of("pixtral")
    batch = random_batch(pair.ours.config, MIXED)
    full, _ = both(pair, batch)
    with torch.no_grad():
        encoded = pair.ours.get_image_features(batch.pixel_values, image_sizes=batch.image_sizes)
        encoded_theirs = pair.theirs.get_image_features(batch.pixel_values, image_sizes=batch.image_sizes)
        text = Batch(batch.input_ids, batch.attention_mask, None, None)
        ours = pair.ours(**text.inputs(mm_encoder_outputs={"image": encoded}))
        theirs = pair.theirs(**text.inputs(mm_encoder_outputs={"image": encoded_theirs}))
    real = batch.attention_mask.bool()
    torch.testing.assert_close(ours.logits, full.logits)
    torch.testing.assert_close(ours.logits[real], theirs.logits[real], **LOGITS)
    assert isinstance(encoded, BaseModelOutputWithPooling)


def test_given_positions() -> None:
    pair = pair_of("multi_head")
    batch = random_batch(pair.ours.config, [[(2, 2)], [(2, 2)]])
    batch.attention_mask = torch.ones_like(batch.attention_mask)
    positions = torch.randint(0, 500, batch.input_ids.shape)
    plain, _ = both(pair, batch)
    ours, theirs = both(pair, batch, position_ids=positions)
    torch.testing.assert_close(ours.logits, theirs.logits, **LOGITS)
    assert (plain.logits - ours.logits).abs().max() > 0.01
    ours, theirs = both(pair, batch, position_ids=positions[:1])  # one row for the whole batch
    torch.testing.assert_close(ours.logits, theirs.logits, **LOGITS)


def test_steps_with_a_cache() -> None:
    """Prompt, two tokens at once, then single tokens, on left-padded prompts; each step's logits and weights."""
    pair = pair_of("one_kv_head", "eager")
    config = pair.ours.config
    batch = random_batch(config, MIXED, side="left")
    mask, ours_cache, theirs_cache = batch.attention_mask, None, None
    inputs = batch.inputs()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for step, length in enumerate((0, 2, 1, 1)):
            if step:
                ids = torch.randint(20, 70, (3, length), generator=generator)
                mask = torch.cat([mask, torch.ones(3, length, dtype=mask.dtype)], 1)
                inputs = {"input_ids": ids, "attention_mask": mask}
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -inputs["input_ids"].shape[1] :]
            more = {"use_cache": True, "output_attentions": True}
            ours = pair.ours(**inputs, past_key_values=ours_cache, **more)
            theirs = pair.theirs(**inputs, past_key_values=theirs_cache, position_ids=positions, **more)
            ours_cache, theirs_cache = ours.past_key_values, theirs.past_key_values
            real = mask[:, -inputs["input_ids"].shape[1] :].bool()
            torch.testing.assert_close(ours.logits[real], theirs.logits[real], **LOGITS)
            for a, b in zip(ours.attentions, theirs.attentions, strict=True):
                assert a.shape == b.shape
                torch.testing.assert_close(a.transpose(1, 2)[real], b.transpose(1, 2)[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["pixtral", "inner_layer", "multi_head"])
@pytest.mark.parametrize("side", SIDES)
def test_gradients(name: str, side: str) -> None:
    pair = random_pair(VARIANTS[name])
    batch = random_batch(pair.ours.config, MIXED, side=side)
    labels = labels_of(batch)
    ours = pair.ours.train()(**batch.inputs(labels=labels))
    theirs = pair.theirs.train()(**batch.inputs(labels=labels))
    ours.loss.backward()
    theirs.loss.backward()
    expected, found = gradients(pair.theirs), gradients(pair.ours)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        scale = gradient.abs().max().item()
        assert scale > 0, key
        assert (found[key] - gradient).abs().max().item() <= 1e-4 * scale + 1e-8, key


def test_gradients_of_input_embeddings() -> None:
    pair = pair_of("pixtral")
    embeds = torch.randn(2, 9, 40)
    found = []
    for model in (pair.ours, pair.theirs):
        leaf = embeds.clone().requires_grad_()
        model(inputs_embeds=leaf).logits.square().sum().backward()
        found.append(leaf.grad)
        model.zero_grad()
    assert_relative(found[0], found[1], 1e-4)


def test_bfloat16() -> None:
    """In bfloat16 both are about equally far from the float32 result, and no further from each other."""
    pair = random_pair(VARIANTS["pixtral"])
    batch = random_batch(pair.ours.config, MIXED)
    exact, _ = both(pair, batch)
    pair.ours.to(torch.bfloat16)
    pair.theirs.to(torch.bfloat16)
    batch.pixel_values = batch.pixel_values.to(torch.bfloat16)
    ours, theirs = both(pair, batch)
    real = batch.attention_mask.bool()
    assert ours.logits.dtype == theirs.logits.dtype == torch.bfloat16

    def rms(x: Tensor) -> float:
        return x[real].float().square().mean().sqrt().item()

    theirs_off = rms(theirs.logits - exact.logits)
    assert rms(ours.logits - exact.logits) <= 1.3 * theirs_off
    assert rms(ours.logits - theirs.logits) <= 1.3 * theirs_off
    assert theirs_off <= 0.05 * rms(exact.logits)


# the decoder alone


@pytest.mark.parametrize("side", [None, *SIDES])
def test_decoder_alone(side: str | None) -> None:
    values = llava_dict(text={"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8})["text_config"]
    theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**copy.deepcopy(values))).eval()
    randomize(theirs)
    ours = MistralForCausalLM(MistralConfig.from_dict(values)).eval()
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, 96, (3, 11))
    mask = None
    if side:
        lengths = torch.tensor([11, 4, 1])[:, None]
        mask = (torch.arange(11) < lengths if side == "right" else torch.arange(11) >= 11 - lengths).long()
    real = torch.ones(3, 11, dtype=torch.bool) if mask is None else mask.bool()
    labels = labels_of(Batch(ids, real, None, None))
    with torch.no_grad():
        a = ours(ids, mask, labels=labels, output_hidden_states=True)
        b = theirs(ids, mask, labels=labels, output_hidden_states=True)
    torch.testing.assert_close(a.logits[real], b.logits[real], **LOGITS)
    torch.testing.assert_close(a.loss, b.loss, rtol=1e-5, atol=1e-5)
    for x, y in zip(a.hidden_states, b.hidden_states, strict=True):
        assert_relative(x[real], y[real])


# outputs and errors


def test_outputs_are_read_in_the_same_ways() -> None:
    pair = pair_of("pixtral")
    batch = random_batch(pair.ours.config, [[(2, 2)]])
    ours, theirs = both(pair, batch, labels=batch.input_ids, use_cache=False)
    assert list(ours) == list(theirs) == ["loss", "logits", "image_hidden_states"]
    assert list(ours.keys()) == list(theirs.keys())
    assert len(ours) == len(theirs) == 3
    for output in (ours, theirs):
        assert output[1] is output["logits"] is output.logits
        assert "logits" in output and "past_key_values" not in output
        assert output.past_key_values is None
        assert isinstance(output.to_tuple(), tuple) and isinstance(output[:2], tuple)
        assert output.get("loss") is output.loss and output.get("attentions") is None
        assert list({**output}) == list(output.keys()) == list(dict(output.items()))
        with pytest.raises(KeyError):
            output["attentions"]
    ours, theirs = both(pair, batch, labels=batch.input_ids, use_cache=False, return_dict=False)
    assert type(ours) is type(theirs) is tuple and len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **LOGITS)


def test_a_cache_comes_by_default() -> None:
    pair = pair_of("pixtral")
    batch = random_batch(pair.ours.config, [[(2, 2)]])
    ours, theirs = both(pair, batch)
    assert list(ours) == list(theirs) == ["logits", "past_key_values", "image_hidden_states"]
    assert ours.past_key_values.get_seq_length() == theirs.past_key_values.get_seq_length() == batch.input_ids.shape[1]


def test_forward_takes_the_arguments_in_the_same_order() -> None:
    """So that positional arguments mean the same."""
    import inspect

    for ours, theirs in [
        (LlavaForConditionalGeneration.forward, transformers.LlavaForConditionalGeneration.forward),
        (
            LlavaForConditionalGeneration.get_image_features,
            transformers.LlavaForConditionalGeneration.get_image_features,
        ),
        (MistralForCausalLM.forward, transformers.MistralForCausalLM.forward),
        (PixtralVisionModel.forward, transformers.PixtralVisionModel.forward),
    ]:
        expected = [p.name for p in inspect.signature(theirs).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        found = list(inspect.signature(ours).parameters)
        assert found[: len(expected)] == expected, ours


@pytest.mark.parametrize("change", ["both", "neither", "more features", "fewer features", "pixels and encoded"])
def test_both_refuse_the_same_mistakes(change: str) -> None:
    pair = pair_of("pixtral")
    batch = random_batch(pair.ours.config, [[(2, 2)]])
    inputs = batch.inputs()
    if change == "both":
        inputs["inputs_embeds"] = torch.zeros(1, batch.input_ids.shape[1], 40)
    elif change == "neither":
        del inputs["input_ids"]
    elif change == "more features":
        inputs["input_ids"] = torch.full_like(batch.input_ids, 50)
    elif change == "fewer features":
        inputs["input_ids"] = torch.full_like(batch.input_ids, pair.ours.config.image_token_index)
    else:
        inputs["mm_encoder_outputs"] = {"image": pair.ours.get_image_features(batch.pixel_values)}
    for model in (pair.ours, pair.theirs):
        with pytest.raises(ValueError, match=r"image|exactly one|both"):
            model(**inputs)


# the network without its output layer


@pytest.mark.parametrize("side", SIDES)
def test_the_body(pair: Pair, side: str) -> None:
    batch = random_batch(pair.ours.config, MIXED, side=side)
    options = {"output_hidden_states": True}
    with torch.no_grad():
        ours, theirs = (model.model(**batch.inputs(**options)) for model in (pair.ours, pair.theirs))
    real = batch.attention_mask.bool()
    assert_relative(ours.last_hidden_state[real], theirs.last_hidden_state[real])
    for mine, yours in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_relative(mine[real], yours[real])
