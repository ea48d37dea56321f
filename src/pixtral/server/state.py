"""The state that all requests share: settings, processor, engine, and the count of active requests."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pixtral.server.errors import ApiError, unavailable
from pixtral.server.images import ImageLoader, RequestImageLimits
from pixtral.server.metrics import Metrics
from pixtral.server.settings import Settings
from pixtral.structured.grammars import Grammars

if TYPE_CHECKING:
    from pixtral.assistant import Assistant
    from pixtral.engine.async_engine import AsyncEngine
    from pixtral.processing import PixtralProcessor

T = TypeVar("T")
_INTERVAL = 0.01  # seconds between two chunks of a stream at least; steps of large models take longer anyway
_WORKERS = 2  # threads that make prompts


@dataclasses.dataclass(eq=False)
class ServerState:
    """The server's state, `app.state.server`.

    Attributes:
        settings: of the server.
        processor: makes token ids and pixels of conversations.
        engine: generates the answers.
        image_loader: fetches and decodes images.
        model_name: the name of the model in requests.
        max_model_len: tokens of prompt and answer together.
        eos_token_ids: tokens that end an answer.
        created: when the model was loaded, in seconds since 1970.
        active: number of requests that are queued or answered.
        draining: whether the server is being stopped.
        workers: threads that make prompts.
        metrics: for Prometheus.
    """

    settings: Settings
    processor: PixtralProcessor
    engine: AsyncEngine
    image_loader: ImageLoader
    model_name: str
    max_model_len: int
    eos_token_ids: tuple[int, ...] = ()
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))
    active: int = 0
    draining: bool = False
    workers: concurrent.futures.Executor = dataclasses.field(
        default_factory=lambda: concurrent.futures.ThreadPoolExecutor(_WORKERS, thread_name_prefix="pixtral-prepare")
    )

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.engine.stats, lambda: self.active)
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @functools.cached_property
    def grammars(self) -> Grammars:
        """The compiler of constraints on answers."""
        return Grammars(self.processor.tokenizer, self.eos_token_ids)

    def enter(self) -> None:
        """Count a request in.

        Raises:
            ApiError: 503 when the server is being stopped, 429 when too many are waiting.
        """
        if self.draining:
            raise unavailable("the server is being stopped and takes no more requests; try again later")
        if not self.engine.is_alive:
            raise unavailable("the engine has stopped; the server must be started anew")
        if self.active >= self.settings.max_num_seqs + self.settings.queue_limit:
            raise ApiError(
                429,
                f"{self.active} requests are being answered or waiting, which is all that is allowed; try again later",
                type="rate_limit_error",
                code="queue_full",
                headers={"retry-after": "1"},
            )
        self.active += 1

    def leave(self) -> None:
        """Count a request out."""
        self.active -= 1
        assert self.active >= 0

    def check_model(self, name: str | None) -> None:
        """Refuse a request for another model."""
        if name is not None and name != self.model_name:
            raise ApiError(
                404, f"the model {name!r} is not served here; use {self.model_name!r}",
                param="model", code="model_not_found",
            )  # fmt: skip

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run a function of some milliseconds in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, work)

    async def wait_until_idle(self, seconds: float) -> bool:
        """Wait until all requests have ended; whether they have within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.active and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        return not self.active

    async def close(self) -> None:
        """Release the threads."""
        await self.image_loader.close()
        self.workers.shutdown(wait=False, cancel_futures=True)


def load_state(settings: Settings) -> ServerState:
    """Load the model and make its engine, which the application starts.

    Raises:
        PixtralError: no such model, or settings that do not fit it.
    """
    from pixtral.assistant import load

    layout: Any = settings.layout
    threads = settings.threads
    assistant = load(
        settings.model,
        dtype=settings.dtype,
        device_map=settings.device_map,
        quantization=settings.quantization,
        quantize_vision=settings.quantize_vision,
        activations=settings.activations,
        threads=1 if settings.model is None and threads is None else threads,  # so small that threads cost time
        layout=layout,
        revision=settings.revision,
        cache_dir=settings.cache_dir,
        local_files_only=settings.local_files_only,
        max_image_size=settings.max_image_size,
        kv_cache=settings.kv_cache,
    )
    return state_of(assistant, settings)


def state_of(assistant: Assistant, settings: Settings) -> ServerState:
    """The state around a loaded model."""
    from pixtral.engine.async_engine import AsyncEngine
    from pixtral.engine.config import EngineConfig, MiB
    from pixtral.engine.engine import Engine
    from pixtral.engine.sampling_params import PromptLookup

    config = EngineConfig(
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache=settings.kv_cache,
        kv_cache_bytes=settings.kv_cache_mb * MiB,
        image_cache_bytes=settings.image_cache_mb * MiB,
        prompt_lookup=None if settings.prompt_lookup is None else PromptLookup(settings.prompt_lookup),
    )
    engine = Engine(
        assistant.model.eval(),
        config,
        tokenizer=assistant.processor.tokenizer,
        eos_token_ids=assistant.eos_token_ids,
    )
    image_loader = ImageLoader(_image_limits(assistant.processor, settings))
    state = ServerState(
        settings,
        assistant.processor,
        AsyncEngine(engine, interval=_INTERVAL),
        image_loader,
        served_name(settings),
        engine.max_model_len,
        tuple(assistant.eos_token_ids),
    )
    state.workers.submit(state.grammars.warm_up)
    return state


def _image_limits(processor: PixtralProcessor, settings: Settings) -> RequestImageLimits:
    """The limits on images of a request."""
    own = processor.image_processor.size["longest_edge"]
    side = min(settings.max_image_size or own, own)
    size = {"longest_edge": side}
    return RequestImageLimits(
        lambda width, height: processor.num_image_tokens(width, height, size=size),
        longest_edge=side,
        max_images=settings.max_images,
        max_pixels=settings.max_image_pixels,
        max_bytes=settings.max_body_bytes,
        max_pdf_pages=settings.max_pdf_pages,
        low_tokens=settings.low_detail_tokens,
        allow_remote=settings.allow_remote_images,
    )


def served_name(settings: Settings) -> str:
    """The name of the model in requests."""
    if settings.served_model_name is not None:
        return settings.served_model_name
    if settings.model is None:
        return "pixtral-tiny"
    folder = Path(settings.model).expanduser()
    return folder.resolve().name if folder.is_dir() else settings.model
