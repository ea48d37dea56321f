"""generate() with Transformers' arguments, over the engine's loop."""

from pixtral.generation.mixin import GenerationMixin
from pixtral.generation.run import GenerateDecoderOnlyOutput

__all__ = ["GenerateDecoderOnlyOutput", "GenerationMixin"]
