"""Arguments of generate(): sorted by kind, merged with configurations and defaults, decided and checked."""

from __future__ import annotations

import dataclasses
import inspect
import numbers
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pixtral.configuration import GenerationConfig
from pixtral.configuration.generation import UNSUPPORTED, refused_setting
from pixtral.engine.model import PREFILL_TOKENS
from pixtral.engine.sampling_params import DEFAULT_NGRAM, PromptLookup, SamplingParams
from pixtral.errors import GenerationError, refuse_unknown

DEFAULT_NEW_TOKENS = 20
MODEL_INPUTS = ("input_ids", "attention_mask", "pixel_values", "image_sizes", "inputs_embeds")
SETTINGS = tuple(field.name for field in dataclasses.fields(GenerationConfig))
EXTRAS = ("generator", "seed", "tokenizer")

# Inputs of forward() that generate() makes itself.
_OWN = "leave it out: generate() makes it itself"
_INPUTS_NOT_TAKEN = {
    "position_ids": "leave it out: positions count the real tokens of attention_mask",
    "past_key_values": "pass the whole prompt",
    "cache_position": _OWN,
    "logits_to_keep": _OWN,
    "labels": "call the model itself for a loss",
    "mm_encoder_outputs": "pass pixel_values, or inputs_embeds that hold the image features",
    "token_type_ids": "leave it out: Pixtral has no token types",
    "mm_token_type_ids": "leave it out: the ids say where images are",
    "vision_feature_layer": "set it in the model's configuration",
    "vision_feature_select_strategy": "set it in the model's configuration",
    "return_dict": "use return_dict_in_generate",
}

# What Transformers assumes when neither the call nor a file says anything.
_DEFAULTS: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "num_return_sequences": 1,
    "use_cache": True,
}


def split_arguments(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Model inputs, settings and extras out of generate()'s keyword arguments.

    Raises:
        UnknownArgument: a name that nobody reads.
        GenerationError: an argument of Transformers that is not implemented, unless it asks for nothing.
    """
    inputs, settings, extras, unknown = {}, {}, {}, []
    for name, value in kwargs.items():
        if name in MODEL_INPUTS:
            inputs[name] = value
        elif name in SETTINGS:
            settings[name] = value
        elif name in EXTRAS:
            extras[name] = value
        elif name in UNSUPPORTED:
            refusal = refused_setting(name, value)
            if refusal:
                raise GenerationError(f"generate(): {refusal}")
        elif name in _INPUTS_NOT_TAKEN:
            if value is not None:
                raise GenerationError(f"generate() takes no {name}; {_INPUTS_NOT_TAKEN[name]}")
        elif name not in ("trust_remote_code", "return_tensors") or value not in (None, False):
            unknown.append(name)
    refuse_unknown(unknown, "generate()", (*MODEL_INPUTS, *SETTINGS, *EXTRAS))
    return inputs, settings, extras


def merge_settings(defaults: GenerationConfig, given: object, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments over the given configuration over the model's own over Transformers' defaults.

    An argument that is None switches the setting off, where a None in a configuration says nothing.
    """
    if given is not None and not isinstance(given, GenerationConfig):
        to_dict = given if isinstance(given, dict) else getattr(given, "to_dict", lambda: None)()
        if not isinstance(to_dict, dict):
            raise GenerationError(
                f"generation_config is {type(given).__name__}, expected pixtral.GenerationConfig or a dictionary"
            )
        given = GenerationConfig.from_dict(to_dict)
    merged: dict[str, Any] = dict(_DEFAULTS)
    for config in (defaults, given):
        if config is not None:
            merged.update({name: value for name in SETTINGS if (value := getattr(config, name)) is not None})
    merged.update(arguments)
    return {name: merged.get(name) for name in SETTINGS}


@dataclasses.dataclass(frozen=True)
class Settings:
    """A GenerationConfig in which everything is decided, for prompts of a known (padded) length."""

    sampling: SamplingParams
    copies: int
    use_cache: bool
    prefill_tokens: int
    kv_cache: str | None
    prompt_lookup: PromptLookup | None
    output_scores: bool
    output_logits: bool
    return_dict: bool
    pad_token_id: int | None


def resolve(
    settings: Mapping[str, Any], arguments: Mapping[str, Any], seed: int | None, length: int, extra: int
) -> Settings:
    """Decide everything.

    Args:
        settings: from `merge_settings`.
        arguments: the settings that the call itself named, for warnings about those without effect.
        seed: of the sequences' own generators.
        length: tokens of a prompt, padding included, that stand in the output (0 with embeddings alone).
        extra: tokens of a prompt that do not (with embeddings alone).

    Raises:
        GenerationError: a value out of range, or settings that contradict each other.
    """
    sample = _flag("do_sample", settings["do_sample"])
    copies = _count("num_return_sequences", settings["num_return_sequences"], 1)
    if copies > 1 and not sample:
        raise GenerationError(
            f"num_return_sequences={copies} would return {copies} times the same greedy answer; add do_sample=True"
        )
    temperature = settings["temperature"]
    if sample and temperature is not None and not _positive(temperature):
        raise GenerationError(
            f"temperature={temperature!r} cannot be sampled with, expected a number above 0; "
            "for the likeliest tokens set do_sample=False"
        )
    eos, pad = special_tokens(settings)
    min_tokens = _new_tokens(settings, "min", length, extra)
    max_tokens = _new_tokens(settings, "max", length, extra)
    if max_tokens is None:
        _warn(
            f"neither max_new_tokens nor max_length is set: at most {DEFAULT_NEW_TOKENS} new tokens are generated, "
            "as in Transformers; set max_new_tokens"
        )
        max_tokens = DEFAULT_NEW_TOKENS
    if min_tokens and min_tokens > max_tokens:
        _warn(
            f"at least {min_tokens} and at most {max_tokens} new tokens are asked for: sequences end at the maximum; "
            "lower min_new_tokens or raise max_new_tokens"
        )
    if settings["max_new_tokens"] is not None and arguments.get("max_length") is not None:
        _warn(
            f"max_length={arguments['max_length']} without effect: max_new_tokens={settings['max_new_tokens']} goes "
            "first; set max_new_tokens instead"
        )
    stop = settings["stop_strings"] or ()
    if not isinstance(stop, (str, list, tuple)):
        raise GenerationError(f"stop_strings is {stop!r}, expected a string or a list of strings")
    sampling = SamplingParams(
        temperature=0.0 if not sample else 1.0 if temperature is None else temperature,
        top_k=settings["top_k"] or 0,
        top_p=1.0 if settings["top_p"] is None else settings["top_p"],
        min_p=settings["min_p"] or 0.0,
        repetition_penalty=1.0 if settings["repetition_penalty"] is None else settings["repetition_penalty"],
        seed=seed,
        max_tokens=max_tokens,
        min_tokens=min_tokens or 0,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=eos,
    )
    if not sample:
        _warn_without_effect(arguments)
    use_cache = settings["use_cache"] is None or _flag("use_cache", settings["use_cache"])
    if not use_cache and arguments.get("kv_cache") is not None:
        _warn(f"kv_cache={arguments['kv_cache']!r} without effect: use_cache=False keeps no keys and values")
    return Settings(
        sampling=sampling,
        copies=copies,
        use_cache=use_cache,
        prefill_tokens=_count("prefill_chunk_size", settings["prefill_chunk_size"] or PREFILL_TOKENS, 1),
        kv_cache=settings["kv_cache"],
        prompt_lookup=_prompt_lookup(settings, arguments),
        output_scores=_flag("output_scores", settings["output_scores"]),
        output_logits=_flag("output_logits", settings["output_logits"]),
        return_dict=_flag("return_dict_in_generate", settings["return_dict_in_generate"]),
        pad_token_id=pad,
    )


def _prompt_lookup(settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> PromptLookup | None:
    num_tokens, size = settings["prompt_lookup_num_tokens"], settings["max_matching_ngram_size"]
    if num_tokens is not None:
        return PromptLookup(num_tokens, DEFAULT_NGRAM if size is None else size)
    if arguments.get("max_matching_ngram_size") is not None:
        _warn(f"max_matching_ngram_size={size} without effect: nothing is looked up; add prompt_lookup_num_tokens=10")
    return None


def special_tokens(settings: Mapping[str, Any]) -> tuple[tuple[int, ...], int | None]:
    """The tokens that end a sequence, and the one that fills the places behind it."""
    eos = _tokens("eos_token_id", settings["eos_token_id"])
    pad = _tokens("pad_token_id", settings["pad_token_id"])
    if len(pad) > 1:
        raise GenerationError(f"pad_token_id is {list(pad)}, expected one token id")
    return eos, (*pad, *eos, None)[0]


def _new_tokens(settings: Mapping[str, Any], bound: str, length: int, extra: int) -> int | None:
    """New tokens out of `{bound}_new_tokens`, or else of `{bound}_length` which counts the prompt."""
    new, total = settings[f"{bound}_new_tokens"], settings[f"{bound}_length"]
    smallest = 1 if bound == "max" else 0
    if new is not None:
        return _count(f"{bound}_new_tokens", new, smallest)
    if total is None:
        return None
    total = _count(f"{bound}_length", total, 0)
    if bound == "max" and total <= length + extra:
        raise GenerationError(
            f"the prompt has {length + extra} tokens with its padding, max_length is {total} and counts them; "
            "raise it, or set max_new_tokens instead"
        )
    return max(total - length - extra, 0)


def _warn_without_effect(arguments: Mapping[str, Any]) -> None:
    neutral: dict[str, Any] = {"top_p": 1, "top_k": 50, "min_p": 0}
    idle = [name for name, value in neutral.items() if arguments.get(name) not in (None, value)]
    if arguments.get("temperature") not in (None, 0, 1):
        idle.append("temperature")
    if idle:
        _warn(f"{', '.join(sorted(idle))} without effect: the likeliest token is taken; add do_sample=True to sample")


def _warn(message: str) -> None:
    """A UserWarning at the line outside this package that led here."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("pixtral."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _positive(value: object) -> bool:
    return isinstance(value, numbers.Real) and float(value) > 0


def _flag(name: str, value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise GenerationError(f"{name} is {value!r}, expected True or False")
    return bool(value)


def _count(name: str, value: object, low: int) -> int:
    if value is None:
        return low
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < low:
        raise GenerationError(f"{name} is {value!r}, expected an integer of at least {low}")
    return int(value)


def _tokens(name: str, value: object) -> tuple[int, ...]:
    """Token ids from None, an integer, several, or a tensor of them."""
    values = value.tolist() if isinstance(value, Tensor) else value
    several: list[Any] = [] if values is None else list(values) if isinstance(values, (list, tuple)) else [values]
    if any(not isinstance(token, numbers.Integral) or isinstance(token, bool) or token < 0 for token in several):
        raise GenerationError(f"{name} is {value!r}, expected token ids, which are integers and not negative")
    return tuple(map(int, several))
