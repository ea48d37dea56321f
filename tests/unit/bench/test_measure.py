"""The phases on a tiny model: they run the model that they say, on caches as long as they say."""

from __future__ import annotations

import re

import pytest
import torch

from pixtral.bench.ceilings import Ceilings
from pixtral.bench.machine import reset_peak, resident
from pixtral.bench.measure import Bench
from pixtral.bench.measured_model import loaded_model, model_of_shape, needed_bytes
from pixtral.bench.random_model import FilledContext, empty_model, fill_random
from pixtral.bench.settings import Settings
from pixtral.configuration.shapes import shape_config, with_layers
from pixtral.engine.sampling_params import SamplingParams
from pixtral.errors import ConfigError
from pixtral.generation.loop import Generation, Prompt
from pixtral.quantization import QuantizationArguments

SETTINGS = Settings(images=(64,), prompt=40, new=3, contexts=(70,), memory_context=90, repeat=2)


class StillMeter:
    """Ceilings that do not change."""

    def ceilings(self):
        return Ceilings(1e9, 1e12, 1e12, "paper")

    def read(self):
        return 1e9


@pytest.fixture(scope="module")
def model():
    made = empty_model(shape_config("tiny"), QuantizationArguments())
    fill_random(made)
    return made


@pytest.fixture
def calls(model, monkeypatch):
    """(rows, keys) of every pass through the decoder."""
    seen = []
    real = model.forward_packed

    def forward(embeds, positions, packing, cache=None, wanted=None):
        assert positions.tolist() == list(range(packing.kv_lens[0] - len(embeds), packing.kv_lens[0]))
        seen.append((len(embeds), packing.kv_lens[0]))
        return real(embeds, positions, packing, cache, wanted)

    monkeypatch.setattr(model, "forward_packed", forward)
    return seen


def test_the_phases_do_what_their_names_say(model, calls):
    bench = Bench(model, SETTINGS, StillMeter())
    image = bench.image(64)
    assert calls == []
    assert image.work.bf16 > 0 and len(image.runs) == 2
    prompt = bench.prompt()
    assert calls == [(32, 32), (40, 40), (40, 40)]  # the first one warms up
    assert prompt.tokens == 40
    calls.clear()
    first = bench.first_token(64)
    assert calls == [(40, 40)] * 2  # 4 rows of 4 patches with their breaks, and 20 tokens of text
    assert first.tokens == 40
    calls.clear()
    new = bench.new(70)
    assert calls == [(1, 70), (1, 71), (1, 72), (1, 73)] * 2
    assert len(new.runs) == 6
    assert new.to_dict()["tokens_per_second"] == pytest.approx(1 / new.seconds, rel=1e-3)
    calls.clear()
    assert bench.memory() is None or bench.memory().peak > 0
    assert calls[:3] == [(40, 90), (1, 91), (1, 92)]


def test_contexts_can_be_computed(model, calls):
    settings = Settings(images=(), prompt=8, new=1, contexts=(70,), memory_context=90, repeat=1, compute_context=True)
    Bench(model, settings, StillMeter()).new(70)
    assert calls == [(70, 70), (1, 71)]


def test_a_drawn_context_is_as_long_and_as_full(model, calls):
    seen = []

    def keep(embeds, positions, packing, cache=None, wanted=None):
        there = packing.kv_lens[0] - packing.q_lens[0]
        seen.append((there, cache.layers[-1].keys[packing.tables[0]][:there].float().std().item()))
        return model.decoder(embeds, positions, packing, cache, wanted)

    filled = FilledContext(model, 50, 5)
    model.forward_packed, real = keep, model.forward_packed
    prompt = Prompt(model.embed(torch.tensor([7])).expand(50, -1))
    generation = Generation(filled, [prompt], [SamplingParams(temperature=0.0, max_tokens=2)], prefill_tokens=20)
    assert [len(step.tokens) for step in generation] == [1, 1]
    model.forward_packed = real
    assert [length for length, _ in seen] == [45, 50]
    assert seen[0][1] == pytest.approx(1, abs=0.1)


def test_parts_of_the_layers_are_scaled_to_all(monkeypatch):
    config = with_layers(shape_config("tiny"), 1)
    model = empty_model(config, QuantizationArguments())
    fill_random(model)
    bench = Bench(model, SETTINGS, StillMeter(), of_layers=4)
    bench._head_seconds = 0.5
    ceilings = StillMeter().ceilings()
    assert bench._missing_seconds([(2.0, ceilings), (2.5, ceilings), (9.0, ceilings)]) == 3 * 2.0
    assert bench._missing_seconds([(2.5, ceilings)], 1.0) == 3 * 1.0
    whole = Bench(model, SETTINGS, StillMeter())
    assert whole._missing_seconds([(2.5, ceilings)]) == 0.0


def test_the_peak_can_begin_anew():
    if resident() is None:
        pytest.skip("the system does not say what is resident")
    block = torch.ones(40 << 20, dtype=torch.uint8)
    high = resident()
    del block
    reset_peak()
    low = resident()
    assert high.peak - low.peak > 30 << 20
    assert low.now == pytest.approx(low.own + low.mapped)


def test_too_little_memory_is_refused_with_numbers_before_anything_is_built(monkeypatch):
    monkeypatch.setattr("pixtral.bench.measured_model.available_memory", lambda device: 10_000_000_000)
    monkeypatch.setattr("pixtral.bench.measured_model.fill_random", lambda model: pytest.fail("it was built"))
    with pytest.raises(ConfigError) as refused:
        model_of_shape("pixtral-12b", QuantizationArguments(), Settings())
    assert re.fullmatch(
        r"pixtral-12b with 40 layers needs 26\.\d GB, a context of 4096 tokens included, but 10\.0 GB are available; "
        r"these fit: --quantization int4 \(9\.\d GB\), or --layers 11 of its 40",
        str(refused.value),
    )
    with pytest.raises(ConfigError, match=r"pixtral-large with 88 layers needs .*these fit: --layers 7 of its 88"):
        model_of_shape("pixtral-large", QuantizationArguments("int4"), Settings())
    seven, eight = (
        needed_bytes(
            empty_model(with_layers(shape_config("pixtral-large"), n), QuantizationArguments("int4")), Settings()
        )
        for n in (7, 8)
    )
    assert seven <= 10_000_000_000 < eight
    monkeypatch.setattr("pixtral.bench.measured_model.available_memory", lambda device: 1_000_000)
    with pytest.raises(ConfigError, match="choose a smaller shape"):
        model_of_shape("mid", QuantizationArguments("int4"), Settings())


def test_a_model_can_be_loaded():
    from pixtral.assets import tiny_path

    measured = loaded_model(str(tiny_path()), QuantizationArguments("int8"), SETTINGS)
    assert measured.facts["weights"] == "loaded"
    assert measured.facts["quantization"]["bits"] == 8
    assert measured.facts["layers"] == measured.of_layers
    with pytest.raises(ConfigError, match="exceeds the model's context"):
        loaded_model(str(tiny_path()), QuantizationArguments(), Settings(prompt=10**7))
