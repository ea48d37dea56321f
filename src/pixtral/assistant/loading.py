"""load(): a folder, a Hub id or nothing at all to an Assistant."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from pixtral.assistant.chat import Assistant
from pixtral.assistant.options import resolve_options
from pixtral.errors import ConfigError
from pixtral.images.limits import ImageLimits

if TYPE_CHECKING:
    import torch

    from pixtral.checkpoints.layout import Layout
    from pixtral.checkpoints.placement import DeviceMap, MaxMemory


def load(
    path_or_id: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: DeviceMap = "auto",
    max_memory: MaxMemory = None,
    offload_folder: str | os.PathLike[str] | None = None,
    quantization: str | None = None,
    quantize_vision: bool = False,
    activations: str | None = None,
    quantization_config: object = None,
    threads: int | None = None,
    layout: Layout = "auto",
    tokenizer_mode: str | None = None,
    max_image_size: int | None = None,
    kv_cache: str | None = None,
    prompt_lookup_num_tokens: int | None = None,
    limits: ImageLimits | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    progress: bool = True,
) -> Assistant:
    """Load a model and everything it needs to chat.

        answer = pixtral.load("mistralai/Pixtral-12B-2409").chat("What is this?", images="cat.jpg")

    Args:
        path_or_id: a folder or a Hub id; nothing for the small model inside this package, which knows coloured shapes.
        dtype: "auto" (as stored), a torch dtype or its name.
        device_map: "auto" (a GPU if there is one and the model fits there), "cpu", "cuda", "cuda:1", a torch.device, or
            what else `from_pretrained` takes.
        max_memory: what "auto" may use: {0: "10GiB", "cpu": "30GiB"}; the rest stays on the disk.
        offload_folder: allows "auto" to leave on the disk what finds no room in memory.
        quantization: "int4" or "int8" quantizes the decoder's weights while they are read; None leaves them as stored.
        quantize_vision: also quantize the vision tower's and the projector's weights, in 8 bits.
        activations: "int8" (fast; the default) or "bf16": what goes into quantized layers.
        quantization_config: the same with every setting: a QuantizationConfig or a BitsAndBytesConfig.
        threads: CPU threads of this process, PyTorch's included; as many as there are cores when left out.
        layout: which weights of a folder that holds both layouts: "auto" (Hugging Face's first), "hf", "mistral".
        tokenizer_mode: which tokenizer, "auto", "hf" or "mistral"; that of `layout` when left out.
        max_image_size: longest side in pixels to which images are scaled down; the model's own when left out.
        kv_cache: how keys and values are kept while answering: "bf16", "int8" (half the memory, answers nearly the
            same), or None, in the model's dtype.
        prompt_lookup_num_tokens: check up to this many tokens at once that stood in the text before: the same answers,
            faster where they repeat their prompt. None does not.
        limits: on the images that are read: pixels, bytes, seconds, places.
        revision, token, cache_dir, local_files_only, force_download: for the Hub.
        progress: show a bar while loading, if stderr is a terminal.

    Raises:
        CheckpointError: no such folder or Hub id, or files that are missing, broken or do not fit.
        ConfigError: a configuration or argument that cannot be used.
        GenerationError: an unknown kind of cache, or a number below 1.
    """
    started = time.perf_counter()
    from pixtral.models import LlavaForConditionalGeneration
    from pixtral.processing import AutoProcessor

    if layout not in ("auto", "hf", "mistral"):
        raise ConfigError(f"layout is {layout!r}; expected 'auto', 'hf' or 'mistral'")
    if threads is not None:
        from pixtral.ops.runtime import use_threads

        use_threads(threads)
    resolve_options({"kv_cache": kv_cache, "prompt_lookup_num_tokens": prompt_lookup_num_tokens})  # refused at once
    if path_or_id is None:
        from pixtral.assets import tiny_path

        path_or_id = tiny_path()
    hub: dict[str, Any] = {
        "revision": revision,
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "force_download": force_download,
    }
    processor = AutoProcessor.from_pretrained(path_or_id, tokenizer_mode=tokenizer_mode or layout, **hub)
    model = LlavaForConditionalGeneration.from_pretrained(
        path_or_id,
        dtype=dtype,
        device_map=device_map,
        max_memory=max_memory,
        offload_folder=offload_folder,
        quantization=quantization,
        quantize_vision=quantize_vision,
        activations=activations,
        quantization_config=quantization_config,
        layout=layout,
        progress=progress,
        **hub,
    )
    return Assistant(
        model,
        processor,
        limits=limits,
        max_image_size=max_image_size,
        kv_cache=kv_cache,
        prompt_lookup_num_tokens=prompt_lookup_num_tokens,
        load_seconds=time.perf_counter() - started,
    )
