"""GenerationConfig: the fields of `generation_config.json` that generation implements."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from pixtral.configuration.base import Config
from pixtral.errors import ConfigError, nearest

# Keys about the origin of a file, without an effect on generation.
ORIGIN_KEYS = frozenset({"_from_model_config", "_commit_hash", "transformers_version", "trust_remote_code"})

_PROCESSOR = "pass a function (input_ids, scores) -> scores as logits_processor"
_SINGLE = "only greedy search and sampling are implemented"
_CACHE = "the cache grows by itself; kv_cache='int8' makes it smaller"
_DRAFT = "leave it out: drafts come from the text itself, with prompt_lookup_num_tokens"

# Transformers' other settings: the values without an effect (null is always one), and what to do instead. A setting is
# implemented or refused, never ignored.
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), _SINGLE),
    "num_beam_groups": ((1,), _SINGLE),
    "diversity_penalty": ((0, 0.0), _SINGLE),
    "length_penalty": ((0, 1, 1.0), _SINGLE),
    "early_stopping": ((False,), _SINGLE),
    "constraints": ((), _SINGLE),
    "force_words_ids": ((), _SINGLE),
    "penalty_alpha": ((0, 0.0), _SINGLE),
    "dola_layers": ((), _SINGLE),
    "low_memory": ((False,), _SINGLE),
    "top_h": ((), "use top_p or min_p"),
    "typical_p": ((1, 1.0), "use top_p or min_p"),
    "epsilon_cutoff": ((0, 0.0), "use min_p"),
    "eta_cutoff": ((0, 0.0), "use min_p"),
    "encoder_repetition_penalty": ((1, 1.0), "use repetition_penalty"),
    "no_repeat_ngram_size": ((0,), _PROCESSOR),
    "encoder_no_repeat_ngram_size": ((0,), _PROCESSOR),
    "bad_words_ids": ((), _PROCESSOR),
    "forced_bos_token_id": ((), _PROCESSOR),
    "forced_eos_token_id": ((), _PROCESSOR),
    "remove_invalid_values": ((False,), _PROCESSOR),
    "exponential_decay_length_penalty": ((), _PROCESSOR),
    "suppress_tokens": (([],), _PROCESSOR),
    "begin_suppress_tokens": (([],), _PROCESSOR),
    "sequence_bias": ((), _PROCESSOR),
    "guidance_scale": ((1, 1.0), _PROCESSOR),
    "watermarking_config": ((), _PROCESSOR),
    "renormalize_logits": ((False,), _PROCESSOR),
    "prefix_allowed_tokens_fn": ((), _PROCESSOR),
    "negative_prompt_ids": ((), _PROCESSOR),
    "negative_prompt_attention_mask": ((), _PROCESSOR),
    "token_healing": ((False,), "end the prompt at a token border"),
    "max_time": ((), "pass a function that looks at the clock as stopping_criteria"),
    "assistant_model": ((), _DRAFT),
    "assistant_early_exit": ((), _DRAFT),
    "assistant_ensemble_weight": ((), _DRAFT),
    "speculation_type": ((), _DRAFT),
    "use_mtp": ((False,), _DRAFT),
    "is_assistant": ((False,), _DRAFT),
    "num_assistant_tokens": ((20,), _DRAFT),
    "num_assistant_tokens_schedule": (("constant",), _DRAFT),
    "assistant_confidence_threshold": ((0.4,), _DRAFT),
    "assistant_lookbehind": ((10,), _DRAFT),
    "target_lookbehind": ((10,), _DRAFT),
    "cache_implementation": (("dynamic", "dynamic_full"), _CACHE),
    "cache_config": (({},), _CACHE),
    "max_cache_len": ((), _CACHE),
    "compile_config": ((), "leave it out: nothing is compiled"),
    "disable_compile": ((True, False), "leave it out: nothing is compiled"),
    "continuous_batching_config": ((), "leave it out"),
    "custom_generate": ((), "write the loop over pixtral.generation.loop.Generation"),
    "synced_gpus": ((False,), "leave it out"),
    "decoder_start_token_id": ((), "start the prompt with the token"),
    "output_attentions": ((False,), "call the model on the finished sequence with output_attentions=True"),
    "output_hidden_states": ((False,), "call the model on the finished sequence with output_hidden_states=True"),
}


def refused_setting(name: str, value: Any) -> str | None:
    """Why a setting of Transformers that is not implemented cannot be taken; None when it asks for nothing."""
    neutral, advice = UNSUPPORTED[name]
    if value is None or any(type(value) is type(other) and value == other for other in neutral):
        return None
    return f"{name}={value!r} is not implemented; {advice}"


@dataclasses.dataclass
class GenerationConfig(Config):
    """Defaults of generate(); every field can be overridden by an argument of the same name.

    None means Transformers' default: greedy, 20 new tokens, temperature 1, top_k 50, top_p 1.

    Attributes:
        max_length: tokens of the longest sequence, prompt and padding included; `max_new_tokens` goes first.
        min_length: no end before this length; `min_new_tokens` goes first.
        stop_strings: strings that end a sequence; generate() needs `tokenizer` for them.
        use_cache: False computes every step anew (slow).
        kv_cache: how keys and values are kept: "bf16", "int8" (half of that, answers nearly the same), or None, in the
            model's dtype.
        prefill_chunk_size: prompt tokens in one forward pass, all sequences together.
        prompt_lookup_num_tokens: where the newest tokens stood in the text before, check up to this many that followed
            them there in one forward pass. The same tokens come out; faster where the answer repeats its prompt.
        max_matching_ngram_size: how many of the newest tokens must stand there, at first; then fewer, down to one (2).
        output_scores, output_logits: with `return_dict_in_generate`, per step what the token was chosen from, and the
            logits as the model gave them.
        pad_token_id: fills the places after a sequence's end; the first end token where there is none.
        eos_token_id: one or several tokens that end a sequence.
    """

    file_name: ClassVar[str] = "generation_config.json"

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int | None = None
    min_new_tokens: int | None = None
    stop_strings: str | list[str] | None = None
    do_sample: bool | None = None
    use_cache: bool | None = None
    kv_cache: str | None = None
    prefill_chunk_size: int | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_return_sequences: int | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    return_dict_in_generate: bool | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GenerationConfig:
        """Build from the content of a JSON file.

        Raises:
            ConfigError: a setting that is not implemented, unless its value asks for nothing, or an unknown one.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"GenerationConfig needs a JSON object, found {type(values).__name__}")
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {}
        for key, value in values.items():
            if key in known:
                kept[key] = value
            elif key in UNSUPPORTED:
                refusal = refused_setting(key, value)
                if refusal:
                    raise ConfigError(f"GenerationConfig: {refusal}")
            elif key not in ORIGIN_KEYS and value is not None:
                raise ConfigError(
                    f"GenerationConfig does not know the field {key!r} ({nearest(key, known)}); "
                    "remove it, or use a version of pixtral that implements it"
                )
        return super().from_dict(kept)

    @classmethod
    def from_model_config(cls, config: Any) -> GenerationConfig:
        """Defaults for a model without a file: the special tokens that its own configuration names."""
        ids = {}
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(config, name, None)
            ids[name] = value if value is not None else getattr(getattr(config, "text_config", None), name, None)
        return cls(**ids)

    def to_dict(self) -> dict[str, Any]:
        """As Transformers writes it: what is not set is left out."""
        return {key: value for key, value in super().to_dict().items() if value is not None}
