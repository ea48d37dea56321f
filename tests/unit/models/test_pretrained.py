"""What the three models share: dtype, device, counting, first weights, gradient checkpointing, the meta device."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from random_models import VARIANTS, llava_dict, random_batch, random_llava
from torch import nn

from pixtral.configuration import LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.errors import ConfigError
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.models.mistral import MistralForCausalLM
from pixtral.models.pretrained import PreTrainedModel
from pixtral.models.vision import PixtralVisionModel

VALUES = llava_dict()
BUILDERS: list[Callable[[], PreTrainedModel]] = [
    lambda: PixtralVisionModel(PixtralVisionConfig.from_dict(VALUES["vision_config"])),
    lambda: MistralForCausalLM(MistralConfig.from_dict(VALUES["text_config"])),
    lambda: LlavaForConditionalGeneration(LlavaConfig.from_dict(VALUES)),
]


@pytest.mark.parametrize("build", BUILDERS)
def test_facts(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    assert model.dtype == torch.float32 and model.device.type == "cpu"
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    total = sum(p.numel() for p in model.parameters())
    assert model.num_parameters() == total
    first = next(model.parameters()).requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == total - first.numel()
    assert not list(model.buffers())
    assert model.get_input_embeddings().weight.shape[0] in (32, 96)


def test_tied_embeddings_are_one_parameter_counted_once() -> None:
    tied = random_llava(VARIANTS["inner_layer"])
    assert tied.lm_head.weight is tied.get_input_embeddings().weight is tied.get_output_embeddings().weight
    text = MistralForCausalLM(MistralConfig.from_dict({**VALUES["text_config"], "tie_word_embeddings": True}))
    assert text.lm_head.weight is text.get_input_embeddings().weight
    untied = MistralForCausalLM(MistralConfig.from_dict(VALUES["text_config"]))
    assert untied.num_parameters() - text.num_parameters() == 96 * 40


@pytest.mark.parametrize("build", BUILDERS)
def test_on_the_meta_device(build: Callable[[], PreTrainedModel]) -> None:
    """Nothing is allocated, and real weights can be put in afterwards: no table was computed in between."""
    with torch.device("meta"):
        model = build()
    assert model.device.type == "meta"
    real = build()
    model.load_state_dict(real.state_dict(), assign=True)
    assert model.device.type == "cpu"
    ids = torch.tensor([[1, 2, 3]])
    pixels = torch.randn(1, 3, 8, 8)
    inputs = {"pixel_values": pixels} if isinstance(model, PixtralVisionModel) else {"input_ids": ids}
    assert model.eval()(**inputs)[0].equal(real.eval()(**inputs)[0])


@pytest.mark.parametrize("build", BUILDERS)
def test_first_weights(build: Callable[[], PreTrainedModel]) -> None:
    model = build()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2), name
        else:
            assert parameter.eq(0.0 if name.endswith("bias") else 1.0).all(), name


def test_checkpointing_recomputes_and_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_llava()
    batch = random_batch(model.config)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    calls = {"tower": 0, "decoder": 0}
    for name, layers in (("tower", model.model.vision_tower.transformer.layers), ("decoder", model.decoder.layers)):
        for layer in layers:

            def counted(*args, name=name, forward=layer.forward):  # type: ignore[no-untyped-def]
                calls[name] += 1
                return forward(*args)

            monkeypatch.setattr(layer, "forward", counted)

    def gradients(**more: bool) -> dict[str, torch.Tensor]:
        model.zero_grad()
        calls.update(tower=0, decoder=0)
        output = model(**batch.inputs(labels=labels, **more))
        output.loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.train()
    plain = gradients()
    assert calls == {"tower": 3, "decoder": 3} and not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    for more in ({}, {"use_cache": True}):
        again = gradients(**more)
        assert calls == {"tower": 6, "decoder": 6}, "both the tower's and the decoder's layers run twice"
        assert again.keys() == plain.keys() == dict(model.named_parameters()).keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-6)
    model.eval()
    gradients()
    assert calls == {"tower": 3, "decoder": 3}, "not outside training"
    model.train().gradient_checkpointing_disable()
    gradients()
    assert calls == {"tower": 3, "decoder": 3} and not model.is_gradient_checkpointing


def test_arguments_of_checkpointing() -> None:
    model = random_llava()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert model.is_gradient_checkpointing
    with pytest.raises(ConfigError, match=r"'use_reentrant': True.*pass \{'use_reentrant': False\}"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


def test_every_parameter_learns_from_images_and_text() -> None:
    model = random_llava().train()
    batch = random_batch(model.config)
    model(**batch.inputs(labels=batch.input_ids)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.norm() > 0, name


def test_models_can_be_copied_and_pickled() -> None:
    """Worker processes and training tools do both."""
    model = random_llava()
    batch = random_batch(model.config)
    expected = model(**batch.inputs()).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(**batch.inputs()).logits, expected)
        assert twin.config == model.config and twin.config is not model.config


def test_layers_can_be_swapped() -> None:
    """Quantization and adapters replace nn.Linear modules; nothing holds on to the old ones."""
    model = random_llava()
    batch = random_batch(model.config)
    before = model(**batch.inputs()).logits
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, nn.Sequential(child, nn.Identity()))
    torch.testing.assert_close(model(**batch.inputs()).logits, before)
