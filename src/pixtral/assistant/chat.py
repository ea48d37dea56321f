"""Assistant: a model and its processor behind one method, chat(); Conversation: several turns of it."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

from pixtral.assistant.answer import Answer, Estimate
from pixtral.assistant.options import ChatOptions, Conversations, Images, Messages, resolve_options
from pixtral.assistant.prompt import PreparedPrompt, compose, explained, prepare, prepare_raw
from pixtral.assistant.stream import AnswerStream
from pixtral.engine.config import EngineConfig
from pixtral.engine.engine import KEPT_BYTES, Engine
from pixtral.engine.model import PREFILL_TOKENS, cache_dtype, model_version
from pixtral.engine.request import EngineRequest, context_length
from pixtral.engine.shared_engine import SharedEngine
from pixtral.errors import PromptError
from pixtral.images.limits import ImageLimits
from pixtral.messages import Message
from pixtral.ops.kv_cache import token_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from pixtral.models import LlavaForConditionalGeneration
    from pixtral.processing import PixtralProcessor

MAX_TOGETHER = 8  # questions that run at a time; each has a cache of its own


class Assistant:
    """Answers questions about images; `pixtral.load` makes one.

    Questions run on an engine whose caches stay: a prompt that begins like an earlier one costs its new tokens only,
    and an image is encoded once. `reset_cache()` gives the memory back.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: PixtralProcessor,
        *,
        limits: ImageLimits | None = None,
        max_image_size: int | None = None,
        kv_cache: str | None = None,
        prompt_lookup_num_tokens: int | None = None,
        load_seconds: float = 0.0,
    ) -> None:
        """
        Args:
            model, processor: of one checkpoint.
            limits: on the images that are read; `ImageLimits()` when left out.
            max_image_size: longest side in pixels to which images are scaled down; the processor's own (1024 for
                Pixtral-12B) when left out. Fewer pixels make fewer tokens.
            kv_cache, prompt_lookup_num_tokens: of the chats that do not say, see `ChatOptions`.
            load_seconds: for `Answer.timings`.
        """
        self.model = model
        self.processor = processor
        self.limits = limits
        self.max_image_size = max_image_size
        self.kv_cache = kv_cache
        self.prompt_lookup_num_tokens = prompt_lookup_num_tokens
        self.load_seconds = load_seconds
        self._engines: dict[torch.dtype, SharedEngine] = {}  # by number format of the cache
        self._made_for: tuple[int, int] | None = None  # version of the model, tokenizer
        self._lock = threading.Lock()  # of the two

    @overload
    def chat(
        self,
        message: Messages,
        images: Images = None,
        *,
        stream: Literal[False] = False,
        system: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> Answer: ...
    @overload
    def chat(
        self,
        message: Messages,
        images: Images = None,
        *,
        stream: Literal[True],
        system: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> AnswerStream: ...
    @overload
    def chat(
        self,
        message: Conversations,
        images: Sequence[Images] | None = None,
        *,
        stream: Literal[False] = False,
        system: str | None = None,
        **options: Unpack[ChatOptions],
    ) -> list[Answer]: ...

    def chat(
        self,
        message: Any,
        images: Any = None,
        *,
        stream: bool = False,
        system: str | None = None,
        max_new_tokens: int = 512,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        kv_cache: str | None = None,
        prompt_lookup_num_tokens: int | None = None,
        max_matching_ngram_size: int | None = None,
    ) -> Answer | AnswerStream | list[Answer]:
        """Answer a question, or the last message of a conversation; or several of them together.

        Args:
            message: a question; or messages in OpenAI's form, whose images stand in them. When the last one is the
                assistant's, the answer goes on from its words. A list of questions, or of conversations (lists of
                messages), is answered together, which takes less time than one after another; the result is a list.
            images: for a question, an image or a list of them (path, URL, data URI, bytes, PIL image, array, tensor),
                put before the text; for messages, those of the parts `{"type": "image"}` that name no source; for
                several questions, a list with as many entries, None where there is no image.
            stream: give the text piece by piece; the result's `answer` is what is returned otherwise.
            system: how the assistant should behave.
            max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop, kv_cache,
                prompt_lookup_num_tokens, max_matching_ngram_size: see `ChatOptions`.

        Raises:
            PromptError: no question, a conversation that the template refuses, more or fewer images than places, or
                a prompt longer than the context.
            ImageError: an image that cannot be had or read.
            GenerationError: an option out of its range.
        """
        options: ChatOptions = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
            "stop": stop,
            "kv_cache": kv_cache,
            "prompt_lookup_num_tokens": prompt_lookup_num_tokens,
            "max_matching_ngram_size": max_matching_ngram_size,
        }
        if _are_several(message):
            if stream:
                raise PromptError(
                    f"stream=True follows one answer, and {len(message)} conversations were given; ask them one by one"
                )
            return self._chat_together(list(message), images, system, options)
        answer = self._start(self._prepare(message, images, system), options)
        return answer if stream else answer.answer

    def complete(self, prompt: str, images: Images = None, **options: Unpack[ChatOptions]) -> Answer:
        """Go on from a raw prompt, which no template touches; the answer has no messages.

        Args:
            prompt: text in which control tokens count as such, with one "[IMG]" for each image.
            images, options: as in `chat`.
        """
        made = prepare_raw(self.processor, prompt, images, self.limits, self.max_image_size)
        return self._start(made, options).answer

    def explain(self, message: Messages, images: Images = None, *, system: str | None = None) -> str:
        """The prompt as the model reads it, control tokens written out and each image as its grid in braces."""
        return explained(self._prepare(message, images, system), self.processor)

    def conversation(self, system: str | None = None, **options: Unpack[ChatOptions]) -> Conversation:
        """A conversation of several turns, `options` being those of each `chat`."""
        return Conversation(self, system, options)

    def estimate(
        self, message: Messages, images: Images = None, *, system: str | None = None, max_new_tokens: int = 512
    ) -> Estimate:
        """Tokens and memory that a question would take; the model is not run. Arguments as in `chat`."""
        prompt = self._prepare(message, images, system)
        encoded, length = prompt.encoded, context_length(self.model.text_config)
        slots = min(len(encoded.ids) + max_new_tokens, length)
        per_token = token_bytes(self.model.text_config, cache_dtype(self.kv_cache, self.model.dtype))
        return Estimate(len(encoded.ids), encoded.num_image_tokens, length, slots * per_token, prompt.images)

    def reset_cache(self) -> None:
        """Free the memory of keys, values and image features that are kept for later questions."""
        self._engines = {}

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: those of the model's generation configuration, and the tokenizer's own."""
        configured = self.model.generation_config.eos_token_id
        ids: list[int | None] = [*configured] if isinstance(configured, list) else [configured]
        ids.append(self.processor.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(token for token in ids if token is not None and token >= 0))

    def _chat_together(
        self, conversations: list[Any], images: Any, system: str | None, options: ChatOptions
    ) -> list[Answer]:
        given = [None] * len(conversations) if images is None else images
        if not isinstance(given, (list, tuple)) or len(given) != len(conversations):
            found = f"{len(given)} entries" if isinstance(given, (list, tuple)) else f"a {type(given).__name__}"
            raise PromptError(
                f"images is {found} for {len(conversations)} questions; pass a list with one entry for each: an image, "
                "a list of images, or None"
            )
        prompts = [self._prepare(one, some, system) for one, some in zip(conversations, given, strict=True)]
        streams = [self._start(prompt, options) for prompt in prompts]
        try:
            for stream in streams:
                stream.start()
            return [stream.answer for stream in streams]
        finally:
            for stream in streams:
                stream.close()
            if any(engine.cache_bytes > KEPT_BYTES for engine in self._engines.values()):
                self.reset_cache()

    def _start(self, prompt: PreparedPrompt, options: ChatOptions) -> AnswerStream:
        merged: ChatOptions = {**options}
        if merged.get("kv_cache") is None:
            merged["kv_cache"] = self.kv_cache
        if merged.get("prompt_lookup_num_tokens") is None:
            merged["prompt_lookup_num_tokens"] = self.prompt_lookup_num_tokens
        settings = resolve_options(merged)
        self._check_room(prompt)
        sampling = settings.sampling
        if sampling.seed is None and not sampling.greedy:  # so that torch.manual_seed makes answers repeatable
            sampling = dataclasses.replace(sampling, seed=int(torch.randint(2**63 - 1, ())))
        vocabulary = self.model.text_config.vocab_size
        sampling = dataclasses.replace(
            sampling, stop_token_ids=tuple(token for token in self.eos_token_ids if token < vocabulary)
        )
        request = EngineRequest(
            uuid.uuid4().hex,
            prompt.encoded.ids,
            sampling,
            prompt.encoded.images,
            prompt_lookup=settings.prompt_lookup,
        )
        return AnswerStream(lambda: self._engine(settings.kv_cache), request, prompt, self.load_seconds)

    def _engine(self, kv_cache: str | None) -> SharedEngine:
        """The engine for a number format of the cache; a new one where the model or the tokenizer has changed since."""
        made_for = (model_version(self.model), id(self.processor.tokenizer))
        dtype = cache_dtype(kv_cache, self.model.dtype)
        with self._lock:
            if made_for != self._made_for:
                self._engines, self._made_for = {}, made_for
            engine = self._engines.get(dtype)
            if engine is None or engine.failure is not None:
                config = EngineConfig(
                    max_num_seqs=MAX_TOGETHER,
                    max_num_batched_tokens=PREFILL_TOKENS,
                    kv_cache=kv_cache,
                    kv_cache_bytes=None,
                    max_stretch=None,
                )
                engine = SharedEngine(Engine(self.model, config, tokenizer=self.processor.tokenizer))
                self._engines[dtype] = engine
            return engine

    def __getstate__(self) -> dict[str, Any]:
        """Without the engines, which are made anew."""
        return {**vars(self), "_engines": {}, "_made_for": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def _prepare(self, message: Messages, images: Images, system: str | None) -> PreparedPrompt:
        return prepare(self.processor, message, images, system, self.limits, self.max_image_size)

    def _check_room(self, prompt: PreparedPrompt) -> None:
        length, context = len(prompt.encoded.ids), context_length(self.model.text_config)
        if length < context:
            return
        share, advice = "", "shorten the text"
        if prompt.images:
            share = f", {prompt.encoded.num_image_tokens} of them for {len(prompt.images)} image(s)"
            advice = "use fewer images, make them smaller (max_image_size=...), or shorten the text"
        raise PromptError(
            f"the prompt has {length} tokens{share}, but the context of the model is {context}, new tokens included; "
            f"{advice}"
        )

    def __repr__(self) -> str:
        return f"Assistant({self.model.name_or_path!r}, dtype={self.model.dtype}, device={str(self.model.device)!r})"


class Conversation:
    """Several turns, each a continuation of those before it. `messages` holds them, in OpenAI's form."""

    def __init__(self, assistant: Assistant, system: str | None = None, options: ChatOptions | None = None) -> None:
        self.assistant = assistant
        self.system = system
        self.options: ChatOptions = options or {}
        self.messages: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    @overload
    def ask(
        self, question: str, images: Images = None, *, stream: Literal[False] = False, **options: Unpack[ChatOptions]
    ) -> Answer: ...
    @overload
    def ask(
        self, question: str, images: Images = None, *, stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> AnswerStream: ...

    def ask(
        self, question: str, images: Images = None, *, stream: bool = False, **options: Unpack[ChatOptions]
    ) -> Answer | AnswerStream:
        """The next turn; arguments as in `Assistant.chat`, `options` before those of the conversation.

        The turn becomes part of the conversation when its answer is complete, for a stream when it was read to its
        end or stopped. After an error the conversation is as it was.
        """
        turn: list[Message | Mapping[str, Any]] = [*self.messages, *compose(question, images, None)]
        merged: ChatOptions = {**self.options, **options}
        answer = self.assistant.chat(turn, stream=True, **merged)
        answer.when_done(self._remember)
        return answer if stream else answer.answer

    def _remember(self, answer: Answer) -> None:
        self.messages = answer.messages


def _are_several(message: object) -> bool:
    """Whether this is a list of questions or conversations, and not one conversation."""
    several = isinstance(message, (list, tuple)) and bool(message)
    return several and all(isinstance(one, (str, list, tuple)) and not isinstance(one, Mapping) for one in message)  # type: ignore[attr-defined]
