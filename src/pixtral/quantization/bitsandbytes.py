"""Quantization by the bitsandbytes library as in Transformers: which layers, how, and how they are stored."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Collection, Mapping
from importlib import import_module, metadata
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pixtral.configuration import BitsAndBytesConfig
from pixtral.errors import CheckpointError, ConfigError, MissingDependency
from pixtral.quantization.base import Quantizer, Slot, WeightSource, replace_module

OLDEST = (0, 46, 1)  # the first with kernels for CPUs that Transformers takes
_SUFFIXES_4BIT = (
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    "weight.quant_state.bitsandbytes__nf4",
    "weight.quant_state.bitsandbytes__fp4",
)
_SUFFIXES_8BIT = ("SCB", "weight_format")
# The default. Transformers also keeps tied weights and the last module, which here are the same layer.
_KEPT = ["lm_head"]


class BitsAndBytesQuantizer(Quantizer):
    """4 or 8 bits by bitsandbytes.

    Every linear layer is converted, those of the vision tower and the projector too, except the output layer; or, when
    `llm_int8_skip_modules` is given, except what it names. In a stored checkpoint the files say which they are.

    Args:
        config: the caller's, or the checkpoint's.
        stored: whether the files hold quantized weights.
    """

    method: ClassVar[str] = BitsAndBytesConfig.quant_method
    suffixes: ClassVar[tuple[str, ...]] = (*_SUFFIXES_4BIT, *_SUFFIXES_8BIT)

    def __init__(self, config: BitsAndBytesConfig, *, stored: bool = False) -> None:
        super().__init__(stored=stored)
        _check_library()
        self._config = _settled(config)
        self._quantized: frozenset[str] | None = None
        self._dtype = torch.get_default_dtype()

    @property
    def _layers(self) -> ModuleType:
        """The module that imports the library."""
        return import_module("pixtral.quantization.bitsandbytes_layers")

    @property
    def config(self) -> BitsAndBytesConfig:
        """The caller's, or the checkpoint's."""
        return self._config

    @property
    def quantization_config(self) -> BitsAndBytesConfig:
        """Transformers' name of `config`."""
        return self._config

    @property
    def is_trainable(self) -> bool:
        """True: adapters beside the quantized layers can be trained."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """False: the quantized weights themselves cannot."""
        return False

    @property
    def is_compileable(self) -> bool:
        """False, as in Transformers."""
        return False

    def is_serializable(self) -> bool:
        """True: save_pretrained writes the quantized weights."""
        return True

    def found(self, names: Collection[str]) -> None:
        """See Quantizer.found: a layer is quantized when its scales are there.

        Raises:
            CheckpointError: none is.
        """
        if self._config.load_in_8bit and self._config.llm_int8_has_fp16_weight:
            return  # these have no scales; the configuration says which they are
        scales = "." + (_SUFFIXES_8BIT[0] if self._config.load_in_8bit else _SUFFIXES_4BIT[0])
        self._quantized = frozenset(name.removesuffix(scales) for name in names if name.endswith(scales))
        if not self._quantized:
            raise CheckpointError(
                f"the configuration says that weights are quantized by bitsandbytes, but no file holds their scales "
                f"(names that end with {scales!r}); if they are in full precision, remove quantization_config from it"
            )

    def swap(self, model: nn.Module, dtype: torch.dtype) -> dict[str, nn.Module]:
        """See Quantizer.swap.

        Raises:
            ConfigError: a dtype that the library does not compute in.
        """
        if dtype == torch.float64:
            raise ConfigError("bitsandbytes computes in bfloat16, float16 or float32; found dtype float64")
        self._dtype = dtype
        names = self._chosen(model)
        kind = self._layers.Linear8bitLt if self._config.load_in_8bit else self._layers.Linear4bit
        swapped: dict[str, nn.Module] = {}
        for name in names:
            with torch.device("meta"):
                swapped[name] = kind(model.get_submodule(name), self._config)
            replace_module(model, name, swapped[name])
        return swapped

    def slots(self, layer: nn.Module) -> dict[str, Slot]:
        """See Quantizer.slots."""
        found: dict[str, Slot] = self._own(layer).slots(self.stored)
        return found

    def nbytes(self, layer: nn.Module) -> int:
        """See Quantizer.nbytes."""
        return int(self._own(layer).nbytes())

    def work_bytes(self, layer: nn.Module) -> int:
        """See Quantizer.work_bytes."""
        return 0 if self.stored else int(self._layers.WORK_BYTES)

    def quantize(self, layer: nn.Module, source: WeightSource, device: torch.device) -> None:
        """See Quantizer.quantize."""
        self._own(layer).quantize(source, device, self._dtype)

    def restore(self, layer: nn.Module, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """See Quantizer.restore."""
        self._own(layer).restore(tensors, device)

    def tensors(self, layer: nn.Module) -> dict[str, Tensor]:
        """See Quantizer.tensors."""
        found: dict[str, Tensor] = self._own(layer).tensors()
        return found

    def to_dict(self) -> dict[str, Any]:
        """See BitsAndBytesConfig.to_dict."""
        return self._config.to_dict()

    def describe(self, layer: nn.Module) -> str:
        """See Quantizer.describe."""
        return str(self._own(layer).describe())

    def _own(self, layer: nn.Module) -> Any:
        assert isinstance(layer, (self._layers.Linear4bit, self._layers.Linear8bitLt))
        return layer

    def _chosen(self, model: nn.Module) -> list[str]:
        linear = [name for name, module in model.named_modules() if type(module) is nn.Linear]
        skip = self._config.llm_int8_skip_modules
        if skip is not None and not self.stored:
            _warn_unmatched(skip, linear)
        skip = _KEPT if skip is None else skip
        if self._config.llm_int8_enable_fp32_cpu_offload:
            skip = [*skip, *self.offloaded]
        configured = _unskipped(linear, skip)
        if self._quantized is None:
            return configured
        chosen = [name for name in linear if name in self._quantized]
        if chosen != configured:  # the files were written with other module names; the saved configuration needs these
            self._config.llm_int8_skip_modules = [name for name in linear if name not in self._quantized]
        return chosen


def skips(pattern: str, name: str) -> bool:
    """Whether an entry of llm_int8_skip_modules matches a layer's name: its start, up to a dot, or its end."""
    return name.endswith(pattern) or re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", name) is not None


def _unskipped(linear: list[str], skip: list[str]) -> list[str]:
    return [name for name in linear if not any(skips(pattern, name) for pattern in skip)]


def _warn_unmatched(skip: list[str], linear: list[str]) -> None:
    """Warn about entries that match nothing, which are probably misspelt; Transformers ignores them."""
    idle = [pattern for pattern in skip if not any(skips(pattern, name) for name in linear)]
    if idle:
        inner = sorted({".".join(name.split(".")[:2]) for name in linear})
        warnings.warn(
            f"llm_int8_skip_modules: {', '.join(map(repr, idle))} matches no linear layer, so nothing stays as it is "
            f"because of it; names are matched from their start or to their end, as in {', '.join(map(repr, inner))}",
            stacklevel=2,
        )


def _settled(config: BitsAndBytesConfig) -> BitsAndBytesConfig:
    """A copy with 4 or 8 bits set; 4 if neither is, as in Transformers."""
    settled = BitsAndBytesConfig.from_dict(config.to_dict())
    if not settled.is_quantizable():
        warnings.warn(
            "BitsAndBytesConfig asks for neither load_in_4bit nor load_in_8bit; 4 bits "
            f"({settled.bnb_4bit_quant_type}) are taken, as in Transformers",
            stacklevel=2,
        )
        settled.load_in_4bit = True
    return settled


def _check_library() -> None:
    """Check that the library is installed, and let it log each message once.

    Raises:
        MissingDependency: it is not installed, or too old.
    """
    oldest = ".".join(map(str, OLDEST))
    try:
        version = metadata.version("bitsandbytes")
    except metadata.PackageNotFoundError as error:
        raise MissingDependency(
            f"quantizing with BitsAndBytesConfig needs bitsandbytes {oldest} or newer, and it is not installed; "
            'pip install "pixtral[bnb]", or use quantization="int4", which needs nothing'
        ) from error
    if tuple(int(number) for number in re.findall(r"\d+", version)[:3]) < OLDEST:
        raise MissingDependency(
            f'found bitsandbytes {version}, expected {oldest} or newer; pip install --upgrade "pixtral[bnb]"'
        )
    _log_once("bitsandbytes.autograd._functions")


class _Once(logging.Filter):
    """Passes each message once; the library repeats one in every 8-bit layer of every step."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self._seen
        self._seen.add(text)
        return new


def _log_once(logger: str) -> None:
    found = logging.getLogger(logger)
    if not any(isinstance(one, _Once) for one in found.filters):
        found.addFilter(_Once())
