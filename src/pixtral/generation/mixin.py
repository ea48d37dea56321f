"""generate(): Transformers' arguments around the engine's loop."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pixtral.configuration import GenerationConfig
from pixtral.engine.model import PackedModel
from pixtral.errors import GenerationError
from pixtral.generation.inputs import make_prompts, read_inputs
from pixtral.generation.loop import Generation
from pixtral.generation.run import GenerateDecoderOnlyOutput, LogitsProcessor, Run, StoppingCriterion, Streamer
from pixtral.generation.settings import merge_settings, resolve, special_tokens, split_arguments


class GenerationMixin:
    """Adds generate() to a model with the packed interface."""

    generation_config: GenerationConfig

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
        *,
        streamer: Streamer | None = None,
        **kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """Continue prompts with new tokens.

        Settings come from the keyword arguments, then `generation_config`, then the model's own
        `generation_config`, then Transformers' defaults (greedy, 20 new tokens).

        Args:
            inputs: (B, S) int64, another name for `input_ids`. Without any prompt the BOS token is one.
            generation_config: settings for this call.
            logits_processor: one or several `(input_ids (B, S), scores (B, V)) -> scores`, called after the
                penalties and before temperature and filters. Rows that have ended come too; what is done to them has
                no effect.
            stopping_criteria: one or several `(input_ids (B, S), scores) -> bool or (B,) bool`; `scores` is the
                tuple of all steps with output_scores, else None.
            streamer: gets the prompt, each step's tokens and the end, which also comes after an error.
            **kwargs: model inputs `input_ids`, `attention_mask` (B, S), padding on any side, `pixel_values` with
                `image_sizes` as the processor makes them (any float dtype), `inputs_embeds` (B, S, C);
                every field of GenerationConfig, of which `prompt_lookup_num_tokens` changes neither the result nor what
                processors, criteria and streamers are given; `seed` (each prompt draws from its own generator, so that
                neither neighbours nor batch size change its tokens; equal prompts draw equal tokens); `generator`
                (torch.Generator for all draws of the call); `tokenizer` for `stop_strings`.

        Returns:
            (B * num_return_sequences, S + new) int64 on the prompt's device: prompt as given, new tokens, then
            `pad_token_id` where a sequence ended earlier; without the prompt when only `inputs_embeds` were given.
            With `return_dict_in_generate` a GenerateDecoderOnlyOutput.
            A sequence that reaches the end of the model's context stops there, whatever `max_new_tokens` says.

        Raises:
            UnknownArgument: a keyword that nobody reads.
            GenerationError: a setting out of range, contradictory, or not implemented.
            PromptError: ids, masks and images that do not fit, or a prompt as long as the context.
            ImageError: pixel_values that are none.
        """
        run = self.generate_steps(
            inputs, generation_config, logits_processor, stopping_criteria, streamer=streamer, **kwargs
        )
        for _ in run:
            pass
        return run.result()

    def generate_steps(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
        *,
        streamer: Streamer | None = None,
        **kwargs: Any,
    ) -> Run:
        """generate() step by step, with its arguments: for chat and for programs that show tokens as they come.

            run = model.generate_steps(**inputs, max_new_tokens=64)
            for step in run:
                print(tokenizer.decode(step.tokens), end="")
            output = run.result()

        Everything is checked, and the images are encoded, before this returns.
        """
        given, arguments, extras = split_arguments(kwargs)
        model = cast(PackedModel, self)
        merged = merge_settings(self.default_generation_config(), generation_config, arguments)
        eos, pad = special_tokens(merged)
        read = read_inputs(model, inputs, given, bos=merged["bos_token_id"], pad=pad, eos=eos)
        length = read.input_ids.shape[1]
        settings = resolve(merged, arguments, extras.get("seed"), length, read.hidden_length)
        _check_generator(extras, model.device)
        processors = _functions("logits_processor", logits_processor)
        criteria = _functions("stopping_criteria", stopping_criteria)
        batch = len(read.input_ids) * settings.copies
        if settings.pad_token_id is None and batch > 1 and (criteria or settings.sampling.stop):
            raise GenerationError("sequences may end at different places, but there is no pad_token_id; pass one")
        prompts = make_prompts(model, read, given.get("pixel_values"), given.get("image_sizes"))
        run = Run(read.input_ids.repeat_interleave(settings.copies, dim=0), settings, processors, criteria, streamer)
        run.generation = Generation(
            model,
            prompts,
            [settings.sampling] * len(prompts),
            copies=settings.copies,
            tokenizer=extras.get("tokenizer"),
            generator=extras.get("generator"),
            edit=run.edit if processors else None,
            use_cache=settings.use_cache,
            prefill_tokens=settings.prefill_tokens,
            kv_cache=settings.kv_cache,
            prompt_lookup=settings.prompt_lookup,
        )
        return run

    def default_generation_config(self) -> GenerationConfig:
        """The model's `generation_config`, or the special tokens of its configuration where it has none."""
        own: GenerationConfig | None = getattr(self, "generation_config", None)
        return GenerationConfig.from_model_config(cast(Any, self).config) if own is None else own


def _functions(name: str, given: Any) -> list[Any]:
    """One function or a list of them (Transformers' lists are lists)."""
    functions = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    for function in functions:
        if not callable(function):
            raise GenerationError(f"{name} holds a {type(function).__name__}, expected functions")
        if inspect.isclass(function):
            raise GenerationError(f"{name} holds the class {function.__name__}, expected an instance of it")
    return functions


def _check_generator(extras: dict[str, Any], device: torch.device) -> None:
    generator = extras.get("generator")
    if generator is None:
        return
    if extras.get("seed") is not None:
        raise GenerationError("generate() got a seed and a generator; the draws can follow one of them")
    if not isinstance(generator, torch.Generator):
        raise GenerationError(f"generator is {type(generator).__name__}, expected torch.Generator (or use seed=...)")
    if generator.device.type != device.type:
        raise GenerationError(f"generator is on {generator.device}, the model on {device}; make it with device=")
