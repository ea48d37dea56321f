"""The vision tower: images at their own size to one feature per patch (arXiv:2410.07073, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixtral.configuration import PixtralVisionConfig
from pixtral.errors import ImageError
from pixtral.images.pixels import crop_images
from pixtral.layers.blocks import MLP, RMSNorm, Rotation, grid_rotation
from pixtral.layers.linear import QuantizedLinear, applied, project, takes_kernels
from pixtral.layers.outputs import BaseModelOutputWithPooling, Trace
from pixtral.layers.stack import AttentionStep, LayerStack
from pixtral.models.pretrained import PreTrainedModel
from pixtral.ops.dense import dense_linear, runs_dense
from pixtral.ops.kv_cache import Packing
from pixtral.ops.rowwise import add, rotate_pair


class PatchConv(nn.Conv2d):
    """The convolution over whole patches, also as one product over patches that are cut already."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3 * P * P) -> (N, C); or images (B, 3, H, W) -> (B, C, H / P, W / P)."""
        if x.dim() != 2:
            return super().forward(x)
        weight = self.weight.flatten(1)
        return dense_linear(x, [weight], [None])[0] if runs_dense(x, weight) else F.linear(x, weight)


class PixtralAttention(nn.Module):
    """Multi-head attention without biases; patches attend in both directions."""

    def __init__(self, config: PixtralVisionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, attend: AttentionStep) -> Tensor:
        """(N, C) -> (N, C)."""
        rows = project(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (y.view(len(y), y.shape[1] // self.head_dim, self.head_dim) for y in rows)
        q, k = rotate_pair(q, k, *rotation, native=attend.native)
        return applied(self.o_proj, attend(q, k, v))


class PixtralAttentionLayer(nn.Module):
    """One block of the tower: norm, attention, norm, feed-forward."""

    def __init__(self, config: PixtralVisionConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, eps=1e-5)
        self.feed_forward = MLP(config.hidden_size, config.intermediate_size, config.hidden_act)
        self.attention = PixtralAttention(config)
        self.ffn_norm = RMSNorm(config.hidden_size, eps=1e-5)

    def forward(self, x: Tensor, rotation: Rotation, attend: AttentionStep) -> Tensor:
        """(N, C) -> (N, C)."""
        native = attend.native
        x = add(x, self.attention(self.attention_norm(x, native), rotation, attend), native=native)
        return add(x, self.feed_forward(self.ffn_norm(x, native)), native=native)


class PixtralTransformer(LayerStack):
    """The blocks; there is no final norm."""

    def __init__(self, config: PixtralVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PixtralAttentionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, rotation: Rotation, attend: AttentionStep) -> Tensor:
        """(N, C) -> (N, C)."""
        for layer in self.layers:
            attend.trace.add(x)
            x = self.run_layer(layer, x, rotation, attend)
        attend.trace.add(x)
        return x


class PixtralVisionModel(PreTrainedModel):
    """The Pixtral vision encoder; each image attends to itself alone.

    `from_pretrained` also reads it out of a whole Pixtral.
    """

    architecture = "PixtralVisionModel"
    config_class = PixtralVisionConfig
    config: PixtralVisionConfig
    quantized_as = "vision"
    main_input_name = "pixel_values"

    def __init__(self, config: PixtralVisionConfig) -> None:
        super().__init__(config)
        self.patch_size = config.patch_size
        self.patch_conv = PatchConv(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )
        self.ln_pre = RMSNorm(config.hidden_size, eps=1e-5)
        self.transformer = PixtralTransformer(config)
        self.init_weights()

    def get_input_embeddings(self) -> nn.Module:
        """The patch convolution."""
        return self.patch_conv

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of whole patches in (C, H, W) pixels."""
        if pixels.dim() != 3 or len(pixels) != self.config.num_channels or min(pixels.shape[1:]) < self.patch_size:
            raise ImageError(
                f"found pixels of shape {tuple(pixels.shape)}, expected ({self.config.num_channels}, height, width) "
                f"of at least {self.patch_size} each; prepare images with an image processor"
            )
        return pixels.shape[1] // self.patch_size, pixels.shape[2] // self.patch_size

    def embed_patches(self, images: Sequence[Tensor]) -> Tensor:
        """(3, H, W) each -> (N, C): the convolution written as one product, patches row by row, image by image."""
        size, device, dtype = self.patch_size, self.device, self.patch_conv.weight.dtype
        patches = []
        for pixels in images:
            rows, cols = self.grid(pixels)
            whole = pixels[:, : rows * size, : cols * size].to(device, dtype)
            cut = whole.reshape(-1, rows, size, cols, size).permute(1, 3, 0, 2, 4)
            patches.append(cut.reshape(rows * cols, -1))
        out: Tensor = self.patch_conv(torch.cat(patches))
        return out

    def encode(self, images: Sequence[Tensor], trace: Trace | None = None) -> Tensor:
        """All images in one pass.

        Args:
            images: (3, H, W) normalised pixels each, of any sizes; pixels past the last whole patch are left out.
            trace: collects hidden states and attention weights.

        Returns:
            (N, C): the patches of all images one after another, N = sum of rows * columns.

        Raises:
            ImageError: there are no images, or one has another number of channels or is smaller than a patch.
        """
        if not images:
            raise ImageError("found no images; the vision tower needs at least one: leave the call out for text alone")
        grids = [self.grid(pixels) for pixels in images]
        x = self.ln_pre(self.embed_patches(images))
        packing = Packing.full([rows * cols for rows, cols in grids], causal=False)
        theta = self.config.rope_theta
        assert theta is not None
        rotation = grid_rotation(grids, self.config.head_dim, theta, x.dtype, x.device)
        dropout = self.config.attention_dropout if self.training else 0.0
        attend = AttentionStep(packing, trace or Trace(), dropout, native=self._is_native(x))
        out: Tensor = self.transformer(x, rotation, attend)
        return out

    def _is_native(self, x: Tensor) -> bool:
        """Whether the kernels take the products of all blocks, and so had better take what lies between them."""
        layers = [block.get_submodule("attention.q_proj") for block in self.transformer.layers]
        return isinstance(layers[0], QuantizedLinear) or takes_kernels(x, *layers)

    def forward(
        self,
        pixel_values: Tensor | Sequence[Tensor],
        image_sizes: Tensor | Sequence[Sequence[int]] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[object, ...]:
        """Transformers' signature.

        Args:
            pixel_values: (images, 3, Hmax, Wmax), each image in the upper left corner; or a list of (3, H, W).
            image_sizes: (images, 2) height and width of each in pixels; all of Hmax x Wmax when left out.
            output_hidden_states: also return the input of the first block and the output of each.
            output_attentions: also return attention weights, which needs N x N memory per layer.
            return_dict: False for a plain tuple.
        """
        trace = Trace.wanted(output_hidden_states, output_attentions)
        hidden = self.encode(crop_images(pixel_values, image_sizes), trace)
        states = None if trace.hidden_states is None else tuple(x[None] for x in trace.hidden_states)
        weights = None
        if trace.attentions is not None:
            diagonals = ([_block_diagonal(head) for head in zip(*layer, strict=True)] for layer in trace.attentions)
            weights = tuple(torch.stack(heads)[None] for heads in diagonals)
        output = BaseModelOutputWithPooling(hidden[None], hidden_states=states, attentions=weights)
        return output.to_tuple() if return_dict is False else output


def _block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Square blocks of N_i rows each -> (N, N), zero elsewhere."""
    size = sum(len(block) for block in blocks)
    out, start = blocks[0].new_zeros(size, size), 0
    for block in blocks:
        out[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    return out
