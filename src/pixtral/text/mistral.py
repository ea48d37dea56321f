"""MistralCommonTokenizer: Mistral's own tokenizers (tekken.json, *.model.v*), through the mistral-common package.

Control tokens come from the structure of a conversation only: a "[IMG]" or "</s>" in a text is text. Names and
behaviour follow Transformers' class of the same name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixtral.batch_feature import BatchEncoding
from pixtral.errors import PromptError, Refused, refuse
from pixtral.hub import resolve
from pixtral.text import mistral_chat
from pixtral.text.base import TokenizerBase
from pixtral.text.mistral_vocab import MistralVocabulary
from pixtral.text.padding import VERY_LARGE
from pixtral.text.tokenizer_files import find_tokenizer_file, load_tokenizer, save_tokenizer_file

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    from pixtral.images.limits import ImageLimits

_PATTERNS = ("tekken.json", "*.model", "*.model.v*")
OPTIONS = (
    "mode",
    "model_max_length",
    "padding_side",
    "truncation_side",
    "model_input_names",
    "clean_up_tokenization_spaces",
)
_IGNORED = ("_from_auto", "trust_remote_code", "backend", "files_loaded", "_from_pipeline", "_commit_hash", "dtype")


class MistralCommonTokenizer(MistralVocabulary, TokenizerBase):
    """A tokenizer over mistral-common.

    Args:
        tokenizer_path: a tekken.json or a SentencePiece file (*.model.v3, *.model.v7m1, ...).
        mode: "test" adds the beginning of sequence to an encoded text, "finetuning" the end too, and they validate
            conversations differently; a mistral-common ValidationMode works as well.
        model_max_length: in tokens; the length meant where truncation or padding is asked for without one.
        padding_side, truncation_side: "left" or "right".
        model_input_names: what calls return without being asked.
        clean_up_tokenization_spaces: default of `decode`.
    """

    model_input_names: list[str] = ["input_ids", "attention_mask"]  # noqa: RUF012  Transformers reads it off the class

    def __init__(
        self,
        tokenizer_path: str | os.PathLike[str],
        mode: object = "test",
        model_max_length: int = VERY_LARGE,
        padding_side: str = "left",
        truncation_side: str = "right",
        model_input_names: list[str] | None = None,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: object,
    ) -> None:
        refuse({k: v for k, v in kwargs.items() if k not in _IGNORED}, "MistralCommonTokenizer()")
        for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
            if side not in ("left", "right"):
                raise PromptError(f"{name} is {side!r}; expected 'left' or 'right'")
        self._path = Path(tokenizer_path)
        self.tokenizer: MistralTokenizer[Any, Any, Any, Any, Any] = load_tokenizer(self._path, mode)
        self.model_max_length = model_max_length
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.model_input_names = list(model_input_names or type(self).model_input_names)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self._named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        self.image_limits: ImageLimits | None = None
        self.init_kwargs: dict[str, object] = {"tokenizer_path": str(tokenizer_path), "mode": self.mode.value}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *init_inputs: object,
        mode: object = "test",
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = "main",
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> MistralCommonTokenizer:
        """The tokenizer of a folder or Hub id: its tekken.json, else its SentencePiece file of the highest version.

        Raises:
            PromptError: no such file; the message lists what is there.
            CheckpointError: the Hub cannot be reached, or has no such model.
        """
        if init_inputs:
            raise Refused("from_pretrained() takes one folder or Hub id and keyword arguments")
        options = {k: v for k, v in kwargs.items() if k in OPTIONS}
        refuse({k: v for k, v in kwargs.items() if k not in options and k not in _IGNORED}, "from_pretrained()")
        folder = resolve(
            pretrained_model_name_or_path,
            patterns=_PATTERNS if subfolder is None else [f"{subfolder}/{pattern}" for pattern in _PATTERNS],
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        tokenizer = cls(find_tokenizer_file(folder / subfolder if subfolder else folder), mode=mode, **options)
        tokenizer.name_or_path = os.fspath(pretrained_model_name_or_path)
        return tokenizer

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        save_format: str | None = None,
        **kwargs: object,
    ) -> tuple[str, ...]:
        """Copy the tokenizer's file into a folder, made if need be; returns the paths written.

        Args:
            save_directory: where to.
            push_to_hub: not offered; the Hub's own client uploads folders.
            save_format: "mistral" or None. "hf" needs a tokenizer.json, which this tokenizer cannot write.
        """
        unused = {
            key: value for key, value in kwargs.items() if key not in ("token", "commit_message", "repo_id", "private")
        }
        refuse(unused, "save_pretrained()")
        if save_format not in (None, "mistral", "hf"):
            raise PromptError(f"save_format is {save_format!r}; expected 'mistral', 'hf' or None")
        if save_format == "hf" or push_to_hub:
            what = "save_format='hf'" if save_format == "hf" else "push_to_hub=True"
            raise Refused(f"save_pretrained() does not offer {what}; save in Mistral's format to a folder")
        name = "tekken.json" if self.is_tekken else self._path.name
        return (save_tokenizer_file(self._path, Path(save_directory), name),)

    def encode(self, text: Any, text_pair: None = None, add_special_tokens: bool = True, **options: Any) -> Any:
        """The ids of a text (or of a row of ids): a list, or a tensor with `return_tensors`. Options as in a call."""
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def __call__(
        self,
        text: Any = None,
        text_pair: None = None,
        text_target: None = None,
        text_pair_target: None = None,
        add_special_tokens: bool = True,
        padding: object = False,
        truncation: object = None,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: object = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        return_offsets_mapping: bool = False,
        split_special_tokens: bool = False,
        **kwargs: object,
    ) -> BatchEncoding:
        """input_ids and attention_mask of a text, a row of ids, or a list of either.

        Args:
            text: a string, a list of ids, or a list of those.
            add_special_tokens: the beginning of sequence, in "finetuning" mode the end too.
            padding: True or "longest", "max_length", False.
            truncation: True or "longest_first", False; a `max_length` alone asks for it.
            max_length: in tokens; `model_max_length` when left out.
            stride: removed tokens that `overflowing_tokens` repeats from what was kept.
            return_tensors: "pt" or "np"; lists when left out.

        Raises:
            PromptError: pairs of texts, an unknown strategy, an argument this tokenizer does not take.
        """
        if getattr(truncation, "value", truncation) in ("only_first", "only_second"):
            raise PromptError(f"truncation is {truncation!r}; without pairs only True and 'longest_first' make sense")
        refuse(kwargs, "the tokenizer")
        if return_offsets_mapping or split_special_tokens:
            raise Refused(
                "return_offsets_mapping and split_special_tokens are not offered by mistral-common; leave them out"
            )
        if text_pair or text_target or text_pair_target:
            raise Refused("text_pair, text_target and text_pair_target are not supported; pass one text or a list")
        return self._encode_rows(
            text,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_tensors=return_tensors,
            return_attention_mask=return_attention_mask,
            return_overflowing_tokens=return_overflowing_tokens,
            return_special_tokens_mask=return_special_tokens_mask,
            return_length=return_length,
        )

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Sequence[object] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: object = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: object = None,
        return_dict: bool = True,
        reasoning_effort: object = None,
        images: Sequence[object] | None = None,
        keep_order: bool = False,
        **kwargs: object,
    ) -> Any:
        """The prompt of a conversation, or of a list of conversations, built as ids by mistral-common.

        Its images may have any sizes; with `return_tensors` they come back zero-padded to the largest.

        Args:
            conversation: messages in any shape that `pixtral.messages.normalize` takes, or a list of such.
            tools: JSON schemas, or functions with annotations and a docstring.
            add_generation_prompt: changes nothing, since Mistral's prompts need no such mark.
            continue_final_message: leave the last, assistant's, message open.
            tokenize: False returns text, for reading only: encoded again, its control tokens become ordinary text.
            padding, truncation, max_length: of the rows of ids.
            return_tensors: "pt" or "np"; lists when left out.
            return_dict: input_ids, attention_mask, and with images pixel_values (N, 3, H, W) float32 and image_sizes
                (N, 2) height and width in pixels; False returns the ids alone.
            reasoning_effort: for tokenizers of version 15 and later.
            images: the images of image parts without a source, in reading order.
            keep_order: mistral-common moves a message's only image before its text if it follows all of it,
                as the model was trained; True leaves it where it is.
            kwargs: further fields of mistral-common's ChatCompletionRequest.

        Raises:
            PromptError: the conversation is refused, by us or by mistral-common.
            ImageError: an image cannot be had or used.
        """
        if not isinstance(truncation, bool):
            raise Refused(f"truncation is {truncation!r}; apply_chat_template() takes True or False")
        return mistral_chat.apply(
            self,
            conversation,
            images=images,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=tokenize,
            keep_order=keep_order,
            rows={"padding": padding, "truncation": truncation, "max_length": max_length},
            return_tensors=return_tensors,
            return_dict=return_dict,
            request=dict(kwargs) if reasoning_effort is None else {**kwargs, "reasoning_effort": reasoning_effort},
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**{k: v for k, v in self.__dict__.items() if k != "tokenizer"}, "mode": self.mode.value}

    def __setstate__(self, state: dict[str, Any]) -> None:
        mode = state.pop("mode")
        self.__dict__.update(state)
        self.tokenizer = load_tokenizer(self._path, mode)

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self._path)!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, special_tokens={self.special_tokens_map})"
        )
