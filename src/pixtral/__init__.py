"""Run Mistral's Pixtral vision-language models.

    import pixtral
    print(pixtral.load().chat("What is this?", images="shapes.png").text)

The public names are looked up when they are first used, so that `import pixtral` itself loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pixtral import assets as assets
    from pixtral import errors as errors
    from pixtral.assistant import Answer as Answer
    from pixtral.assistant import Assistant as Assistant
    from pixtral.assistant import load as load
    from pixtral.configuration import BitsAndBytesConfig as BitsAndBytesConfig
    from pixtral.configuration import GenerationConfig as GenerationConfig
    from pixtral.configuration import LlavaConfig as LlavaConfig
    from pixtral.configuration import MistralConfig as MistralConfig
    from pixtral.configuration import PixtralVisionConfig as PixtralVisionConfig
    from pixtral.configuration import QuantizationConfig as QuantizationConfig
    from pixtral.engine.async_engine import AsyncEngine as AsyncEngine
    from pixtral.engine.config import EngineConfig as EngineConfig
    from pixtral.engine.engine import Engine as Engine
    from pixtral.engine.outputs import RequestOutput as RequestOutput
    from pixtral.engine.request import EngineRequest as EngineRequest
    from pixtral.engine.sampling_params import SamplingParams as SamplingParams
    from pixtral.errors import CheckpointError as CheckpointError
    from pixtral.errors import ConfigError as ConfigError
    from pixtral.errors import GenerationError as GenerationError
    from pixtral.errors import ImageError as ImageError
    from pixtral.errors import ImageFetchError as ImageFetchError
    from pixtral.errors import ImageTooLarge as ImageTooLarge
    from pixtral.errors import MissingDependency as MissingDependency
    from pixtral.errors import PixtralError as PixtralError
    from pixtral.errors import PromptError as PromptError
    from pixtral.errors import UnknownArgument as UnknownArgument
    from pixtral.images.limits import ImageLimits as ImageLimits
    from pixtral.images.processors import PixtralImageProcessor as PixtralImageProcessor
    from pixtral.images.processors import PixtralImageProcessorFast as PixtralImageProcessorFast
    from pixtral.images.source import load_image as load_image
    from pixtral.models import LlavaForConditionalGeneration as LlavaForConditionalGeneration
    from pixtral.models import LlavaModel as LlavaModel
    from pixtral.models import MistralForCausalLM as MistralForCausalLM
    from pixtral.models import PixtralVisionModel as PixtralVisionModel
    from pixtral.processing import AutoProcessor as AutoProcessor
    from pixtral.processing import AutoTokenizer as AutoTokenizer
    from pixtral.processing import PixtralProcessor as PixtralProcessor
    from pixtral.sizing import MemoryEstimate as MemoryEstimate
    from pixtral.sizing import estimate as estimate
    from pixtral.streamers import TextIteratorStreamer as TextIteratorStreamer
    from pixtral.streamers import TextStreamer as TextStreamer
    from pixtral.text.mistral import MistralCommonTokenizer as MistralCommonBackend
    from pixtral.text.mistral import MistralCommonTokenizer as MistralCommonTokenizer

__version__ = "0.1.0"

# Where each public name lives: name -> (module, name in it).
_HOME = {
    name: (module, name)
    for module, names in {
        "pixtral.assistant": ("Answer", "Assistant", "load"),
        "pixtral.configuration": (
            "BitsAndBytesConfig",
            "GenerationConfig",
            "LlavaConfig",
            "MistralConfig",
            "PixtralVisionConfig",
            "QuantizationConfig",
        ),
        "pixtral.errors": (
            "CheckpointError",
            "ConfigError",
            "GenerationError",
            "ImageError",
            "ImageFetchError",
            "ImageTooLarge",
            "MissingDependency",
            "PixtralError",
            "PromptError",
            "UnknownArgument",
        ),
        "pixtral.images.limits": ("ImageLimits",),
        "pixtral.images.processors": ("PixtralImageProcessor", "PixtralImageProcessorFast"),
        "pixtral.images.source": ("load_image",),
        "pixtral.engine.async_engine": ("AsyncEngine",),
        "pixtral.engine.config": ("EngineConfig",),
        "pixtral.engine.engine": ("Engine",),
        "pixtral.engine.outputs": ("RequestOutput",),
        "pixtral.engine.request": ("EngineRequest",),
        "pixtral.engine.sampling_params": ("SamplingParams",),
        "pixtral.models": ("LlavaForConditionalGeneration", "LlavaModel", "MistralForCausalLM", "PixtralVisionModel"),
        "pixtral.processing": ("AutoProcessor", "AutoTokenizer", "PixtralProcessor"),
        "pixtral.sizing": ("MemoryEstimate", "estimate"),
        "pixtral.streamers": ("TextIteratorStreamer", "TextStreamer"),
        "pixtral.text.mistral": ("MistralCommonTokenizer",),
    }.items()
    for name in names
} | {"MistralCommonBackend": ("pixtral.text.mistral", "MistralCommonTokenizer")}  # Transformers 5's name

_MODULES = ("assets", "errors")  # to be used as attributes, without importing them

__all__ = [  # written out for tools that read it without running it; a test compares it with _HOME
    "Answer",
    "Assistant",
    "AsyncEngine",
    "AutoProcessor",
    "AutoTokenizer",
    "BitsAndBytesConfig",
    "CheckpointError",
    "ConfigError",
    "Engine",
    "EngineConfig",
    "EngineRequest",
    "GenerationConfig",
    "GenerationError",
    "ImageError",
    "ImageFetchError",
    "ImageLimits",
    "ImageTooLarge",
    "LlavaConfig",
    "LlavaForConditionalGeneration",
    "LlavaModel",
    "MemoryEstimate",
    "MissingDependency",
    "MistralCommonBackend",
    "MistralCommonTokenizer",
    "MistralConfig",
    "MistralForCausalLM",
    "PixtralError",
    "PixtralImageProcessor",
    "PixtralImageProcessorFast",
    "PixtralProcessor",
    "PixtralVisionConfig",
    "PixtralVisionModel",
    "PromptError",
    "QuantizationConfig",
    "RequestOutput",
    "SamplingParams",
    "TextIteratorStreamer",
    "TextStreamer",
    "UnknownArgument",
    "__version__",
    "estimate",
    "load",
    "load_image",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"pixtral.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'pixtral' has no attribute {name!r}")
    module, attribute = _HOME[name]
    value: object = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
