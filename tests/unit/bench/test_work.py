"""Operations and bytes of a phase, counted by hand; ceilings, shares, medians."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pixtral.bench.ceilings import READ_BYTES, Ceilings, Meter, _torch_rate
from pixtral.bench.random_model import empty_model
from pixtral.bench.settings import Settings
from pixtral.bench.work import Measurement, Work, decoder_work, idle_share, image_work
from pixtral.configuration.shapes import shape_config
from pixtral.errors import ConfigError
from pixtral.ops.kv_cache import token_bytes
from pixtral.ops.native.library import ISAS
from pixtral.quantization import QuantizationArguments

CEILINGS = Ceilings(read=10.0, int8=100.0, bf16=50.0, measured_with="paper")
WIDTH, WIDE, LAYERS, VOCABULARY = 256, 512, 4, 2048  # of "tiny": 4 query heads and 2 key heads of 64
LAYER_WEIGHTS = 2 * WIDTH * 256 + 2 * WIDTH * 128 + 3 * WIDTH * WIDE


def test_a_prompt_counts_every_product_once():
    rows = 10
    model = empty_model(shape_config("tiny"), QuantizationArguments())
    once = WIDTH * 256 + 3 * WIDTH * WIDE  # of the last layer, what only the last token needs
    linear = 2 * rows * (LAYERS * LAYER_WEIGHTS - once) + 2 * once + 2 * WIDTH * VOCABULARY
    pairs = sum(range(1, rows + 1))  # token i sees i keys, with four heads of 64, once for scores and once for values
    work = decoder_work(model, rows, rows, token_bytes(model.text_config, model.dtype))
    assert work.int8 == 0
    assert work.bf16 == linear + 2 * 2 * pairs * 4 * 64 * LAYERS
    assert work.bytes == 2 * (LAYERS * LAYER_WEIGHTS + WIDTH * VOCABULARY) + rows * 2 * 2 * LAYERS * 2 * 64


def test_the_idle_part_of_the_last_layer():
    idle = WIDTH * 256 + 3 * WIDTH * WIDE
    assert idle_share(empty_model(shape_config("tiny"), QuantizationArguments())) == idle / LAYER_WEIGHTS


def test_quantized_layers_count_as_int8_unless_activations_are_bf16():
    plain, quantized, dequantized = (
        decoder_work(empty_model(shape_config("tiny"), asked), 1, 100, 0)
        for asked in (
            QuantizationArguments(),
            QuantizationArguments("int4"),
            QuantizationArguments("int4", activations="bf16"),
        )
    )
    assert quantized.operations == plain.operations == dequantized.bf16
    assert quantized.int8 == 2 * (LAYERS * LAYER_WEIGHTS + WIDTH * VOCABULARY)
    four, eight = LAYERS * LAYER_WEIGHTS, WIDTH * VOCABULARY
    rows = LAYERS * (256 + 2 * 128 + WIDTH + 2 * WIDE + WIDTH) + VOCABULARY
    assert quantized.bytes == four / 2 + eight + (four + eight) / 64 + 4 * rows


def test_the_cache_of_a_token():
    text = shape_config("pixtral-12b").text_config
    assert token_bytes(text, torch.bfloat16) == 160 * 1024
    assert token_bytes(text, torch.int8) == 40 * 8 * 2 * (128 + 4)


def test_an_image_counts_tower_and_projector():
    model = empty_model(shape_config("tiny"), QuantizationArguments())
    patches, width = 12, 128
    tower = 3 * (4 * width * width + 3 * width * 256)
    projector = width * WIDTH + WIDTH * WIDTH
    attention = 3 * 4 * patches * patches * width
    conv = 2 * patches * 3 * 16 * 16 * width
    assert image_work(model, patches).bf16 == 2 * patches * (tower + projector) + attention + conv


def test_the_least_time_is_computing_or_reading():
    assert Work(int8=200.0, bf16=50.0, bytes=5.0).least_seconds(CEILINGS) == 3.0
    assert Work(int8=200.0, bytes=50.0).least_seconds(CEILINGS) == 5.0
    assert (Work(1, 2, 3) + Work(1, 2, 3)) == Work(2, 4, 6)
    assert Work(int8=200.0, bytes=50.0).limit(CEILINGS) == "read"
    assert Work(int8=200.0, bf16=10.0).limit(CEILINGS) == "int8"
    assert Work(int8=10.0, bf16=100.0).limit(CEILINGS) == "bf16"
    assert Work(int8=200.0, bf16=100.0).limit(CEILINGS) == "mixed"


def test_a_share_is_the_median_over_runs_with_the_ceilings_of_their_time():
    fast, slow = CEILINGS, Ceilings(5.0, 100.0, 50.0, "paper")
    runs = [(2.0, fast), (4.0, slow), (1.0, fast)]
    phase = Measurement.of(runs, Work(bytes=10.0), tokens=4, extra=6.0)
    assert phase.share == 0.5  # 1 / 2, 2 / 4 and 1 / 1
    made = phase.to_dict()
    assert made["seconds"] == 8.0
    assert made["runs"] == [2.0, 4.0, 1.0]
    assert made["tokens_per_second"] == 0.5
    assert made["limit"] == "read"


def test_the_meter_measures_what_a_processor_can_do():
    found = Meter(1).ceilings()
    assert all(0 < rate < math.inf for rate in (found.read, found.bf16, found.int8))
    assert found.to_dict()["read_gb_s"] == pytest.approx(found.read / 1e9, abs=0.1)
    assert found.measured_with in (*ISAS, "torch")


def test_the_meter_without_the_library_uses_torch(monkeypatch):
    """By a clock on which everything takes a second: reading 256 MiB, and products of the small matrices only."""
    monkeypatch.setattr("pixtral.bench.ceilings.kernels", lambda: None)
    monkeypatch.setattr("pixtral.bench.ceilings.time.perf_counter", itertools.count().__next__)
    found = Meter(torch.get_num_threads()).ceilings()
    assert found.measured_with == "torch"
    assert found.read == READ_BYTES
    assert found.int8 == found.bf16 == 2 * 128**3


def test_large_matrices_are_multiplied_where_that_is_quick(monkeypatch):
    clock = itertools.count(0, 1e-3)
    monkeypatch.setattr("pixtral.bench.ceilings.time.perf_counter", lambda: next(clock))
    sides: list[int] = []

    def product(a, b):
        sides.append(len(a))
        return a

    rate = _torch_rate(product, torch.bfloat16)
    assert set(sides) == {128}  # a millisecond for such small ones: four seconds for a large one
    assert rate == pytest.approx(2 * 128**3 / 1e-3)
    clock = itertools.count(0, 1e-6)
    assert _torch_rate(product, torch.bfloat16) == pytest.approx(2 * 2048**3 / 1e-6)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Settings(prompt=5000), "prompt"),
        (Settings(contexts=(10, 5000)), "context of 5000"),
        (Settings(memory_context=5000), "memory context"),
    ],
)
def test_settings_beyond_the_context_are_refused(settings, name):
    with pytest.raises(ConfigError, match=rf"a {name} with 5000 tokens and 16 new ones exceeds .* context of 4500"):
        settings.check(4500)
    settings.check(5016)
