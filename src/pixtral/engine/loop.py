"""From prompts to tokens, one step at a time: the loop beneath generate() and chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pixtral.engine.lookup import PromptLookup
from pixtral.engine.request import FinishReason, Prompt, SequenceState, Step, check_prompt_length, context_length
from pixtral.engine.runner import PREFILL_TOKENS, PackedModel, Runner
from pixtral.engine.sampling import SamplingParams, choose, penalize, seeded_generator, warp
from pixtral.engine.stopping import Decodes, StopStrings
from pixtral.errors import GenerationError

__all__ = [
    "Generation",
    "PackedModel",
    "Prompt",
    "PromptLookup",
    "SamplingParams",
    "SequenceState",
    "Step",
    "context_length",
]

Edit = Callable[[Tensor, list[int]], Tensor]


class Generation:
    """A batch of sequences on their way from prompts to ends.

    The first `step()` runs the prompts, packed, in passes of at most `prefill_tokens`; each later one gives one token
    to every sequence that still goes on. A sequence that ends is not computed any more; the others do not notice.
    Iterate for a plain loop (`for step in generation: ...`), or call `step()` while `running` is not empty.
    """

    def __init__(
        self,
        model: PackedModel,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        *,
        copies: int = 1,
        tokenizer: Decodes | None = None,
        generator: torch.Generator | None = None,
        edit: Edit | None = None,
        use_cache: bool = True,
        prefill_tokens: int = PREFILL_TOKENS,
        kv_cache: str | None = None,
        prompt_lookup: PromptLookup | None = None,
    ) -> None:
        """
        Args:
            model: the network.
            prompts: one or more.
            params: one for each prompt.
            copies: continuations of each prompt; the prompt is computed once and its cache copied.
            tokenizer: needed when a parameter set has stop strings.
            generator: for the draws of sequences without a seed; None is torch's global one.
            edit: changes scores before temperature and filters, given (R, V) and the R indices of sequences.
            use_cache: False computes everything anew at every step; slow, the same tokens.
            prefill_tokens: prompt tokens in one forward pass.
            kv_cache: how keys and values are kept, "bf16" or "int8"; None keeps them in the model's dtype.
            prompt_lookup: check tokens that stood in the text before, several in one forward pass; the same tokens
                come out, in fewer passes where the text repeats itself.

        Raises:
            PromptError: an empty prompt, or one that leaves no room in the context.
            GenerationError: stop strings without a tokenizer, an unknown kind of cache.
        """
        self.edit = edit
        self.generator = generator
        self.sequences = [
            _start(model, index, prompt, p, copy)
            for index, (prompt, p) in enumerate(zip(prompts, params, strict=True))
            for copy in range(copies)
        ]
        self._stops: dict[tuple[str, ...], StopStrings] = {}
        for p in params:
            if p.stop:
                if tokenizer is None or not hasattr(tokenizer, "decode"):
                    found = "none" if tokenizer is None else f"a {type(tokenizer).__name__}"
                    raise GenerationError(
                        f"stop strings {list(p.stop)} need the tokenizer, found {found}; pass tokenizer=..."
                    )
                self._stops[p.stop] = StopStrings(p.stop, tokenizer)
        self._seen: Tensor | None = None
        self._runner = Runner(
            model,
            prompts,
            self.sequences,
            copies=copies,
            use_cache=use_cache,
            prefill_tokens=prefill_tokens,
            kv_cache=kv_cache,
            prompt_lookup=prompt_lookup,
        )

    @property
    def running(self) -> list[int]:
        """Indices of the sequences that have not ended."""
        return [row for row, sequence in enumerate(self.sequences) if sequence.finish_reason is None]

    def finish(self, row: int, reason: FinishReason = "stop") -> None:
        """End a sequence now; its tokens so far stay."""
        if self.sequences[row].finish_reason is None:
            self.sequences[row].finish_reason = reason

    def __iter__(self) -> Iterator[Step]:
        while self.running:
            yield self.step()

    @torch.no_grad()
    def step(self) -> Step:
        """One new token for every running sequence."""
        rows = self.running
        assert rows, "every sequence has ended"
        logits = self._runner.next_logits(rows)
        states = [self.sequences[row] for row in rows]
        params = [state.params for state in states]
        scores = penalize(logits, params, self._seen_rows(rows, logits), [len(state.new_ids) for state in states])
        if self.edit is not None:
            scores = self.edit(scores, rows)
        scores = warp(scores, params)
        chosen = choose(
            scores,
            params,
            [state.generator for state in states],
            shared=self.generator,
            slots=(rows, len(self.sequences)),
        )
        tokens: list[int] = chosen.tolist()
        if self._seen is not None:
            self._seen[rows, chosen] = True
        for state, token in zip(states, tokens, strict=True):
            self._append(state, token)
        return Step(rows, tokens, scores, logits)

    def _append(self, state: SequenceState, token: int) -> None:
        state.new_ids.append(token)
        state.length += 1
        if token in state.params.stop_token_ids:
            state.finish_reason, state.stop_reason = "stop", token
            return
        if state.params.stop:
            stops = self._stops[state.params.stop]
            tail = [*state.prompt_ids[-stops.window :], *state.new_ids[-stops.window :]]
            state.stop_reason = stops.match(tail)
        if state.stop_reason is not None:
            state.finish_reason = "stop"
        elif len(state.new_ids) >= state.limit:
            state.finish_reason = "length"

    def _seen_rows(self, rows: list[int], logits: Tensor) -> Tensor | None:
        """(R, V) bool: tokens that each sequence holds, or None when no sequence asks for it."""
        if all(state.params.repetition_penalty == 1 for state in self.sequences):
            return None
        if self._seen is None:
            vocabulary = logits.shape[-1]
            self._seen = torch.zeros(len(self.sequences), vocabulary, dtype=torch.bool, device=logits.device)
            for row, state in enumerate(self.sequences):
                self._seen[row, [token for token in set(state.prompt_ids) if token < vocabulary]] = True
        return self._seen[rows]


def _start(model: PackedModel, index: int, prompt: Prompt, params: SamplingParams, copy: int) -> SequenceState:
    """The `copy`-th continuation of the `index`-th prompt, before its first step."""
    room = check_prompt_length(index, len(prompt.embeds), model.text_config)
    limit = min(params.max_tokens or room, room)
    generator = None if params.seed is None else seeded_generator(params.seed, copy, model.device)
    return SequenceState(params, prompt.ids, len(prompt.embeds), limit, generator)
