"""How much of the weights is lost by each number format: the squared error, relative to the weights' own squares.

    python benchmarks/quantization_error.py [--rows 512] [--width 4096] [--ggml PATH/libggml-base.so] [--markdown]

Ours in 4 and 8 bits beside ggml's Q4_0 and Q8_0, written here from their published format, and, with --ggml, beside
what the real library makes of the same weights (Q4_0, Q4_K, Q8_0). Then what 8-bit activations add to 4-bit weights,
when 0.1 % of the channels are 50 times the rest. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from pixtral.ops.linear import linear
from pixtral.ops.linear_reference import quantize_activations
from pixtral.ops.quantized_weight import dequantize_weight, quantize_weight

Format = Callable[[Tensor], Tensor]
GGML = {"Q4_0": (2, 18, 32), "Q4_K": (12, 144, 256), "Q8_0": (8, 34, 32)}  # its number, bytes and weights of a block


def weights(rows: int, width: int) -> Iterator[tuple[str, Tensor]]:
    """Kinds of weights: a name and a sample."""
    torch.manual_seed(0)
    normal = torch.randn(rows, width)
    yield "Gaussian", normal
    yield "Laplace", torch.distributions.Laplace(0.0, 1.0).sample((rows, width))
    yield "Student t, 4 degrees", torch.distributions.StudentT(4.0).sample((rows, width))
    yield "Student t, 3 degrees", torch.distributions.StudentT(3.0).sample((rows, width))
    columns = torch.ones(width)
    columns[torch.randperm(width)[: max(1, width // 256)]] = 10.0
    yield "Gaussian, 0.4 % of the columns 10 times larger", normal * columns
    yield "Gaussian, rows of different size", normal * torch.logspace(-2, 0, rows)[:, None]


def ours(bits: int, group: int) -> Format:
    """Quantized and dequantized again."""
    return lambda weight: dequantize_weight(quantize_weight(weight, bits, group), torch.float32)


def block_format(bits: int) -> Format:
    """ggml's Q4_0 and Q8_0 as published: blocks of 32 with a float16 scale, and nothing searched."""

    def run(weight: Tensor) -> Tensor:
        blocks = weight.view(-1, 32)
        place = blocks.abs().argmax(1, keepdim=True)
        if bits == 8:
            scale = blocks.gather(1, place).abs() / 127
            levels = (blocks / scale).round()
        else:
            scale = blocks.gather(1, place) / -8  # the largest weight gets the level -8
            levels = (blocks / scale + 8.5).floor().clamp(max=15) - 8
        return (levels * scale.half().float()).view_as(weight)

    return run


def ggml_format(library: ctypes.CDLL, name: str) -> Format:
    """What the real library makes of the weights."""
    number, size, count = GGML[name]
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    back = library[f"dequantize_row_{name.lower().replace('_k', '_K')}"]
    back.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    back.restype = None

    def run(weight: Tensor) -> Tensor:
        rows, width = weight.shape
        source = np.ascontiguousarray(weight.numpy())
        stored = np.zeros(weight.numel() // count * size, np.uint8)
        out = np.zeros_like(source)
        library.ggml_quantize_chunk(number, source.ctypes.data, stored.ctypes.data, 0, rows, width, None)
        back(stored.ctypes.data, out.ctypes.data, out.size)
        return torch.from_numpy(out)

    return run


def formats(ggml: str | None, width: int) -> dict[str, tuple[float, Format]]:
    """Bits per weight, and how weights go through each format."""
    found: dict[str, tuple[float, Format]] = {
        f"int{bits}, groups of {group}": (bits + 8 / group + 32 / width, ours(bits, group))
        for bits, group in ((4, 32), (4, 64), (4, 128), (8, 64))
    }
    found["Q4_0 as published"] = (4.5, block_format(4))
    found["Q8_0 as published"] = (8.5, block_format(8))
    if ggml is not None:
        library = ctypes.CDLL(ggml)
        library.ggml_quantize_init.argtypes = [ctypes.c_int]
        for name, (number, size, count) in GGML.items():
            library.ggml_quantize_init(number)
            found[f"{name} of ggml"] = (8 * size / count, ggml_format(library, name))
    return found


def share(error: Tensor, exact: Tensor) -> float:
    """Squared, relative."""
    return float(error.double().square().sum() / exact.double().square().sum())


def activations(rows: int, width: int) -> dict[str, float]:
    """The error of a product whose activations have outliers: by the weights alone, the activations alone, and both."""
    torch.manual_seed(1)
    x = torch.randn(rows, width)
    x[:, torch.randperm(width)[: max(1, width // 1000)]] *= 50
    weight = torch.randn(256, width)
    exact = x @ weight.t()
    quantized = quantize_weight(weight, 4, 64)
    levels, scales = quantize_activations(x)
    rounded = levels * scales.repeat_interleave(128, dim=1)[:, :width]
    return {
        "weights": share(x @ dequantize_weight(quantized, torch.float32).t() - exact, exact),
        "activations": share(rounded @ weight.t() - exact, exact),
        "both": share(linear(x, [quantized])[0] - exact, exact),
    }


def print_table(kinds: list[str], rows: dict[str, tuple[float, list[float]]], markdown: bool) -> None:
    """A line for each format, in thousandths."""
    if markdown:
        print("| format | bits | " + " | ".join(kinds) + " |\n|---|---|" + "---|" * len(kinds))
    else:
        print("relative squared error x 1000: " + " | ".join(kinds))
    for name, (bits, errors) in rows.items():
        numbers = [f"{1000 * e:.3f}" if e > 1e-4 else f"{1000 * e:.4f}" for e in errors]
        print(
            f"| {name} | {bits:.2f} | " + " | ".join(numbers) + " |" if markdown else f"{name:22} {bits:5.2f} {numbers}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--ggml", metavar="PATH", help="libggml-base.so, for Q4_K and the real Q4_0")
    parser.add_argument("--markdown", action="store_true", help="print a table for the documentation")
    options = parser.parse_args()
    samples = dict(weights(options.rows, options.width))
    table = {
        name: (bits, [share(run(sample) - sample, sample) for sample in samples.values()])
        for name, (bits, run) in formats(options.ggml, options.width).items()
    }
    print_table(list(samples), table, options.markdown)
    added = activations(options.rows, options.width)
    print(
        f"outliers in the activations: 4-bit weights alone {added['weights']:.5f}, 8-bit activations alone "
        f"{added['activations']:.5f} ({added['activations'] / added['weights']:.2f} of it), both {added['both']:.5f}"
    )
    print(json.dumps({"weights": list(samples), "errors": table, "activations": added}))


if __name__ == "__main__":
    main()
