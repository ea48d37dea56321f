"""Conversations and texts to ids with one image token per image, over either kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pixtral.errors import PromptError, refuse_unknown
from pixtral.messages import Message, first_missing, image_sources, is_batch, normalize
from pixtral.text import mistral_chat, templates
from pixtral.text.control import TokenFinder
from pixtral.text.huggingface import HuggingFaceTokenizer
from pixtral.text.mistral import MistralCommonTokenizer

Tokenizer: TypeAlias = "HuggingFaceTokenizer | MistralCommonTokenizer"


class NativePrompt(str):
    """A prompt as text that remembers its ids.

    Mistral's prompts are ids and have no exact text: "[INST]" in a message and the real one look alike. A processor
    that gets this object back takes the ids; any other string is read as it looks.
    """

    ids: tuple[int, ...]

    def __new__(cls, text: str, ids: Sequence[int]) -> NativePrompt:
        """
        Args:
            text: what the ids look like.
            ids: of the prompt, with one image token for each image.
        """
        prompt = super().__new__(cls, text)
        prompt.ids = tuple(ids)
        return prompt

    def __getnewargs__(self) -> tuple[str, tuple[int, ...]]:  # type: ignore[override]
        return str(self), self.ids


@dataclass(frozen=True)
class Prompt:
    """The ids and the text of a conversation, with one image token for each of `sources`."""

    ids: Sequence[int]
    sources: Sequence[object | None]
    read: Callable[[], str]

    @property
    def text(self) -> str:
        """The prompt as text, made when it is asked for."""
        return self.read()


@dataclass(frozen=True)
class Prompts:
    """Several, or the only one when a single conversation was given."""

    batched: bool
    prompts: list[Prompt] = field(default_factory=list)

    def need_sources(self) -> None:
        """Refuse image parts whose image is nowhere."""
        for index, prompt in enumerate(self.prompts):
            if (missing := first_missing(prompt.sources)) is not None:
                where = f"conversation {index}, image" if self.batched else "image"
                raise PromptError(
                    f"{where} {missing} has no source; give the part 'url', 'path', 'base64' "
                    "or 'image', or pass images=[...]"
                )


def from_conversations(
    tokenizer: Tokenizer,
    conversation: Any,
    *,
    images: Sequence[object] | None,
    template: str | None,
    tools: Sequence[object] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    variables: Mapping[str, Any],
    known: Collection[str],
) -> Prompts:
    """The prompts of one conversation or several. No image is opened.

    Args:
        images: for image parts without a source, in reading order over all conversations.
        template: Jinja text; only for a HuggingFaceTokenizer.
        variables: for the template; with mistral-common, further fields of its request, and `keep_order`.
        known: the options that the caller takes itself, for messages about misspelt ones.

    Raises:
        PromptError: a conversation is refused.
        UnknownArgument: a variable that the template does not read.
    """
    batched = is_batch(conversation)
    conversations = [normalize(item) for item in (conversation if batched else [conversation])]
    conversations = mistral_chat.fill_all_images(conversations, images)
    if isinstance(tokenizer, MistralCommonTokenizer):
        if template is not None or documents is not None:
            raise PromptError(
                "chat_template and documents have no place with a MistralCommonTokenizer, whose prompts are fixed; "
                "leave them out, or load the processor with tokenizer_mode='hf'"
            )
        mistral_chat.check_opening(conversations, add_generation_prompt, continue_final_message)
        made = [_native(tokenizer, messages, tools, continue_final_message, variables) for messages in conversations]
        return Prompts(batched, made)
    source = templates.template_of(tokenizer, template)
    readable = templates.variables_of(source)
    refuse_unknown((name for name in variables if name not in readable), "apply_chat_template()", {*known, *readable})
    _, rendered = templates.render(
        tokenizer,
        conversations,
        template=source,
        tools=tools,
        documents=documents,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        variables=variables,
    )
    made = [
        Prompt(tokenizer.rendered_ids(item), image_sources(messages), lambda item=item: item.text)  # type: ignore[misc]
        for item, messages in zip(rendered, conversations, strict=True)
    ]
    return Prompts(batched, made)


def _native(
    tokenizer: MistralCommonTokenizer,
    messages: Sequence[Message],
    tools: Sequence[object] | None,
    continue_final_message: bool,
    request: Mapping[str, Any],
) -> Prompt:
    request = dict(request)
    keep_order = bool(request.pop("keep_order", False))
    ids = mistral_chat.encode(
        tokenizer,
        messages,
        tools=tools,
        continue_final_message=continue_final_message,
        request=request,
        placeholders=True,
        keep_order=keep_order,
    ).ids
    return Prompt(ids, image_sources(messages), lambda: NativePrompt(tokenizer.readable(ids), ids))


def text_to_ids(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    """The ids of a prompt given as text, the control tokens in it included."""
    if isinstance(text, NativePrompt) and isinstance(tokenizer, MistralCommonTokenizer):
        return list(text.ids)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return with_special_tokens(tokenizer, tokenizer.text_to_ids(text), add_special_tokens)
    ids: list[int] = []
    for is_token, piece in TokenFinder(tokenizer.all_special_tokens).split(text):
        if is_token:
            ids.append(tokenizer.convert_tokens_to_ids(piece))
        else:
            ids += tokenizer.ordinary_ids(piece, first=False)
    return with_special_tokens(tokenizer, ids, add_special_tokens)


def with_special_tokens(tokenizer: Tokenizer, ids: list[int], add: bool) -> list[int]:
    """The ids with what the tokenizer adds, but never a second beginning of sequence."""
    if not add:
        return ids
    begun = bool(ids) and ids[0] == tokenizer.bos_token_id
    added = tokenizer.build_inputs_with_special_tokens(ids[1:] if begun else ids)
    return [ids[0], *added] if begun and added[:1] != ids[:1] else added
