"""Three lines to an answer: load a model, ask it, read the answer."""

from pixtral.assistant.answer import Answer, Estimate, ImageInfo, Timings, Usage
from pixtral.assistant.chat import Assistant, Conversation
from pixtral.assistant.loading import load
from pixtral.assistant.stream import AnswerStream

__all__ = ["Answer", "AnswerStream", "Assistant", "Conversation", "Estimate", "ImageInfo", "Timings", "Usage", "load"]
