"""The options of the image processors, with Transformers' names and defaults: checking, reading and writing them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from pixtral import hub
from pixtral.errors import CheckpointError, ConfigError, refuse_unknown
from pixtral.images.convert import ChannelOrder

if TYPE_CHECKING:
    import torch


Size: TypeAlias = "int | Sequence[int] | Mapping[str, int]"

_PREPROCESSOR, _PROCESSOR, _PARAMS = "preprocessor_config.json", "processor_config.json", "params.json"

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3  # PIL.Image.Resampling.BICUBIC


class ImageOptions(TypedDict, total=False):
    """Keywords of the constructors and, for one call, of `preprocess`; None stands for the default."""

    do_convert_rgb: bool | None
    do_resize: bool | None
    size: Size | None
    patch_size: Size | None
    default_to_square: bool | None
    resample: int | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: float | Sequence[float] | None
    image_std: float | Sequence[float] | None
    do_pad: bool | None
    pad_size: Size | None
    do_center_crop: bool | None
    crop_size: Size | None
    data_format: ChannelOrder | None
    input_data_format: ChannelOrder | None
    device: str | torch.device | None
    disable_grouping: bool | None
    return_tensors: Literal["pt", "np"] | None


DEFAULTS: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"longest_edge": 1024},
    "patch_size": {"height": 16, "width": 16},
    "default_to_square": True,
    "resample": BICUBIC,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "do_pad": True,
    "pad_size": None,
    "do_center_crop": None,
    "crop_size": None,
    "data_format": "channels_first",
    "input_data_format": None,
    "device": None,
    "disable_grouping": None,
    "return_tensors": None,
}

# Keys that releases of Transformers write into preprocessor_config.json; ignored.
CONSUMED = frozenset(
    {
        "image_processor_type",
        "feature_extractor_type",
        "processor_class",
        "auto_map",
        "image_seq_length",
        "_valid_processor_keys",
    }
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The checked options of one call. Pairs are (height, width) in pixels."""

    do_convert_rgb: bool
    do_resize: bool
    size: tuple[int, int]
    patch_size: tuple[int, int]
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    do_pad: bool
    pad_size: tuple[int, int] | None
    channels_last: bool
    input_data_format: ChannelOrder | None
    device: str | torch.device | None
    disable_grouping: bool | None
    return_tensors: Literal["pt", "np"] | None


def merge(base: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The base options with those of `changes` that are not None; UnknownArgument for a name that is none of them."""
    refuse_unknown([name for name in changes if name not in DEFAULTS and name not in CONSUMED], where, DEFAULTS)
    return {**base, **{name: value for name, value in changes.items() if value is not None and name in DEFAULTS}}


def settings_from(options: Mapping[str, Any]) -> Settings:
    """Check the options; ConfigError says which one is wrong."""
    for name, value in options.items():
        if name.startswith("do_") and not isinstance(value, bool | None):
            raise ConfigError(f"{name} is {value!r}; expected True or False")
    if options["do_center_crop"]:
        raise ConfigError("do_center_crop is True; Pixtral takes whole images of any shape, so crop before")
    order, returns = options["data_format"], options["return_tensors"]
    for name, value, known in (
        ("data_format", order, ("channels_first", "channels_last")),
        ("input_data_format", options["input_data_format"], ("channels_first", "channels_last", None)),
        ("return_tensors", returns, ("pt", "np", None)),
    ):
        if getattr(value, "value", value) not in known:  # Transformers' enums carry the string in .value
            raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}")
    factor = options["rescale_factor"]
    if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not factor > 0:
        raise ConfigError(f"rescale_factor is {factor!r}; expected a positive number such as 1/255")
    resample = options["resample"]
    if not isinstance(resample, int) or isinstance(resample, bool):
        raise ConfigError(f"resample is {resample!r}; expected a PIL.Image.Resampling or its number (3 is bicubic)")
    std = _per_channel(options["image_std"], "image_std")
    if min(std) <= 0:
        raise ConfigError(f"image_std is {options['image_std']}; expected positive numbers, pixels are divided by them")
    return Settings(
        do_convert_rgb=bool(options["do_convert_rgb"]),
        do_resize=bool(options["do_resize"]),
        size=_size(options["size"], options["default_to_square"]),
        patch_size=_height_width(options["patch_size"], "patch_size"),
        resample=int(resample),
        do_rescale=bool(options["do_rescale"]),
        rescale_factor=float(factor),
        do_normalize=bool(options["do_normalize"]),
        mean=_per_channel(options["image_mean"], "image_mean"),
        std=std,
        do_pad=bool(options["do_pad"]),
        pad_size=None if options["pad_size"] is None else _height_width(options["pad_size"], "pad_size"),
        channels_last=getattr(order, "value", order) == "channels_last",
        input_data_format=getattr(options["input_data_format"], "value", options["input_data_format"]),
        device=options["device"],
        disable_grouping=options["disable_grouping"],
        return_tensors=getattr(returns, "value", returns),
    )


def _size(value: object, square: bool | None) -> tuple[int, int]:
    """The box into which larger images are scaled."""
    if isinstance(value, Mapping) and value.get("longest_edge"):
        edge = _pixels(value["longest_edge"], "size['longest_edge']")
        return edge, edge
    if isinstance(value, int) and not square:
        raise ConfigError(f"size is {value!r} without default_to_square; expected {{'longest_edge': {value!r}}}")
    return _height_width(value, "size", "'longest_edge', or 'height' and 'width'")


def _height_width(value: object, name: str, keys: str = "'height' and 'width'") -> tuple[int, int]:
    """(height, width) of an int, a pair, or a mapping with these keys."""
    if isinstance(value, int):
        return _pixels(value, name), _pixels(value, name)
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return _pixels(value[0], name), _pixels(value[1], name)
    if isinstance(value, Mapping) and value.get("height") is not None and value.get("width") is not None:
        return _pixels(value["height"], f"{name}['height']"), _pixels(value["width"], f"{name}['width']")
    raise ConfigError(f"{name} is {value!r}; expected a dictionary with {keys}")


def _pixels(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of pixels, at least 1")
    return value


def _per_channel(value: object, name: str) -> tuple[float, ...]:
    """One number per channel of RGB."""
    numbers = [value] * 3 if isinstance(value, (int, float)) else list(value) if isinstance(value, Sequence) else []
    if len(numbers) != 3 or not all(isinstance(number, (int, float)) for number in numbers):
        raise ConfigError(f"{name} is {value!r}; expected a number, or three: one each for red, green and blue")
    return tuple(float(number) for number in numbers)


def read_image_config(
    path_or_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> dict[str, Any]:
    """The options of a checkpoint's image processor, with Transformers' names.

    Raises:
        CheckpointError: none of the files is there.
        ConfigError: a file is not a JSON object.
    """
    path = Path(os.fspath(path_or_id)).expanduser()
    if path.is_file():
        config = _options_in(path)
        if config is None:
            raise ConfigError(f"{str(path)!r} holds no image processor; expected {_PREPROCESSOR} or a file like it")
        return config
    folder = hub.resolve(
        path_or_id,
        patterns=[_PREPROCESSOR, _PROCESSOR, _PARAMS],
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    for name in (_PROCESSOR, _PREPROCESSOR, _PARAMS):
        if (folder / name).is_file() and (config := _options_in(folder / name)) is not None:
            return config
    raise CheckpointError(
        f"{str(folder)!r} has no image processor; looked for {_PREPROCESSOR}, an 'image_processor' in {_PROCESSOR}, "
        f"and {_PARAMS}; found {hub.listing(folder)}"
    )


def write_image_config(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> str:
    """Write preprocessor_config.json; returns its path."""
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    with hub.saving(folder) as path:
        (path / _PREPROCESSOR).write_text(text + "\n", encoding="utf-8")
    return str(path / _PREPROCESSOR)


def _options_in(path: Path) -> dict[str, Any] | None:
    """The image processor's options in one file, or None when the file is about something else."""
    config = hub.read_json(path)
    if "vision_encoder" in config:
        return _from_params(config["vision_encoder"], path)
    if path.name == _PROCESSOR or "image_processor" in config:
        nested = config.get("image_processor")
        return dict(nested) if isinstance(nested, dict) else None
    return None if path.name == _PARAMS else config


def _from_params(vision: object, path: Path) -> dict[str, Any]:
    """Mistral's "vision_encoder": image_size (or max_image_size) and patch_size; merged patches count as one."""
    if not isinstance(vision, dict) or not {"image_size", "patch_size"} <= vision.keys():
        raise ConfigError(f"{str(path)!r}: 'vision_encoder' is {vision!r}; expected image_size and patch_size in it")
    edge = vision.get("max_image_size") or vision["image_size"]
    patch = vision["patch_size"] * (vision.get("spatial_merge_size") or 1)
    return {"size": {"longest_edge": edge}, "patch_size": patch}
