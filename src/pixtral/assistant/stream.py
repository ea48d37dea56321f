"""A prompt on its way to an answer: pieces of text as they come, the finished answer at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from pixtral.assistant.answer import Answer, FinishReason, Timings, Usage
from pixtral.errors import GenerationError
from pixtral.generation.loop import Generation, Prompt
from pixtral.text.stream import StopText, StreamDecoder

if TYPE_CHECKING:
    from pixtral.assistant.options import HowToAnswer
    from pixtral.assistant.prompt import PreparedPrompt
    from pixtral.pretrained import LlavaForConditionalGeneration


class AnswerStream(Iterator[str]):
    """Iterate for the text as it is written; `answer` is the whole of it.

    The vision tower and the prompt run when the first piece is asked for. `stop()` ends the answer early; it may be
    called from a signal handler or another thread.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        prompt: PreparedPrompt,
        how: HowToAnswer,
        load_seconds: float,
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._how = how
        self._load_seconds = load_seconds
        self._stop_text = StopText(how.stops)
        self._stopped = False
        self._text = ""
        self._answer: Answer | None = None
        self._listeners: list[Callable[[Answer], None]] = []
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def answer(self) -> Answer:
        """The finished answer; what has not been read of the stream yet is run now."""
        for _ in self:
            pass
        if self._answer is None:
            raise GenerationError("the stream was broken off by an exception, so there is no answer; ask again")
        return self._answer

    def stop(self) -> None:
        """End the answer after the token in work; it keeps what was written, and its finish_reason is "abort"."""
        self._stopped = True

    def when_done(self, listener: Callable[[Answer], None]) -> None:
        """Call `listener` with the answer as soon as it is complete."""
        self._listeners.append(listener)

    def _run(self) -> Iterator[str]:
        prompt = self._prompt
        if self._stopped:
            self._finish([], "abort", 0.0, 0.0, 0.0, 0.0)
            return
        clock = time.perf_counter()
        generation = self._prefilled()
        image_seconds = time.perf_counter() - clock
        state = generation.sequences[0]
        decoder = StreamDecoder(prompt.tokenizer)
        prompt_seconds = first_token = decoding = 0.0
        while generation.running and not (self._stopped or self._stop_text.found):
            clock = time.perf_counter()
            token = generation.step().tokens[0]
            now = time.perf_counter()
            if len(state.new_ids) == 1:
                prompt_seconds, first_token = now - clock, now - prompt.started
            else:
                decoding += now - clock
            if token not in self._how.sampling.stop_token_ids:
                yield from self._tell(self._stop_text.push(decoder.push(token)))
        assert state.finish_reason != "error", "an error is raised"
        reason: FinishReason = state.finish_reason or "abort"
        if not self._stop_text.found:
            yield from self._tell(self._stop_text.push(decoder.finish()))
        if self._stop_text.found:
            reason = "stop"
        else:
            yield from self._tell(self._stop_text.finish())
        self._finish(state.new_ids, reason, image_seconds, prompt_seconds, first_token, decoding)

    def _tell(self, piece: str) -> Iterator[str]:
        self._text += piece
        if piece:
            yield piece

    @torch.no_grad()
    def _prefilled(self) -> Generation:
        """The tower and the embeddings; the decoder has not run yet."""
        model, prompt = self._model, self._prompt
        pixels = [image.to(model.device, model.dtype) for image in prompt.pixels]
        features = model.encode_images(pixels)
        embeds = model.embed(torch.tensor(prompt.ids, device=model.device), features)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)  # or the tower's seconds would be counted as the prompt's
        return Generation(
            model,
            [Prompt(embeds, tuple(prompt.ids), model.config.image_token_index)],
            [self._how.sampling],
            kv_cache=self._how.kv_cache,
            prompt_lookup=self._how.prompt_lookup,
        )

    def _finish(
        self,
        new_ids: Sequence[int],
        reason: FinishReason,
        image: float,
        prompt: float,
        first_token: float,
        decoding: float,
    ) -> None:
        timings = Timings(
            load=self._load_seconds,
            prepare=self._prompt.seconds,
            image=image,
            prompt=prompt,
            first_token=first_token,
            per_token=decoding / (len(new_ids) - 1) if len(new_ids) > 1 else 0.0,
            total=time.perf_counter() - self._prompt.started,
        )
        usage = Usage(len(self._prompt.ids), self._prompt.image_tokens, len(new_ids))
        messages = self._prompt.continued(self._text)
        self._answer = Answer(self._text, reason, usage, timings, self._prompt.images, messages)
        for listener in self._listeners:
            listener(self._answer)
