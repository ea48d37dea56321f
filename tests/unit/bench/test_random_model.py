"""Models with random weights at a shape: the public class, finite numbers, memory of their own, embeddings mapped."""

from __future__ import annotations

import math
import re
import tempfile
from pathlib import Path

import pytest
import torch

import pixtral
from pixtral.bench.random_model import empty_model, fill_random, resident_bytes
from pixtral.bench.work import weight_bytes
from pixtral.configuration.shapes import NAMES, shape_config, with_layers
from pixtral.errors import ConfigError
from pixtral.layers.linear import QuantizedLinear
from pixtral.quantization import QuantizationArguments


def random_model(shape="tiny", asked=None):
    model = empty_model(shape_config(shape), asked or QuantizationArguments())
    fill_random(model)
    return model


def test_the_shapes_are_those_of_the_models():
    large, twelve = (shape_config(name) for name in ("pixtral-large", "pixtral-12b"))
    attention, feed_forward = 2 * 5120 * (4096 + 1024), 3 * 5120 * 14336
    decoder = 40 * (attention + feed_forward + 2 * 5120) + 2 * 131072 * 5120 + 5120
    tower = 24 * (4 * 1024 * 1024 + 3 * 1024 * 4096 + 2 * 1024) + 1024 * 3 * 16 * 16 + 1024
    projector = 1024 * 5120 + 5120 + 5120 * 5120 + 5120
    assert empty_model(twelve, QuantizationArguments()).num_parameters() == decoder + tower + projector
    assert round(empty_model(large, QuantizationArguments()).num_parameters() / 1e9) == 124
    assert twelve.text_config.head_dim == large.text_config.head_dim == 128
    assert (twelve.image_break_token_id, large.image_break_token_id) == (12, 14)


def test_unknown_shapes_and_layers_are_refused():
    with pytest.raises(ConfigError, match=r"shape is 'pixtral-13b'; expected one of pixtral-12b, .*did you mean"):
        shape_config("pixtral-13b")
    for layers in (0, 5):
        with pytest.raises(ConfigError, match=f"layers is {layers}; expected a number from 1 to 4"):
            with_layers(shape_config("tiny"), layers)
    assert with_layers(shape_config("tiny"), 3).text_config.num_hidden_layers == 3


@pytest.mark.parametrize(
    "asked",
    [
        QuantizationArguments(),
        QuantizationArguments("int4"),
        QuantizationArguments("int8"),
        QuantizationArguments("int4", quantize_vision=True),
    ],
    ids=str,
)
def test_it_is_the_public_class_with_numbers_of_order_one(asked):
    model = random_model(asked=asked)
    assert isinstance(model, pixtral.LlavaForConditionalGeneration)
    assert not model.training
    quantized = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert {module.bits for module in quantized} == (
        {4, 8} if asked.quantization == "int4" else {8} if quantized else set()
    )
    assert bool(quantized) == (asked.quantization is not None)
    assert any(name.startswith("model.vision_tower") for name, one in model.named_modules() if one in quantized) == (
        asked.quantize_vision
    )
    assert (model.config.quantization_config is None) == (asked.quantization is None)
    ids = torch.randint(20, 2000, (1, 40))
    with torch.no_grad():
        made = model.forward(ids, output_hidden_states=True)
        features = model.encode_images([torch.randn(3, 64, 64)])[0]
    assert 0.5 < made.logits.float().std() < 2
    assert made.hidden_states[-1].isfinite().all()
    assert 0.1 < features.float().std() < 10
    assert len(model.generate(ids, max_new_tokens=3, eos_token_id=None)[0]) == 43


def test_every_layer_has_memory_of_its_own():
    model = random_model(asked=QuantizationArguments("int4"))
    places = [one.data_ptr() for one in (*model.parameters(), *model.buffers())]
    assert len(places) == len(set(places))
    first, second = (layer.mlp.up_proj.codes for layer in model.decoder.layers[:2])
    assert not torch.equal(first, second)


def test_random_codes_are_all_used():
    layer = random_model(asked=QuantizationArguments("int4")).decoder.layers[0].mlp.up_proj
    halves = torch.cat([layer.codes & 15, layer.codes >> 4]).flatten()
    shares = torch.bincount(halves.int(), minlength=16) / len(halves)
    assert (shares - 1 / 16).abs().max() < 0.005
    assert (layer.scales < 0).any() and (layer.scales > 0).any()
    head = random_model(asked=QuantizationArguments("int8")).lm_head
    assert head.codes.min() == 1
    assert head.codes.max() == 255


def resident_of(tensor):
    """Bytes of the mapping of a tensor that are in memory."""
    inside, place = False, tensor.data_ptr()
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(head[1], 16) <= place < int(head[2], 16)
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such mapping")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not say what is resident")
def test_of_the_embeddings_only_the_rows_in_use_are_resident(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = shape_config("tiny")
    config.text_config.vocab_size = 100_000
    model = empty_model(config, QuantizationArguments("int4"))
    announced = resident_bytes(model)
    fill_random(model)
    assert list(tmp_path.iterdir()) == []
    table = model.decoder.embed_tokens.weight
    assert announced == weight_bytes(model) - table.nbytes == model.get_memory_footprint() - table.nbytes
    assert resident_of(table) == 0
    with torch.no_grad():
        rows = model.embed(torch.tensor([0, 50_000, 99_999]))
    assert resident_of(table) == 0  # they were read from the file
    assert rows.float().std() == pytest.approx(1, abs=0.15)


def test_a_full_disk_is_named(monkeypatch):
    def refuse():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"token embeddings \(0\.0 GB\).*No space left.*set TMPDIR"):
        random_model()


def test_names_are_those_of_the_command():
    assert NAMES == ("pixtral-12b", "pixtral-large", "mid", "tiny")


def test_a_wrong_scheme_is_refused_before_anything_is_built():
    with pytest.raises(ConfigError, match="quantization is 'int3'"):
        empty_model(shape_config("tiny"), QuantizationArguments("int3"))


def test_weights_are_scaled_to_their_width():
    layer = random_model(asked=QuantizationArguments("int4")).decoder.layers[0].mlp.down_proj
    x = torch.randn(64, layer.in_features)
    assert float(layer(x).std()) == pytest.approx(1, abs=0.1)
    assert math.isclose(float(random_model().lm_head.weight.float().std()), 256**-0.5, rel_tol=0.02)
