"""How to hold a model's weights in fewer bits: the fields of `quantization_config` for our own format."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from pixtral.configuration.checks import require_types
from pixtral.errors import ConfigError, nearest

SCHEMES = {"int4": 4, "int8": 8}


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """Weights of 4 or 8 bits in groups, each with a scale; made while a checkpoint loads, or by `pixtral quantize`.

    Attributes:
        bits: of the decoder's linear layers, 4 or 8.
        group_size: columns that share a scale: 32, 64 or 128. None takes 64 (128 in the tower), and less
            in layers that this does not divide.
        lm_head_bits: of the output layer, 4 or 8; 16 leaves it as it is.
        quantize_vision: also the tower's and the projector's linear layers, in 8 bits.
        activations: "int8" quantizes what goes into a layer on the fly (fast); "bf16" computes with unpacked weights.
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
