"""The networks, in plain PyTorch over packed tensors, under Transformers' names of classes and parameters."""

from pixtral.models.llava import LlavaForConditionalGeneration, LlavaModel
from pixtral.models.mistral import MistralForCausalLM
from pixtral.models.vision import PixtralVisionModel

NETWORKS = {cls.architecture: cls for cls in (LlavaForConditionalGeneration, MistralForCausalLM, PixtralVisionModel)}
"""Architecture -> class, for what reads checkpoints of any kind."""

__all__ = ["NETWORKS", "LlavaForConditionalGeneration", "LlavaModel", "MistralForCausalLM", "PixtralVisionModel"]
