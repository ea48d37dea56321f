"""The base class of the configurations, strict about unknown keys, and checks of single fields.

Every message of a check names the field, what was found and what is expected.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from pixtral.errors import ConfigError, nearest
from pixtral.hub import read_json, resolve, saving

# Keys that Transformers writes into the config.json of every model, without a meaning for this one.
_GENERIC_KEYS = """_attn_implementation_autoset _name_or_path add_cross_attention attn_implementation bad_words_ids
    begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id id2label ignore_index is_composition is_decoder is_encoder_decoder
    label2id length_penalty max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores prefix problem_type pruned_heads
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torchscript
    transformers_version typical_p use_bfloat16 unsloth_version unsloth_fixed"""
GENERIC_KEYS = frozenset(_GENERIC_KEYS.split())

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "quick_gelu")
DTYPES = ("float64", "float32", "float16", "bfloat16")

C = TypeVar("C", bound="Config")


@dataclasses.dataclass
class Config:
    """Base of all configurations: a dataclass whose fields carry the names of the checkpoint's file."""

    model_type: ClassVar[str] = ""
    file_name: ClassVar[str] = "config.json"
    ignored_keys: ClassVar[frozenset[str]] = GENERIC_KEYS

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """Build from the content of a JSON file.

        Raises:
            ConfigError: on a key that this configuration does not know, or a `model_type` of another model.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"{cls.__name__} needs a JSON object, found {type(values).__name__}")
        found = values.get("model_type", cls.model_type)
        if cls.model_type and found not in (cls.model_type, ""):
            raise ConfigError(f"found model_type {found!r}, {cls.__name__} reads {cls.model_type!r}")
        values = cls._rename(dict(values))
        known = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in known and key not in cls.ignored_keys:
                raise ConfigError(
                    f"{cls.__name__} does not know the field {key!r} ({nearest(key, known)}); "
                    "remove it, or use a version of pixtral that implements it"
                )
        return cls(**{key: copy.deepcopy(value) for key, value in values.items() if key in known})

    @classmethod
    def _rename(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Rename older spellings of fields; subclasses extend it."""
        if "torch_dtype" in values:
            values.setdefault("dtype", values.pop("torch_dtype"))
            values.pop("torch_dtype", None)
        return values

    def to_dict(self) -> dict[str, Any]:
        """The content of the JSON file that `from_dict` and Transformers read."""
        values: dict[str, Any] = {"model_type": self.model_type} if self.model_type else {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "quantization_config" and value is None:
                continue  # Transformers takes a model for quantized if the key is present
            values[field.name] = value.to_dict() if isinstance(value, Config) else copy.deepcopy(value)
        return values

    @classmethod
    def from_pretrained(
        cls: type[C],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> C:
        """Read the configuration of a folder or of a model on the Hugging Face Hub."""
        folder = resolve(
            pretrained_model_name_or_path,
            patterns=[cls.file_name, "params.json"],
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return cls.from_folder(folder)

    @classmethod
    def from_folder(cls: type[C], folder: pathlib.Path) -> C:
        """Read the configuration from a local folder."""
        return cls.from_dict(read_json(folder / cls.file_name))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the configuration's file into a folder, which is created if needed."""
        text = self.to_json_string()
        with saving(save_directory) as folder:
            (folder / self.file_name).write_text(text, encoding="utf-8")

    def to_json_string(self) -> str:
        """The text of the configuration's file."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# annotation of a field -> (check, name in a message)
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "None": (lambda value: value is None, "null"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (_is_int, "an integer"),
    "float": (lambda value: _is_int(value) or isinstance(value, float), "a number"),
    "str": (lambda value: isinstance(value, str), "a string"),
    "list[int]": (lambda value: isinstance(value, list) and all(map(_is_int, value)), "a list of integers"),
    "list[str]": (
        lambda value: isinstance(value, list) and all(isinstance(x, str) for x in value),
        "a list of strings",
    ),
    "dict[str, Any]": (lambda value: isinstance(value, dict), "an object"),
}


def require_types(config: Any) -> None:
    """Raise ConfigError unless every field holds what its annotation says (sub-configurations are checked apart)."""
    for field in dataclasses.fields(config):
        kinds = [_KINDS[kind] for kind in str(field.type).split(" | ") if kind in _KINDS]
        value = getattr(config, field.name)
        if kinds and not any(fits(value) for fits, _ in kinds):
            expected = " or ".join(name for _, name in kinds)
            raise ConfigError(f"{type(config).__name__}.{field.name} is {value!r}, expected {expected}")


def require_positive(where: str, **values: object) -> None:
    """Raise ConfigError unless every named value is a positive integer."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ConfigError(f"{where}.{name} is {value!r}, expected a positive integer")


def require_between(where: str, low: float, high: float, **values: float) -> None:
    """Raise ConfigError unless low <= value < high for every named number."""
    for name, value in values.items():
        if not low <= value < high:
            raise ConfigError(f"{where}.{name} is {value!r}, expected a number from {low:g} to below {high:g}")


def require_activation(where: str, name: object) -> None:
    """Raise ConfigError unless the activation is one that the layers implement."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"{where} is {name!r}, expected one of {', '.join(ACTIVATIONS)}")


def dtype_name(where: str, value: object) -> str | None:
    """The name of a data type from a name or a torch.dtype."""
    name = None if value is None else str(value).removeprefix("torch.")
    if name not in (None, *DTYPES):
        raise ConfigError(f"{where}.dtype is {value!r}, expected one of {', '.join(DTYPES)}, or null")
    return name


def one_side(where: str, name: str, value: Any) -> int:
    """A side in pixels from an int, or from a pair of equal ints as some files write it."""
    sides = list(value) if isinstance(value, (list, tuple)) else [value]
    if not sides or any(side != sides[0] for side in sides):
        raise ConfigError(f"{where}.{name} is {value!r}; Pixtral's patches are square, expected one integer")
    require_positive(where, **{name: sides[0]})
    return int(sides[0])


def rope_base(where: str, theta: float | None, parameters: dict[str, Any] | None, kind: str) -> float:
    """The rotary base from the flat field, the nested one, or Transformers' default, 10000."""
    if parameters is not None and not isinstance(parameters, dict):
        raise ConfigError(f"{where}.rope_parameters is {parameters!r}, expected an object or null")
    given = dict(parameters or {})
    rope_type = given.pop("rope_type", given.pop("type", kind))
    nested = given.pop("rope_theta", None)
    leftover = {key: value for key, value in given.items() if value is not None}
    if rope_type not in (kind, "default", None) or leftover:
        raise ConfigError(
            f"{where}.rope_parameters asks for rotary type {rope_type!r} with {leftover or 'no options'}; "
            "only the unscaled rotary embedding of Pixtral is implemented"
        )
    if theta is not None and nested is not None and theta != nested:
        raise ConfigError(f"{where} has rope_theta {theta} and rope_parameters with {nested}; give one of them")
    value = theta if theta is not None else nested if nested is not None else 10000.0
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ConfigError(f"{where}.rope_theta is {value!r}, expected a positive number")
    return float(value)
