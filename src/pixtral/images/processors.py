"""The image processors: Transformers' on PIL, Transformers' fast one on torch, and mistral-common's.

| class                     | resizing                              | beyond longest_edge  | equal to               |
|---------------------------|---------------------------------------|----------------------|------------------------|
| PixtralImageProcessor     | Pillow, 8 bits, antialias             | rounded down         | Transformers' PIL one  |
| PixtralImageProcessorFast | torch, 8 bits, antialias, any device  | rounded down         | Transformers' fast one |
| NativeImageProcessor      | 4-tap cubic, float32, no antialias    | rounded half to even | mistral-common         |
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from pixtral.errors import ConfigError
from pixtral.images.base import BaseImageProcessor, effective
from pixtral.images.convert import pixels_of, to_numpy
from pixtral.images.geometry import Rounding
from pixtral.images.options import BICUBIC, Settings
from pixtral.images.pixels import look_up, normalization_table, normalize_float, resize_cubic
from pixtral.images.source import ImageSource, LoadedImage

if TYPE_CHECKING:
    import torch

_TORCH_MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


class PixtralImageProcessor(BaseImageProcessor):
    """Resizes with Pillow; needs no torch unless tensors are asked for. Pixels are those of Transformers' PIL class."""

    saved_type: ClassVar[str] = "PixtralImageProcessor"

    def _pixels(self, loaded: list[LoadedImage], settings: Settings) -> list[np.ndarray]:
        if settings.resample not in range(6):
            raise ConfigError(f"resample is {settings.resample}; expected a PIL.Image.Resampling, 0 to 5")
        tables: dict[Settings, np.ndarray] = {}
        pixels = []
        for item in loaded:
            height, width = self._target(item, settings)
            image = item.image
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling(settings.resample))
            own = effective(item, settings)
            if own not in tables:
                tables[own] = normalization_table(own)
            pixels.append(look_up(tables[own], pixels_of(image)))
        return pixels


class PixtralImageProcessorFast(BaseImageProcessor):
    """Resizes with torch, on `device`, images of one shape together; gives tensors.

    Pixels are those of Transformers' torchvision class. `disable_grouping` None groups everywhere but on the CPU,
    where copying images together costs more than it gains.
    """

    saved_type: ClassVar[str] = "PixtralImageProcessorFast"

    def _pixels(self, loaded: list[LoadedImage], settings: Settings) -> list[torch.Tensor]:
        import torch

        if settings.resample not in _TORCH_MODES:
            raise ConfigError(f"resample is {settings.resample}; the torch path has {_TORCH_MODES} (PIL's numbers)")
        device = torch.device("cpu" if settings.device is None else settings.device)
        apart = device.type == "cpu" if settings.disable_grouping is None else settings.disable_grouping
        groups: dict[object, list[int]] = defaultdict(list)
        for index, item in enumerate(loaded):
            groups[index if apart else (item.image.size, item.was_float)].append(index)
        done: dict[int, torch.Tensor] = {}
        for members in groups.values():
            first = loaded[members[0]]
            tensors = [_tensor(loaded[index].image).to(device) for index in members]
            stack = torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]  # stacking copies
            stack = _resize(stack, self._target(first, settings), _TORCH_MODES[settings.resample])
            done.update(zip(members, _normalize(stack, effective(first, settings)), strict=True))
        return [done[index] for index in range(len(loaded))]


class NativeImageProcessor(BaseImageProcessor):
    """Pixels and grid of mistral-common, which the model was trained with; without OpenCV."""

    saved_type: ClassVar[str] = "PixtralImageProcessor"  # so that Transformers can read the file
    rounding: ClassVar[Rounding] = "mistral"

    def image(self, source: ImageSource) -> np.ndarray:
        """One image as (3, H, W) float32, what mistral-common's ImageEncoding.image holds."""
        return to_numpy(self.preprocess(source, do_pad=False, data_format="channels_first")["pixel_values"][0])

    def _pixels(self, loaded: list[LoadedImage], settings: Settings) -> list[np.ndarray]:
        if settings.resample != BICUBIC:
            raise ConfigError(f"resample is {settings.resample}; mistral-common's pixels are cubic ({BICUBIC}) only")
        return [
            normalize_float(
                resize_cubic(pixels_of(item.image), *self._target(item, settings)), effective(item, settings)
            )
            for item in loaded
        ]


def _tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) uint8 over the memory of (H, W, 3): resizing is four times as fast in this order."""
    import torch

    return torch.from_numpy(pixels_of(image)).permute(2, 0, 1)


def _resize(images: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """(B, 3, H, W) uint8 to (B, 3, *size) uint8, with antialias, as torchvision.transforms.v2 does."""
    import torch

    if images.shape[-2:] == size:
        return images
    if mode == "nearest-exact":
        return torch.nn.functional.interpolate(images, size=size, mode=mode)
    if images.device.type == "cpu":  # torch has a kernel for 8 bits on the CPU only
        return torch.nn.functional.interpolate(images, size=size, mode=mode, align_corners=False, antialias=True)
    return _resize_float(images, size, mode)


def _resize_float(images: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """The same through float32, for devices without an 8-bit kernel; single values may differ by 1."""
    import torch

    resized = torch.nn.functional.interpolate(images.float(), size=size, mode=mode, align_corners=False, antialias=True)
    return resized.clamp_(0, 255).round_().to(torch.uint8)


def _normalize(images: torch.Tensor, settings: Settings) -> torch.Tensor:
    """(B, 3, H, W) uint8 to float32. Scaling is folded into mean and std, in float32, as Transformers does."""
    import torch

    images = images.contiguous()
    if not settings.do_normalize:
        return images * settings.rescale_factor if settings.do_rescale else images
    mean, std = (
        torch.tensor(numbers, dtype=torch.float32, device=images.device).view(3, 1, 1)
        for numbers in (settings.mean, settings.std)
    )
    if settings.do_rescale:
        mean, std = mean * (1.0 / settings.rescale_factor), std * (1.0 / settings.rescale_factor)
    return images.to(torch.float32).sub_(mean).div_(std)
