"""8-bit pixels to model input on NumPy: normalisation by table, cubic resizing as OpenCV does it, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pixtral.errors import ConfigError, ImageError
from pixtral.images.options import Settings

if TYPE_CHECKING:
    import torch

Pixels = TypeVar("Pixels", np.ndarray, "torch.Tensor")


def normalization_table(settings: Settings) -> np.ndarray:
    """(3, 256): what each 8-bit value becomes in each channel.

    There are only 256 values, so the arithmetic of Transformers' PIL processor (scale in float64, round to float32,
    subtract, divide) is done once for each of them; looking up is then exact and faster than computing.
    The table is uint8 when there is nothing to do, float32 otherwise.
    """
    values: np.ndarray = np.tile(np.arange(256, dtype=np.uint8), (3, 1))
    if settings.do_rescale:
        values = (values.astype(np.float64) * settings.rescale_factor).astype(np.float32)
    if settings.do_normalize:
        mean, std = (np.array(numbers, np.float32)[:, None] for numbers in (settings.mean, settings.std))
        values = (values.astype(np.float32) - mean) / std
    return values


def look_up(table: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (3, H, W) through a (3, 256) table."""
    out = np.empty((3, *image.shape[:2]), table.dtype)
    for channel in range(3):
        np.take(table[channel], image[..., channel], out=out[channel], mode="clip")  # "clip" skips a buffer
    return out


def normalize_float(image: np.ndarray, settings: Settings) -> np.ndarray:
    """(H, W, 3) float32 on the scale 0..255 to (3, H, W), in the steps of mistral-common; the input is overwritten."""
    if settings.do_rescale:
        image /= np.float32(1 / settings.rescale_factor)
    if settings.do_normalize:
        image -= np.array(settings.mean, np.float32)
        image /= np.array(settings.std, np.float32)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def resize_cubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 to (height, width, 3) float32, as cv2.resize with INTER_CUBIC does on float32.

    Four taps with a = -0.75 at the nearest source pixels, edges repeated, and no antialias: shrinking skips pixels.
    Values may leave 0..255. Agrees with OpenCV to 1e-3.
    """
    if image.shape[:2] == (height, width):
        return image.astype(np.float32)
    image = _resize_axis(image, 0, height)  # rows first: they are contiguous
    return _resize_axis(image, 1, width)


def _resize_axis(image: np.ndarray, axis: int, size: int) -> np.ndarray:
    places, weights = _cubic_taps(image.shape[axis], size)
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    out: np.ndarray | None = None
    for tap in range(4):
        part = np.take(image, places[tap], axis=axis) * weights[tap].reshape(shape)
        out = part if out is None else np.add(out, part, out=out)
    assert out is not None
    return out


def _cubic_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Source positions (4, new) and float32 weights (4, new), from OpenCV's interpolateCubic."""
    a = np.float32(-0.75)
    at = (np.arange(new) + 0.5) * (old / new) - 0.5  # float64: in float32 long sides would be off by 0.02 of 255
    base = np.floor(at).astype(np.int64)
    x = (at - base).astype(np.float32)
    one = np.float32(1)
    weights = np.empty((4, new), np.float32)
    weights[0] = ((a * (x + one) - 5 * a) * (x + one) + 8 * a) * (x + one) - 4 * a
    weights[1] = ((a + 2) * x - (a + 3)) * x * x + one
    weights[2] = ((a + 2) * (one - x) - (a + 3)) * (one - x) * (one - x) + one
    weights[3] = one - weights[0] - weights[1] - weights[2]
    places = np.clip(base + np.arange(-1, 3)[:, None], 0, old - 1)
    return places, weights


def pad_batch(images: Sequence[Pixels], pad_size: tuple[int, int] | None) -> Pixels:
    """Images (3, H, W) of any sizes as one (N, 3, Hmax, Wmax) batch, zeros to the right and below.

    Args:
        images: NumPy arrays or tensors.
        pad_size: (height, width) of the result, when it shall be larger than the largest image.

    Raises:
        ConfigError: pad_size is smaller than an image.
    """
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    if pad_size is not None:
        if pad_size[0] < height or pad_size[1] < width:
            raise ConfigError(f"pad_size is {pad_size}, but an image has (height, width) {height, width}; enlarge it")
        height, width = pad_size
    first = images[0]
    if len(images) == 1 and first.shape[1:] == (height, width):
        return first[None]
    widest = next((image for image in images if "float" in str(image.dtype)), first)
    shape = (len(images), first.shape[0], height, width)
    batch = np.zeros(shape, widest.dtype) if isinstance(widest, np.ndarray) else widest.new_zeros(shape)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch


def crop_images(
    pixel_values: torch.Tensor | Sequence[torch.Tensor], image_sizes: torch.Tensor | Sequence[Sequence[int]] | None
) -> list[torch.Tensor]:
    """The inverse of `pad_batch`: images (C, h, w) out of a batch (images, C, Hmax, Wmax) or a list of (C, H, W).

    Raises:
        ImageError: the batch has another shape, or the sizes do not fit it.
    """
    import torch

    if isinstance(pixel_values, torch.Tensor) and pixel_values.dim() != 4:
        raise ImageError(f"found pixel_values {tuple(pixel_values.shape)}, expected (images, 3, height, width)")
    images = list(pixel_values)
    if image_sizes is None:
        return images
    sizes: Any = image_sizes
    try:
        sizes = torch.as_tensor(image_sizes).tolist()
        fits = torch.as_tensor(sizes).shape == (len(images), 2) or not (images or sizes)
    except (TypeError, ValueError):  # ragged, or not numbers
        fits = False
    if not fits:
        raise ImageError(
            f"found {len(images)} images and image_sizes {sizes}; expected one (height, width) for each image"
        )
    for index, (pixels, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        if not (0 < h <= pixels.shape[-2] and 0 < w <= pixels.shape[-1]):
            room = "x".join(map(str, pixels.shape[-2:]))
            raise ImageError(f"image {index} has size {h}x{w}, but pixel_values holds {room}")
    return [pixels[..., : int(h), : int(w)] for pixels, (h, w) in zip(images, sizes, strict=True)]
