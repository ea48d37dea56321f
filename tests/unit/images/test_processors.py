"""The processors' options, outputs, files and refusals; their pixels are compared in tests/parity."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixtral.errors import CheckpointError, ConfigError, ImageError, ImageTooLarge, UnknownArgument
from pixtral.images.geometry import Grid
from pixtral.images.limits import ImageLimits
from pixtral.images.processors import NativeImageProcessor, PixtralImageProcessor, PixtralImageProcessorFast

RNG = np.random.default_rng(0)
WIDE = Image.fromarray(RNG.integers(0, 256, (20, 60, 3), dtype=np.uint8))
TALL = Image.fromarray(RNG.integers(0, 256, (50, 16, 3), dtype=np.uint8))
ALL = [PixtralImageProcessor, PixtralImageProcessorFast, NativeImageProcessor]
every = pytest.mark.parametrize("kind", ALL)


@every
def test_padding_and_sizes(kind: Any) -> None:
    batch = kind()([WIDE, TALL], return_tensors="pt")
    assert list(batch) == kind.model_input_names == ["pixel_values", "image_sizes"]
    assert batch.pixel_values.shape == (2, 3, 64, 64) and batch.pixel_values.dtype == torch.float32
    assert batch.image_sizes.tolist() == [[32, 64], [64, 16]] and batch.image_sizes.dtype == torch.int64
    assert not batch.pixel_values[0, :, 32:].any() and not batch.pixel_values[1, :, :, 16:].any()
    assert batch.pixel_values[0, :, :32].all() and batch.pixel_values[1, :, :, :16].all()
    assert torch.equal(kind().preprocess([WIDE, TALL], return_tensors="pt").pixel_values, batch.pixel_values)


@every
def test_types(kind: Any) -> None:
    library = torch.Tensor if kind is PixtralImageProcessorFast else np.ndarray
    bare = kind()([WIDE, TALL])
    assert isinstance(bare.pixel_values, library) and bare.image_sizes == [(32, 64), (64, 16)]
    arrays = kind()([WIDE, TALL], return_tensors="np")
    assert isinstance(arrays.pixel_values, np.ndarray) and arrays.image_sizes.dtype == np.int64
    single = kind()([WIDE, TALL], do_pad=False)
    assert [tuple(pixels.shape) for pixels in single.pixel_values] == [(3, 32, 64), (3, 64, 16)]
    assert all(isinstance(pixels, library) for pixels in single.pixel_values)
    assert kind()([WIDE, WIDE], do_pad=False, return_tensors="pt").pixel_values.shape == (2, 3, 32, 64)
    with pytest.raises(ValueError, match="do_pad=True"):
        kind()([WIDE, TALL], do_pad=False, return_tensors="pt")


@every
def test_channels_last(kind: Any) -> None:
    first, last = (
        kind()([WIDE, TALL], data_format=f"channels_{end}", return_tensors="np") for end in ("first", "last")
    )
    np.testing.assert_array_equal(last.pixel_values, first.pixel_values.transpose(0, 2, 3, 1))
    assert kind()([WIDE], data_format="channels_last", do_pad=False).pixel_values[0].shape == (32, 64, 3)


@every
def test_pad_size(kind: Any) -> None:
    assert kind()(WIDE, pad_size={"height": 80, "width": 96}).pixel_values.shape == (1, 3, 80, 96)
    with pytest.raises(ConfigError, match=r"pad_size is \(16, 96\)"):
        kind()(WIDE, pad_size={"height": 16, "width": 96})


@every
def test_one_list_and_lists_of_images(kind: Any) -> None:
    flat = kind()([WIDE, TALL, WIDE], return_tensors="pt")
    for images in ([[WIDE], [], [TALL, WIDE]], [[WIDE, TALL], [WIDE]], (WIDE, TALL, WIDE)):
        assert torch.equal(kind()(images, return_tensors="pt").pixel_values, flat.pixel_values)
    stack = np.stack([np.asarray(WIDE)] * 2)
    for stacked in (stack, torch.from_numpy(stack), [stack[:1], stack[1]], stack.transpose(0, 3, 1, 2)):
        batch = kind()(stacked, return_tensors="pt")
        assert batch.pixel_values.shape[0] == 2
        assert torch.equal(batch.pixel_values[0], flat.pixel_values[0, :, :32])


@every
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "empty list"),
        ([[], []], "only empty lists"),
        ([[[WIDE]]], "found a list of lists of lists"),
        ([WIDE, [TALL]], "entries 0 and 1 differ"),
        ([[WIDE], WIDE], "entries 0 and 1 differ"),
        ([WIDE, None], "image 1 of 2: found a NoneType"),
        ([WIDE, "cat.jpg"], "image 1 of 2: found 'cat.jpg'"),
        (None, "found a NoneType"),
        (np.zeros((1, 2, 4, 4, 3), np.uint8), "shape"),
    ],
)
def test_wrong_images(kind: Any, images: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        kind()(images)


@every
def test_limits(kind: Any) -> None:
    with pytest.raises(ImageTooLarge, match=r"image 1 of 2: .*max_pixels"):
        kind(limits=ImageLimits(max_pixels=1000))([TALL, WIDE])
    with pytest.raises(ImageTooLarge):
        kind()(WIDE, limits=ImageLimits(max_pixels=1000))


@every
def test_values_in_0_1_may_say_do_rescale_false(kind: Any) -> None:
    """As a program for Transformers does; saying nothing must not scale them twice either."""
    expected = kind()(WIDE, return_tensors="pt").pixel_values
    unit = torch.from_numpy(np.array(WIDE)).permute(2, 0, 1) / 255
    for value in (unit, unit.numpy(), unit.permute(1, 2, 0).double()):
        for options in ({}, {"do_rescale": False}):
            torch.testing.assert_close(kind()(value, return_tensors="pt", **options).pixel_values, expected)
    mixed = kind()([WIDE, unit], return_tensors="pt", do_rescale=False)
    torch.testing.assert_close(mixed.pixel_values[1], expected[0])
    assert not torch.allclose(mixed.pixel_values[0], expected[0])
    raw = kind()([WIDE, unit], do_rescale=False, do_normalize=False, return_tensors="np").pixel_values
    assert raw.dtype == np.float32 and raw[1].max() <= 1.3 < raw[0].max()


@every
def test_do_convert_rgb(kind: Any) -> None:
    expected = kind()(WIDE, return_tensors="np").pixel_values
    np.testing.assert_array_equal(kind()(WIDE, do_convert_rgb=False, return_tensors="np").pixel_values, expected)
    for image in (WIDE.convert("L"), WIDE.convert("RGBA")):
        with pytest.raises(ImageError, match="do_convert_rgb is False"):
            kind()(image, do_convert_rgb=False)


@every
def test_input_data_format(kind: Any) -> None:
    values = RNG.integers(0, 256, (3, 40, 3), dtype=np.uint8)
    with pytest.raises(ImageError, match="input_data_format"):
        kind()(values)
    assert kind()(values, input_data_format="channels_last").image_sizes == [(16, 48)]
    assert kind()(values, input_data_format="channels_first").image_sizes == [(48, 16)]


@every
def test_options_as_attributes_are_honoured(kind: Any) -> None:
    processor = kind()
    processor.size = {"longest_edge": 32}
    processor.patch_size = 8
    assert processor(WIDE).image_sizes == [(16, 32)]
    assert processor.grid_of(*WIDE.size) == Grid(2, 4)
    assert processor.grid_of(*WIDE.size, size={"longest_edge": 64}) == Grid(3, 8)


@every
@pytest.mark.parametrize("size", [(10_000, 2), (2, 10_000), (3000, 1), (1, 3000), (1, 1), (1, 40)])
def test_extreme_shapes(kind: Any, size: tuple[int, int]) -> None:
    batch = kind()(Image.new("RGB", size, (200, 100, 50)), return_tensors="pt")
    assert tuple(batch.image_sizes[0].tolist()) == kind().grid_of(*size).size(16)
    torch.testing.assert_close(batch.pixel_values, batch.pixel_values[:, :, :1, :1].expand_as(batch.pixel_values))


@every
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"shortest_edge": 64}}, "'longest_edge', or 'height' and 'width'"),
        ({"size": {"height": 64}}, "'longest_edge', or 'height' and 'width'"),
        ({"size": {}}, "'longest_edge', or"),
        ({"size": {"longest_edge": 0}}, "'longest_edge', or"),
        ({"size": {"longest_edge": -4}}, "at least 1"),
        ({"size": {"longest_edge": 10.5}}, "whole number"),
        ({"size": "large"}, "size is 'large'"),
        ({"size": 64, "default_to_square": False}, "longest_edge"),
        ({"patch_size": {"height": 16}}, "patch_size is .* 'height' and 'width'"),
        ({"patch_size": 0}, "at least 1"),
        ({"patch_size": True}, "at least 1"),
        ({"patch_size": (16, 16, 16)}, "patch_size"),
        ({"image_mean": [0.5]}, "three: one each for red"),
        ({"image_std": [0.5, 0.5, 0.0]}, "pixels are divided by them"),
        ({"image_std": "x"}, "image_std"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
        ({"do_resize": "yes"}, "do_resize is 'yes'; expected True or False"),
        ({"do_center_crop": True}, "do_center_crop is True"),
        ({"resample": "bicubic"}, "resample is 'bicubic'"),
        ({"resample": 17}, "resample is 17"),
        ({"data_format": "CHW"}, "data_format is 'CHW'; expected one of 'channels_first', 'channels_last'"),
        ({"input_data_format": "CHW"}, "input_data_format is 'CHW'"),
        ({"return_tensors": "tf"}, "return_tensors is 'tf'; expected one of 'pt', 'np'"),
    ],
)
def test_wrong_options(kind: Any, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind()(WIDE, **options)
    with pytest.raises(ConfigError, match=message):
        kind(**options)(WIDE)


def test_resampling_that_a_path_does_not_have() -> None:
    assert PixtralImageProcessor(resample=Image.Resampling.LANCZOS)(WIDE).image_sizes == [(32, 64)]
    with pytest.raises(ConfigError, match="the torch path has"):
        PixtralImageProcessorFast(resample=Image.Resampling.LANCZOS)(WIDE)
    with pytest.raises(ConfigError, match="cubic"):
        NativeImageProcessor(resample=Image.Resampling.BILINEAR)(WIDE)


@every
def test_unknown_options(kind: Any) -> None:
    with pytest.raises(UnknownArgument, match="'do_resise'; did you mean 'do_resize'"):
        kind(do_resise=True)
    with pytest.raises(UnknownArgument, match=r"preprocess\(\) got an unknown argument 'longest_edge'"):
        kind()(WIDE, longest_edge=5)
    with pytest.raises(UnknownArgument):
        kind.from_dict({"do_magic": True})


# preprocessor_config.json as releases of transformers wrote it for published checkpoints
PUBLISHED = [
    {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "PixtralImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": {"height": 14, "width": 14},
        "processor_class": "PixtralProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": 1540},
    },
    {
        "crop_size": None,
        "data_format": "channels_first",
        "default_to_square": True,
        "device": None,
        "disable_grouping": None,
        "do_center_crop": None,
        "do_convert_rgb": True,
        "do_pad": None,
        "feature_extractor_type": "PixtralFeatureExtractor",
        "image_processor_type": "PixtralImageProcessorFast",
        "image_seq_length": None,
        "input_data_format": None,
        "pad_size": None,
        "patch_size": 14,
        "return_tensors": None,
        "size": {"longest_edge": 1540},
    },
]


@every
@pytest.mark.parametrize("config", PUBLISHED)
@pytest.mark.parametrize("layout", ["preprocessor_config.json", "processor_config.json", "file"])
def test_published_configs_are_read(kind: Any, config: dict[str, object], layout: str, tmp_path: pathlib.Path) -> None:
    if layout == "processor_config.json":
        content: dict[str, object] = {
            "image_processor": config,
            "processor_class": "PixtralProcessor",
            "patch_size": 14,
        }
    else:
        content = config
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_token": "[IMG]", "patch_size": 16}))
    path = tmp_path / ("preprocessor_config.json" if layout == "file" else layout)
    path.write_text(json.dumps(content))
    processor = kind.from_pretrained(path if layout == "file" else tmp_path)
    assert processor.size == {"longest_edge": 1540} and processor.grid_of(1540, 1540) == Grid(110, 110)
    assert kind.from_pretrained(tmp_path, size={"longest_edge": 28}).grid_of(1540, 1540) == Grid(2, 2)


@every
def test_params_json_is_read(kind: Any, tmp_path: pathlib.Path) -> None:
    vision = {
        "hidden_size": 1024,
        "image_size": 1540,
        "max_image_size": 1400,
        "patch_size": 14,
        "spatial_merge_size": 2,
    }
    (tmp_path / "params.json").write_text(json.dumps({"dim": 5120, "vision_encoder": vision}))
    assert kind.from_pretrained(str(tmp_path)).grid_of(4000, 4000) == Grid(50, 50)


@every
def test_saved_and_loaded(kind: Any, tmp_path: pathlib.Path) -> None:
    processor = kind(size={"height": 64, "width": 32}, patch_size=8, image_mean=0.5, do_pad=False)
    assert processor.save_pretrained(tmp_path / "new") == [str(tmp_path / "new" / "preprocessor_config.json")]
    again = kind.from_pretrained(tmp_path / "new")
    assert again.to_dict() == processor.to_dict() and repr(again) == repr(processor)
    assert again.size == {"height": 64, "width": 32} and again.patch_size == {"height": 8, "width": 8}
    assert "size" in repr(processor) and "do_resize" not in repr(processor)
    with pytest.raises(CheckpointError, match="is a file"):
        processor.save_pretrained(tmp_path / "new" / "preprocessor_config.json")


@every
def test_transformers_reads_what_was_saved(kind: Any, tmp_path: pathlib.Path) -> None:
    module = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
    kind(size={"longest_edge": 48}, patch_size=8).save_pretrained(tmp_path)
    theirs = module.PixtralImageProcessorPil.from_pretrained(tmp_path)(WIDE, return_tensors="pt")
    ours = PixtralImageProcessor.from_pretrained(tmp_path)(WIDE, return_tensors="pt")
    assert torch.equal(theirs.pixel_values, ours.pixel_values)


@every
def test_files_that_are_missing_or_broken(kind: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match=r"looked for preprocessor_config.json.*found nothing"):
        kind.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError):
        kind.from_pretrained(tmp_path / "no-such-folder")
    for text, message in (("{", "not valid JSON"), ("[1]", "holds a list"), ('{"size": 0}', "size is 0")):
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            kind.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "params.json").write_text(json.dumps({"vision_encoder": {"patch_size": 14}}))
    with pytest.raises(ConfigError, match="expected image_size and patch_size"):
        kind.from_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_token": "[IMG]"}))
    with pytest.raises(ConfigError, match="holds no image processor"):
        kind.from_pretrained(tmp_path / "processor_config.json")


def test_device_of_the_fast_processor() -> None:
    on_cpu = PixtralImageProcessorFast()(WIDE, device="cpu", return_tensors="pt")
    assert torch.equal(on_cpu.pixel_values, PixtralImageProcessorFast()(WIDE, return_tensors="pt").pixel_values)
    on_meta = PixtralImageProcessorFast()([WIDE, TALL], device="meta", return_tensors="pt")
    assert on_meta.pixel_values.device.type == "meta"
    assert on_meta.image_sizes.tolist() == [[32, 64], [64, 16]]  # read on the host, so they stay there


def test_the_way_of_other_devices_agrees_with_the_cpu() -> None:
    """Only the CPU resizes 8-bit values; elsewhere they are resized as float32, clamped and rounded.

    Low contrast, because the CPU's kernel clamps between its two passes and float32 cannot.
    """
    from pixtral.images import processors

    images = torch.randint(100, 150, (2, 3, 90, 70), dtype=torch.uint8)
    eight = processors._resize(images, (48, 64), "bicubic")
    wide = processors._resize_float(images, (48, 64), "bicubic")
    assert wide.dtype == torch.uint8
    assert (eight.int() - wide.int()).abs().max() <= 1


def test_native_image_is_what_mistral_common_gives() -> None:
    pixels = NativeImageProcessor().image(WIDE)
    assert isinstance(pixels, np.ndarray) and pixels.shape == (3, 32, 64) and pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, NativeImageProcessor()(WIDE).pixel_values[0])
