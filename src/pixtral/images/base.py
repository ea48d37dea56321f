"""The base class of the three image processors: options, the steps of preprocess, and their files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from pixtral.batch_feature import BatchFeature
from pixtral.images.geometry import Grid, Rounding, image_grid
from pixtral.images.limits import ImageLimits
from pixtral.images.options import (
    CONSUMED,
    DEFAULTS,
    ImageOptions,
    Settings,
    merge,
    read_image_config,
    settings_from,
    write_image_config,
)
from pixtral.images.pixels import pad_batch
from pixtral.images.source import ImageInput, LoadedImage, load_all

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

Self = TypeVar("Self", bound="BaseImageProcessor")

# Options of a call rather than of a checkpoint: never written to a file.
_NOT_SAVED = ("return_tensors", "device", "input_data_format", "disable_grouping", "data_format", "default_to_square")


class BaseImageProcessor(ABC):
    """Images of any kind to `pixel_values` and `image_sizes`.

    Options may be given to the constructor, set as attributes, or passed to one call; see `ImageOptions` and, for
    defaults, `DEFAULTS`. `limits` holds for every image read.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_sizes"]
    rounding: ClassVar[Rounding] = "hf"
    saved_type: ClassVar[str]

    size: Any
    patch_size: Any
    image_mean: Any
    image_std: Any
    limits: ImageLimits

    def __init__(self, *, limits: ImageLimits | None = None, **options: Unpack[ImageOptions]) -> None:
        """
        Args:
            limits: on what is read; `ImageLimits()` when left out.
            options: `ImageOptions`.

        Raises:
            UnknownArgument: a name that is no option.
            ConfigError: an invalid value.
        """
        merged = merge(DEFAULTS, options, f"{type(self).__name__}()")
        settings_from(merged)
        for name, value in merged.items():
            if name in ("size", "patch_size", "pad_size") and value is not None:
                value = _as_mapping(value)
            elif name in ("image_mean", "image_std") and isinstance(value, Sequence):
                value = list(value)
            setattr(self, name, value)
        self.limits = limits or ImageLimits()

    def __call__(
        self, images: ImageInput, *, limits: ImageLimits | None = None, **options: Unpack[ImageOptions]
    ) -> BatchFeature:
        """The same as `preprocess`."""
        return self.preprocess(images, limits=limits, **options)

    def preprocess(
        self, images: ImageInput, *, limits: ImageLimits | None = None, **options: Unpack[ImageOptions]
    ) -> BatchFeature:
        """Decode, resize, normalise and pad.

        Args:
            images: anything `load_image` reads, a list of it, or a list of lists (one per prompt), taken in order.
            limits: for this call.
            options: `ImageOptions` for this call.

        Returns:
            `pixel_values`: (N, 3, Hmax, Wmax) float32, zero to the right of and below smaller images; (N, Hmax, Wmax,
            3) for data_format="channels_last"; a list of single images for do_pad=False; uint8 when there is neither
            rescaling nor normalisation. `image_sizes`: N times (height, width) in pixels before padding, multiples of
            the patch unless do_resize=False. With return_tensors "pt" or "np" both are tensors or arrays, the sizes
            int64 (N, 2). `device` is where the pixels are then; sizes stay on the host, which reads them.

        Raises:
            ImageError: an image that cannot be read; the message gives its place in the list.
            ConfigError, UnknownArgument: the options.
        """
        settings = self._settings(options)
        loaded = load_all(
            images,
            limits=limits or self.limits,
            input_data_format=settings.input_data_format,
            convert=settings.do_convert_rgb,
        )
        pixels = self._pixels(loaded, settings)
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in pixels]
        values: Any = pad_batch(pixels, settings.pad_size) if settings.do_pad else list(pixels)
        if settings.channels_last:
            values = [_channels_last(value) for value in values] if isinstance(values, list) else _channels_last(values)
        batch = BatchFeature({"pixel_values": values, "image_sizes": sizes}, tensor_type=settings.return_tensors)
        if settings.device is not None and settings.return_tensors == "pt":
            batch["pixel_values"] = batch["pixel_values"].to(settings.device)
        return batch

    def grid_of(self, width: int, height: int, **options: Unpack[ImageOptions]) -> Grid:
        """The patch grid that an image of width x height pixels gets, without making it."""
        return self._grid(width, height, self._settings(options))

    def _grid(self, width: int, height: int, settings: Settings) -> Grid:
        return image_grid(
            width, height, patch_size=settings.patch_size, longest_edge=settings.size, rounding=self.rounding
        )

    def _target(self, loaded: LoadedImage, settings: Settings) -> tuple[int, int]:
        """(height, width) to which an image is resized."""
        width, height = loaded.image.size
        return self._grid(width, height, settings).size(settings.patch_size) if settings.do_resize else (height, width)

    @abstractmethod
    def _pixels(self, loaded: list[LoadedImage], settings: Settings) -> Any:
        """Each image as (3, H, W), resized and normalised, in order."""

    def _settings(self, options: ImageOptions) -> Settings:
        own = {name: getattr(self, name) for name in DEFAULTS}
        return settings_from(merge(own, options, f"{type(self).__name__}.preprocess()"))

    def to_dict(self) -> dict[str, Any]:
        """The options as preprocessor_config.json has them."""
        options = {name: getattr(self, name) for name in DEFAULTS if name not in _NOT_SAVED}
        options["resample"] = int(options["resample"])
        saved = {name: value for name, value in options.items() if value is not None}
        return {**saved, "image_processor_type": self.saved_type}

    @classmethod
    def from_dict(cls: type[Self], config: Mapping[str, Any], **options: Unpack[ImageOptions]) -> Self:
        """From the contents of preprocessor_config.json; `options` go before them."""
        known = {name: value for name, value in config.items() if name not in CONSUMED}
        return cls(**{**known, **options})

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        **options: Unpack[ImageOptions],
    ) -> Self:
        """From a folder, a JSON file or a Hub id.

        Reads "image_processor" in processor_config.json, else preprocessor_config.json, else Mistral's params.json.

        Args:
            pretrained_model_name_or_path: folder, path of one of these files, or Hub id.
            cache_dir, force_download, local_files_only, token, revision: as in `pixtral.hub.resolve`.
            options: `ImageOptions`, before those of the file.

        Raises:
            CheckpointError: no such folder or Hub id, or none of these files in it.
            ConfigError: a file that is not valid JSON or has a wrong value.
        """
        config = read_image_config(
            pretrained_model_name_or_path,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            revision=revision,
        )
        return cls.from_dict(config, **options)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> list[str]:
        """Write preprocessor_config.json into the folder, which is made if needed; returns the paths written."""
        return [write_image_config(save_directory, self.to_dict())]

    def __repr__(self) -> str:
        options = self.to_dict().items()
        changed = [f"{name}={value!r}" for name, value in options if value != DEFAULTS.get(name, value)]
        return f"{type(self).__name__}({', '.join(changed)})"


def effective(loaded: LoadedImage, settings: Settings) -> Settings:
    """The settings for one image: values that came as 0..1 were brought to 8 bits and must go back."""
    if loaded.was_float and not settings.do_rescale:
        return replace(settings, do_rescale=True, rescale_factor=1 / 255)
    return settings


def _channels_last(pixels: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """(..., 3, H, W) to (..., H, W, 3)."""
    if isinstance(pixels, np.ndarray):
        return np.ascontiguousarray(np.moveaxis(pixels, -3, -1))
    return pixels.movedim(-3, -1).contiguous()


def _as_mapping(value: Any) -> dict[str, int]:
    """A size as the dictionary that files and attributes hold."""
    if isinstance(value, Mapping):
        return {name: number for name, number in value.items() if number is not None}
    height, width = (value, value) if isinstance(value, int) else value
    return {"height": height, "width": width}
