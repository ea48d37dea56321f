"""The one form of a message between callers and tokenizers."""

from __future__ import annotations

from pixtral.messages.conversation import (
    ROLES,
    ImagePart,
    Message,
    Part,
    TextPart,
    ToolCall,
    fill_images,
    first_missing,
    image_sources,
    is_batch,
    normalize,
    to_openai,
)

__all__ = [
    "ROLES",
    "ImagePart",
    "Message",
    "Part",
    "TextPart",
    "ToolCall",
    "fill_images",
    "first_missing",
    "image_sources",
    "is_batch",
    "normalize",
    "to_openai",
]
