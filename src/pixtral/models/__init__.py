"""The networks, in plain PyTorch over packed tensors, under Transformers' names of classes and parameters."""

from pixtral.models.llava import LlavaForConditionalGeneration, LlavaModel
from pixtral.models.mistral import MistralForCausalLM
from pixtral.models.vision import PixtralVisionModel

__all__ = ["LlavaForConditionalGeneration", "LlavaModel", "MistralForCausalLM", "PixtralVisionModel"]
