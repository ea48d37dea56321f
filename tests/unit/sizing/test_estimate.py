"""estimate(): numbers from configurations and headers alone, and what they are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import fake_hub, params_json, use_hub, write_hf, write_mistral
from PIL import Image
from random_models import llava_dict
from torch._subclasses.fake_tensor import FakeTensorMode

import pixtral
from pixtral import LlavaForConditionalGeneration, QuantizationConfig
from pixtral.assets import demo_image_path, tiny_path
from pixtral.errors import CheckpointError, ConfigError, GenerationError
from pixtral.ops.kv_cache import KVCache
from pixtral.sizing.memory import _LiveMemory

WIDE = llava_dict(text={"hidden_size": 64, "intermediate_size": 128}, vision={"intermediate_size": 64})


def weights(found: pixtral.MemoryEstimate) -> dict[str, tuple[int, int, int]]:
    return {part.name: (part.parameters, part.nbytes, part.resident) for part in found.weights}


@pytest.mark.parametrize("layout", ["hf", "mistral"])
@pytest.mark.parametrize("quantization", [None, "int4", "int8"])
def test_the_weights_are_those_that_loading_makes(layout: str, quantization: str | None, tmp_path: Path) -> None:
    (write_hf if layout == "hf" else write_mistral)(tmp_path, config=WIDE)
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path, quantization=quantization)
    found = pixtral.estimate(tmp_path, quantization=quantization, context=100)
    tensors = [*model.parameters(), *model.buffers()]
    assert found.weight_bytes == sum(tensor.nbytes for tensor in tensors)
    assert found.saved == found.weight_bytes
    (file,) = tmp_path.glob("*.safetensors")
    assert found.disk == file.stat().st_size
    assert (
        sum(part.parameters for part in found.weights)
        == LlavaForConditionalGeneration.from_pretrained(tmp_path).num_parameters()
    )
    assert found.quantization == quantization and found.dtype == "float32"


@pytest.mark.parametrize("quantize_vision", [False, True])
def test_a_quantized_checkpoint_is_seen_as_it_is(quantize_vision: bool, tmp_path: Path) -> None:
    write_hf(tmp_path / "full", config=WIDE)
    model = LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "full", dtype="bfloat16", quantization="int4", quantize_vision=quantize_vision
    )
    model.save_pretrained(tmp_path / "quantized")
    asked = pixtral.estimate(
        tmp_path / "full", dtype="bfloat16", quantization="int4", quantize_vision=quantize_vision, context=9
    )
    found = pixtral.estimate(tmp_path / "quantized", context=9)
    assert {name: one[:2] for name, one in weights(found).items()} == {
        name: one[:2] for name, one in weights(asked).items()
    }
    assert asked.loading > 0 == found.loading
    assert found.disk < asked.disk
    assert [part.format for part in found.weights] == [part.format for part in asked.weights]


def test_rows_of_a_table_that_is_mapped() -> None:
    plain, quantized = (pixtral.estimate(shape="pixtral-12b", quantization=q, context=256) for q in (None, "int4"))
    _, size, resident = weights(plain)["embeddings"]
    assert size == resident == 131072 * 5120 * 2
    assert weights(quantized)["embeddings"][1] == size
    assert weights(quantized)["embeddings"][2] == 0  # rows are read one by one
    wider = pixtral.estimate(shape="pixtral-12b", quantization="int4", context=256, dtype="float32")
    assert weights(wider)["embeddings"][2] == 2 * size  # the file holds it in another dtype: it is read


def test_known_shapes() -> None:
    """Published: 12.7 and 124 billion parameters."""
    small = pixtral.estimate(shape="pixtral-12b", context=4096, images=[(512, 512)])
    assert round(sum(part.parameters for part in small.weights) / 1e9, 1) == 12.7
    assert [part.name for part in small.weights] == [
        "vision tower",
        "projector",
        "embeddings",
        "decoder",
        "output layer",
    ]
    assert small.cache == 4096 * 160 * 1024
    assert (small.image_tokens, small.text_room) == (1056, 3040)
    assert small.context_length == 131072
    assert round(small.disk / 1e9, 1) == 25.4


@pytest.mark.parametrize(("quantization", "bits"), [("nf4", 4.5), ("fp4", 4.5), ("llm.int8", 8)])
def test_bitsandbytes(quantization: str, bits: float) -> None:
    pytest.importorskip("bitsandbytes")
    found = pixtral.estimate(shape="pixtral-12b", quantization=quantization, context=64)
    assert found.quantization == quantization
    count, size, _ = weights(found)["decoder"]
    assert abs(8 * size / count - bits) < 0.02
    assert (
        found.prompt_work > pixtral.estimate(shape="pixtral-12b", context=64).prompt_work + 100e6
    )  # dequantized weights
    with pytest.raises(ConfigError, match=f"quantization='{quantization}' is bitsandbytes' and says it all"):
        pixtral.estimate(quantization=quantization, quantize_vision=True)


def test_the_cache() -> None:
    text = LlavaForConditionalGeneration.from_pretrained(tiny_path()).text_config
    for kind, dtype in ((None, torch.bfloat16), ("bf16", torch.bfloat16), ("int8", torch.int8)):
        cache = KVCache(text.num_hidden_layers, text.num_key_value_heads, text.head_dim, 3, 77, dtype, "cpu")  # type: ignore[arg-type]
        found = pixtral.estimate(kv_cache=kind, context=77, batch=3)
        assert (found.cache, found.kv_cache) == (cache.nbytes, str(dtype).removeprefix("torch."))
    assert pixtral.estimate(dtype="float32", context=77).kv_cache == "float32"


def test_images_are_counted_as_the_model_counts_them(tmp_path: Path) -> None:
    assistant = pixtral.load()
    path = demo_image_path()
    images: list[Any] = [path, Image.new("RGB", (1000, 777)), (1000, 777)]
    for limit in (None, 64):
        found = pixtral.estimate(images=images, max_image_size=limit)
        assistant.max_image_size = limit
        true = assistant.estimate("?", [path, images[1]])
        assert [one.tokens for one in found.images[:2]] == [one.tokens for one in true.images]
        assert found.images[1].tokens == found.images[2].tokens
        assert (found.images[0].resized_width, found.images[0].rows) == (
            true.images[0].resized_width,
            true.images[0].rows,
        )
    assert found.images[0].name == str(path)
    assert found.image_tokens + found.text_room == found.context


def test_each_layout_rounds_in_its_way() -> None:
    """One of the 3 % of sizes on which mistral-common and Transformers differ."""
    columns = {}
    for layout in ("hf", "mistral"):
        (found,) = pixtral.estimate(layout=layout, images=[(1030, 1080)], max_image_size=152).images  # type: ignore[arg-type]
        processor = pixtral.load(layout=layout).processor  # type: ignore[arg-type]
        assert found.tokens == processor.num_image_tokens(1030, 1080, size={"longest_edge": 152})
        columns[layout] = found.cols
    assert columns["hf"] != columns["mistral"]


def test_a_configuration_is_enough(tmp_path: Path) -> None:
    hf, mistral = tmp_path / "hf", tmp_path / "mistral"
    write_hf(tmp_path / "whole", config=WIDE)
    whole = pixtral.estimate(tmp_path / "whole", context=50)
    for folder, name, values in ((hf, "config.json", WIDE), (mistral, "params.json", params_json(WIDE))):
        folder.mkdir()
        (folder / name).write_text(json.dumps({**values, "torch_dtype": "float32"} if folder == hf else values))
        found = pixtral.estimate(folder, context=50, dtype="float32")
        assert weights(found) == weights(whole)
        assert found.disk == found.saved
    index = {"metadata": {"total_size": 12345}, "weight_map": {}}
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    assert pixtral.estimate(hf).disk == 12345
    (hf / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"has no config.json or params.json, which an estimate .* found model.saf"
    ):
        pixtral.estimate(hf)


def test_of_the_hub_only_small_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hf(tmp_path / "files", config=WIDE, shards=2)
    with fake_hub(tmp_path / "files") as (address, asked):
        use_hub(monkeypatch, address, tmp_path / "cache")
        found = pixtral.estimate("team/model", context=50, dtype="float32")
    assert set(asked) == {"config.json", "model.safetensors.index.json"}
    assert weights(found) == weights(pixtral.estimate(tmp_path / "files", context=50))


def test_work_space_grows_with_what_is_asked() -> None:
    one = pixtral.estimate(shape="tiny", images=[(256, 256)], context=512)
    two = pixtral.estimate(shape="tiny", images=[(256, 256)] * 2, context=512)
    longer = pixtral.estimate(shape="tiny", images=[(256, 256)], context=1024)
    both = pixtral.estimate(shape="tiny", images=[(256, 256)], context=512, batch=2)
    assert two.image_work > 1.1 * one.image_work and two.prompt_work == one.prompt_work
    assert longer.prompt_work > 1.2 * one.prompt_work
    assert both.image_work > 1.1 * one.image_work and both.prompt_work > 1.2 * one.prompt_work
    assert pixtral.estimate(shape="tiny").image_work == 0
    assert one.work == one.prompt_work + one.image_work // 2  # the smaller is half given back
    assert one.total == one.runtime + one.resident_weights + one.cache + one.work


def test_what_is_alive_at_once_is_counted() -> None:
    with FakeTensorMode(), _LiveMemory([]) as live:
        first = torch.empty(1000, dtype=torch.uint8)
        second = first + first
        assert (live.now, live.peak) == (2000, 2000)
        del first
        view = second[500:]  # the same memory
        del second
        with live.paused():
            other = view.clone()
        assert (live.now, live.peak) == (1000, 2000)
        del view, other
    assert (live.now, live.peak) == (0, 2000)


def test_two_blocks_stand_for_all(tmp_path: Path) -> None:
    work = []
    for count in (1, 2, 5):
        deep = llava_dict(text={"num_hidden_layers": count}, vision={"num_hidden_layers": count})
        (tmp_path / "config.json").write_text(json.dumps(deep))
        found = pixtral.estimate(tmp_path, images=[(64, 64)], context=300)
        work.append((found.image_work, found.prompt_work))
    assert work[0][0] < work[1][0] and work[0][1] < work[1][1] and work[1] == work[2]


def test_inner_layers_of_the_tower_keep_their_states(tmp_path: Path) -> None:
    work = {}
    for layers in (-1, [0, 1, 2, 3, 4, 5, 6, 7, 8]):
        folder = tmp_path / str(layers)
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps(llava_dict(vision_feature_layer=layers, vision={"num_hidden_layers": 8}))
        )
        work[str(layers)] = pixtral.estimate(folder, images=[(64, 64)], context=300).image_work
    assert work["[0, 1, 2, 3, 4, 5, 6, 7, 8]"] > work["-1"]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"shape": "pixtral-13b"}, ConfigError, "shape is 'pixtral-13b'; expected one of pixtral-12b, "),
        ({"shape": "tiny", "path_or_id": "x"}, ConfigError, r"found a model \(x\) and a shape \(tiny\)"),
        ({"quantization": "int3"}, ConfigError, "quantization is 'int3'"),
        ({"quantize_vision": True}, ConfigError, "nothing asks to quantize"),
        ({"kv_cache": "int3"}, GenerationError, "kv_cache is 'int3'"),
        ({"context": 0}, ConfigError, "context is 0; expected a number from 1"),
        ({"context": 10**9}, ConfigError, "but the model holds at most "),
        ({"batch": 1.5}, ConfigError, "batch is 1.5"),
        ({"dtype": "int8"}, ConfigError, "dtype is 'int8'"),
        ({"path_or_id": "/nowhere/at/all"}, CheckpointError, "no folder"),
    ],
)
def test_what_cannot_be_estimated(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        pixtral.estimate(**arguments)


def test_a_part_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(llava_dict()["text_config"]))
    with pytest.raises(CheckpointError, match="describes a decoder"):
        pixtral.estimate(tmp_path)


def test_the_page() -> None:
    found = pixtral.estimate(
        shape="pixtral-12b",
        images=[(512, 512)],
        quantization_config=QuantizationConfig(bits=4),
        kv_cache="int8",
        batch=2,
    )
    page = str(found)
    assert page.startswith("pixtral-12b: int4 and bfloat16, cache in int8, context of 4,096 tokens x 2\n")
    assert "  image: 512 x 512 -> 512 x 512, 32 rows of 32: 1,056 tokens\n" in page
    assert "1,056 image tokens leave room for 3,040 of text and answer" in page
    assert "1.3 GB stay in the file, of which rows are read" in page
    assert "on the disk 25.4 GB (8.5 GB when saved again); in memory it " in page
    values = found.to_dict()
    assert (
        json.loads(json.dumps(values))["total"]
        == found.total
        == sum(size for name, size, _ in found.rows()[:-1] if name)
    )


def test_nothing_is_allocated() -> None:
    """A model of 124 billion parameters would not fit."""
    found = pixtral.estimate(shape="pixtral-large", context=4200)
    assert round(sum(part.parameters for part in found.weights) / 1e9) == 124
    assert found.fits is False
