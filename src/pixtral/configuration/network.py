"""The configurations of the network: vision tower, decoder, and the whole model."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, ClassVar

from pixtral.configuration.base import (
    GENERIC_KEYS,
    Config,
    dtype_name,
    one_side,
    require_activation,
    require_between,
    require_positive,
    require_types,
    rope_base,
)
from pixtral.configuration.params import llava_from_params, llava_to_params
from pixtral.errors import ConfigError
from pixtral.hub import read_json


@dataclasses.dataclass
class PixtralVisionConfig(Config):
    """The vision tower; defaults are Transformers' (every real checkpoint says `hidden_act="silu"`)."""

    model_type: ClassVar[str] = "pixtral"
    ignored_keys: ClassVar[frozenset[str]] = GENERIC_KEYS | {"head_dim", "tie_word_embeddings", "use_cache"}

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 1024
    patch_size: int = 16
    hidden_act: str = "gelu"
    attention_dropout: float = 0.0
    rope_theta: float | None = None
    initializer_range: float = 0.02
    rope_parameters: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None
    dtype: str | None = None
    architectures: list[str] | None = None

    def __post_init__(self) -> None:
        where = "PixtralVisionConfig"
        require_positive(
            where,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_channels=self.num_channels,
        )
        self.image_size = one_side(where, "image_size", self.image_size)
        self.patch_size = one_side(where, "patch_size", self.patch_size)
        require_activation(f"{where}.hidden_act", self.hidden_act)
        self.rope_theta = rope_base(where, self.rope_theta, self.rope_parameters, "axial")
        self.rope_parameters = {"rope_type": "axial", "rope_theta": self.rope_theta}
        self.dtype = dtype_name(where, self.dtype)
        require_types(self)
        require_between(where, 0, 1, attention_dropout=self.attention_dropout)
        require_between(where, 0, float("inf"), initializer_range=self.initializer_range)
        if self.hidden_size % self.num_attention_heads or self.head_dim % 4:
            raise ConfigError(
                f"{where}: {self.hidden_size} channels over {self.num_attention_heads} heads; the two-dimensional "
                "rotary embedding needs a head dimension that is a multiple of 4"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PixtralVisionConfig:
        """Build from the content of a JSON file.

        Raises:
            ConfigError: as for every configuration, and on a `head_dim` that is not hidden_size / num_attention_heads.
        """
        config = super().from_dict(values)
        if values.get("head_dim", config.head_dim) not in (None, config.head_dim):
            raise ConfigError(
                f"PixtralVisionConfig.head_dim is {values['head_dim']!r}, expected {config.hidden_size} channels / "
                f"{config.num_attention_heads} heads = {config.head_dim}; the tower has no other head dimension"
            )
        return config

    @classmethod
    def from_folder(cls, folder: pathlib.Path) -> PixtralVisionConfig:
        """Read from a folder that holds a tower, or a whole Pixtral, of which the tower's part is taken."""
        if not (folder / cls.file_name).exists() and (folder / "params.json").exists():
            return LlavaConfig.from_folder(folder).vision_config
        values = read_json(folder / cls.file_name)
        return cls.from_dict(values.get("vision_config", values))


@dataclasses.dataclass
class MistralConfig(Config):
    """The decoder; defaults are Transformers'.

    `head_dim` is its own field (Pixtral: 128, although 5120 channels / 32 heads would be 160). Left out here it is
    derived from the channels as Transformers does; `from_pretrained` of a model takes it from the weights instead.
    """

    model_type: ClassVar[str] = "mistral"
    ignored_keys: ClassVar[frozenset[str]] = GENERIC_KEYS | {"rope_scaling", "layer_types"}

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_theta: float | None = None
    sliding_window: int | None = 4096
    attention_dropout: float = 0.0
    rope_parameters: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None
    dtype: str | None = None
    architectures: list[str] | None = None

    def __post_init__(self) -> None:
        where = "MistralConfig"
        # a loader then takes head_dim from the weights' shapes instead of the division below
        self.head_dim_is_derived = self.head_dim is None
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        require_positive(where, hidden_size=self.hidden_size, num_attention_heads=self.num_attention_heads)
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        require_positive(
            where,
            vocab_size=self.vocab_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_position_embeddings,
        )
        require_activation(f"{where}.hidden_act", self.hidden_act)
        self.rope_theta = rope_base(where, self.rope_theta, self.rope_parameters, "default")
        self.rope_parameters = {"rope_type": "default", "rope_theta": self.rope_theta}
        self.dtype = dtype_name(where, self.dtype)
        require_types(self)
        require_between(where, 0, 1, attention_dropout=self.attention_dropout, rms_norm_eps=self.rms_norm_eps)
        require_between(where, 0, float("inf"), initializer_range=self.initializer_range)
        if self.sliding_window is not None:
            require_positive(where, sliding_window=self.sliding_window)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{where}: {self.num_attention_heads} query heads cannot share {self.num_key_value_heads} "
                "key-value heads evenly; num_attention_heads must be a multiple of num_key_value_heads"
            )
        if self.head_dim % 2:
            raise ConfigError(f"{where}.head_dim is {self.head_dim}; the rotary embedding needs an even number")

    @classmethod
    def _rename(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._rename(values)
        if values.get("rope_scaling"):
            raise ConfigError(f"MistralConfig.rope_scaling is {values['rope_scaling']!r}; Pixtral has none (null)")
        return values

    @classmethod
    def from_folder(cls, folder: pathlib.Path) -> MistralConfig:
        """Read from a folder that holds a decoder, or a whole Pixtral, of which the decoder's part is taken."""
        if not (folder / cls.file_name).exists() and (folder / "params.json").exists():
            return LlavaConfig.from_folder(folder).text_config
        values = read_json(folder / cls.file_name)
        return cls.from_dict(values.get("text_config", values))


@dataclasses.dataclass
class LlavaConfig(Config):
    """The whole model; defaults are Transformers', except that the sub-configurations are Pixtral's types."""

    model_type: ClassVar[str] = "llava"

    vision_config: PixtralVisionConfig = None  # type: ignore[assignment]  # filled in __post_init__
    text_config: MistralConfig = None  # type: ignore[assignment]
    image_token_index: int = 32000
    image_seq_length: int = 576
    projector_hidden_act: str = "gelu"
    vision_feature_select_strategy: str = "default"
    vision_feature_layer: int | list[int] = -2
    multimodal_projector_bias: bool = True
    tie_word_embeddings: bool = False
    image_break_token_id: int | None = None
    image_end_token_id: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    quantization_config: dict[str, Any] | None = None
    dtype: str | None = None
    architectures: list[str] | None = None
    ignored_keys: ClassVar[frozenset[str]] = GENERIC_KEYS | {"hidden_size", "vocab_size", "use_cache"}

    def __post_init__(self) -> None:
        vision, text = self.vision_config, self.text_config
        for name, part, kind in (("vision", vision, PixtralVisionConfig), ("text", text, MistralConfig)):
            if part is not None and not isinstance(part, (dict, kind)):
                raise ConfigError(f"LlavaConfig.{name}_config is {part!r}, expected an object or a {kind.__name__}")
        self.vision_config = PixtralVisionConfig.from_dict(vision) if isinstance(vision, dict) else vision
        self.text_config = MistralConfig.from_dict(text) if isinstance(text, dict) else text
        self.vision_config = self.vision_config or PixtralVisionConfig()
        self.text_config = self.text_config or MistralConfig()
        if self.projector_hidden_act is None:  # one published file says null and means gelu
            self.projector_hidden_act = "gelu"
        require_activation("LlavaConfig.projector_hidden_act", self.projector_hidden_act)
        if self.vision_feature_select_strategy not in ("default", "full"):
            raise ConfigError(
                f"LlavaConfig.vision_feature_select_strategy is {self.vision_feature_select_strategy!r}, "
                "expected 'full' (Pixtral) or 'default'"
            )
        layers = self.vision_feature_layer
        depth = self.vision_config.num_hidden_layers + 1
        for layer in layers if isinstance(layers, list) and layers else [layers]:
            if not isinstance(layer, int) or isinstance(layer, bool) or not -depth <= layer < depth:
                raise ConfigError(
                    f"LlavaConfig.vision_feature_layer is {layers!r}, expected one or a list of the tower's {depth} "
                    f"states, from {-depth} to {depth - 1}"
                )
        self.dtype = dtype_name("LlavaConfig", self.dtype)
        require_types(self)
        require_between("LlavaConfig", 0, float("inf"), image_token_index=self.image_token_index)
        self.tie_word_embeddings = self.tie_word_embeddings or self.text_config.tie_word_embeddings
        self.text_config.tie_word_embeddings = self.tie_word_embeddings

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> MistralConfig:
        """The decoder's configuration, where Transformers' and accelerate's tools look for vocabulary and lengths.

        Args:
            decoder, encoder: accepted as in Transformers; there is one text configuration.
        """
        return self.text_config

    @property
    def image_token_id(self) -> int:
        """Transformers' second name for `image_token_index`."""
        return self.image_token_index

    @classmethod
    def _rename(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = super()._rename(values)
        if "image_token_id" in values:
            values.setdefault("image_token_index", values.pop("image_token_id"))
            values.pop("image_token_id", None)
        return values

    def to_dict(self) -> dict[str, Any]:
        """As Transformers writes it: what is not set is left out."""
        return {key: value for key, value in super().to_dict().items() if value is not None}

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> LlavaConfig:
        """Read the content of Mistral's `params.json`."""
        return cls(**llava_from_params(params))

    def to_params(self) -> dict[str, Any]:
        """The content of the `params.json` that describes this network."""
        return llava_to_params(self)

    @classmethod
    def from_folder(cls, folder: pathlib.Path) -> LlavaConfig:
        """Read `config.json`, or where there is none Mistral's `params.json`."""
        if not (folder / cls.file_name).exists() and (folder / "params.json").exists():
            return cls.from_params(read_json(folder / "params.json"))
        return super().from_folder(folder)
