"""`quantization_config` of a config.json: pixtral's group-wise int4 and int8, and Transformers' BitsAndBytesConfig."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pixtral.configuration.base import require_types
from pixtral.errors import ConfigError, nearest, refuse_unknown

if TYPE_CHECKING:
    import torch


SCHEMES = {"int4": 4, "int8": 8}

_QUANT_TYPES = ("fp4", "nf4")
_COMPUTE_DTYPES = ("float16", "float32", "bfloat16")
_STORAGE_DTYPES = ("float16", "float32", "int8", "uint8", "float64", "bfloat16")

_BOOLEANS = (
    "load_in_8bit",
    "load_in_4bit",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "bnb_4bit_use_double_quant",
)
# Keys that Transformers writes beside the fields; the second and third repeat two of them.
_WRITTEN = ("quant_method", "_load_in_8bit", "_load_in_4bit")


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """Weights of 4 or 8 bits in groups, each with a scale; made while a checkpoint loads, or by `pixtral quantize`.

    Attributes:
        bits: of the decoder's linear layers, 4 or 8.
        group_size: columns that share a scale: 32, 64 or 128. None takes 64 (128 in the tower), and less
            in layers that this does not divide.
        lm_head_bits: of the output layer, 4 or 8; 16 leaves it as it is.
        quantize_vision: also the tower's and the projector's linear layers, in 8 bits.
        activations: "int8" quantizes the inputs of a layer on the fly (fast); "bf16" computes with dequantized weights.
    """

    method: ClassVar[str] = "pixtral"
    version: ClassVar[int] = 2  # 1 had other levels, and was never released

    bits: int = 4
    group_size: int | None = None
    lm_head_bits: int = 8
    quantize_vision: bool = False
    activations: str = "int8"

    def __post_init__(self) -> None:
        require_types(self)
        allowed: dict[str, tuple[object, ...]] = {
            "bits": (4, 8), "group_size": (None, 32, 64, 128), "lm_head_bits": (4, 8, 16),
            "activations": ("int8", "bf16"),
        }  # fmt: skip
        for name, values in allowed.items():
            found = getattr(self, name)
            if found not in values:
                raise ConfigError(
                    f"QuantizationConfig.{name} is {found!r}; expected one of {', '.join(map(repr, values))}"
                )

    @classmethod
    def from_name(cls, name: str, **fields: Any) -> QuantizationConfig:
        """The configuration of "int4" or "int8".

        Raises:
            ConfigError: another name, or a field's value.
        """
        if name not in SCHEMES:
            raise ConfigError(
                f"quantization is {name!r}; expected 'int4' or 'int8', or None for the weights as they are "
                "(for bitsandbytes pass quantization_config=BitsAndBytesConfig(...))"
            )
        return cls(bits=SCHEMES[name], **fields)

    @property
    def name(self) -> str:
        """ "int4" or "int8"."""
        return f"int{self.bits}"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> QuantizationConfig:
        """Read `quantization_config` of a config.json.

        Raises:
            ConfigError: another method, another version, or a field that is not known.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"QuantizationConfig needs a JSON object, found {type(values).__name__}")
        values = dict(values)
        method = values.pop("quant_method", cls.method)
        if method != cls.method:
            raise ConfigError(f"found quant_method {method!r}; QuantizationConfig reads {cls.method!r}")
        version = values.pop("version", cls.version)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ConfigError(f"quantization_config.version is {version!r}; expected an integer from 1")
        if version != cls.version:
            upgrade = "upgrade pixtral, or " if version > cls.version else ""
            raise ConfigError(
                f"the weights are quantized in version {version} of pixtral's format; this release reads version "
                f"{cls.version}: {upgrade}quantize the original checkpoint again"
            )
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"quantization_config does not know the field {key!r} ({nearest(key, known)}); "
                    "remove it, or use a version of pixtral that implements it"
                )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The content of `quantization_config` that `from_dict` reads."""
        return {"quant_method": self.method, "version": self.version, **dataclasses.asdict(self)}


class WrongFieldType(ConfigError, TypeError):
    """A field holds a value of another type; Transformers raises TypeError there."""


class BitsAndBytesConfig:
    """Linear layers in 4 or 8 bits, made by bitsandbytes while a checkpoint loads.

    Each field is checked whenever it is set. As in Transformers, a configuration that asks for neither 4 nor 8 bits
    gives 4.

    Args:
        load_in_8bit: LLM.int8() (arXiv:2208.07339): weights in 8 bits, a scale per row.
        load_in_4bit: 4 bits in blocks of 64 weights (arXiv:2305.14314).
        llm_int8_threshold: columns of activations that reach it are computed with unrounded activations.
        llm_int8_skip_modules: names of modules that are not quantized, *instead of* the output layer, the
            default. Each is matched with the start of a layer's name (as a regular expression, up to a dot) and with
            its end: "model.vision_tower", "o_proj".
        llm_int8_enable_fp32_cpu_offload: modules that `device_map` puts on the CPU beside a GPU stay as they are.
        llm_int8_has_fp16_weight: keep 16-bit weights, and quantize them in every call.
        bnb_4bit_compute_dtype: what 4-bit layers compute in: float16, bfloat16 or float32 (the default).
        bnb_4bit_quant_type: "fp4" or "nf4".
        bnb_4bit_use_double_quant: quantize the scales too.
        bnb_4bit_quant_storage: the dtype of the stored tensor of 4-bit codes, for sharded training; uint8 by default.

    Raises:
        ConfigError: a value that cannot be used.
        UnknownArgument: a field that is none of these.
    """

    quant_method: ClassVar[str] = "bitsandbytes"
    fields: ClassVar[tuple[str, ...]] = (
        "load_in_8bit",
        "load_in_4bit",
        "llm_int8_threshold",
        "llm_int8_skip_modules",
        "llm_int8_enable_fp32_cpu_offload",
        "llm_int8_has_fp16_weight",
        "bnb_4bit_compute_dtype",
        "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant",
        "bnb_4bit_quant_storage",
    )

    load_in_8bit: bool
    load_in_4bit: bool
    llm_int8_threshold: float
    llm_int8_skip_modules: list[str] | None
    llm_int8_enable_fp32_cpu_offload: bool
    llm_int8_has_fp16_weight: bool
    bnb_4bit_compute_dtype: torch.dtype
    bnb_4bit_quant_type: str
    bnb_4bit_use_double_quant: bool
    bnb_4bit_quant_storage: torch.dtype

    def __init__(
        self,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        llm_int8_threshold: float = 6.0,
        llm_int8_skip_modules: list[str] | None = None,
        llm_int8_enable_fp32_cpu_offload: bool = False,
        llm_int8_has_fp16_weight: bool = False,
        bnb_4bit_compute_dtype: str | torch.dtype | None = None,
        bnb_4bit_quant_type: str = "fp4",
        bnb_4bit_use_double_quant: bool = False,
        bnb_4bit_quant_storage: str | torch.dtype | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(unknown, "BitsAndBytesConfig()", self.fields)
        given = locals()
        for name in self.fields:
            setattr(self, name, given[name])

    def __setattr__(self, name: str, value: object) -> None:
        refuse_unknown([name] * (name not in self.fields), "BitsAndBytesConfig", self.fields)
        if name in _BOOLEANS:
            _require(name, value, bool, "True or False")
        elif name == "llm_int8_threshold":
            _require(name, value, float, "a float, such as 6.0")
        elif name == "llm_int8_skip_modules":
            _check_modules(value)
        elif name == "bnb_4bit_quant_type":
            _require(name, value, str, "'fp4' or 'nf4'")
            if value not in _QUANT_TYPES:
                raise ConfigError(f"BitsAndBytesConfig.{name} is {value!r}; expected 'fp4' or 'nf4'")
        elif name == "bnb_4bit_compute_dtype":
            value = _dtype(name, value, "float32", _COMPUTE_DTYPES)
        elif name == "bnb_4bit_quant_storage":
            value = _dtype(name, value, "uint8", _STORAGE_DTYPES)
        other = {"load_in_8bit": "load_in_4bit", "load_in_4bit": "load_in_8bit"}.get(name)
        if value and other and self.__dict__.get(other):
            raise ConfigError("BitsAndBytesConfig: load_in_4bit and load_in_8bit are both True; choose one")
        super().__setattr__(name, value)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> BitsAndBytesConfig:
        """Read `quantization_config` of a config.json, as `to_dict` and Transformers write it.

        Raises:
            ConfigError: another method, a field that there is not, or a field's value.
        """
        method = config_dict.get("quant_method", cls.quant_method)
        if method != cls.quant_method:
            raise ConfigError(f"found quant_method {method!r}; BitsAndBytesConfig reads {cls.quant_method!r}")
        values = {key: value for key, value in config_dict.items() if key not in _WRITTEN}
        for key in values.keys() - set(cls.fields):
            raise ConfigError(
                f"quantization_config does not know the field {key!r} ({nearest(key, cls.fields)}); "
                "remove it, or use a version of pixtral that implements it"
            )
        return cls(**values)

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Set fields; returns the arguments that are no fields."""
        for name in self.fields:
            if name in kwargs:
                setattr(self, name, kwargs[name])
        return {name: value for name, value in kwargs.items() if name not in self.fields}

    def to_dict(self) -> dict[str, Any]:
        """The content of `quantization_config` in a config.json."""
        values: dict[str, Any] = {"quant_method": self.quant_method}
        for name in self.fields:
            value = copy.deepcopy(getattr(self, name))
            values[name] = _short(value) if name.endswith(("_dtype", "_storage")) else value
        return {**values, "_load_in_8bit": self.load_in_8bit, "_load_in_4bit": self.load_in_4bit}

    def to_diff_dict(self) -> dict[str, Any]:
        """`to_dict` without the defaults."""
        default = BitsAndBytesConfig().to_dict()
        return {key: value for key, value in self.to_dict().items() if value != default[key]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """As JSON, without the defaults unless use_diff=False."""
        return json.dumps(self.to_diff_dict() if use_diff else self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write every field into a file."""
        pathlib.Path(json_file_path).write_text(self.to_json_string(use_diff=False), encoding="utf-8")

    def is_quantizable(self) -> bool:
        """Whether 4 or 8 bits are asked for."""
        return self.load_in_8bit or self.load_in_4bit

    def quantization_method(self) -> str | None:
        """ "llm_int8", "fp4" or "nf4"; None when neither 4 nor 8 bits are asked for."""
        if self.load_in_8bit:
            return "llm_int8"
        return self.bnb_4bit_quant_type if self.load_in_4bit else None

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self.to_dict().items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BitsAndBytesConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # its fields can be set

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string(use_diff=False)}"


def asks_for_bitsandbytes(values: Mapping[str, Any]) -> bool:
    """Whether a `quantization_config` is one of bitsandbytes; the oldest ones do not name the method."""
    return (
        values.get("quant_method") == BitsAndBytesConfig.quant_method
        or bool(values.get("load_in_4bit"))
        or bool(values.get("load_in_8bit"))
    )


def _require(name: str, value: object, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise WrongFieldType(f"BitsAndBytesConfig.{name} is {value!r}; expected {expected}")


def _check_modules(value: object) -> None:
    where = f"BitsAndBytesConfig.llm_int8_skip_modules is {value!r}"
    if value is None:
        return
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise WrongFieldType(f"{where}; expected a list of names, or None")
    for name in value:
        try:
            re.compile(f"(?:{name})")
        except re.error as error:
            raise ConfigError(f"{where}; expected names or regular expressions, {name!r} is none: {error}") from error


def _dtype(name: str, value: object, default: str, allowed: tuple[str, ...]) -> torch.dtype:
    """A torch dtype from itself, from its name, or from None."""
    import torch  # not at import, since `import pixtral` must not load torch

    given = default if value is None else value
    if not isinstance(given, (str, torch.dtype)) or _short(given) not in allowed:
        known = ", ".join(allowed)
        raise ConfigError(
            f"BitsAndBytesConfig.{name} is {value!r}; expected one of {known} (a torch.dtype or its name)"
        )
    found: torch.dtype = getattr(torch, _short(given))
    return found


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
