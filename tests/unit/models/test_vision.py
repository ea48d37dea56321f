"""The tower: axes, sizes, memory, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from random_models import PATCH, llava_dict, randomize
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pixtral.configuration import PixtralVisionConfig
from pixtral.errors import ImageError
from pixtral.images.pixels import crop_images
from pixtral.layers.outputs import Trace
from pixtral.models import vision
from pixtral.models.vision import PixtralVisionModel
from pixtral.ops.native.library import kernels_if_built

KERNELS = kernels_if_built()
BFLOAT16 = KERNELS is not None and KERNELS.isa != "portable"


def tower(**fields: Any) -> PixtralVisionModel:
    model = PixtralVisionModel(PixtralVisionConfig.from_dict(llava_dict(vision=fields)["vision_config"]))
    randomize(model)
    return model.eval().requires_grad_(False)


def make_image(rows: int, cols: int, channels: int = 3) -> Tensor:
    return torch.randn(channels, rows * PATCH, cols * PATCH)


def test_patches_are_what_the_convolution_gives() -> None:
    model, pixels = tower(), make_image(3, 5)
    expected = model.patch_conv(pixels[None])[0].flatten(1).T
    torch.testing.assert_close(model.embed_patches([pixels]), expected)
    assert model.grid(pixels) == (3, 5)


def test_a_turned_image_is_another_image() -> None:
    """Rows and columns play different parts: turning the image does not merely turn the features."""
    model, pixels = tower(), make_image(3, 5)
    with torch.no_grad():
        symmetric = model.patch_conv.weight + model.patch_conv.weight.transpose(2, 3)
        model.patch_conv.weight.copy_(symmetric)  # so that each patch alone looks the same when transposed
    upright = model.encode([pixels]).view(3, 5, -1)
    transposed = model.encode([pixels.transpose(1, 2)]).view(5, 3, -1).transpose(0, 1)
    torch.testing.assert_close(
        model.embed_patches([pixels]).view(3, 5, -1),
        model.embed_patches([pixels.transpose(1, 2)]).view(5, 3, -1).transpose(0, 1),
    )
    similarity = F.cosine_similarity(upright, transposed, dim=-1)
    assert similarity.max() < 0.999 and similarity.mean() < 0.98


def test_features_know_where_their_patch_is() -> None:
    """All patches equal: without positions all features would be equal too, and they are, for equal values attend to
    equal values; with one patch different, its neighbours see it at different distances."""
    model = tower()
    pixels = make_image(1, 1).repeat(1, 6, 6)
    alike = model.encode([pixels])
    torch.testing.assert_close(alike, alike[:1].expand_as(alike), rtol=1e-4, atol=1e-4)
    pixels[:, :PATCH, :PATCH] = 3 * torch.randn(3, PATCH, PATCH)
    features = model.encode([pixels]).view(6, 6, -1)
    assert (features[0, 3] - features[3, 0]).abs().max() > 1e-3  # same distance along a row and along a column
    assert (features[0, 2] - features[0, 4]).abs().max() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(16, 1600), (1600, 16), (16, 16), (80, 1040)])
def test_sides_past_64_patches(height: int, width: int) -> None:
    """A table of image_size / patch_size rows and columns would end at 64."""
    model = tower(patch_size=16, image_size=1024)
    features = model(torch.randn(1, 3, height, width)).last_hidden_state
    assert features.shape == (1, height // 16 * width // 16, 32) and features.isfinite().all()
    if width == 1600:
        pixels = torch.zeros(1, 3, 16, 1600)
        pixels[..., :16] = 1.0
        moved = torch.zeros(1, 3, 16, 1600)
        moved[..., 64 * 16 : 65 * 16] = 1.0
        first, later = model(pixels).last_hidden_state[0], model(moved).last_hidden_state[0]
        assert (first[10] - later[10]).abs().max() > 1e-4  # column 64 is not column 0


class Sizes(TorchDispatchMode):
    """Elements of every tensor that is made inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.seen += [x.numel() for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, Tensor)]
        return out


@pytest.mark.parametrize("equal", [True, False])
def test_memory_is_linear_in_the_number_of_images(equal: bool) -> None:
    """The largest tensor grows with the patches, and is nowhere near (all patches) x (all patches)."""
    model, largest = tower(), {}
    for count in (1, 2, 4, 8):
        images = [make_image(18, 18 if equal else 18 + i % 2) for i in range(count)]
        patches = sum(image.shape[1] * image.shape[2] for image in images) // PATCH**2
        with Sizes() as sizes:
            model.encode(images)
        largest[count] = max(sizes.seen)
        assert largest[count] <= patches * max(48, 3 * PATCH * PATCH)  # the widest row: intermediate size, or a patch
        assert count < 4 or largest[count] < patches**2 / 10
    assert largest[8] <= 8 * largest[1] * 1.1


def test_outputs() -> None:
    model = tower()
    pixels = torch.randn(2, 3, 12, 20)
    plain = model(pixels)
    assert list(plain) == ["last_hidden_state"] and plain.last_hidden_state.shape == (1, 2 * 3 * 5, 32)
    full = model(pixels, [[8, 20], [12, 4]], output_hidden_states=True, output_attentions=True)
    n = 2 * 5 + 3 * 1
    assert full.last_hidden_state.shape == (1, n, 32)
    assert len(full.hidden_states) == 4 and full.hidden_states[-1].equal(full.last_hidden_state)
    assert [w.shape for w in full.attentions] == [(1, 2, n, n)] * 3
    assert not full.attentions[0][0, :, :10, 10:].any() and not full.attentions[0][0, :, 10:, :10].any()
    torch.testing.assert_close(full.attentions[2].sum(-1), torch.ones(1, 2, n))
    as_tuple = model(pixels, return_dict=False)
    assert type(as_tuple) is tuple and as_tuple[0].equal(plain.last_hidden_state)
    assert model.get_input_embeddings() is model.patch_conv
    assert model.main_input_name == "pixel_values"


def test_one_channel_and_other_dtypes() -> None:
    model = tower(num_channels=1)
    assert model.encode([make_image(2, 2, channels=1)]).shape == (4, 32)
    model = tower().to(torch.bfloat16)
    out = model(torch.randn(1, 3, 8, 8))  # float32 pixels are taken in the dtype of the weights
    assert out.last_hidden_state.dtype == torch.bfloat16


def test_dropout_acts_in_training_alone() -> None:
    model = tower(attention_dropout=0.5)
    images = [make_image(4, 4)]
    assert model.encode(images).equal(model.encode(images))
    model.train()
    assert not model.encode(images).equal(model.encode(images))


def test_the_trace_and_the_fast_path_agree() -> None:
    model, images = tower(), [make_image(2, 3), make_image(4, 1), make_image(2, 3)]
    trace = Trace.wanted(True, True)
    torch.testing.assert_close(model.encode(images, trace), model.encode(images), rtol=1e-5, atol=1e-5)
    assert trace.attentions is not None and [w.shape for w in trace.attentions[0]] == [(2, 6, 6), (2, 4, 4), (2, 6, 6)]


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        ((3, 8, 8), None, r"pixel_values \(3, 8, 8\), expected \(images, 3, height, width\)"),
        ((1, 1, 8, 8), None, r"pixels of shape \(1, 8, 8\), expected \(3, height, width\)"),
        ((1, 3, 3, 8), None, r"of at least 4 each"),
        ((2, 3, 8, 8), [[8, 8]], r"found 2 images and image_sizes.*one \(height, width\) for each"),
        ((1, 3, 8, 8), [[8, 8, 8]], r"one \(height, width\) for each image"),
        ((2, 3, 8, 8), [8, 8], r"found 2 images and image_sizes \[8, 8\]"),
        ((1, 3, 8, 8), [[8, 12]], r"image 0 has size 8x12, but pixel_values holds 8x8"),
        ((2, 3, 8, 8), [[8, 8], [0, 8]], r"image 1 has size 0x8"),
        ((1, 3, 8, 8), [[-8, 8]], r"image 0 has size -8x8"),
        ((1, 3, 8, 8), [[2, 8]], r"of at least 4 each"),
        ((0, 3, 8, 8), None, r"no images"),
    ],
)
def test_pixels_that_are_refused(shape: tuple[int, ...], sizes: Any, message: str) -> None:
    for given in [sizes] if sizes is None else [sizes, torch.tensor(sizes)]:
        with pytest.raises(ImageError, match=message):
            tower()(torch.randn(shape), given)


def test_crop_images_takes_the_upper_left() -> None:
    batch = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    first, second = crop_images(batch, torch.tensor([[4, 2], [1, 4]]))
    assert first.equal(batch[0, :, :, :2]) and second.equal(batch[1, :, :1])
    assert crop_images(torch.zeros(0, 3, 4, 4), torch.zeros(0, 2)) == []


def test_images_that_were_never_padded() -> None:
    """A list of images, as processors give with do_pad=False."""
    model, images = tower(), [make_image(2, 3), make_image(4, 1)]
    expected = model.encode(images)
    assert model(images).last_hidden_state[0].equal(expected)
    sizes = [image.shape[1:] for image in images]
    assert model(images, sizes).last_hidden_state[0].equal(expected)
    assert model(images, torch.tensor([[4, 4], [8, 4]])).last_hidden_state.shape == (1, 3, 32)
    with pytest.raises(ImageError, match="image 1 has size 8x8, but pixel_values holds 16x4"):
        model(images, [[8, 8], [8, 8]])
    with pytest.raises(ImageError, match=r"found 2 images and image_sizes \[\[8, 8\], \[8\]\]"):
        model(images, [[8, 8], [8]])
    with pytest.raises(ImageError, match=r"pixels of shape \(8, 8\), expected \(3, height, width\)"):
        model([torch.zeros(8, 8)])


@pytest.mark.skipif(not BFLOAT16, reason="the kernels have no products of bfloat16 for this CPU")
@torch.no_grad()
def test_the_kernels_way_and_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are as near to float32 as bfloat16 allows; the kernels round less often."""
    exact = tower(hidden_size=128, intermediate_size=256)
    rounded = copy.deepcopy(exact).bfloat16()
    images = [make_image(5, 13), make_image(1, 1), make_image(16, 16)]
    expected = exact.encode(images)
    taken = []
    real = vars(vision)["AttentionStep"]
    monkeypatch.setattr(
        vision, "AttentionStep", lambda *call, native: taken.append(native) or real(*call, native=native)
    )
    native = rounded.encode(images)
    monkeypatch.setattr("pixtral.layers.linear.runs_dense", lambda *_: False)
    plain = rounded.encode(images)
    assert taken == [True, False]
    errors = [(out.float() - expected).square().mean().sqrt() for out in (native, plain)]
    assert not native.equal(plain) and errors[0] < 1.1 * errors[1] < 0.05 * expected.square().mean().sqrt()
    torch.testing.assert_close(native.float(), plain.float(), rtol=0.05, atol=0.05 * float(expected.abs().max()))
