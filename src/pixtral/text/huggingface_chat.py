"""Rendering conversations for a HuggingFaceTokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pixtral.errors import PromptError
from pixtral.messages import is_batch, normalize
from pixtral.text.templates import ChatTemplate, Rendered
from pixtral.text.tools import tool_schemas

if TYPE_CHECKING:
    from pixtral.text.huggingface import HuggingFaceTokenizer


def render(
    tokenizer: HuggingFaceTokenizer,
    conversation: Any,
    *,
    template: str | None,
    tools: Sequence[object] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    variables: Mapping[str, object],
) -> tuple[bool, list[Rendered]]:
    """(whether several conversations came, their prompts). Conversations may be normalised already.

    Raises:
        PromptError: no template, or it refuses a conversation.
    """
    source = template_of(tokenizer, template)
    batched = is_batch(conversation)
    conversations = [normalize(item) for item in (conversation if batched else [conversation])]
    compiled = _compiled(source)
    rendered = [
        compiled.render(
            messages,
            tools=tool_schemas(tools),
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            control_tokens=tokenizer.control_tokens,
            variables={**tokenizer.special_tokens_map, **variables},
        )
        for messages in conversations
    ]
    return batched, rendered


def template_of(tokenizer: HuggingFaceTokenizer, template: str | None) -> str:
    """The template to use: the one given, else the tokenizer's own."""
    source = tokenizer.chat_template if template is None else template
    if source is None:
        raise PromptError(
            "the tokenizer has no chat template; pass chat_template=..., or put a chat_template.jinja beside its files"
        )
    return source


def variables_of(source: str) -> frozenset[str]:
    """The names that a template reads."""
    return _compiled(source).variables


@lru_cache(maxsize=16)
def _compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source)
