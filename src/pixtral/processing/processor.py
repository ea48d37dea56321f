"""PixtralProcessor: conversations, or text and images, to what the model takes; AutoProcessor finds its files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixtral.batch_feature import BatchFeature
from pixtral.errors import PromptError
from pixtral.images.base import BaseImageProcessor
from pixtral.images.geometry import Grid
from pixtral.messages import Message
from pixtral.processing import prompts
from pixtral.processing.auto import ProcessorFiles, default_image_processor
from pixtral.processing.encoded import EncodedPrompt, encoded_prompt
from pixtral.processing.expansion import (
    GROUPS,
    KNOWN,
    ImageTokens,
    check_counts,
    expand_prompts,
    flatten_per_prompt,
    split_options,
    truncate,
)
from pixtral.text.huggingface import HuggingFaceTokenizer
from pixtral.text.mistral import MistralCommonTokenizer


@dataclass(frozen=True)
class ModalData:
    """How many tokens and patches images take; entries are found by name or attribute."""

    num_image_tokens: list[int]
    num_image_patches: list[int]

    def __getitem__(self, key: str) -> list[int]:
        value: list[int] = getattr(self, key)
        return value


class PixtralProcessor(ProcessorFiles):
    """Text and images in, `input_ids`, `attention_mask`, `pixel_values` and `image_sizes` out.

    Works over both kinds of tokenizer. With a MistralCommonTokenizer prompts are built as ids by mistral-common, and
    images are resized as mistral-common does; `layout` says "mistral" then and "hf" otherwise.

    Args:
        image_processor: a PixtralImageProcessorFast by default, mistral-common's for a MistralCommonTokenizer.
        tokenizer: a HuggingFaceTokenizer or MistralCommonTokenizer.
        patch_size: side of a patch in pixels.
        spatial_merge_size: patches merged into one token along each side; 1 for Pixtral.
        chat_template: Jinja text, in place of the tokenizer's.
        image_token, image_break_token, image_end_token: names of the tokens; their ids come from the tokenizer.

    Raises:
        PromptError: no tokenizer, or one without these tokens.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: HuggingFaceTokenizer | MistralCommonTokenizer | None = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
    ) -> None:
        if tokenizer is None:
            raise PromptError("PixtralProcessor needs a tokenizer; use PixtralProcessor.from_pretrained(folder_or_id)")
        self.tokenizer = tokenizer
        self.layout = "mistral" if isinstance(tokenizer, MistralCommonTokenizer) else "hf"
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        ids = [tokenizer.token_to_id(name) for name in (image_token, image_break_token, image_end_token)]
        if None in ids:
            names = [image_token, image_break_token, image_end_token]
            raise PromptError(f"the tokenizer has no {names[ids.index(None)]!r} token; name the one it has for images")
        self.image_token_id, self.image_break_token_id, self.image_end_token_id = (int(i or 0) for i in ids)
        if image_processor is None:
            image_processor = default_image_processor(tokenizer)
        self.image_processor = image_processor
        self.chat_template = chat_template if chat_template else getattr(tokenizer, "chat_template", None)

    @property
    def image_tokens(self) -> ImageTokens:
        """Names and ids of the tokens that stand for an image."""
        names = self.image_token, self.image_break_token, self.image_end_token
        return ImageTokens(names, self.image_token_id, self.image_break_token_id, self.image_end_token_id)

    @property
    def image_token_ids(self) -> list[int]:
        """The ids of the image, break and end tokens."""
        return self.image_tokens.ids

    @property
    def model_input_names(self) -> list[str]:
        """What a call may return."""
        return list(dict.fromkeys([*self.tokenizer.model_input_names, *self.image_processor.model_input_names]))

    def __call__(self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any) -> BatchFeature:
        """Make prompts and their images ready for the model.

        Args:
            images: anything `load_image` reads, a list of it taken in order over all prompts, or a list for each
                prompt. Every image needs its "[IMG]" in the text.
            text: a prompt or several. Control tokens written in it become ids; "[IMG]" becomes the image's rows of
                tokens, each row ended by "[IMG_BREAK]", the image by "[IMG_END]". None returns the images alone.
            kwargs: padding, truncation, max_length, padding_side, pad_to_multiple_of, add_special_tokens (a second
                beginning of sequence is never added), return_tensors ("pt" unless said otherwise, "np", or None for
                lists), return_mm_token_type_ids; the options of the image processor; `limits`. They may come in
                groups, `text_kwargs={...}`, `images_kwargs={...}`, as well.

        Returns:
            input_ids and attention_mask, both (B, L) int64; with images pixel_values (N, 3, Hmax, Wmax) float32 and
            image_sizes (N, 2) int64, height and width in pixels.

        Raises:
            PromptError: nothing passed, another number of images than of "[IMG]", lists of images that do not fit the
                prompts, or truncation that would cut an image.
            ImageError: an image that cannot be had or used.
            UnknownArgument: a keyword that nobody would read.
        """
        text_options, image_options = split_options(kwargs, "the processor")
        if text is None and images is None:
            raise PromptError("nothing to process: pass text, images, or both")
        if text is None:
            return self._images(images, image_options, text_options["return_tensors"])[0]
        rows = [text] if isinstance(text, str) else text
        if not isinstance(rows, (list, tuple)) or not rows or not all(isinstance(row, str) for row in rows):
            raise PromptError(f"text is {text!r}; expected a string or a non-empty list of strings")
        special = text_options.pop("add_special_tokens", True)
        ids = [prompts.text_to_ids(self.tokenizer, row, special) for row in rows]
        return self._assemble(ids, images, text_options, image_options)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Sequence[object] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "auto",
        processor_kwargs: Mapping[str, Any] | None = None,
        images: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The prompt of a conversation, or of a list of conversations, as text or ready for the model.

        Args:
            conversation: messages in any shape that `pixtral.messages.normalize` takes.
            chat_template: Jinja text in place of the checkpoint's. Refused with a MistralCommonTokenizer.
            tools: JSON schemas, or functions with annotations and a docstring.
            documents: for templates that know them.
            add_generation_prompt: ask for the beginning of an answer.
            continue_final_message: leave the last message open.
            tokenize: False returns the prompt as text, with one "[IMG]" for each image, and opens no image. True
                returns ids, in which control tokens come from the template alone: "[IMG]" in a message stays text.
            return_dict: with `tokenize`, everything a call returns; False only input_ids.
            return_tensors: "auto" is "pt".
            processor_kwargs: what a call takes, as a mapping; it may also stand among `kwargs`.
            images: the images of image parts without a source, in reading order.
            kwargs: what a call takes, and further values for the template; with a MistralCommonTokenizer its own
                options, such as `keep_order`.

        Raises:
            PromptError: the conversation is refused, has an image part without an image, and as in a call.
        """
        known = (*KNOWN, *GROUPS)
        options = {**(processor_kwargs or {}), **{key: value for key, value in kwargs.items() if key in known}}
        variables = {key: value for key, value in kwargs.items() if key not in known}
        for name in ("sanitize_control_tokens", "load_audio_from_video", "return_assistant_tokens_mask"):
            if variables.pop(name, False) and name != "sanitize_control_tokens":  # which is always done here
                raise PromptError(f"{name} is not supported; leave it out")
        if not isinstance(continue_final_message, bool):
            raise PromptError(f"continue_final_message is {continue_final_message!r}; expected True or False")
        if return_tensors != "auto":
            options["return_tensors"] = return_tensors
        if "images" in options:
            images = options.pop("images")
        made = prompts.from_conversations(
            self.tokenizer,
            conversation,
            images=None if images is None else flatten_per_prompt(images)[0],
            template=chat_template or (self.chat_template if self.layout == "hf" else None),
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
            known=known,
        )
        if not tokenize:
            texts = [prompt.text for prompt in made.prompts]
            return texts if made.batched else texts[0]
        made.need_sources()
        text_options, image_options = split_options(options, "apply_chat_template()")
        special = text_options.pop("add_special_tokens", True) and self.layout == "hf"  # the other's are complete
        ids = [prompts.with_special_tokens(self.tokenizer, list(prompt.ids), special) for prompt in made.prompts]
        per_prompt = [list(prompt.sources) for prompt in made.prompts]
        result = self._assemble(ids, per_prompt if any(per_prompt) else None, text_options, image_options)
        return result if return_dict else result["input_ids"]

    def encode(
        self,
        conversation: Sequence[Message],
        *,
        tools: Sequence[object] | None = None,
        max_image_size: int | None = None,
    ) -> EncodedPrompt:
        """The prompt of one conversation as the engine reads it; each image is resized and normalised by itself.

        Args:
            conversation: normalised messages. When the last one is the assistant's, the prompt is left open after it;
                otherwise an answer is opened.
            tools: JSON schemas, or functions with annotations and a docstring.
            max_image_size: longest side in pixels to which images are scaled down; the processor's own by default.

        Raises:
            PromptError: the template refuses the conversation, or an image part has no image.
            ImageError: an image that cannot be used.
        """
        is_open = conversation[-1].role == "assistant"
        made = prompts.from_conversations(
            self.tokenizer,
            conversation,
            images=None,
            template=self.chat_template if self.layout == "hf" else None,
            tools=tools,
            documents=None,
            add_generation_prompt=not is_open,
            continue_final_message=is_open,
            variables={},
            known=KNOWN,
        )
        made.need_sources()
        prompt = made.prompts[0]
        ids = prompts.with_special_tokens(self.tokenizer, list(prompt.ids), self.layout == "hf")
        return self._encode(ids, list(prompt.sources), max_image_size)

    def encode_text(self, text: str, images: Sequence[Any] = (), max_image_size: int | None = None) -> EncodedPrompt:
        """A prompt that is written out, with one "[IMG]" for each image, as the engine reads it.

        Raises:
            PromptError: another number of images than of "[IMG]".
            ImageError: an image that cannot be used.
        """
        return self._encode(prompts.text_to_ids(self.tokenizer, text, True), list(images), max_image_size)

    def _encode(self, ids: list[int], images: list[Any], max_image_size: int | None) -> EncodedPrompt:
        tokens = self.image_tokens
        check_counts([ids], len(images), None, tokens)
        options: dict[str, Any] = {"do_pad": False}
        if max_image_size is not None:
            options["size"] = {"longest_edge": max_image_size}
        made, grids = self._images(images, options, None) if images else ({"pixel_values": []}, [])
        return encoded_prompt(expand_prompts([ids], grids, tokens)[0], grids, made["pixel_values"])

    def num_image_tokens(self, width: int, height: int, **options: Any) -> int:
        """How many tokens of the prompt an image of width x height pixels takes."""
        return self._grid(width, height, options).num_tokens

    def _grid(self, width: int, height: int, options: Mapping[str, Any]) -> Grid:
        side = self.patch_size * self.spatial_merge_size
        return self.image_processor.grid_of(width, height, **{**options, "patch_size": {"height": side, "width": side}})

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> ModalData:
        """Tokens of images of these (height, width) sizes, without opening any."""
        sizes = [] if image_sizes is None else list(image_sizes)
        tokens = [self.num_image_tokens(int(width), int(height), **kwargs) for height, width in sizes]
        return ModalData(tokens, [1] * len(tokens))

    def _images(self, images: Any, options: Mapping[str, Any], kind: Any) -> tuple[BatchFeature, list[Grid]]:
        """The processed images and their grids of tokens."""
        side = self.patch_size * self.spatial_merge_size
        pixels = self.image_processor(
            images, return_tensors=kind, patch_size={"height": side, "width": side}, **options
        )
        sizes = [(int(height), int(width)) for height, width in pixels["image_sizes"]]
        return pixels, [Grid(height // side, width // side) for height, width in sizes]

    def _assemble(
        self,
        ids: list[list[int]],
        images: Any,
        text_options: dict[str, Any],
        image_options: Mapping[str, Any],
    ) -> BatchFeature:
        """Rows of ids with one image token for each image, and the images, as the model takes them."""
        tokens, kind = self.image_tokens, text_options["return_tensors"]
        flat, per_prompt = flatten_per_prompt(images)
        check_counts(ids, len(flat), per_prompt, tokens)
        pixels, grids = self._images(flat, image_options, kind) if flat else (BatchFeature(), [])
        expanded = expand_prompts(ids, grids, tokens)
        lengths = self.tokenizer.lengths(
            text_options.get("padding", False),
            text_options.get("truncation"),
            text_options.get("max_length"),
            text_options.get("pad_to_multiple_of"),
        )
        limit = lengths.max_length if lengths.truncate else None
        side = self.tokenizer.truncation_side
        rows = [
            prompt.ids if limit is None else truncate(prompt, limit, side, index)
            for index, prompt in enumerate(expanded)
        ]
        batch = self.tokenizer.pad(
            {"input_ids": rows},
            padding=lengths.padding,
            max_length=lengths.max_length,
            pad_to_multiple_of=text_options.get("pad_to_multiple_of"),
            padding_side=text_options.get("padding_side"),
            return_attention_mask=text_options.get("return_attention_mask"),
        )
        if text_options.get("return_mm_token_type_ids"):
            image_ids = set(tokens.ids)
            batch["mm_token_type_ids"] = [[int(token in image_ids) for token in row] for row in batch["input_ids"]]
        batch.convert_to_tensors(kind)
        batch.update(pixels)
        return batch

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """The texts of generated ids."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)


class AutoProcessor:
    """Finds the processor of a folder or Hub id, whichever layout it has."""

    def __init__(self) -> None:
        raise TypeError("AutoProcessor is not made by itself; use AutoProcessor.from_pretrained(folder_or_hub_id)")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> PixtralProcessor:
        """As `PixtralProcessor.from_pretrained`."""
        return PixtralProcessor.from_pretrained(pretrained_model_name_or_path, **options)
